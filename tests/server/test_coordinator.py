"""The coordinator without sockets: rounds commit, are abandoned, and resume; the clock is in the test's hand."""

import dataclasses

import numpy as np
import pytest
from device import world

from covey.server.coordinator import CoordinatorState
from covey.server.messages import (
    BytesServed,
    CloseShard,
    Counted,
    DevicesSelected,
    DiscardShard,
    Lost,
    ShardClosed,
    WantDevices,
    aggregator_address,
    device_address,
)
from covey.storage.memory import MemoryStorage
from covey.types.errors import LayoutError, NotFoundError, StorageFullError
from covey.types.segments import HEADER, SegmentSum
from covey.types.tensors import unpack_tensors

from . import parts
from .rounds import P, Rounds, reason

SELECTING, REPORTING, CLOSING = CoordinatorState.SELECTING, CoordinatorState.REPORTING, CoordinatorState.CLOSING


def test_a_round_asks_for_more_devices_than_it_needs():
    rounds = Rounds()
    assert rounds.start(5.0) == WantDevices("token1", 6, 4, 1.0, 35.0)
    assert rounds.role.state is SELECTING


def test_every_selected_device_gets_a_session_of_its_own():
    rounds = Rounds(hyper={"lr": 0.25})
    rounds.start()
    ((*sessions,),), answers = rounds.select(6)
    assert [to for to, _ in answers] == [device_address(f"t{i}") for i in range(6)]
    assert [m.session for _, m in answers] == sessions and len(set(sessions)) == 6
    record, task = rounds.storage.load(P), rounds.storage.tasks(P)[0]
    for _, m in answers:
        assert (m.task, m.kind) == ("train", "train")
        assert (m.round, m.phase, m.mode, m.shared, m.hyper) == (1, 0, "plain", None, {"lr": 0.25})
        assert (m.plan.sha256, m.checkpoint.sha256, m.signature) == (task.plan, record.checkpoint, task.signature)
        assert (m.plan.num_bytes, m.checkpoint.num_bytes) == (len(world.plan_bytes()), len(world.checkpoint()))
        assert (m.plan.path, m.checkpoint.path) == (f"/v1/plans/{task.plan}", f"/v1/checkpoints/{record.checkpoint}")
        assert m.report_within_s == 60.0 and len(bytes.fromhex(m.public_seed)) == 32
    assert rounds.role.state is REPORTING and rounds.role.next_deadline_s() == 60.0


def test_devices_get_the_learning_rate_of_their_round():
    rounds = Rounds(hyper={"lr": 0.25}, lr_decay=0.5)
    rounds.start()
    _, first = rounds.select(6)
    rounds.count(4)
    rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))))
    _, second = rounds.select(6)
    assert {m.hyper["lr"] for _, m in first} == {0.25} and {m.hyper["lr"] for _, m in second} == {0.125}


def test_a_round_commits_at_its_goal():
    rounds = Rounds()
    rounds.start(1.0)
    rounds.select(now_s=2.0)
    rounds.send(BytesServed(1000), 2.0)
    assert rounds.count(3, 3.0) == [] and rounds.lose() == []
    (envelope,) = rounds.count(1, 4.0)
    assert envelope.to == aggregator_address(P, "train", 0) and envelope.message == CloseShard("token1")
    assert rounds.role.state is CLOSING and rounds.role.next_deadline_s() is None
    (envelope,) = rounds.send(ShardClosed("token1", rounds.shard_sum(range(4))), 5.0)
    assert isinstance(envelope.message, WantDevices) and envelope.message.attempt != "token1"
    (row,) = rounds.rounds
    assert (row.round, row.status, row.reason) == (1, "committed", "")
    assert (row.selected, row.reported, row.lost) == (6, 4, 2)
    assert (row.seconds, row.bytes_down, row.bytes_up) == (4.0, 1000, 400)
    assert row.metrics == {"loss": 0.5, "correct": 0.25}
    record = rounds.storage.load(P)
    assert record.round == rounds.role.round == 1
    assert record.checkpoint == row.checkpoint == rounds.role.checkpoint.sha256
    params = unpack_tensors(parts.manifest().params, rounds.storage.blob(record.checkpoint))
    old = unpack_tensors(parts.manifest().params, world.checkpoint())
    mean = np.mean([parts.values(seed=s)["model"] for s in range(4)], axis=0, dtype=np.float64) / 4.0
    moved = np.concatenate([(params[k].astype(np.float64) - old[k]).ravel() for k in sorted(params)])
    assert np.abs(moved - mean).max() < 2**-23  # new parameters below 2 are rounded to float32 once


