"""Differential privacy on the server: charged before it is opened, never refunded, divided by a constant."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest
from device import world
from device.test_private import SETTING, private_plan, source
from privacy.sources import seeded

from covey.plans.plan import unpack_plan
from covey.privacy.accounting import epsilon
from covey.privacy.contribution import contribute
from covey.privacy.ledger import spent_by
from covey.server.coordinator import Coordinator, CoordinatorState
from covey.server.messages import ChangeTask, CloseShard, Counted, DevicesSelected, Reply, ShardClosed, WantDevices
from covey.server.private import PrivateSums
from covey.server.settings import RoundSettings
from covey.storage.interface import decode_named
from covey.storage.memory import MemoryStorage
from covey.types.errors import BudgetExhaustedError, SeededNoiseError, StorageFullError, UsageError
from covey.types.segments import HEADER, SegmentSum
from covey.types.tensors import unpack_tensors

from . import parts

P = parts.POPULATION
SETTINGS = RoundSettings(goal=10, over_selection=1.3, min_fraction=0.4)


def stored(plan: bytes, storage=None):
    storage = MemoryStorage() if storage is None else storage
    return parts.begin(storage, plan, SETTINGS)


def total_of(sums: PrivateSums, manifest, updates, label=0):
    """Return the shard's sum of devices with these updates."""
    total = SegmentSum(manifest.layout(0))
    header = np.zeros(manifest.layout(0)[0].length)
    header[:2] = 1.0
    for i, update in enumerate(updates):
        made = contribute(sums.mechanism, {"model": update}, sums.clip, seeded(label, i))
        values = {HEADER: header, "model": made.vectors["model"].astype(np.float32)}
        if made.count is not None:
            values["clip_count"] = np.array([made.count], np.float64)
        total.fold_reals(values)
    return total


def private_sums(plan: bytes, storage, **fields):
    manifest = unpack_plan(plan).manifest
    return PrivateSums(storage.tasks(P)[0], manifest, source(), **fields), manifest


def zeros(count):
    return [np.zeros(parts.LENGTH, np.float32)] * count


def test_the_aggregate_has_the_public_denominator_and_no_metrics():
    plan = private_plan("gaussian:clip=2,noise=0.001")
    storage = stored(plan)
    sums, manifest = private_sums(plan, storage)
    update = np.full(parts.LENGTH, 0.25, np.float32)  # length .71: within the clip
    total = total_of(sums, manifest, [update] * 7)
    aggregate = sums.open(storage, total, 0, 1, "a")
    assert (aggregate.num_devices, aggregate.weight, aggregate.metrics) == (7, 10.0, {})
    assert aggregate.means() == {}
    flat = np.concatenate([v.reshape(-1) for v in aggregate.segments["model"].values()])
    # Noise of 0.001 * 2 and seven roundings of 2 / 65536.
    assert flat == pytest.approx(np.full(parts.LENGTH, 7 * 0.25), abs=6 * 0.002 + 7 * 2 / 65536)
    assert (total.integers("model") == 0).all()  # cleared


@pytest.mark.parametrize(
    "spec", ["gaussian:clip=2,noise=1.5", "discrete-gaussian:clip=2,noise=1.5", "skellam:clip=2,noise=1.5"]
)
def test_the_opened_noise_has_the_promised_size(spec):
    plan = private_plan(spec)
    storage = stored(plan)
    sums, manifest = private_sums(plan, storage)
    values = []
    for i in range(300):
        aggregate = sums.open(storage, total_of(sums, manifest, zeros(6), label=i), 0, i + 1, "a")
        values += [v for t in aggregate.segments["model"].values() for v in t.reshape(-1)]
    # Four survivors were promised and six came: shares of six.
    wanted = 3.0**2 * (6 / SETTING.min_survivors if sums.mechanism.distributed else 1)
    assert np.var(values) == pytest.approx(wanted, rel=6 * math.sqrt(2.1 / len(values)))


def test_a_tree_adds_up_to_less_than_independent_noise():
    plan = private_plan("tree:clip=2,noise=1.5,max_participation=1")
    storage = stored(plan)
    sums, manifest = private_sums(plan, storage)
    prefix = np.zeros(parts.LENGTH)
    for i in range(4):
        aggregate = sums.open(storage, total_of(sums, manifest, zeros(4)), 0, i + 1, "a")
        prefix += np.concatenate([v.reshape(-1) for v in aggregate.segments["model"].values()])
    assert len(storage.privacy_charges(P)) == 1  # the whole tree, before its first sum
    # Four rounds are one tree of height 2, of variance 0.57 * 9; independent noise would have 36. 8 coordinates: the
    # chance that a chi-square of 8 is beyond 50 is 4e-8.
    assert (prefix**2).sum() / (0.572 * 9) < 50


class Named:
    """A simulation's source of noise."""

    private = False

    def named(self, *labels):
        return seeded(*labels)

    def fill(self, out):
        raise AssertionError("a tree's noise has streams of its own")


