"""One agent for several populations: turns, never two at once, over sleep and changed dates, across restarts."""

import contextlib
import os
import random
import subprocess
import sys
import threading

import pytest

from covey.device.agent import DeviceAgent
from covey.device.choices import Choices
from covey.device.conditions.conditions import Conditions
from covey.device.conditions.source import Reading
from covey.device.effects import Counted, Lost, Waiting
from covey.device.gate import Gate
from covey.device.home import DeviceHome
from covey.device.pace import Pace
from covey.device.populations import Membership, Populations
from covey.device.priority import NICENESS
from covey.device.scheduler import PERMANENT_S, Schedule, Scheduler
from covey.plans.manifest import Eligibility
from covey.types.clock import VirtualClock
from covey.types.errors import NotFoundError, StateError, StorageError, TransportError, UsageError
from covey.wire.messages import ComeBack, Enrolled

from . import world

STEADY = Pace(jitter=0.0)


class Server:
    """Sends every device away, and notes when it came."""

    def __init__(self, clock, retry_s=60.0):
        self.clock, self.retry_s, self.came_s = clock, retry_s, []
        self.error = None
        self.busy = threading.Lock()

    def enroll(self, message):
        return Enrolled(credential="c", expires_in_s=1e9)

    def check_in(self, message, credential):
        assert self.busy.acquire(blocking=False), "two sessions at once"
        try:
            self.came_s.append(self.clock.elapsed_s())
            if self.error is not None:
                raise self.error
            return ComeBack(retry_after_s=self.retry_s, reason="not_selected")
        finally:
            self.busy.release()

    def abort(self):
        pass

    close = abort


class StoppingClock(VirtualClock):
    """Ends the scheduler at a given time; the date can be set apart from what elapses."""

    def __init__(self, end_s):
        super().__init__()
        self.end_s, self.date_offset_s, self.stop = end_s, 1.7e9, lambda: None

    def now_s(self):
        return self.elapsed_s() + self.date_offset_s

    def wait(self, wake, timeout_s):
        woken = super().wait(wake, timeout_s)
        if self.elapsed_s() >= self.end_s:
            self.stop()
        return woken


class Device:
    def __init__(self, home, clock, servers, **options):
        self.events = []
        self.agents = [
            DeviceAgent(
                home,
                "https://server",
                world.policy(population=name),
                transport=server,
                clock=clock,
                pace=STEADY,
                chance=random.Random(0),
                on_event=self.events.append,
                **options,
            )
            for name, server in servers.items()
        ]
        self.schedule = Schedule(home.path, clock)
        self.scheduler = Scheduler(self.agents, schedule=self.schedule, clock=clock, on_event=self.events.append)
        clock.stop = self.scheduler.stop


@pytest.fixture
def home(tmp_path):
    with DeviceHome(tmp_path / "home") as h:
        yield h


def test_populations_take_turns_each_when_its_server_asked_for_it(home):
    clock = StoppingClock(end_s=600)
    servers = {"a": Server(clock, 60), "b": Server(clock, 200)}
    Device(home, clock, servers).scheduler.run()
    assert servers["a"].came_s == [60 * i for i in range(10)]
    assert servers["b"].came_s == [0, 200, 400]


def test_a_server_that_does_not_know_the_population_does_not_stop_the_others(home):
    clock = StoppingClock(end_s=2 * PERMANENT_S)
    servers = {"a": Server(clock, 600), "b": Server(clock)}
    servers["b"].error = NotFoundError("population", expected="one", got="another")
    device = Device(home, clock, servers)
    device.scheduler.run()
    assert len(servers["a"].came_s) == 2 * PERMANENT_S / 600
    assert servers["b"].came_s == [0, PERMANENT_S]
    assert any(e.kind == "lost" and e.population == "b" and "60 minutes" in e.text for e in device.events)


