"""What each device half does differently from Federated Averaging's, and that it is what its paper says."""

import dataclasses

import numpy as np
import pytest

from covey.algorithms.fedbuff import staleness_factor, weighed
from covey.algorithms.registry import parse_algorithm, server_half
from covey.device.child import ChildTrainer
from covey.device.kept import KeptState
from covey.device.trainer import TrainingJob
from covey.types.errors import PlanFormatError, UsageError
from covey.types.segments import HEADER

from .plans import world

SEED = bytes(range(32))
CLIENT = "client-9"  # 12 examples: 3 steps of 4 an epoch, 6 steps
STEPS, LR = 6, 0.3
EPS = float(np.finfo(np.float32).eps)


def trained(algorithm, phase=0, optimizer="sgd", shared=None, kept=None, hyper=None):
    plan, server, trainer, params, dataset = world(algorithm, optimizer)
    broadcast = server.phases[phase].shared(server.init(params)) if shared is None else shared
    job = TrainingJob(plan, phase, params, broadcast, hyper or {}, SEED, kept or {})
    result = trainer.run(job, dataset.train(CLIENT))
    assert phase > 0 or result.num_steps == STEPS
    return result


def model(result):
    """The change of the model itself: SCAFFOLD's is not weighted."""
    return result.segments["model"] / (1.0 if "control" in result.segments else result.weight)


def close(a, b, room=1.0):
    """Two programs of the same mathematics: some 40 roundings in each of six steps, on values below 2."""
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 40 * STEPS * EPS * 2 * room


def test_fedprox_without_its_term_is_fedavg_and_with_it_stays_nearer():
    plain = model(trained("fedavg"))
    close(model(trained("fedprox:mu=0")), plain)
    near = model(trained("fedprox:mu=2"))
    assert np.linalg.norm(near) < 0.8 * np.linalg.norm(plain)
    close(model(trained("fedprox:mu=0", hyper={"mu": 2.0})), near)  # a round may set it


def test_fedprox_trains_under_a_mask_and_what_sends_more_than_a_model_does_not():
    plan, *_ = world("fedprox", compression="mask:0.5|float32")  # built, so checked against JAX
    assert plan.manifest.phases[0].trained_in_place
    for algorithm in ("scaffold", "fednova", "mimelite"):
        with pytest.raises(UsageError):
            world(algorithm, compression="mask:0.5|float32")


def test_scaffold_with_no_variates_is_fedavg_and_its_new_variate_is_the_mean_gradient():
    plain, result = model(trained("fedavg")), trained("scaffold")
    close(model(result), plain)
    close(result.segments["control"], -plain / (STEPS * LR), room=1 / (STEPS * LR))
    for name, value in result.kept.items():
        assert value.shape == {"control/w": (4, 3), "control/b": (3,)}[name]
    flat = np.concatenate([result.kept[k].ravel() for k in sorted(result.kept)])
    assert (flat == result.segments["control"]).all()  # from zero, the change is the variate


def test_scaffold_keeps_its_variate_when_it_trains_in_a_child_process():
    plan, server, trainer, params, dataset = world("scaffold")
    kept = {"control/w": np.full((4, 3), 0.1, "f4"), "control/b": np.full(3, -0.2, "f4")}
    job = TrainingJob(plan, 0, params, server.phases[0].shared(server.init(params)), {}, SEED, kept)
    here, there = (t.run(job, dataset.train(CLIENT)).kept for t in (trainer, ChildTrainer()))
    assert set(there) == set(kept) == set(here)
    for name, value in here.items():
        close(there[name], value)
        assert np.abs(value - kept[name]).max() > 0.01


def test_scaffold_follows_the_difference_of_the_variates():
    """With equal variates of server and device nothing changes; the device's own variate moves by what it sends."""
    rng = np.random.default_rng(3)
    value = {"control/w": rng.standard_normal((4, 3)).astype("f4"), "control/b": rng.standard_normal(3).astype("f4")}
    result = trained("scaffold", shared=value, kept=value)
    close(model(result), model(trained("fedavg")))
    sent = dict(zip(("control/b", "control/w"), np.split(result.segments["control"], [3]), strict=True))
    for name, before in value.items():
        close(result.kept[name].ravel(), before.ravel() + sent[name], room=1 / (STEPS * LR))


def test_scaffold_finds_the_common_optimum_where_fedavg_drifts():
    """Full participation, twelve full-batch steps each: how small the gradient of each one's own objective becomes."""
    ends = {}
    for name in ("fedavg", "scaffold"):
        plan, server, trainer, params, dataset = world(name, batch_size=None, epochs=12)
        state, kept = server.init(params), {}
        for number in range(40):
            results = []
            for client in dataset.client_ids:
                shared = server.phases[0].shared(state)
                job = TrainingJob(plan, 0, state.params, shared, {}, bytes([number]) * 32, kept.get(client, {}))
                results.append(trainer.run(job, dataset.train(client)))
                kept[client] = results[-1].kept
            state = server.phases[0].apply(state, aggregate_of(plan, results))
        sizes = [len(dataset.train(c)["y"]) if name == "fedavg" else 1 for c in dataset.client_ids]
        parts = [gradient(state.params, dataset.train(c)) for c in dataset.client_ids]
        ends[name] = np.linalg.norm(np.average(parts, axis=0, weights=sizes))
    assert ends["scaffold"] < 0.5 * ends["fedavg"]


def aggregate_of(plan, results):
    from covey.algorithms.algorithm import Aggregate
    from covey.types.segments import SegmentSum

    total = SegmentSum(plan.manifest.layout(0))
    for result in results:
        total.fold_reals(result.segments)
    return Aggregate.opened(total, plan.manifest.phases[0], plan.manifest.metrics)


