"""Asynchronous aggregation without sockets: the real roles, the clock in the test's hand."""

import dataclasses

import pytest
from device import world

from covey.server.coordinator import CoordinatorState
from covey.storage.memory import MemoryStorage
from covey.types.errors import (
    AlreadyCountedError,
    RoundClosedError,
    SessionUnknownError,
    StorageFullError,
    TooStaleError,
    UpdateFormatError,
)
from covey.wire.messages import Abandoned, Assignment, ComeBack, Reported

from . import parts
from .administered import evaluation
from .buffers import ROUNDS, Buffers, P, broken, moved, plan, same


def begun(b, *devices):
    """Let devices begin; return their sessions."""
    return [b.arrive(d).session for d in devices]


def test_devices_begin_at_any_time_and_as_many_as_may():
    b = Buffers()
    first = b.arrive("a")
    assert isinstance(first, Assignment) and (first.round, first.mode, first.report_within_s) == (1, "plain", 60.0)
    b.pass_time(5.0)
    second, third = b.arrive("b"), b.arrive("c")
    assert len({first.session, second.session, third.session}) == 3
    assert b.arrive("d") is None and b.status == (0, 3)  # it waits for a place
    assert isinstance(b.report(first.session), Reported)
    assert b.answers["d"].round == 1 and b.status == (1, 3)
    assert b.coordinator.state is CoordinatorState.REPORTING


def test_the_kth_update_commits_and_each_counts_by_its_staleness():
    b = Buffers()
    start, checkpoint = b.params(), b.coordinator.checkpoint
    a, c, d = begun(b, "a", "c", "d")
    b.report(a, seed=1)
    b.report(c, seed=2)
    one = moved(start, [(1, 0), (2, 0)])
    assert b.coordinator.round == 1 and same(b.params(), one)
    late = b.arrive("a")
    assert (late.round, late.checkpoint) == (2, b.coordinator.checkpoint) and late.checkpoint != checkpoint
    b.report(d, seed=3)  # it began with version 0, and version 2 is in the making
    b.report(late.session, seed=4)
    assert b.coordinator.round == 2 and same(b.params(), moved(one, [(3, 1), (4, 0)]))
    rows = b.rows
    assert [(r.round, r.status, r.selected, r.reported, r.lost) for r in rows] == [
        (1, "committed", 2, 2, 0),
        (2, "committed", 2, 2, 0),
    ]
    assert [r.metrics["staleness"] for r in rows] == [0.0, 0.5] and rows[0].metrics["loss"] == 0.5
    assert rows[1].bytes_up == 2 * len(parts.body()) and rows[1].checkpoint == b.coordinator.checkpoint.sha256


def test_versions_have_public_seeds_of_their_own():
    b = Buffers()
    a, c = b.arrive("a"), b.arrive("c")
    b.report(a.session)
    b.report(c.session)
    later = b.arrive("d")
    assert a.public_seed == c.public_seed != later.public_seed and len(bytes.fromhex(later.public_seed)) == 32


def test_an_update_beyond_the_bound_is_refused_and_its_place_given_away():
    b = Buffers(data=plan(concurrency=3, max_staleness=2))
    (slow,) = begun(b, "slow")
    for number in (1, 2, 3):
        assert b.status == (0, 1)
        for session in begun(b, f"a{number}", f"b{number}"):
            b.report(session)
    assert b.coordinator.round == 3 and b.status == (0, 0)
    answer = b.report(slow)
    assert isinstance(answer, TooStaleError) and answer.code == "too_stale" and "2 versions" in str(answer)
    assert b.status == (0, 0)
    for session in begun(b, "a", "b"):
        b.report(session)
    assert (b.rows[-1].reported, b.rows[-1].lost) == (2, 1)


