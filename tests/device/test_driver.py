"""Driving a session: downloads that go on, a lid that closes, conditions that lapse at every moment, and deadlines."""

import itertools
import random

import pytest

from covey.device.agent import DeviceAgent
from covey.device.conditions.conditions import Conditions
from covey.device.conditions.source import Reading
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger
from covey.device.pace import Pace
from covey.device.trainer import OnnxTrainer, TrainingStopped
from covey.types.clock import VirtualClock
from covey.types.errors import SessionUnknownError, StorageFullError, TransportError
from covey.wire.messages import Joined, Taken

from . import world
from .fake_server import FakeServer

STEADY = Pace(first_s=1.0, most_s=60.0, jitter=0.0, conditions_s=15.0)
LID_S = 8 * 3600.0


@pytest.fixture
def home(tmp_path):
    with DeviceHome(tmp_path / "home") as h:
        h.examples.add_many("points", world.points(13), world.SCHEMA)
        yield h


def away():
    return TransportError("server", expected="an answer", got="ReadError")


class Run:
    def __init__(self, home, server, clock=None, **options):
        self.clock, self.events, self.home = clock or VirtualClock(), [], home
        self.agent = DeviceAgent(
            home,
            "https://server",
            options.pop("policy", world.policy()),
            transport=server,
            clock=self.clock,
            pace=STEADY,
            chance=random.Random(0),
            on_event=self.events.append,
            **options,
        )

    def turn(self):
        self.pause_s = self.agent.turn()
        return [e.kind for e in self.events]

    @property
    def ledger(self):
        ledger = Ledger.of_home(self.home.path)
        ledger.verify()
        return [(e.kind, e.reason) for e in ledger.entries()]


class CutServer(FakeServer):
    """Cuts every download after 1,000 bytes."""

    def __init__(self, cut=True):
        super().__init__()
        self.cut, self.starts = cut, []

    def fetch(self, ref, credential, start=0):
        self.starts.append((ref.sha256, start))
        for number, chunk in enumerate(super().fetch(ref, credential, start)):
            if self.cut and number:
                raise away()
            yield chunk