def test_failures_back_off_up_to_a_cap(home):
    clock = StoppingClock(end_s=3600)
    server = Server(clock)
    server.error = TransportError("server", expected="an answer", got="none")
    Device(home, clock, {"a": server}).scheduler.run()
    gaps = [b - a for a, b in zip(server.came_s, server.came_s[1:], strict=False)]
    assert all(STEADY.first_s / 2 <= g <= STEADY.most_s for g in gaps)
    assert all(g >= STEADY.most_s / 2 for g in gaps[10:]) and len(server.came_s) < 130


def test_a_device_that_slept_comes_once_and_one_whose_date_changes_comes_in_time(home):
    clock = StoppingClock(end_s=40_000)
    server = Server(clock, 600)
    device = Device(home, clock, {"a": server})

    def then(call_s):
        if len(server.came_s) == 3:  # the lid is closed for eight hours
            clock.advance_to(clock.elapsed_s() + 8 * 3600)
        clock.date_offset_s += random.Random(len(server.came_s)).choice([-1e8, 0, 1e8])

    original = server.check_in
    server.check_in = lambda m, c: (original(m, c), then(0))[0]
    device.scheduler.run()
    gaps = [b - a for a, b in zip(server.came_s, server.came_s[1:], strict=False)]
    # Dates that jump by years renew the credential, and move no check-in.
    assert sorted(gaps)[-1] == 8 * 3600 + 600 and sorted(gaps)[:-1] == [600] * (len(gaps) - 1)


def test_what_a_server_asked_for_outlives_a_restart(tmp_path):
    clock = StoppingClock(end_s=100)
    with DeviceHome(tmp_path / "h") as home:
        server = Server(clock, 3600)
        Device(home, clock, {"a": server, "b": Server(clock, 40)}).scheduler.run()
    assert server.came_s == [0]
    clock.end_s = 4000
    with DeviceHome(tmp_path / "h") as home:
        again, other = Server(clock, 3600), Server(clock, 3600)
        Device(home, clock, {"a": again, "c": other}).scheduler.run()
    assert again.came_s == [pytest.approx(3600, abs=1)] and other.came_s[0] < 200
    # A date that was set back by a year does not keep the device away for one.
    clock.date_offset_s -= 365 * 86_400
    assert max(Schedule(tmp_path / "h", clock).pauses_s().values()) <= 1.2 * 86_400
    (tmp_path / "h" / "schedule.json").write_text("{")
    assert Schedule(tmp_path / "h", clock).pauses_s() == {}


def test_a_full_disk_is_told_and_waited_out(home, monkeypatch):
    clock = StoppingClock(end_s=300)
    device = Device(home, clock, {"a": Server(clock)})

    def full(pauses_s):
        raise StorageError("schedule", expected="room", got="none")

    monkeypatch.setattr(device.schedule, "keep", full)
    device.scheduler.run()
    assert [e.kind for e in device.events].count("lost") == 5


def test_a_scheduler_runs_once_and_each_population_once(home):
    clock = StoppingClock(end_s=10)
    device = Device(home, clock, {"a": Server(clock)})
    device.scheduler.run()
    with pytest.raises(StateError, match="one run"):
        device.scheduler.run()
    with pytest.raises(UsageError, match="each once, got a, a"):
        Scheduler([*device.agents, *device.agents])
    with pytest.raises(UsageError, match="got none"):
        Scheduler([])


class Off:
    max_age_s = 0.5

    def read(self):
        return Reading(False, "on battery; plug it in, or --assume charging")


def test_a_held_device_says_once_what_it_waits_for_and_sends_nothing(home):
    clock = StoppingClock(end_s=3600)
    server = Server(clock)
    device = Device(home, clock, {"a": server}, conditions=Conditions({"charging": Off()}, clock))
    device.scheduler.run()
    assert server.came_s == []
    assert [e.text for e in device.events if e.kind == "held"] == [
        "waits; charging: on battery; plug it in, or --assume charging"
    ]