def test_an_update_at_the_bound_is_counted():
    b = Buffers(data=plan(concurrency=3, max_staleness=2))
    (slow,) = begun(b, "slow")
    for number in (1, 2):
        for session in begun(b, f"a{number}", f"b{number}"):
            b.report(session)
    before = b.params()
    (quick,) = begun(b, "quick")
    assert isinstance(b.report(slow, seed=7), Reported)
    b.report(quick, seed=8)
    assert same(b.params(), moved(before, [(7, 2), (8, 0)]))


def test_the_places_of_devices_that_vanish_are_given_to_others():
    b = Buffers(data=plan(concurrency=2))
    one, two = begun(b, "a", "b")
    b.pass_time(30.0)
    b.abandon(two)
    assert b.status == (0, 1)
    (three,) = begun(b, "c")
    assert b.arrive("d") is None
    b.pass_time(59.9)
    assert "d" not in b.answers
    b.pass_time(60.0)
    assert isinstance(b.answers["d"], Assignment) and b.status == (0, 2)
    assert isinstance(b.report(one), RoundClosedError)
    assert isinstance(b.report(three), Reported) and b.status == (1, 1)
    b.pass_time(90.0)  # the deadline of c, which has reported
    assert b.status == (1, 1)
    b.report(b.answers["d"].session)
    assert (b.rows[0].selected, b.rows[0].reported, b.rows[0].lost) == (4, 2, 2)


def test_a_broken_update_changes_nothing_and_frees_its_place():
    b = Buffers(data=plan(concurrency=2))
    start = b.params()
    one, two = begun(b, "a", "b")
    assert isinstance(b.report(one, b"broken"), UpdateFormatError)
    assert isinstance(b.arrive("c"), Assignment)
    b.report(two, seed=1)
    b.report(b.answers["c"].session, seed=2)
    assert same(b.params(), moved(start, [(1, 0), (2, 0)])) and b.rows[0].lost == 1


def test_a_report_that_is_sent_again_is_counted_once_also_after_the_commit():
    b = Buffers()
    one, two = begun(b, "a", "b")
    b.report(one)
    assert isinstance(b.report(one), AlreadyCountedError) and b.status == (1, 1)
    b.report(two)
    assert isinstance(b.report(two), AlreadyCountedError) and isinstance(b.abandon(two), Abandoned)
    assert b.status == (0, 0)


def test_shards_take_turns_and_give_the_same_bits():
    order = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5), ("f", 6)]
    results = []
    for num_shards in (1, 3):
        b = Buffers(data=plan(concurrency=6), rounds=dataclasses.replace(ROUNDS, goal=3), num_shards=num_shards)
        sessions = dict(zip("abcdef", begun(b, *"abcdef"), strict=True))
        assert len({b.holder(s) for s in sessions.values()}) == num_shards
        for device, seed in order:
            b.report(sessions[device], seed=seed)
        results.append(b.coordinator.checkpoint)
    assert results[0] == results[1]


def test_what_comes_while_a_buffer_closes_is_in_the_next_one():
    """The aggregator has handed its sum over, and the commit is not there yet."""
    b = Buffers(data=plan(concurrency=4))
    start = b.params()
    one, two, three, four = begun(b, *"abcd")
    (address,) = b.aggregators
    held = []
    role = b.aggregators[address]
    receive = role.receive
    role.receive = lambda message, now_s: [
        e for e in receive(message, now_s) if type(e.message).__name__ != "ShardClosed" or held.append(e)
    ]
    b.report(one, seed=1)
    b.report(two, seed=2)
    assert b.coordinator.state is CoordinatorState.CLOSING and len(held) == 1
    assert isinstance(b.report(three, seed=3), Reported)
    assert b.arrive("e") is None  # a moment, and it gets the new version
    role.receive = receive
    b.take(b.engine.deliver(held, 0.0))
    version = moved(start, [(1, 0), (2, 0)])
    assert b.coordinator.round == 1 and same(b.params(), version)
    assert b.answers["e"].round == 2 and b.status == (1, 2)
    b.report(four, seed=4)
    assert same(b.params(), moved(version, [(3, 1), (4, 1)]))


