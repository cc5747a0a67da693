"""Tasks: every transition, legal or not; whose turn the next round is; and what an administrator does to them."""

import dataclasses
import itertools

import pytest
from device import world
from device.test_private import private_plan, source

from covey.server.coordinator import CoordinatorState
from covey.server.messages import (
    DevicesSelected,
    DiscardShard,
    ShardClosed,
    WantDevices,
    WantNobody,
)
from covey.server.settings import TaskSettings, encode_settings
from covey.server.tasks import Action, Task, TaskState, after, next_task
from covey.storage.interface import TaskRecord
from covey.storage.memory import MemoryStorage
from covey.types.errors import (
    NotFoundError,
    TaskStateError,
    UsageError,
)
from covey.wire.administration import TaskStatus

from . import parts
from .administered import Administered, evaluation, record
from .rounds import BASE, P

PRIVATE = dataclasses.replace(BASE, goal=10, over_selection=1.3, min_fraction=0.4)
CREATED, RUNNING, PAUSED, COMPLETED, CANCELLED = TaskState
LEGAL = {
    (CREATED, Action.RESUME): RUNNING,
    (CREATED, Action.CANCEL): CANCELLED,
    (CREATED, Action.COMPLETE): COMPLETED,
    (RUNNING, Action.PAUSE): PAUSED,
    (RUNNING, Action.CANCEL): CANCELLED,
    (RUNNING, Action.COMPLETE): COMPLETED,
    (RUNNING, Action.ROLL_BACK): RUNNING,
    (PAUSED, Action.RESUME): RUNNING,
    (PAUSED, Action.CANCEL): CANCELLED,
    (PAUSED, Action.COMPLETE): COMPLETED,
    (PAUSED, Action.ROLL_BACK): PAUSED,
    (COMPLETED, Action.EXTEND): RUNNING,
}
TRANSITIONS = list(itertools.product(TaskState, Action))


@pytest.mark.parametrize(("state", "action"), TRANSITIONS, ids=lambda x: x.value)
def test_every_transition_is_legal_or_a_clear_error(state, action):
    if (state, action) in LEGAL:
        assert after("t", state, action) is LEGAL[state, action]
    else:
        with pytest.raises(TaskStateError, match=rf"task 't': expected .*to {action.value} it, got {state.value}"):
            after("t", state, action)


def task(name, kind="train", state="running", version=-1, rounds=0, **settings):
    made = TaskSettings(BASE, **settings)
    return Task(TaskRecord("p", name, kind, "", "", encode_settings(made), state, rounds, version), made)


# The schedule


def test_an_evaluation_goes_first_when_it_is_due_and_every_n_versions():
    measured = [-1]

    def turn(version):
        tasks = [task("train"), task("measure", "evaluate", version=measured[-1], every=3)]
        name = next_task(tasks, version, {}, 0.0)
        if name == "measure":
            measured.append(version)
        return name

    order = []
    version = 0
    while version < 7:
        order.append(turn(version))
        version += order[-1] == "train"
    assert order == ["measure", *["train"] * 3, "measure", *["train"] * 3, "measure", "train"]


def test_an_evaluation_that_was_abandoned_waits_for_the_next_version_unless_nothing_trains():
    tasks = [task("train"), task("measure", "evaluate")]
    assert next_task(tasks, 5, {"measure": 5}, 0.0) == "train"
    assert next_task(tasks, 6, {"measure": 5}, 0.0) == "measure"
    alone = [task("train", state="paused"), task("measure", "evaluate")]
    assert next_task(alone, 5, {"measure": 5}, 0.0) == "measure"
    assert next_task([task("train", state="paused"), task("m", "evaluate", version=5)], 5, {}, 0.0) is None


def test_of_several_evaluations_the_one_that_was_created_first_goes_first():
    tasks = [task("train"), task("zeta", "evaluate"), task("alpha", "evaluate")]
    assert next_task(tasks, 0, {}, 0.0) == "zeta"
    assert next_task(tasks, 0, {"zeta": 0}, 0.0) == "alpha"