def gradient(params, examples):
    x, y = examples["x"], examples["y"]
    logits = x @ params["w"] + params["b"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return np.concatenate([(x.T @ p / len(y)).ravel(), p.mean(0)])


@pytest.mark.parametrize(
    "optimizer, length", [("sgd", 6.0), ("momentum", sum((1 - 0.9**j) / 0.1 for j in range(1, 7)))]
)
def test_fednova_sends_the_change_per_step_and_how_many(optimizer, length):
    plan, *_ = world("fednova", optimizer)
    result = trained("fednova", optimizer=optimizer)
    close(model(result) * length, model(trained("fedavg", optimizer=optimizer)), room=4.0)
    steps = result.segments["steps"][0] / result.weight * plan.manifest.algorithm.settings["most_steps"]
    assert steps == pytest.approx(length, rel=1e-5)
    assert {s.name: s.codec for s in plan.manifest.phases[0].segments}["steps"] == "float32"


def test_fednova_weighs_steps_and_not_devices():
    """By hand: 1 example and 4 steps, 3 examples and 2 steps; d = 1 and 2; tau = 2.5; x + 2.5 * 7/4."""
    from covey.algorithms.algorithm import Aggregate

    half = server_half("fednova", {"most_steps": 8.0})
    segments = {"model": {"w": np.array([1.0 * 1 + 3 * 2.0])}, "steps": {"value": np.array([(1 * 4 + 3 * 2) / 8])}}
    state = half.init({"w": np.zeros(1, np.float32)})
    after = half.phases[0].apply(state, Aggregate(2, 4.0, {}, segments))
    assert after.params["w"][0] == np.float32(2.5 * 7 / 4)


def test_mimelite_without_momentum_is_fedavg_and_its_second_phase_the_full_gradient():
    close(model(trained("mimelite:beta=0")), model(trained("fedavg")))
    sent = trained("mimelite", phase=1)
    close(sent.segments["gradient"], -trained_fedsgd().segments["model"], room=sent.weight)


def trained_fedsgd():
    plan, _, trainer, params, dataset = world("fedsgd")
    return trainer.run(TrainingJob(plan, 0, params, {}, {}, SEED), dataset.train(CLIENT))


def test_mimelite_steps_by_the_broadcast_momentum():
    """With beta near 1 every step is lr * beta * m, whatever the examples say."""
    rng = np.random.default_rng(4)
    m = {"momentum/w": rng.standard_normal((4, 3)).astype("f4"), "momentum/b": rng.standard_normal(3).astype("f4")}
    moved = model(trained("mimelite:beta=0.9999", shared=m))
    flat = np.concatenate([m["momentum/b"], m["momentum/w"].ravel()])
    # What is left of the gradient is 1e-4 of it, and it is below 3 here.
    assert np.abs(moved + LR * STEPS * 0.9999 * flat).max() < LR * STEPS * 1e-4 * 3 + 40 * STEPS * EPS * 4


def test_a_stale_update_counts_less_and_its_weight_stays():
    result = trained("fedbuff")
    late = weighed(result.segments, 3)
    assert staleness_factor(0) == 1.0 and staleness_factor(3) == 0.5
    assert (late["model"] == result.segments["model"] * np.float32(0.5)).all()
    assert (late[HEADER] == result.segments[HEADER]).all()
    assert all(weighed(result.segments, 0)[name] is value for name, value in result.segments.items())


def test_what_is_kept_is_stored_only_where_the_update_was_counted(tmp_path):
    plan, server, trainer, params, dataset = world("scaffold")
    job = TrainingJob(plan, 0, params, server.phases[0].shared(server.init(params)), {}, SEED)
    store = KeptState(tmp_path / "kept", "p")
    assert store.given(job) is job
    result = store.trained(job, trainer.run(job, dataset.train(CLIENT)))
    store.ended(counted=False)
    assert not (tmp_path / "kept").exists()
    store.trained(job, result)
    store.ended(counted=True)
    again = KeptState(tmp_path / "kept", "p").given(job)
    assert {k: v.tobytes() for k, v in again.kept.items()} == {k: v.tobytes() for k, v in result.kept.items()}
    assert KeptState(tmp_path / "kept", "another").given(job) is job
    (file,) = (tmp_path / "kept").glob("*/*")
    file.write_bytes(b"damaged")
    assert store.given(job) is job  # a damaged file: it begins anew


def test_a_state_of_other_tensors_is_refused():
    plan, server, trainer, params, dataset = world("scaffold")
    shared = server.phases[0].shared(server.init(params))
    job = TrainingJob(plan, 0, params, shared, {}, SEED, {"control/w": np.zeros(3, np.float32)})
    with pytest.raises(PlanFormatError, match="kept state"):
        trainer.run(job, dataset.train(CLIENT))


@pytest.mark.parametrize(
    "text, words",
    [
        ("fedprx", ["fedprox"]),
        ("scafold", ["scaffold"]),
        ("fedadam:beta3=1", ["beta1", "beta2"]),
        ("fedprox:mu=-1", ["from 0 to 10"]),
        ("fedprox:mu=high", ["high"]),
        ("fedavg:mu=1", ["none"]),
    ],
)
def test_a_misspelt_choice_names_what_is_near(text, words):
    with pytest.raises(UsageError) as caught:
        parse_algorithm(text)
    assert all(w in f"{caught.value} {caught.value.hint}" for w in words)


def test_parameters_reach_the_plan():
    plan, *_ = world("fedadam:beta1=0.8,tau=0.01")
    settings = plan.manifest.algorithm.settings
    assert settings == {"server_lr": 0.01, "beta1": 0.8, "beta2": 0.99, "tau": 0.01}
    assert dataclasses.asdict(parse_algorithm("fedprox"))["parameters"] == {"mu": 0.01}