def test_the_persons_choice_counts_before_everything(home):
    clock = StoppingClock(end_s=1000)
    servers = {"a": Server(clock), "b": Server(clock)}
    choices = Choices.of_home(home.path)
    choices.refuse("a")
    device = Device(home, clock, servers)
    device.scheduler.run()
    assert servers["a"].came_s == [] and len(servers["b"].came_s) == 17
    assert any(e.kind == "held" and "covey device status" in e.text for e in device.events)
    choices.pause(clock.now_s() + 500)
    clock.end_s = 2000
    servers = {"b": Server(clock)}
    Device(home, clock, servers).scheduler.run()
    assert servers["b"].came_s[0] >= 1500


def test_a_gate_asks_for_what_the_plan_needs_and_for_everything_until_one_is_known():
    clock = VirtualClock()
    gate = Gate("p", clock, conditions=Conditions({"charging": Off()}, clock))
    assert gate.check().lapsed == ("charging",)
    gate.needs = Eligibility(charging=False)
    assert gate.is_open()
    network = Conditions({"unmetered": Off()}, clock)
    assert not Gate("p", clock, conditions=network).is_open()
    assert Gate("p", clock, conditions=network, over_network=False).is_open()
    assert not Gate("p", clock, may_train=lambda: False).is_open() and Gate("p", clock).is_open()


# --- the file of populations ---

MEMBER = Membership(population="p", server="https://s", owner_key=world.OWNER.public_key().public_bytes_raw().hex())


def test_joining_changing_and_leaving(tmp_path):
    populations = Populations(tmp_path / "home")
    assert populations.read() == ()
    other = Membership(population="q", server="https://t", owner_key=MEMBER.owner_key, min_cohort=3)
    populations.join(MEMBER)
    populations.join(other)
    assert populations.read() == (MEMBER, other)
    assert populations.path.stat().st_mode & 0o777 == 0o600
    populations.join(Membership(population="p", server="https://u", owner_key=MEMBER.owner_key))
    assert [m.server for m in populations.read()] == ["https://t", "https://u"]
    populations.leave("q")
    assert [m.population for m in populations.read()] == ["p"]
    with pytest.raises(UsageError, match="expected one of p, got q"):
        populations.leave("q")
    policy = MEMBER.policy()
    assert (policy.population, policy.accept_plain, policy.min_cohort) == ("p", False, 100)


@pytest.mark.parametrize(
    "fields",
    [{"owner_key": "x"}, {"owner_key": "00"}, {"min_cohort": 0}, {"min_noise": -1.0}, {"min_noise": float("nan")}],
)
def test_terms_that_mean_nothing_are_not_joined(tmp_path, fields):
    base = {"population": "p", "server": "https://s", "owner_key": MEMBER.owner_key}
    with pytest.raises(UsageError, match="population 'p'"):
        Populations(tmp_path).join(Membership(**{**base, **fields}))
    assert Populations(tmp_path).read() == ()


def test_a_file_that_is_none_of_ours_is_a_clear_error(tmp_path):
    (tmp_path / "populations.json").write_text('[{"population": 3}]')
    with pytest.raises(StorageError, match="what `covey device join` writes"):
        Populations(tmp_path).read()


NICE = """
import os, sys
os.nice(int(sys.argv[1]))
from covey.device.priority import give_way
give_way()
print(os.nice(0))
"""


@pytest.mark.parametrize("before", [0, NICENESS + 3])
def test_a_process_gives_way_and_never_takes_more_than_it_had(before):
    done = subprocess.run([sys.executable, "-c", NICE, str(before)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(19, max(NICENESS, os.nice(0) + before))


def test_outcomes_of_a_turn_are_pauses(home):
    clock = VirtualClock()
    agent = DeviceAgent(home, "https://server", world.policy(), transport=Server(clock), clock=clock, pace=STEADY)
    assert agent.turn() == 60.0
    assert agent._settle(Waiting("paused", 7.0), False) == 7.0
    assert agent._settle(Counted(1, 2, 3, None), False) == STEADY.first_s
    with contextlib.suppress(TransportError):
        assert agent._settle(Lost(TransportError("s", expected="a", got="b")), False) <= STEADY.first_s
