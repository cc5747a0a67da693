"""Devices of the next round are gathered while one reports; and what a storage that fails does to tasks and rounds."""

import pytest

from covey.server.messages import ChangeTask, DevicesSelected, Reply, ShardClosed, WantNobody
from covey.types.errors import CoveyError, StorageFullError, StorageLockedError

from .administered import Administered, evaluation


@pytest.fixture
def rounds():
    made = Administered()
    made.start()
    return made


# Gathering


def test_while_a_round_reports_the_next_ones_devices_are_gathered(rounds):
    rounds.select(now_s=10.0)
    (first,) = rounds.gathering
    assert first.held and first.expected_at_s is None and first.attempt != rounds.attempt
    rounds.count(4, now_s=15.0)
    (envelope,) = rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))), 16.0)
    # The wish is granted once the new checkpoint exists: the same attempt, not held.
    assert (envelope.message.attempt, envelope.message.held) == (first.attempt, False)
    rounds.select(now_s=20.0)
    (second,) = rounds.gathering
    assert second.expected_at_s == rounds.role.expected_at_s == 26.0  # the last round took six seconds to report


def test_a_gathering_survives_an_abandoned_round(rounds):
    rounds.select()
    (following,) = rounds.gathering
    rounds.lose(6)
    (envelope,) = rounds.role.tick(1.0)
    assert (envelope.message.attempt, envelope.message.held) == (following.attempt, False)


def test_a_gathering_for_another_task_than_the_next_is_taken_back(rounds):
    rounds.select()
    (following,) = rounds.gathering
    rounds.create(evaluation())
    rounds.count(4)
    out = rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))))
    assert out[0].message == WantNobody(following.attempt)
    assert out[1].message.attempt not in ("token1", following.attempt) and not out[1].message.held


# A storage that fails


@pytest.mark.parametrize("kind", [StorageFullError, StorageLockedError])
def test_a_change_that_cannot_be_stored_changes_nothing(rounds, monkeypatch, kind):
    def fail(*args):
        raise kind("server.db", expected="room", got="none")

    attempt = rounds.attempt
    with monkeypatch.context() as patch:
        for name in ("change_task", "add_task", "roll_back"):
            patch.setattr(rounds.storage, name, fail)
        for action in ("pause", "cancel"):
            error, out = rounds.change(action)
            assert isinstance(error, kind) and out == []
        assert isinstance(rounds.create(evaluation())[0], kind)
    assert rounds.attempt == attempt and rounds.role.tasks()[0].state == "running"
    rounds.round()
    assert rounds.role.round == 1


def test_a_task_that_cannot_be_completed_now_is_completed_later(monkeypatch):
    rounds = Administered(max_rounds=1)
    rounds.start()

    def fail(*args):
        raise StorageLockedError("server.db", expected="no other", got="one")

    with monkeypatch.context() as patch:
        patch.setattr(rounds.storage, "change_task", fail)
        rounds.round()
        assert rounds.stored().state == "running"
        due = rounds.role.next_deadline_s()
        assert due is not None and due > 0.0  # later, and not in a tight loop
    rounds.role.tick(10.0)
    assert rounds.stored().state == "completed"


def test_a_broadcast_that_cannot_be_stored_sends_the_devices_away(rounds, monkeypatch):
    monkeypatch.setattr(
        type(rounds.role._round), "_broadcast", lambda self: (_ for _ in ()).throw(_full()), raising=True
    )
    out = rounds.send(DevicesSelected(rounds.attempt, ("t1", "t2")), 0.0)
    assert [e.to for e in out] == ["device/t1", "device/t2"]
    assert {e.message.message.reason for e in out} == {"between_rounds"}
    assert (rounds.rounds[-1].status, rounds.rounds[-1].reason) == ("abandoned", "storage_full")


def _full():
    return StorageFullError("blobs", expected="room", got="none")


def test_after_a_restart_tasks_stand_where_they_stood_and_rounds_have_fresh_names(rounds):
    rounds.create(evaluation(every=3))
    rounds.round()
    rounds.change("pause", name="measure")
    again = Administered(rounds.storage)
    again.num_tokens = 100  # the operating system never gives the same twice
    assert [(t.task, t.state, t.rounds) for t in again.role.tasks()] == [
        ("train", "running", 1),
        ("measure", "paused", 0),
    ]
    again.role.start(9.0)
    assert again.attempt == "token101"
    _, answers = again.select(now_s=9.0)
    assert len({m.public_seed for _, m in answers}) == 1 and {m.round for _, m in answers} == {2}


def test_errors_of_an_administrator_reach_nobody_else(rounds):
    out = rounds.send(ChangeTask("ticket", "train", "rollback", 5), 0.0)
    assert len(out) == 1 and isinstance(out[0].message, Reply) and isinstance(out[0].message.message, CoveyError)
