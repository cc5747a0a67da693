"""A device's life, minute by minute, and what a device in it did: for the tests of the scheduler and the session."""

import random

from covey.device.agent import DeviceAgent
from covey.device.conditions.conditions import Conditions
from covey.device.conditions.source import Reading
from covey.device.pace import Pace
from covey.device.scheduler import Schedule, Scheduler
from covey.device.trainer import LocalResult, TrainingStopped
from covey.types.clock import VirtualClock
from covey.types.errors import TransportError
from covey.wire.messages import ComeBack

from . import world
from .fake_server import FakeServer

MINUTE_S = 60
DAY_MINUTES = 24 * 60
CONDITIONS = ("idle", "charging", "unmetered")


class Trace:
    """For each minute: whether each condition holds, and whether the device sleeps (then nothing runs at all)."""

    def __init__(self, minutes, asleep):
        self.minutes, self.asleep = minutes, asleep

    @property
    def num_minutes(self):
        return len(self.asleep)

    def at(self, name, at_s):
        return self.minutes[name][min(int(at_s // MINUTE_S), self.num_minutes - 1)]

    def allows(self, at_s):
        return all(self.at(name, at_s) for name in CONDITIONS) and not self.asleep_at(at_s)

    def asleep_at(self, at_s):
        return self.asleep[min(int(at_s // MINUTE_S), self.num_minutes - 1)]

    def awake_from_s(self, at_s):
        """Return when a device that would go on at ``at_s`` really does."""
        minute = int(at_s // MINUTE_S)
        while minute < self.num_minutes and self.asleep[minute]:
            minute += 1
        return max(at_s, minute * MINUTE_S)


def ordinary_day():
    """In use by day on a metered network; at home, charging and left alone from 23 to 7; asleep in between, twice."""
    hour = [m // 60 for m in range(DAY_MINUTES)]
    night = [h >= 23 or h < 7 for h in hour]
    return Trace(
        {
            "idle": [n or h in (9, 10, 14) for n, h in zip(night, hour, strict=True)],
            "charging": [n or h == 13 for n, h in zip(night, hour, strict=True)],
            "unmetered": [h >= 18 or h < 8 for h in hour],
        },
        asleep=[h in (3, 4, 12) for h in hour],
    )


class TracedClock(VirtualClock):
    """Time passes when somebody waits or works, and jumps over the machine's sleep. Ends the day's scheduler."""

    def __init__(self, trace):
        super().__init__()
        self.trace, self.end = trace, lambda: None

    def advance_to(self, at_s):
        super().advance_to(self.trace.awake_from_s(at_s))
        if self.now_s() >= self.trace.num_minutes * MINUTE_S:
            self.end()

    def work(self, seconds):
        self.advance_to(self.now_s() + seconds)

    def wait(self, wake, timeout_s):
        until_s = self.now_s() + timeout_s
        while self.now_s() < until_s and not wake.is_set():
            self.advance_to(min(until_s, self.now_s() + 30))  # as the real one: in pieces
        return wake.is_set()


class Traced:
    max_age_s = 0.5

    def __init__(self, name, clock):
        self.name, self.clock = name, clock

    def read(self):
        holds = self.clock.trace.at(self.name, self.clock.now_s())
        return Reading(holds, "" if holds else f"--assume {self.name}")


class TracedServer(FakeServer):
    """Every request takes time; the network is away while the device sleeps, and a round closes at its deadline."""

    def __init__(self, clock, retry_s=300.0):
        super().__init__(report_within_s=600.0)
        self.clock, self.retry_s, self.requests = clock, retry_s, []
        self.opened_s = {}
        self.num_check_ins = 0

    def _called(self, call, credential=None):
        begun_s = self.clock.now_s()
        self.requests.append((call, begun_s))
        self.clock.work(0.2)
        if self.clock.now_s() - begun_s > 60:
            raise TransportError("server", expected="an answer", got="a connection that a sleep broke")
        super()._called(call, credential)

    def check_in(self, message, credential):
        self.num_check_ins += 1
        if self.num_check_ins % 3 == 0:
            self._called("check_in", credential)
            return ComeBack(retry_after_s=self.retry_s, reason="not_selected")
        given = super().check_in(message, credential)
        self.opened_s[given.session] = self.clock.now_s()
        return given


class TracedTrainer:
    """Trains in chunks of a second, and notes when; the update is a constant."""

    def __init__(self, clock, num_chunks=40):
        self.clock, self.num_chunks, self.worked_s = clock, num_chunks, []

    def run(self, job, examples, should_stop):
        import numpy as np

        for _ in range(self.num_chunks):
            if should_stop():
                raise TrainingStopped
            self.worked_s.append(self.clock.now_s())
            self.clock.work(1.0)
        manifest = job.plan.manifest
        header = np.array([1.0, 5.0, *[1.0] * len(manifest.metrics)])
        return LocalResult({"header": header, "model": np.zeros(8, np.float32)}, 5.0, {}, 5, self.num_chunks)


def live(home, trace, seed=0):
    """Let a device live through a trace; return its server, its trainer and its events."""
    clock = TracedClock(trace)
    server, trainer, events = TracedServer(clock), TracedTrainer(clock), []
    conditions = Conditions({name: Traced(name, clock) for name in CONDITIONS}, clock)
    agent = DeviceAgent(
        home,
        "https://server",
        world.policy(),
        transport=server,
        trainer=trainer,
        conditions=conditions,
        clock=clock,
        pace=Pace(),
        chance=random.Random(seed),
        on_event=events.append,
    )
    scheduler = Scheduler([agent], schedule=Schedule(home.path, clock), clock=clock)
    clock.end = scheduler.stop
    server.abort = lambda: None  # the end of the trace is the end of the world, not of the connection
    clock.advance_to(0)  # a trace may begin asleep
    scheduler.run()
    return server, trainer, events