def test_versions_that_devices_may_still_download_are_kept():
    b = Buffers(data=plan(concurrency=3, max_staleness=4))
    slow = b.arrive("slow")
    for number in range(4):  # the storage keeps two
        for session in begun(b, f"a{number}", f"b{number}"):
            b.report(session)
    assert b.storage.blob(slow.checkpoint.sha256) == world.checkpoint()
    for session in begun(b, "a", "b"):
        b.report(session)
    with pytest.raises(Exception, match="blob"):
        b.storage.blob(slow.checkpoint.sha256)  # too stale by now


def test_an_encoded_checkpoint_is_of_its_version_and_the_sum_goes_to_the_exact_model():
    data = plan(schema=4, download="quantize:8")
    b = Buffers(data=data)
    start = b.params()
    one, two = b.arrive("a"), b.arrive("b")
    assert one.checkpoint == two.checkpoint != b.coordinator.checkpoint
    assert b.storage.blob(one.checkpoint.sha256)
    b.report(one.session, seed=1)
    b.report(two.session, seed=2)
    assert same(b.params(), moved(start, [(1, 0), (2, 0)]))
    assert b.arrive("c").checkpoint not in (one.checkpoint, b.coordinator.checkpoint)


# Tasks


def test_a_pause_keeps_the_buffer_and_whoever_is_in_the_air_is_folded():
    b = Buffers()
    start = b.params()
    one, two, three = begun(b, *"abc")
    b.report(one, seed=1)
    assert b.change("pause").state == "paused" and b.coordinator.state is CoordinatorState.PAUSED
    assert b.arrive("d") is None
    assert isinstance(b.report(two, seed=2), Reported) and isinstance(b.report(three, seed=3), Reported)
    assert b.coordinator.round == 0 and b.status == (3, 0)  # the model stays
    b.pass_time(1000.0)
    b.change("resume")
    assert b.coordinator.round == 1 and same(b.params(), moved(start, [(1, 0), (2, 0), (3, 0)]))
    assert b.answers["d"].round == 2 and [r.status for r in b.rows] == ["committed"]


def test_in_a_pause_vanished_devices_lose_their_places_too():
    b = Buffers()
    begun(b, *"abc")
    b.change("pause")
    b.pass_time(60.0)
    assert b.status == (0, 0)
    b.change("resume")
    assert isinstance(b.arrive("d"), Assignment)


@pytest.mark.parametrize("paused", [False, True])
def test_a_cancelled_task_drops_its_buffer_with_a_row(paused):
    b = Buffers()
    one, two, _ = begun(b, *"abc")
    b.report(one)
    if paused:
        b.change("pause")
    b.change("cancel")
    (row,) = b.rows
    assert (row.status, row.reason, row.selected, row.reported) == ("abandoned", "cancelled", 3, 1)
    assert isinstance(b.report(two), RoundClosedError)
    assert b.coordinator.buffer is None and b.coordinator.finished and b.selector._wanted is None


def test_a_rollback_drops_the_buffer_for_what_it_holds_is_of_another_line():
    b = Buffers()
    first = b.coordinator.checkpoint
    for session in begun(b, "a", "b"):
        b.report(session)
    for session in begun(b, "a", "b"):
        b.report(session)
    (flying,) = begun(b, "c")
    version = b.storage.versions(P)[0]
    b.change("rollback", number=version.round)
    assert isinstance(b.report(flying), RoundClosedError) and b.coordinator.round == 3
    assert [r.status for r in b.rows] == ["committed", "committed", "abandoned", "rolled_back"]
    again = b.arrive("c")
    assert (again.round, again.checkpoint.sha256) == (4, version.checkpoint) and again.checkpoint != first
    start = b.params()
    b.report(again.session, seed=1)
    b.report(begun(b, "d")[0], seed=2)
    assert same(b.params(), moved(start, [(1, 0), (2, 0)]))