@pytest.mark.parametrize("stop", range(1, 11))
def test_a_simulation_draws_its_tree_again_where_it_stopped(stop):
    """Trees of four sums each: the second one, and the third, begin where the one before ended, and are paid for."""
    plan = private_plan("tree:clip=2,noise=1.5,max_participation=1")
    manifest = unpack_plan(plan).manifest
    manifest = msgspec.structs.replace(
        manifest,
        privacy=msgspec.structs.replace(
            manifest.privacy, noise=msgspec.structs.replace(manifest.privacy.noise, num_rounds=4)
        ),
    )

    def opened(sums, storage, numbers):
        out = []
        for number in numbers:
            aggregate = sums.open(storage, total_of(sums, manifest, zeros(4)), 0, number, "a")
            out += [v.tolist() for v in aggregate.segments["model"].values()]
        return out

    storage = stored(plan)
    record = storage.tasks(P)[0]
    whole = PrivateSums(record, manifest, Named(), simulated=True)
    before = opened(whole, storage, range(1, stop + 1))
    kept = whole.state({"own": np.zeros(2)})
    again = PrivateSums(record, manifest, Named(), simulated=True)
    assert list(again.begin(storage, {}, kept)) == ["own"]
    paid = len(storage.privacy_charges(P))
    assert paid == -(-stop // 4)
    after = opened(again, storage, range(stop + 1, 13))
    assert len(storage.privacy_charges(P)) == 3
    assert before + after == opened(PrivateSums(record, manifest, Named(), simulated=True), stored(plan), range(1, 13))


def test_a_deployment_keeps_nothing_of_a_tree():
    plan = private_plan("tree:clip=2,noise=1.5,max_participation=1")
    storage = stored(plan)
    sums, manifest = private_sums(plan, storage)
    first = [sums.open(storage, total_of(sums, manifest, zeros(4)), 0, i, "a") for i in (1, 2)]
    assert first and sums.state({}) == {}
    after, _ = private_sums(plan, storage)
    after.begin(storage, {}, sums.state({}))
    after.open(storage, total_of(after, manifest, zeros(4)), 0, 3, "b")
    assert len(storage.privacy_charges(P)) == 2  # another tree, and paid for


def test_charged_before_anything_is_read():
    """Law: a sum is charged before anything of it is read."""
    plan = private_plan("gaussian:clip=2,noise=1,budget=5")

    class Watched(SegmentSum):
        reads = 0

        def integers(self, name):
            Watched.reads += 1
            return super().integers(name)

        def reals(self, name):
            Watched.reads += 1
            return super().reals(name)

    class Full(MemoryStorage):
        def charge_privacy(self, population, charges, admit):
            raise StorageFullError("disk", expected="room", got="none")

    for storage, expected in ((stored(plan, Full()), StorageFullError), (stored(plan), BudgetExhaustedError)):
        sums, manifest = private_sums(plan, storage)
        if expected is BudgetExhaustedError:
            while sums.affordable(storage):
                sums.open(storage, total_of(sums, manifest, zeros(4)), 0, 1, "a")
            before = storage.privacy_charges(P)
            assert before
        total = Watched(manifest.layout(0))
        with pytest.raises(expected):
            sums.open(storage, total, 0, 2, "b")
        assert Watched.reads == 0
    assert storage.privacy_charges(P) == before


def test_a_round_that_fails_after_its_charge_is_not_refunded():
    plan = private_plan("gaussian:clip=2,noise=1")
    storage = stored(plan)
    sums, manifest = private_sums(plan, storage)
    total = total_of(sums, manifest, zeros(4))
    total.num_folded = 5  # diverged keys: the counter is not the number of devices
    with pytest.raises(Exception, match="counter"):
        sums.open(storage, total, 0, 1, "a")
    assert len(storage.privacy_charges(P)) == 1


def test_the_budget_spans_plans():
    first, second = (private_plan(f"gaussian:clip=2,noise={z},budget=20") for z in (1.0, 1.1))
    storage = stored(first)
    sums, manifest = private_sums(first, storage)
    while sums.affordable(storage):
        sums.open(storage, total_of(sums, manifest, zeros(4)), 0, 1, "a")
    spent = epsilon(spent_by(storage.privacy_spent(P)), sums.mechanism.delta)
    assert 10 < spent <= 20
    record = dataclasses.replace(storage.tasks(P)[0], plan=storage.put_blob(second))
    other = PrivateSums(record, unpack_plan(second).manifest, source())
    with pytest.raises(BudgetExhaustedError, match="spent already"):
        other.check_affordable(storage)


def test_seeded_noise_is_refused_outside_simulation():
    plan = private_plan("gaussian:clip=2,noise=1")
    record, manifest = stored(plan).tasks(P)[0], unpack_plan(plan).manifest
    with pytest.raises(SeededNoiseError, match="server"):
        PrivateSums(record, manifest, source(private=False))
    PrivateSums(record, manifest, source(private=False), simulated=True)


def coordinator(plan, storage, **fields):
    tokens = iter(f"token{i}" for i in range(10_000))
    parts.set_rounds(storage, dataclasses.replace(SETTINGS, **fields))
    return Coordinator(P, storage, new_token=lambda: next(tokens), noise=source())


def sums(role) -> PrivateSums:
    return role._round.work._private


def play(role, manifest, updates, label=0):
    """Play one round's devices and its shard; return the assignments."""
    attempt = role._round.name
    out = role.receive(DevicesSelected(attempt, tuple(f"t{i}" for i in range(len(updates)))), 0.0)
    closing = [e for _ in updates for e in role.receive(Counted(attempt, 1), 0.0)]
    assert {type(e.message) for e in closing} <= {CloseShard, WantDevices}
    total = total_of(sums(role), manifest, updates, label)
    role.receive(ShardClosed(attempt, total), 0.0)
    return [e.message.message for e in out if isinstance(e.message, Reply)]


def test_rounds_carry_the_clip_and_a_restart_goes_on_with_it():
    plan = private_plan("gaussian:clip=adaptive,start=1,noise=0.4,quantile=0.5")
    storage, manifest = stored(plan), unpack_plan(plan).manifest
    role = coordinator(plan, storage)
    role.start(0.0)
    long = [np.full(parts.LENGTH, 50.0, np.float32)] * 10
    clips = [play(role, manifest, long, label=i)[0].hyper["clip"] for i in range(5)]
    assert clips[0] == 1.0 and clips == sorted(clips) and clips[-1] > 1.2  # nobody was short enough: it grows
    assert role.round == 5 and len(storage.privacy_charges(P)) == 10  # the model and the count, each round
    assert storage.rounds(P)[-1].metrics == {}
    record = storage.load(P)
    assert decode_named(storage.blob(record.extra))["privacy.clip"] == sums(role).clip
    again = coordinator(plan, storage)
    again.start(0.0)
    assert sums(again).clip == sums(role).clip > clips[-1]
    assert play(again, manifest, long)[0].hyper["clip"] == sums(role).clip


def test_a_stored_clip_stays_within_the_bounds_of_a_new_plan():
    plan = private_plan("gaussian:clip=0.5,noise=1")
    storage = stored(plan)
    sums, _ = private_sums(plan, storage)
    extra = {"privacy.clip": np.array(7.0), "momentum": np.ones(2, np.float32)}
    assert list(sums.begin(storage, {}, extra)) == ["momentum"]
    assert sums.clip == 0.5  # fixed now, whatever an adapting plan had come to


def test_the_model_moves_by_the_clipped_mean_over_the_denominator():
    plan = private_plan("gaussian:clip=2,noise=0.0005")
    storage, manifest = stored(plan), unpack_plan(plan).manifest
    role = coordinator(plan, storage)
    role.start(0.0)
    play(role, manifest, [np.full(parts.LENGTH, 50.0, np.float32)] * 10)
    before, after = (
        unpack_tensors(manifest.params, d) for d in (world.checkpoint(), storage.blob(role.checkpoint.sha256))
    )
    step = np.concatenate([(after[k] - before[k]).reshape(-1) for k in sorted(after)])
    assert np.linalg.norm(step) == pytest.approx(2.0, rel=1e-2)  # ten times a clip of 2, over ten


def test_an_exhausted_budget_stops_the_rounds_and_says_so():
    plan = private_plan("gaussian:clip=2,noise=1,budget=8")
    storage, manifest = stored(plan), unpack_plan(plan).manifest
    role = coordinator(plan, storage)
    role.start(0.0)
    while role.state is not CoordinatorState.PAUSED:
        play(role, manifest, zeros(10))
        assert role.round < 50
    last = storage.rounds(P)[-1]
    assert (last.status, last.reason, last.selected) == ("abandoned", "privacy_budget", 0)
    charged = len(storage.privacy_charges(P))
    assert charged == role.round > 0
    again = coordinator(plan, storage)
    assert again.start(0.0) == [] and again.state is CoordinatorState.PAUSED  # a restart does not start either
    (reply,) = again.receive(ChangeTask("ticket", parts.TASK, "resume"), 0.0)
    assert isinstance(reply.message.message, BudgetExhaustedError) and "spent already" in str(reply.message.message)
    assert storage.tasks(P)[0].state == "paused"
    assert len(storage.privacy_charges(P)) == charged and len(storage.rounds(P)) == charged + 1


def test_a_budget_that_was_spent_before_the_server_starts_pauses_the_task():
    plan = private_plan("gaussian:clip=2,noise=1,budget=8")
    storage, manifest = stored(plan), unpack_plan(plan).manifest
    role = coordinator(plan, storage)
    role.start(0.0)
    while role.state is not CoordinatorState.PAUSED:
        play(role, manifest, zeros(10))
    storage.change_task(P, parts.TASK, "running", storage.tasks(P)[0].settings)  # as after a kill
    again = coordinator(plan, storage)
    assert again.start(0.0) == [] and storage.tasks(P)[0].state == "paused"
    assert storage.rounds(P)[-1].reason == "privacy_budget"


def test_the_settings_do_not_set_the_clip():
    plan = private_plan("gaussian:clip=2,noise=1")
    with pytest.raises(UsageError, match="clip"):
        coordinator(plan, stored(plan), hyper={"clip": 2.0})
