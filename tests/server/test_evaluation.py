"""An evaluation round: real sessions of devices at one end, the aggregators of both modes at the other."""

import os
import random

import msgspec
import numpy as np
import pytest
from device import world

from covey.algorithms.algorithm import Aggregate, ServerState
from covey.algorithms.registry import server_half
from covey.device.effects import AwaitStep, FetchBlob, Finished, GaveUp, SendAbandon, SendReport, SendStep, Train
from covey.device.evaluate import evaluate
from covey.device.session import Session
from covey.device.trainer import OnnxTrainer, TrainingStopped
from covey.plans.evaluation import evaluation_plan
from covey.plans.manifest import PrivacyTerms, SecureTerms
from covey.plans.plan import unpack_plan
from covey.server.aggregator import Aggregator
from covey.server.messages import (
    CloseShard,
    Counted,
    OpenShard,
    ReportArrived,
    ShardClosed,
    StepArrived,
    StepAwaited,
)
from covey.server.secure import SecureAggregator
from covey.types.errors import UpdateRangeError
from covey.types.segments import HEADER
from covey.types.tensors import pack_tensors, unpack_tensors
from covey.wire.framing import decode_update, encode_update
from covey.wire.messages import Joined, Reported, Taken

from . import parts

COUNT = 4
TERMS = PrivacyTerms(mode="secure", min_cohort=3, n_max=100, max_weight=20, secure=SecureTerms(group_size=6))
METRICS = world.plan().manifest.metrics


def plan_data(mode: str) -> bytes:
    base = world.plan() if mode == "plain" else unpack_plan(world.changed(world.plan(), privacy=TERMS))
    return evaluation_plan(base)


def release() -> bytes:
    """Return another model than the candidate: all weights halved."""
    params = unpack_tensors(world.plan().manifest.params, world.checkpoint())
    return pack_tensors({k: 0.5 * v for k, v in params.items()}, world.plan().manifest.params)


def offer(mode: str, *, compared: bool = True, **fields):
    shared = world.ref(release(), "checkpoints") if compared else None
    base = {"mode": mode, "kind": "evaluate", "public_seed": "5e" * 32, "shared": shared}
    return world.assignment(plan_data(mode), **{**base, **fields})


def evaluated(assignment, examples, mode: str = "plain", **policy):
    """Return a session that has evaluated, and the effect that follows."""
    session = Session(world.policy(**policy), seed=os.urandom(32), randomness=os.urandom)
    session.start()
    effect = session.answered(assignment)
    blobs = {"plan": plan_data(mode), "checkpoint": world.checkpoint(), "shared": release()}
    while isinstance(effect, FetchBlob):
        effect = session.fetched(blobs[effect.what])
    if isinstance(effect, Train):
        effect = session.trained(OnnxTrainer().run(effect.job, examples))
    return session, effect


def expected(compared: bool = True) -> dict[str, float]:
    """Return the metric sums over the cohort, from the evaluator alone."""
    plan, sums = world.plan(), dict.fromkeys(METRICS, 0.0)
    differences = []
    for i in range(COUNT):
        both = [
            evaluate(plan, unpack_tensors(plan.manifest.params, p), world.points(5 + i, seed=i))
            for p in (world.checkpoint(), release())
        ]
        sums = {k: v + both[0][k] for k, v in sums.items()}
        differences.append(both[0]["loss"] / both[0]["weight"] - both[1]["loss"] / both[1]["weight"])
    if compared:
        sums |= {"compared": COUNT, "difference": sum(differences), "squares": sum(d * d for d in differences)}
    return sums


def check(aggregate: Aggregate) -> None:
    want = expected()
    assert aggregate.num_devices == COUNT and aggregate.segments == {}
    means = aggregate.means()
    # A header keeps 20 bits behind the point; differences are scaled by 2**10, their squares by 2**20.
    assert means["compared"] == COUNT
    assert means["difference"] == pytest.approx(want["difference"] / COUNT, abs=2.0**-30)
    assert means["difference_squared"] == pytest.approx(want["squares"] / COUNT, abs=2.0**-40)
    for name in METRICS:
        assert aggregate.metrics[name] == pytest.approx(want[name], abs=COUNT * 2.0**-20)
    assert abs(want["difference"]) > 1e-4  # the two models do differ


def test_a_plain_evaluation_opens_the_sums_over_devices():
    manifest = unpack_plan(plan_data("plain")).manifest
    role = Aggregator(parts.POPULATION, manifest)
    role.receive(OpenShard("a", 0, tuple(f"s{i}" for i in range(COUNT))), 0.0)
    for i in range(COUNT):
        _, effect = evaluated(offer("plain", session=f"s{i}"), world.points(5 + i, seed=i))
        assert isinstance(effect, SendReport)
        answer, counted = role.receive(ReportArrived("t", f"s{i}", effect.body), 0.0)
        assert answer.message.message == Reported(counted=True, retry_after_s=0.0)
        assert isinstance(counted.message, Counted)
    (closed,) = role.receive(CloseShard("a"), 0.0)
    check(Aggregate.opened(closed.message.total, manifest.phases[0], manifest.metrics))