def test_a_task_is_completed_after_its_commits_and_the_rest_is_told():
    b = Buffers(rounds=dataclasses.replace(ROUNDS, max_rounds=1))
    one, two, three = begun(b, *"abc")
    b.report(one)
    b.report(two)
    assert b.coordinator.tasks()[0].state == "completed" and b.coordinator.state is CoordinatorState.PAUSED
    assert isinstance(b.report(three), RoundClosedError) and len(b.rows) == 1 and b.status is None


def test_a_task_whose_time_is_over_ends_in_the_midst_of_a_buffer():
    storage = parts.begin(MemoryStorage(), plan(), ROUNDS)
    parts.set_rounds(storage, ROUNDS, until=50.0)
    b = Buffers(storage)
    one, two, _ = begun(b, *"abc")
    b.report(one)
    b.pass_time(50.0)
    assert isinstance(b.report(two), RoundClosedError)
    assert [(r.status, r.reason) for r in b.rows] == [("abandoned", "completed")] and b.coordinator.finished


def test_an_evaluation_has_its_turn_at_once_and_the_buffer_is_set_aside():
    b = Buffers()
    start = b.params()
    one, two, three = begun(b, *"abc")
    b.report(one, seed=1)
    b.create(evaluation())
    assert b.coordinator.state is CoordinatorState.SELECTING
    assert isinstance(b.report(two, seed=2), Reported) and b.coordinator.round == 0  # one round at a time
    for device in "uvwxyz":
        b.arrive(device)
    assert {b.answers[d].kind for d in "uvwxyz"} == {"evaluate"}
    assert isinstance(b.report(three, seed=3), Reported) and b.status == (3, 0)
    b.change("cancel", "measure")
    assert b.coordinator.round == 1 and same(b.params(), moved(start, [(1, 0), (2, 0), (3, 0)]))


def test_a_pause_between_commits_lets_nobody_begin_and_folds_what_comes():
    b = Buffers(rounds=dataclasses.replace(ROUNDS, pause_s=10.0))
    one, two, three = begun(b, *"abc")
    b.report(one)
    b.report(two)
    assert b.coordinator.state is CoordinatorState.BETWEEN_ROUNDS and b.arrive("d") is None
    b.report(three)
    assert b.status == (1, 0)
    b.pass_time(10.0)
    assert b.answers["d"].round == 2 and b.coordinator.state is CoordinatorState.REPORTING


# What fails


@pytest.mark.parametrize("what", ["commit_round", "put_blob"])
def test_a_commit_that_fails_loses_the_buffer_and_what_is_in_the_air(what):
    b = Buffers(data=plan(schema=4, download="quantize:8") if what == "put_blob" else None)
    with broken(b.storage, what, parts.disk_full()):
        if what == "put_blob":
            assert isinstance(b.arrive("a"), ComeBack)
        else:
            one, two, three = begun(b, *"abc")
            b.report(one)
            b.report(two)
    row = b.rows[-1]
    assert (row.status, row.reason, b.coordinator.round) == ("abandoned", StorageFullError.code, 0)
    if what == "commit_round":
        assert isinstance(b.report(three), RoundClosedError)
    b.pass_time(1.0)
    start = b.params()
    for seed, session in enumerate(begun(b, "a", "b")):
        b.report(session, seed=seed)
    assert b.coordinator.round == 1 and same(b.params(), moved(start, [(0, 0), (1, 0)]))


def test_a_restart_loses_the_open_buffer_only():
    b = Buffers()
    for session in begun(b, "a", "b"):
        b.report(session)
    one, two = begun(b, "a", "b")
    b.report(one)
    again = Buffers(b.storage)
    assert again.coordinator.round == 1 and again.coordinator.checkpoint == b.coordinator.checkpoint
    with pytest.raises(StopIteration):  # no aggregator of the new process knows the session
        again.holder(two)
    assert again.arrive("a").round == 2 and again.status == (0, 1)
    assert SessionUnknownError.code == "session_unknown"