@pytest.mark.parametrize("state", [s.value for s in TaskState if s is not RUNNING])
def test_only_running_tasks_have_rounds(state):
    assert next_task([task("train", state=state), task("m", "evaluate", state=state)], 0, {}, 0.0) is None


# What an administrator does


@pytest.fixture
def rounds():
    made = Administered()
    made.start()
    return made


def test_pausing_lets_a_round_that_reports_end_and_begins_no_other(rounds):
    rounds.select()
    (following,) = rounds.gathering
    answer, out = rounds.change("pause")
    assert isinstance(answer, TaskStatus) and (answer.task, answer.state) == ("train", "paused")
    assert out == [WantNobody(following.attempt)]  # nobody is gathered for a round that does not come
    rounds.count(4)
    assert rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))), 1.0) == []
    assert (rounds.role.round, rounds.role.state) == (1, CoordinatorState.PAUSED)
    assert rounds.role.next_deadline_s() is None and rounds.role.tick(1e9) == []
    answer, out = rounds.change("resume", now_s=50.0)
    assert answer.state == "running" and [type(m) for m in out] == [WantDevices]
    rounds.round(now_s=51.0)
    assert rounds.role.round == 2


def test_pausing_while_devices_are_selected_takes_the_wish_back(rounds):
    attempt = rounds.attempt
    answer, out = rounds.change("pause")
    assert answer.state == "paused" and out == [WantNobody(attempt)]
    row = rounds.rounds[-1]
    assert (row.status, row.reason, row.selected) == ("abandoned", "paused", 0)
    # Devices that were selected in the same moment are sent away, and not forgotten.
    (away,) = rounds.send(DevicesSelected(attempt, ("t",)), 1.0)
    assert away.message.message.reason == "between_rounds"


def test_cancelling_abandons_the_round_for_good(rounds):
    rounds.select()
    rounds.count(3)
    answer, out = rounds.change("cancel")
    assert answer.state == "cancelled" and DiscardShard("token1") in out
    assert (rounds.rounds[-1].status, rounds.rounds[-1].reason) == ("abandoned", "cancelled")
    assert rounds.role.finished and rounds.role.state is CoordinatorState.PAUSED
    for action in ("pause", "resume", "cancel", "rollback"):
        error, out = rounds.change(action, number=1)
        assert isinstance(error, TaskStateError) and out == []
    assert rounds.role.round == 0 and len(rounds.rounds) == 1


@pytest.mark.parametrize(("state", "action"), TRANSITIONS, ids=lambda x: x.value)
def test_what_is_illegal_changes_nothing_that_is_stored(state, action):
    rounds = Administered()
    rounds.storage.commit_round(P, _row(1), world.checkpoint(), b"")
    rounds.storage.change_task(P, "train", state.value, rounds.stored().settings)
    rounds = Administered(rounds.storage)
    if state is not CREATED:
        rounds.role.start(0.0)
    answer, _ = rounds.change(action.value, number=1)
    if (state, action) in LEGAL:
        assert isinstance(answer, TaskStatus) and rounds.stored().state == LEGAL[state, action].value
    else:
        assert isinstance(answer, TaskStateError) and rounds.stored().state == state.value
        assert rounds.role.round == 1


def _row(number):
    from covey.testing.storage import summary_of

    return summary_of(number)


