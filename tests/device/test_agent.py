"""The agent against a server in memory that fails in every way a network and a server can."""

import random
import threading
import time

import numpy as np
import pytest

from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.pace import Pace
from covey.device.trainer import OnnxTrainer, TrainingStopped
from covey.types.errors import (
    BlobHashError,
    BusyError,
    NotFoundError,
    PlanSignatureError,
    RoundClosedError,
    SessionUnknownError,
    StateError,
    StorageFullError,
    TooFewExamplesError,
    TransportError,
    VersionError,
)
from covey.wire.messages import ComeBack

from . import world
from .fake_server import FakeServer

QUICK = Pace(first_s=0.001, most_s=0.004, jitter=0.0, conditions_s=0.001)


@pytest.fixture
def home(tmp_path):
    with DeviceHome(tmp_path / "home") as h:
        h.examples.add_many("points", world.points(13), world.SCHEMA)
        yield h


@pytest.fixture
def server():
    return FakeServer()


class Run:
    """An agent and what it told."""

    def __init__(self, home, server, **options):
        self.events = []
        options = {"pace": QUICK, "policy": world.policy(), "on_event": self.events.append, **options}
        self.agent = DeviceAgent(home, "https://server", transport=server, **options)

    def once(self):
        return self.agent.run(once=True)

    @property
    def kinds(self):
        return [e.kind for e in self.events]


def error(kind=TransportError, retry_after_s=0.0):
    e = kind("server", expected="this", got="that")
    e.retry_after_s = retry_after_s
    return e


def test_one_counted_report(home, server):
    run = Run(home, server)
    summary = run.once()
    assert server.calls == ["enroll", "check_in", "fetch", "fetch", "report"]
    assert run.kinds == ["enrolled", "assigned", "training", "counted"]
    assert server.counted == {"s1"}
    assert server.total.reals("header")[:2].tolist() == [1.0, 13.0]
    assert np.abs(server.total.reals("model")).max() > 0
    assert summary.counted == 1 and summary.gave_up == summary.lost == 0
    assert summary.bytes_up == len(server.bodies["s1"][0])
    assert summary.bytes_down == len(world.plan_bytes()) + len(world.checkpoint())


def test_an_agent_runs_once(home, server):
    run = Run(home, server)
    run.once()
    with pytest.raises(StateError, match="agent: expected one run, got a second"):
        run.once()


def test_credential_plan_and_checkpoint_are_fetched_once(home, server):
    Run(home, server).once()
    server.calls.clear()
    assert Run(home, server).once().bytes_down == 0
    assert server.calls == ["check_in", "report"]


def test_old_checkpoints_are_deleted(tmp_path, server):
    with DeviceHome(tmp_path / "small", max_cache_bytes=len(world.plan_bytes())) as home:
        home.examples.add_many("points", world.points(13), world.SCHEMA)
        Run(home, server).once()
        names = {p.name for p in (home.path / "blobs").iterdir()}
        assert names == {world.assignment().plan.sha256, world.assignment().checkpoint.sha256}
        other = np.ones(8, np.float32).tobytes()
        server.blobs[world.ref(other, "c").sha256] = other
        server.assigned = {"checkpoint": world.ref(other, "checkpoints")}
        Run(home, server).once()
        assert {p.name for p in (home.path / "blobs").iterdir()} == {
            world.assignment().plan.sha256,
            world.ref(other, "c").sha256,
        }


def test_an_expired_credential_is_renewed(home, server):
    Run(home, server).once()
    server.credential = "c2"
    server.calls.clear()
    Run(home, server).once()
    assert server.calls == ["check_in", "enroll", "check_in", "report"]


def test_a_credential_that_expires_while_the_device_trains_costs_nothing(home, server):
    server.on_call = lambda call: setattr(server, "credential", "c2") if call == "report" else None
    Run(home, server).once()
    assert server.calls[-3:] == ["report", "enroll", "report"]
    assert server.counted == {"s1"}
    assert server.bodies["s1"][0] == server.bodies["s1"][1]


def test_the_device_comes_back_when_it_is_asked_to(home, server):
    server.answers = [
        ComeBack(retry_after_s=0.0, reason="between_rounds"),
        ComeBack(retry_after_s=0.0, reason="paused"),
    ]
    run = Run(home, server)
    run.once()
    assert run.kinds == ["enrolled", "waiting", "waiting", "assigned", "training", "counted"]