def test_a_sum_is_overwritten_once_it_is_applied():
    rounds = Rounds()
    rounds.start()
    rounds.select()
    rounds.count(4)
    total = rounds.shard_sum(range(4))
    rounds.send(ShardClosed(rounds.attempt, total))
    assert rounds.role.round == 1
    assert total.num_folded == 0 and not total.integers("model").any() and not total.integers(HEADER).any()


def test_reports_that_are_folded_while_the_round_closes_count():
    rounds = Rounds()
    rounds.start()
    rounds.select()
    rounds.count(4)
    assert rounds.count(1) == [] and rounds.lose(1) == []
    rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(5))))
    assert (rounds.rounds[0].reported, rounds.rounds[0].lost, rounds.rounds[0].bytes_up) == (5, 1, 500)


def test_at_the_deadline_enough_reports_commit():
    rounds = Rounds()
    rounds.start()
    rounds.select(now_s=10.0)
    rounds.count(3, 20.0)
    assert rounds.role.tick(69.9) == []
    (envelope,) = rounds.role.tick(70.0)
    assert envelope.message == CloseShard("token1")
    rounds.send(ShardClosed("token1", rounds.shard_sum(range(3))), 71.0)
    assert (rounds.rounds[0].status, rounds.rounds[0].reported, rounds.rounds[0].lost) == ("committed", 3, 3)


def test_at_the_deadline_too_few_reports_abandon():
    rounds = Rounds()
    rounds.start()
    rounds.select(now_s=10.0)
    rounds.count(2, 20.0)
    (envelope,) = rounds.role.tick(70.0)
    assert envelope.to == aggregator_address(P, "train", 0) and envelope.message == DiscardShard("token1")
    assert reason(rounds) == "too_few_reports"
    assert (rounds.rounds[0].selected, rounds.rounds[0].reported, rounds.rounds[0].lost) == (6, 2, 4)


def test_when_all_have_ended_enough_reports_commit_before_the_deadline():
    rounds = Rounds()
    rounds.start()
    rounds.select()
    rounds.count(3)
    assert rounds.lose(2) == []
    (envelope,) = rounds.lose(1)
    assert envelope.message == CloseShard("token1")


def test_too_many_lost_devices_abandon_at_once():
    rounds = Rounds()
    rounds.start()
    rounds.select()
    rounds.count(2)
    assert rounds.lose(3) == []  # one is open still, and three would be enough
    (envelope,) = rounds.lose(1)
    assert envelope.message == DiscardShard("token1")
    assert reason(rounds) == "too_many_lost"


def test_too_few_devices_abandon_and_the_next_round_waits_a_moment():
    rounds = Rounds()
    rounds.start()
    assert rounds.send(DevicesSelected("token1", ()), 30.0) == []
    assert reason(rounds) == "too_few_devices"
    assert rounds.role.state is CoordinatorState.BETWEEN_ROUNDS
    assert rounds.role.next_deadline_s() == 31.0  # a round that fails at once is not tried in a tight loop
    assert rounds.role.tick(30.9) == []
    (envelope,) = rounds.role.tick(31.0)
    assert isinstance(envelope.message, WantDevices) and rounds.role.round == 0


def test_an_abandoned_round_changes_no_checkpoint_and_keeps_its_number():
    rounds = Rounds()
    rounds.start()
    rounds.round()
    before = rounds.storage.load(P)
    rounds.select(now_s=1.0)
    rounds.lose(6)
    assert reason(rounds) == "too_many_lost"
    assert rounds.storage.load(P) == before
    rounds.role.tick(100.0)
    rounds.round(now_s=100.0)
    assert [(r.round, r.status) for r in rounds.rounds] == [(1, "committed"), (2, "abandoned"), (2, "committed")]
    assert rounds.role.summaries == 3


@pytest.mark.parametrize(
    "message",
    [
        DevicesSelected("token1", ("t9",)),
        Counted("token1", 1),
        Lost("token1", "late"),
        ShardClosed("token1", SegmentSum(parts.manifest().layout(0))),
    ],
    ids=lambda m: type(m).__name__,
)
def test_messages_of_an_ended_attempt_are_ignored(message):
    rounds = Rounds()
    rounds.start()
    rounds.round()
    rounds.select(now_s=1.0)
    before = dataclasses.replace(rounds.role._round.tally)
    out = rounds.send(message, 2.0)
    # Devices that were selected for a round that is over are sent away: nobody waits for an answer that never comes.
    assert [e.message.message.reason for e in out] == ["between_rounds"] * isinstance(message, DevicesSelected)
    assert rounds.role._round.tally == before and rounds.role.state is REPORTING and rounds.role.round == 1