def test_rolling_back_abandons_the_round_and_goes_on_from_the_old_version_under_a_new_number(rounds):
    for second in (0.0, 1.0):
        rounds.round(now_s=second)
    first, newest = rounds.rounds[0].checkpoint, rounds.role.checkpoint.sha256
    rounds.select(now_s=2.0)
    rounds.count(2)
    answer, out = rounds.change("rollback", now_s=3.0, number=1)
    assert answer.state == "running"
    assert [type(m) for m in out] == [DiscardShard, WantDevices]
    abandoned, back = rounds.rounds[-2:]
    assert (abandoned.status, abandoned.reason, abandoned.round) == ("abandoned", "rolled_back", 3)
    assert (back.status, back.reason, back.round, back.checkpoint) == ("rolled_back", "to round 1", 3, first)
    assert rounds.role.round == 3 and rounds.role.checkpoint.sha256 == first != newest
    rounds.select(now_s=4.0)
    rounds.count(4)
    rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))), 5.0)
    # The same devices with the same updates lead from the old version to where they led before.
    assert (rounds.rounds[-1].round, rounds.role.checkpoint.sha256) == (4, newest)
    assert rounds.role.summaries == len(rounds.rounds) == 5
    assert Administered(rounds.storage).role.checkpoint.sha256 == newest


def test_a_paused_task_is_rolled_back_and_stays_paused(rounds):
    rounds.round()
    rounds.round(now_s=1.0)
    rounds.change("pause")
    answer, out = rounds.change("rollback", number=1)
    assert answer.state == "paused" and out == [] and rounds.role.round == 3


def test_a_version_that_is_not_kept_is_not_rolled_back_to(rounds):
    rounds.round()
    attempt = rounds.attempt
    error, out = rounds.change("rollback", number=7)
    assert isinstance(error, NotFoundError) and "kept: 1, got 7" in str(error) and out == []
    assert rounds.attempt == attempt  # the round under way is not disturbed


def test_a_task_of_another_name_is_not_found(rounds):
    error, out = rounds.change("pause", name="nobody")
    assert isinstance(error, NotFoundError) and out == []


def test_a_second_training_must_wait_until_the_first_is_over(rounds):
    rounds.round()
    error, out = rounds.create(record())
    assert isinstance(error, TaskStateError) and "one model" in str(error) and out == []
    assert [t.name for t in rounds.storage.tasks(P)] == ["train"]
    rounds.change("cancel")
    answer, out = rounds.create(record(), now_s=5.0)
    assert answer.state == "running" and [type(m) for m in out] == [WantDevices]
    _, answers = rounds.select(now_s=6.0)
    # It goes on from the model that the first one left.
    assert {(m.task, m.round, m.checkpoint.sha256) for _, m in answers} == {("second", 2, rounds.rounds[0].checkpoint)}


@pytest.mark.parametrize(
    ("made", "error", "text"),
    [
        (record("train"), TaskStateError, "a new name"),
        (evaluation(every=0), UsageError, "every"),
        (evaluation(checkpoint="ab" * 32), NotFoundError, "a stored blob"),
        (record("other", "evaluate", rounds=dataclasses.replace(BASE, goal=1000)), UsageError, "goal"),
    ],
    ids=["name", "schedule", "checkpoint", "settings"],
)
def test_a_task_that_cannot_be_is_refused_whole(rounds, made, error, text):
    got, out = rounds.create(made)
    assert isinstance(got, error) and text in str(got) and out == []
    assert len(rounds.storage.tasks(P)) == 1 and len(rounds.role.tasks()) == 1


def test_a_training_of_another_model_is_refused(rounds):
    rounds.change("cancel")
    rounds.storage._blobs[rounds.storage.load(P).checkpoint] = bytes(4)
    got, _ = rounds.create(record())
    assert isinstance(got, UsageError) and "the population's model, 4 bytes" in str(got)


def test_no_metrics_are_opened_without_noise_where_noise_is_promised():
    private = record("private", plan=private_plan("gaussian:clip=2,noise=1"), rounds=PRIVATE)
    rounds = Administered(
        parts.begin(MemoryStorage(), private_plan("gaussian:clip=2,noise=1"), PRIVATE), noise=source()
    )
    rounds.start()
    got, _ = rounds.create(evaluation())
    assert isinstance(got, UsageError) and "metrics without noise" in str(got)
    rounds.change("cancel")
    got, _ = rounds.create(evaluation())  # what was promised stays promised when its task is over
    assert isinstance(got, UsageError)
    other = Administered()
    other.start()
    other.create(evaluation())
    other.change("cancel")
    got, _ = other.create(private)
    assert isinstance(got, UsageError) and "'measure' evaluates, and 'private' promises" in str(got)