@pytest.mark.parametrize("call", ["enroll", "check_in", "fetch", "report"])
@pytest.mark.parametrize("kind", [TransportError, BusyError])
def test_a_network_that_fails_is_tried_again(home, server, call, kind):
    server.failures = {call: [error(kind) for _ in range(3)]}
    run = Run(home, server)
    run.once()
    assert run.kinds.count("retrying") == 3
    assert server.counted == {"s1"} and server.num_sessions == 1
    assert len(set(server.bodies["s1"])) == 1  # every retry sent identical bytes


def test_a_report_whose_answer_was_lost_counts_once(home, server):
    def lost(call):
        if call == "report" and server.calls.count("report") == 1:
            server.fold("s1", server.bodies["s1"][0])
            raise error(TransportError)

    server.on_call = lost
    run = Run(home, server)
    assert run.once().counted == 1
    assert server.calls.count("report") == 2 and server.total.num_folded == 1


@pytest.mark.parametrize("kind", [SessionUnknownError, RoundClosedError])
def test_a_restarted_server_costs_one_session(home, server, kind):
    server.failures = {"report": [error(kind)]}
    run = Run(home, server)
    summary = run.once()
    assert (summary.lost, summary.counted) == (1, 1)
    assert server.counted == {"s2"}
    assert "lost" in run.kinds


def test_a_round_that_closes_while_the_network_is_away_is_given_up(home, server):
    trainer = OnnxTrainer()
    Run(home, server, trainer=trainer).once()  # loads the graphs, so that the short round below is long enough
    server.assigned = {"report_within_s": 1.0}
    server.failures = {"report": [error(retry_after_s=1.1)]}
    run = Run(home, server, trainer=trainer)
    # The server asks for a pause beyond the deadline: the session is lost at once instead of waiting in vain.
    assert run.once().lost == 1
    assert server.counted == {"s1", "s3"} and "retrying" not in run.kinds


@pytest.mark.parametrize("kind", [NotFoundError, VersionError])
def test_what_waiting_does_not_cure_is_raised(home, server, kind):
    server.failures = {"check_in": [error(kind)]}
    with pytest.raises(kind):
        Run(home, server).agent.run()


def test_an_empty_device_says_so_and_tells_the_server(home, server):
    home.examples.delete("points")
    run = Run(home, server)
    with pytest.raises(TooFewExamplesError, match="at least 3, got none"):
        run.once()
    assert server.abandoned == [("s1", "too_few_examples")]


def test_without_once_an_error_of_the_device_waits_for_better_days(home, server):
    home.examples.delete("points")
    run = Run(home, server)

    def then_examples_come(call):
        if call == "abandon" and server.num_sessions == 3:
            home.examples.add_many("points", world.points(5), world.SCHEMA)
        if call == "report":
            run.agent.stop()

    server.on_call = then_examples_come
    server.abort = lambda: None  # let the report through that stop() would break
    summary = run.agent.run()
    assert (summary.gave_up, summary.counted) == (3, 1)


def test_a_foreign_signature_is_refused_before_anything_is_downloaded(home, server):
    server.assigned = {"signature": "00" * 64}
    with pytest.raises(PlanSignatureError):
        Run(home, server).once()
    assert "fetch" not in server.calls and server.abandoned == [("s1", "plan_signature")]


def test_a_checkpoint_that_was_changed_on_the_way_is_not_kept(home, server):
    name = world.assignment().checkpoint.sha256
    server.blobs[name] = bytes(len(world.checkpoint()))
    with pytest.raises(BlobHashError):
        Run(home, server).once()
    assert server.abandoned == [("s1", "blob_hash")]
    assert not (home.path / "blobs" / name).exists()


def test_a_full_disk_gives_up_the_session_and_keeps_the_examples(home, server, monkeypatch):
    def full(ref, fetch):
        raise error(StorageFullError)

    monkeypatch.setattr(home.blobs, "download", full)
    with pytest.raises(StorageFullError):
        Run(home, server).once()
    assert server.abandoned == [("s1", "storage_full")]
    assert home.examples.count("points") == 13


class Stopper:
    """A trainer that calls back in the middle of training and then honours ``should_stop``."""

    def __init__(self, during):
        self.during = during

    def run(self, job, examples, should_stop):
        self.during()
        if should_stop():
            raise TrainingStopped
        return OnnxTrainer().run(job, examples, should_stop)