def test_a_secure_evaluation_masks_the_header_and_opens_the_same_sums():
    manifest = unpack_plan(plan_data("secure")).manifest
    assignment = offer("secure")
    role = SecureAggregator(parts.POPULATION, manifest, chance=random.Random(0), step_timeout_s=30.0)
    names = [f"s{i}" for i in range(COUNT)]
    told, answers = [], {}

    def route(envelopes):
        for e in envelopes:
            kind, _, ticket = e.to.partition("/")
            told.append(e.message) if kind == "coordinator" else answers.update({ticket: e.message.message})

    route(role.receive(OpenShard("a", 0, tuple(names), assignment), 0.0))
    sessions, effects = {}, {}
    for i, name in enumerate(names):
        sessions[name], effects[name] = evaluated(
            msgspec.structs.replace(assignment, session=name), world.points(5 + i, seed=i), "secure", min_cohort=3
        )
    ready = False
    for _ in range(100):
        for name, effect in effects.items():
            session = sessions[name]
            if isinstance(effect, SendStep):
                route(role.receive(StepArrived(name, name, effect.step, effect.body), 0.0))
                answer = answers.pop(name)
                effects[name] = session.taken(answer) if isinstance(answer, Taken) else session.reported(answer)
            elif isinstance(effect, AwaitStep):
                route(role.receive(StepAwaited(name, name, effect.step), 0.0))
                if name in answers:
                    answer = answers.pop(name)
                    assert isinstance(answer, Joined | bytes)
                    effects[name] = session.told(answer)
        if not ready and all(isinstance(e, AwaitStep) for e in effects.values()):
            ready = True
            route(role.receive(CloseShard("a"), 0.0))
        if all(isinstance(e, Finished) for e in effects.values()):
            break
    (closed,) = [m for m in told if isinstance(m, ShardClosed)]
    check(Aggregate.opened(closed.total, manifest.phases[0], manifest.metrics))


def test_without_a_second_model_only_the_first_is_evaluated():
    _, effect = evaluated(offer("plain", compared=False), world.points(5, seed=0))
    header = np.frombuffer(decode_update(effect.body, {HEADER: 1000})[HEADER], "<f8")
    assert header[-3:].tolist() == [0.0, 0.0, 0.0]
    assert header[2] == 5


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (offer("plain", kind="train"), "kind"),
        (offer("plain", kind="guess"), "kind"),
        (offer("plain", hyper={"lr": 0.1}), "assignment"),
    ],
)
def test_an_assignment_that_the_plan_does_not_do_is_refused(assignment, message):
    session, effect = evaluated(assignment, world.points(5))
    assert isinstance(effect, SendAbandon) and effect.message.reason == "plan_refused"
    outcome = session.abandoned().outcome
    assert isinstance(outcome, GaveUp) and message in str(outcome.error)


def test_a_training_plan_does_not_evaluate():
    session = Session(world.policy(), seed=bytes(32))
    session.start()
    session.answered(world.assignment(kind="evaluate"))
    effect = session.fetched(world.plan_bytes())
    assert isinstance(effect, SendAbandon) and effect.message.reason == "plan_refused"


def test_a_candidate_that_breaks_down_is_counted_as_the_worse_one_and_not_left_out():
    examples = world.points(5)
    broken = pack_tensors(
        {k: np.full_like(v, np.nan) for k, v in unpack_tensors(world.plan().manifest.params, release()).items()},
        world.plan().manifest.params,
    )
    session = Session(world.policy(), seed=bytes(32))
    session.start()
    session.answered(offer("plain", checkpoint=world.ref(broken, "checkpoints")))
    session.fetched(plan_data("plain"))
    session.fetched(broken)
    effect = session.fetched(release())
    effect = session.trained(OnnxTrainer().run(effect.job, examples))
    header = np.frombuffer(decode_update(effect.body, {HEADER: 1000})[HEADER], "<f8")
    assert header[-3:].tolist() == [1.0, 4096.0, 4096.0**2]
    assert np.isfinite(header).all()
    role = Aggregator(parts.POPULATION, unpack_plan(plan_data("plain")).manifest)
    role.receive(OpenShard("a", 0, ("s1",)), 0.0)
    answer, _ = role.receive(ReportArrived("t", "s1", effect.body), 0.0)
    assert isinstance(answer.message.message, Reported)


def test_an_evaluation_stops_between_two_batches():
    session = Session(world.policy(), seed=bytes(32))
    session.start()
    session.answered(offer("plain"))
    session.fetched(plan_data("plain"))
    session.fetched(world.checkpoint())
    effect = session.fetched(release())
    asked = []
    with pytest.raises(TrainingStopped):
        OnnxTrainer().run(effect.job, world.points(20), lambda: asked.append(True) or len(asked) > 5)
    assert len(asked) == 6  # four batches of five under the first model, the second under the second


def test_a_comparison_that_cannot_be_is_refused_in_plain_mode():
    _, effect = evaluated(offer("plain"), world.points(5))
    header = np.frombuffer(decode_update(effect.body, {HEADER: 1000})[HEADER], "<f8").copy()
    manifest = unpack_plan(plan_data("plain")).manifest
    for index, value in ((-3, 2.0), (-3, -1.0), (-2, 5000.0), (-1, 4096.0**2 + 1), (-1, -1.0)):
        lie = header.copy()
        lie[index] = value
        role = Aggregator(parts.POPULATION, manifest)
        role.receive(OpenShard("a", 0, ("s1",)), 0.0)
        answer, _ = role.receive(ReportArrived("t", "s1", encode_update([(HEADER, lie.tobytes())])), 0.0)
        assert isinstance(answer.message.message, UpdateRangeError), (index, value)


def test_the_server_half_moves_nothing():
    half = server_half("evaluation", {})
    params = unpack_tensors(world.plan().manifest.params, world.checkpoint())
    state = ServerState(params, {"w": params["w"]})
    (phase,) = half.phases
    assert phase.shared(state) == state.extra
    assert phase.apply(state, Aggregate(4, 4.0, {}, {})) is state
    assert phase.shared(half.init(params)) == {}