def test_an_evaluation_takes_its_turn_measures_and_moves_nothing(rounds):
    answer, out = rounds.create(evaluation(every=2))
    assert (answer.kind, answer.state, answer.rounds) == ("evaluate", "running", 0) and out == []
    rounds.round()  # the round that was under way
    before = rounds.role.checkpoint
    _, answers = rounds.select(now_s=1.0)
    assert {(m.task, m.kind, m.round, m.checkpoint.sha256) for _, m in answers} == {
        ("measure", "evaluate", 1, before.sha256)
    }
    rounds.count(4)
    rounds.send(ShardClosed(rounds.attempt, rounds.evaluation_sum(4)), 2.0)
    row = rounds.rounds[-1]
    assert (row.status, row.task, row.kind, row.checkpoint) == ("committed", "measure", "evaluate", before.sha256)
    assert row.metrics["loss"] == 0.5
    assert (rounds.role.round, rounds.role.checkpoint) == (1, before)
    assert (rounds.stored("measure").rounds, rounds.stored("measure").version) == (1, 1)
    for second in (3.0, 4.0):
        _, answers = rounds.select(now_s=second)
        assert {m.task for _, m in answers} == {"train"}
        rounds.count(4)
        rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))), second)
    _, answers = rounds.select(now_s=5.0)
    assert {m.task for _, m in answers} == {"measure"}


def test_an_evaluation_of_a_chosen_checkpoint_reads_that_one(rounds):
    rounds.round()
    chosen = rounds.role.checkpoint.sha256
    rounds.round(now_s=1.0)
    rounds.create(evaluation(checkpoint=chosen), now_s=2.0)
    rounds.round(now_s=2.0)
    _, answers = rounds.select(now_s=3.0)
    assert {m.checkpoint.sha256 for _, m in answers} == {chosen} != {rounds.role.checkpoint.sha256}


def test_a_task_starts_and_completes_at_its_times():
    rounds = Administered()
    rounds.start(0.0)
    rounds.change("cancel")
    answer, out = rounds.create(record(start_at=100.0, until=200.0), now_s=1.0)
    assert answer.state == "created" and out == [] and rounds.role.state is CoordinatorState.PAUSED
    assert rounds.role.next_deadline_s() == 100.0 and rounds.role.tick(99.0) == []
    (envelope,) = rounds.role.tick(100.0)
    assert isinstance(envelope.message, WantDevices) and rounds.stored("second").state == "running"
    rounds.select(now_s=199.0)
    (following,) = rounds.gathering
    assert rounds.role.next_deadline_s() == 259.0  # the round under way is let end
    rounds.count(4, now_s=210.0)
    assert rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))), 211.0)[0].message == WantNobody(
        following.attempt
    )
    assert rounds.stored("second").state == "completed" and rounds.role.state is CoordinatorState.PAUSED
    assert rounds.role.next_deadline_s() is None


def test_a_task_that_waits_can_be_started_before_its_time():
    rounds = Administered()
    rounds.start(0.0)
    rounds.change("cancel")
    rounds.create(record(start_at=100.0))
    answer, out = rounds.change("resume", name="second", now_s=5.0)
    assert answer.state == "running" and [type(m) for m in out] == [WantDevices]


def test_after_its_rounds_a_task_is_completed_durably():
    rounds = Administered(max_rounds=1)
    rounds.start()
    rounds.select()
    assert rounds.gathering == []  # nobody is gathered for a round that does not come
    rounds.count(4)
    rounds.send(ShardClosed(rounds.attempt, rounds.shard_sum(range(4))))
    assert rounds.stored().state == "completed"