def test_stop_during_training_abandons_the_session(home, server):
    run = Run(home, server, trainer=Stopper(lambda: run.agent.stop()))
    summary = run.agent.run()
    assert server.abandoned == [("s1", "condition_lapsed")]
    assert (summary.counted, summary.gave_up) == (0, 1)
    assert run.kinds[-1] == "stopped"


def test_a_lapsed_condition_abandons_the_session_and_the_device_comes_back(home, server):
    free = [True]

    def unplug():
        free[0] = server.num_sessions > 1

    def plug_in(call):
        free[0] = True

    server.on_call = lambda call: plug_in(call) if call == "abandon" else None
    run = Run(home, server, trainer=Stopper(unplug), may_train=lambda: free[0])
    assert run.once().counted == 1
    assert server.abandoned == [("s1", "condition_lapsed")]


def test_a_budget_of_time_is_kept(home, server):
    server.assigned = {"report_within_s": 0.05}

    def slow_once():
        if server.num_sessions == 1:
            time.sleep(0.1)
            server.assigned = {}

    run = Run(home, server, trainer=Stopper(slow_once))
    assert run.once().counted == 1
    assert server.abandoned == [("s1", "time_is_up")]


def test_no_check_in_while_the_conditions_do_not_hold(home, server):
    asked = []

    def may_train():
        asked.append(1)
        return len(asked) > 5

    Run(home, server, may_train=may_train).once()
    assert len(asked) > 5 and server.num_sessions == 1


def test_ctrl_c_tells_the_server_and_is_passed_on(home, server):
    def interrupt():
        raise KeyboardInterrupt

    run = Run(home, server, trainer=Stopper(interrupt))
    with pytest.raises(KeyboardInterrupt):
        run.agent.run()
    assert server.abandoned == [("s1", "condition_lapsed")]


def test_stop_wakes_an_agent_that_waits(home, server):
    server.answers = [ComeBack(retry_after_s=3600.0, reason="paused")]
    run = Run(home, server)
    thread = threading.Thread(target=run.agent.run)
    thread.start()
    while "waiting" not in run.kinds:
        time.sleep(0.001)
    run.agent.stop()
    thread.join(timeout=30)
    assert not thread.is_alive() and run.kinds[-1] == "stopped"


def test_several_agents_share_one_trainer(tmp_path):
    trainer, servers, threads = OnnxTrainer(), [FakeServer() for _ in range(4)], []
    homes = [DeviceHome(tmp_path / str(i)) for i in range(4)]
    for i, (home, server) in enumerate(zip(homes, servers, strict=True)):
        home.examples.add_many("points", world.points(10 + i), world.SCHEMA)
        threads.append(threading.Thread(target=Run(home, server, trainer=trainer).once))
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [s.total.reals("header")[1] for s in servers] == [10.0, 11.0, 12.0, 13.0]
    for home in homes:
        home.close()


def test_pauses_after_failures_double_up_to_a_cap_and_are_half_random():
    pace, chance = Pace(first_s=1.0, most_s=8.0, jitter=0.5), random.Random(0)
    for failures, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0), (10_000, 8.0)):
        pauses = [pace.after_failure(failures, chance) for _ in range(200)]
        assert all(longest / 2 <= p <= longest for p in pauses) and len(set(pauses)) > 100


def test_pauses_that_the_server_asks_for_are_only_lengthened_and_stay_sane():
    pace, chance = Pace(jitter=0.5), random.Random(0)
    assert all(10.0 <= pace.as_asked(10.0, chance) <= 15.0 for _ in range(200))
    for odd in (0.0, -5.0, float("nan")):
        assert 0.0 < pace.as_asked(odd, chance) < 1.0
    assert pace.as_asked(float("inf"), chance) <= 1.5 * 86_400


def test_the_servers_pause_is_kept_after_a_failure(home, server):
    server.failures = {"check_in": [error(BusyError, retry_after_s=0.3)]}
    begun = time.monotonic()
    Run(home, server).once()
    assert time.monotonic() - begun >= 0.3


def test_events_hold_no_secret_and_no_data(home, server):
    run = Run(home, server)
    run.once()
    assert all(server.credential not in e.text and "s1" not in e.text for e in run.events)


def test_stop_in_a_check_in_is_told_as_that_and_nothing_else(home, server):
    run = Run(home, server)

    def cut(call):
        if call == "check_in":  # what a thread that waits for an answer sees when its connection is cut
            run.agent.stop()

    server.on_call = cut
    run.agent.run()
    assert run.kinds == ["enrolled", "stopped"]