def test_between_rounds_nothing_is_expected():
    rounds = Rounds(pause_s=5.0)
    rounds.start()
    assert rounds.round(now_s=1.0) == []
    assert rounds.role.next_deadline_s() == 6.0
    for message in (Counted("token1", 1), Lost("token1", "late"), DevicesSelected("token1", ()), BytesServed(9)):
        assert rounds.send(message, 2.0) == []
    (envelope,) = rounds.role.tick(6.0)
    assert envelope.message.attempt != "token1"


def test_a_cohort_is_dealt_out_to_shards_and_their_sums_are_merged():
    rounds = Rounds(num_shards=3)
    rounds.start()
    shards, answers = rounds.select(6)
    assert [len(s) for s in shards] == [2, 2, 2]
    assert sorted(s for shard in shards for s in shard) == sorted(m.session for _, m in answers)
    out = rounds.count(4)
    assert [e.to for e in out] == [aggregator_address(P, "train", i) for i in range(3)]
    for seeds in ([3], []):
        assert rounds.send(ShardClosed("token1", rounds.shard_sum(seeds))) == []
    rounds.send(ShardClosed("token1", rounds.shard_sum([0, 2, 1])))
    whole = Rounds()
    whole.start()
    whole.round()
    assert rounds.rounds[0].checkpoint == whole.rounds[0].checkpoint


def test_no_more_shards_than_devices_are_opened():
    rounds = Rounds(num_shards=5, goal=2, over_selection=1.0, min_fraction=1.0)
    rounds.start()
    shards, _ = rounds.select(2)
    assert [len(s) for s in shards] == [1, 1]


def test_a_sum_below_the_plans_min_cohort_is_never_opened():
    rounds = Rounds()
    rounds.start()
    rounds.select()
    rounds.count(4)
    total = rounds.shard_sum([0])  # the aggregator holds fewer than it told: min_cohort is 2
    out = rounds.send(ShardClosed("token1", total))
    assert reason(rounds) == LayoutError.code and rounds.role.round == 0
    assert [e.message for e in out] == [DiscardShard("token1")]


def test_a_counter_that_does_not_match_discards_the_round():
    rounds = Rounds()
    rounds.start()
    rounds.select()
    rounds.count(4)
    total = rounds.shard_sum(range(4))
    total.num_folded = 3
    rounds.send(ShardClosed("token1", total))
    assert reason(rounds) == LayoutError.code


def test_a_full_disk_abandons_the_round_and_the_next_one_commits(monkeypatch):
    rounds = Rounds()
    rounds.start()

    def full(*args):
        raise StorageFullError("blob directory", expected="room", got="none")

    with monkeypatch.context() as patch:
        patch.setattr(rounds.storage, "commit_round", full)
        rounds.round()
        assert reason(rounds) == StorageFullError.code
        rounds.role.tick(10.0)
        patch.setattr(rounds.storage, "add_summary", full)  # so full that not even the row finds room
        rounds.round(now_s=10.0)
    assert len(rounds.rounds) == rounds.role.summaries == 1
    rounds.role.tick(20.0)
    rounds.round(now_s=20.0)
    assert (rounds.role.round, rounds.role.summaries, rounds.rounds[-1].round) == (1, 2, 1)


def test_a_coordinator_resumes_at_the_last_committed_round():
    rounds = Rounds()
    rounds.start()
    rounds.round()
    rounds.round(now_s=1.0)
    rounds.select(now_s=2.0)
    rounds.count(3)  # and then the process dies
    resumed = Rounds(rounds.storage)
    assert (resumed.role.round, resumed.role.summaries) == (2, 2)
    resumed.start(50.0)
    _, answers = resumed.select(now_s=50.0)
    assert {m.round for _, m in answers} == {3}
    assert {m.checkpoint.sha256 for _, m in answers} == {rounds.rounds[1].checkpoint}
    assert resumed.send(Counted("attempt of the dead process", 1)) == []


def test_a_checkpoint_that_is_gone_is_noticed_at_the_start():
    storage = parts.begin(MemoryStorage())
    del storage._blobs[storage.load(P).checkpoint]
    with pytest.raises(NotFoundError):
        Rounds(storage)


def test_after_max_rounds_it_pauses_for_ever():
    rounds = Rounds(max_rounds=2)
    rounds.start()
    rounds.round()
    assert not rounds.role.finished
    assert rounds.round(now_s=1.0) == []
    assert rounds.role.finished and rounds.role.state is CoordinatorState.PAUSED
    assert rounds.role.next_deadline_s() is None and rounds.role.tick(1e9) == []
    again = Rounds(rounds.storage, max_rounds=2)
    assert again.role.start(0.0) == [] and again.role.state is CoordinatorState.PAUSED


def test_a_message_of_another_role_is_a_bug():
    rounds = Rounds()
    rounds.start()
    with pytest.raises(AssertionError, match="does not take CloseShard"):
        rounds.send(CloseShard("token1"))