def test_a_download_that_is_cut_again_and_again_goes_on(home):
    server = CutServer()
    server.assigned = {"report_within_s": 3600.0}
    run = Run(home, server)
    kinds = run.turn()
    data = world.plan_bytes()
    cuts = -(-len(data) // 1000) - 1
    assert cuts >= 5 and kinds.count("retrying") == cuts and kinds[-1] == "counted"
    assert [s for name, s in server.starts if name == world.assignment().plan.sha256] == [
        1000 * i for i in range(cuts + 1)
    ]
    # Every byte came once.
    assert run.agent.summary.bytes_down == len(data) + len(world.checkpoint())


def test_what_came_before_a_restart_need_not_come_again(tmp_path):
    server = CutServer()
    server.assigned = {"report_within_s": 0.5}  # no time to try again: the session is lost
    for number in range(2):
        with DeviceHome(tmp_path / "h") as home:
            home.examples.add_many("points", world.points(13), world.SCHEMA)
            run = Run(home, server)
            assert run.turn()[-1] == "lost"
            assert home.blobs.get(world.assignment().plan) is None
        assert server.starts[-1][1] == 1000 * number
    assert run.agent.summary.bytes_down == 1000


def test_a_disk_that_fills_during_a_download_costs_the_session_and_nothing_else(home, monkeypatch):
    server = FakeServer()
    run = Run(home, server)
    original = server.fetch

    def filling(ref, credential, start=0):
        for number, chunk in enumerate(original(ref, credential, start)):
            if number == 2:  # the write of what came fails
                raise StorageFullError("blob cache", expected="room on the disk", got="none")
            yield chunk

    monkeypatch.setattr(server, "fetch", filling)
    assert run.turn()[-1] == "gave_up" and server.abandoned == [("s1", "storage_full")]
    assert list((home.path / "blobs").iterdir()) == [] and home.examples.count("points") == 13
    monkeypatch.setattr(server, "fetch", original)
    assert run.turn()[-1] == "counted"


# --- a lid that closes ---


class SecureServer(FakeServer):
    """Takes a device into a group, and then the lid closes: at which step, and what the network does after, is told."""

    def __init__(self, clock, lid_at, after):
        data = world.secure_plan_bytes()
        super().__init__(mode="secure", plan=world.ref(data, "plans"), public_seed="ab" * 32, report_within_s=60.0)
        self.assigned["signature"] = world.assignment(data).signature
        self.blobs[world.ref(data, "x").sha256] = data
        self.clock, self.lid_at, self.after, self.steps = clock, lid_at, after, []

    def _lid(self, name):
        self.steps.append(name)
        if name == self.lid_at:
            self.clock.advance_to(self.clock.elapsed_s() + LID_S)
        if self.clock.elapsed_s() >= LID_S and isinstance(self.after, Exception):
            raise self.after

    def send_step(self, session, step, body, credential):
        self._lid(f"send {step}")
        return Taken(step=step)

    def await_step(self, session, step, credential):
        self._lid(f"await {step}")
        if self.clock.elapsed_s() >= LID_S:
            return None
        return Joined(group=0, index=1) if step == "ready" else None


GONE = SessionUnknownError("session", expected="an open one", got="another")


@pytest.mark.parametrize("lid_at", ["send ready", "await ready", "send advertise", "await advertise"])
@pytest.mark.parametrize("after", [None, away(), GONE], ids=["asks on", "no network", "session gone"])
def test_a_lid_that_closes_within_a_secure_sum_ends_the_session_cleanly(home, lid_at, after):
    clock = VirtualClock()
    server = SecureServer(clock, lid_at, after)
    run = Run(home, server, clock)
    kinds = run.turn()
    assert kinds[-1] in ("lost", "gave_up")
    assert "send mask" not in server.steps and run.ledger[-1][0] in ("lost", "gave_up")
    assert [k for k, _ in run.ledger] == ["session_started", run.ledger[-1][0]]
    # It does not go on asking for a sum of last evening: a try or two, and the session is over.
    assert clock.elapsed_s() < LID_S + 120 and len(server.steps) < 10
    server.after = None
    server.lid_at = ""
    before = server.num_sessions
    Run(home, server, VirtualClock()).agent._parts.account.authorized(lambda bearer: server.check_in(None, bearer))
    assert server.num_sessions == before + 1


@pytest.mark.parametrize("call", ["check_in", "fetch", "report"])
def test_a_lid_that_closes_within_a_request_ends_the_session_cleanly(home, call):
    clock, closed = VirtualClock(), []
    server = FakeServer()

    def lid(name):
        if name == call and not closed:
            closed.append(clock.elapsed_s())
            clock.advance_to(clock.elapsed_s() + LID_S)
            raise away()

    server.on_call = lid
    run = Run(home, server, clock)
    kinds = run.turn()
    # A check-in is before any deadline: it is simply made again in the morning.
    assert kinds[-1] == ("counted" if call == "check_in" else "lost")
    assert len(server.bodies.get("s1", [])) <= 1


def test_a_sleep_while_training_is_time_that_is_up(home):
    clock, server = VirtualClock(), FakeServer()

    class Sleepy:
        def run(self, job, examples, should_stop):
            clock.advance_to(clock.elapsed_s() + LID_S)
            if should_stop():
                raise TrainingStopped
            raise AssertionError("trained on")

    run = Run(home, server, clock, trainer=Sleepy())
    assert run.turn()[-1] == "gave_up" and server.abandoned == [("s1", "time_is_up")]


# --- conditions ---


class Switch:
    max_age_s = 0.0

    def __init__(self):
        self.holds = True

    def read(self):
        return Reading(self.holds, "plug it in")


CALLS = ["enroll", "check_in", "fetch", "fetch", "train", "report"]


@pytest.mark.parametrize("at", range(len(CALLS) - 1))
def test_a_condition_that_lapses_at_any_moment_ends_the_session_before_anything_more_leaves(home, at):
    server, charging, clock = FakeServer(), Switch(), VirtualClock()
    calls = itertools.count()

    class Counting:
        def run(self, job, examples, should_stop):
            step("train")
            if should_stop():
                raise TrainingStopped
            return OnnxTrainer().run(job, examples)

    def step(name):
        if name != "abandon" and next(calls) == at:
            charging.holds = False

    server.on_call = step
    run = Run(home, server, clock, trainer=Counting(), conditions=Conditions({"charging": charging}, clock))
    kinds = run.turn()
    assert "report" not in server.calls and kinds[-1] == "gave_up"
    assert server.abandoned == ([("s1", "condition_lapsed")])
    assert run.turn()[-1] == "held" and run.pause_s == STEADY.conditions_s
    charging.holds = True
    for _ in range(3):  # it settles first
        clock.advance_to(clock.elapsed_s() + STEADY.conditions_s)
        run.turn()
    assert [e.kind for e in run.events].count("counted") >= 1


def test_the_plans_terms_decide_once_they_are_known(home):
    from covey.plans.manifest import Eligibility

    data = world.changed(world.plan(), eligibility=Eligibility(charging=False))
    server, charging = FakeServer(plan=world.ref(data, "plans")), Switch()
    server.assigned["signature"] = world.assignment(data).signature
    server.blobs[world.ref(data, "x").sha256] = data
    clock = VirtualClock()
    run = Run(home, server, clock, conditions=Conditions({"charging": charging}, clock))
    charging.holds = False
    assert run.turn() == ["held"]  # nothing is known of the plan yet
    charging.holds = True
    clock.advance_to(15)
    assert run.turn() == ["held"]
    clock.advance_to(30)

    def unplug_once_the_plan_is_here(call):
        charging.holds = server.calls.count("fetch") < 2

    server.on_call = unplug_once_the_plan_is_here
    assert run.turn()[-1] == "counted" and not charging.holds
    assert run.turn()[-1] == "counted" and server.counted == {"s1", "s2"}


# --- deadlines ---


def test_a_server_that_never_closes_its_sum_is_left_in_the_end(home):
    clock = VirtualClock()
    server = SecureServer(clock, "", None)

    def later(session, step, credential):
        clock.advance_to(clock.elapsed_s() + 50)  # a long poll
        return Joined(group=0, index=1) if step == "ready" else None

    server.await_step = later
    run = Run(home, server, clock)
    assert run.turn()[-1] == "gave_up"
    assert server.abandoned == [("s1", "time_is_up")] and clock.elapsed_s() < 60 + 300 + 2 * 50
