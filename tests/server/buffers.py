"""An asynchronous task with its real roles on an engine; devices, network and clock are the test's."""

import contextlib

import numpy as np
from device import world

from covey.plans.manifest import AlgorithmRef
from covey.server.aggregator import Aggregator
from covey.server.coordinator import Coordinator
from covey.server.engine import Engine
from covey.server.messages import (
    AbandonArrived,
    ChangeTask,
    CreateTask,
    DeviceArrived,
    Envelope,
    ReportArrived,
    aggregator_address,
    coordinator_address,
    selector_address,
)
from covey.server.selector import Selector, SelectorSettings
from covey.server.settings import RoundSettings
from covey.storage.memory import MemoryStorage
from covey.types.tensors import unpack_tensors

from . import parts

P = parts.POPULATION
ROUNDS = RoundSettings(goal=2, report_timeout_s=60.0)


class First:
    """The chance of a selector that takes who came first."""

    def randrange(self, stop):
        return 0

    def sample(self, population, k):
        return population[:k]


def plan(concurrency=3, max_staleness=2, **fields):
    """Return the tiny plan's archive, trained asynchronously."""
    settings = {"server_lr": 1.0, "concurrency": float(concurrency), "max_staleness": float(max_staleness)}
    return world.changed(world.plan(), algorithm=AlgorithmRef(name="fedbuff", settings=settings), **fields)


class Buffers:
    """The roles of one asynchronous task, all real, and what they answered."""

    def __init__(self, storage=None, *, data=None, rounds=ROUNDS, num_shards=1, poll_s=1e9):
        self.storage = storage or parts.begin(MemoryStorage(), data or plan(), rounds)
        self.now_s = 0.0
        self.num_tokens = 0
        self.coordinator = Coordinator(P, self.storage, new_token=self.token, num_shards=num_shards)
        self.selector = Selector(P, SelectorSettings(poll_s), First())
        roles = {selector_address(P): self.selector, coordinator_address(P): self.coordinator}
        for task in self.coordinator.tasks():
            for i in range(num_shards):
                address = aggregator_address(P, task.task, i)
                roles[address] = Aggregator(P, self.coordinator.manifest(task.task))
        self.aggregators = {k: v for k, v in roles.items() if isinstance(v, Aggregator)}
        self.engine = Engine(roles)
        self.answers = {}
        self.take(self.engine.deliver(self.coordinator.start(0.0), 0.0))

    def token(self):
        self.num_tokens += 1
        return f"token{self.num_tokens}"

    def take(self, envelopes):
        for e in envelopes:
            kind, _, ticket = e.to.partition("/")
            if kind == "aggregator":  # of another task, with which the test has nothing to do
                continue
            assert kind == "device" and ticket not in self.answers, e.to
            self.answers[ticket] = e.message.message

    def send(self, to, message):
        self.take(self.engine.deliver([Envelope(to, message)], self.now_s))

    def arrive(self, device):
        """Let a device check in; return its assignment, or None where it waits."""
        self.answers.pop(device, None)
        self.send(selector_address(P), DeviceArrived(device))
        return self.answers.get(device)

    def holder(self, session):
        return next(k for k, a in self.aggregators.items() if session in a._attempt_of or session in a._late)

    def report(self, session, body=None, seed=0, weight=4.0):
        """Let a device report; return the answer."""
        body = parts.body(parts.values(weight, seed)) if body is None else body
        self.send(self.holder(session), ReportArrived("report", session, body))
        return self.answers.pop("report")

    def abandon(self, session):
        self.send(self.holder(session), AbandonArrived("abandon", session, "condition_lapsed"))
        return self.answers.pop("abandon")

    def pass_time(self, until_s):
        """Let time pass, and every role do what is due on the way."""
        while (due_s := self.engine.next_deadline_s()) is not None and due_s <= until_s:
            self.now_s = max(self.now_s, due_s)
            self.take(self.engine.tick(self.now_s))
        self.now_s = until_s

    def create(self, made):
        self.send(coordinator_address(P), CreateTask("admin", made(self.storage)))
        return self.answers.pop("admin")

    def change(self, action, name="train", number=0):
        self.send(coordinator_address(P), ChangeTask("admin", name, action, number))
        return self.answers.pop("admin")

    @property
    def status(self):
        """Return updates in the buffer, and devices that train."""
        found = self.coordinator.tasks()[0].buffer
        return None if found is None else (found.updates, found.devices)

    @property
    def rows(self):
        return self.storage.rounds(P)

    def params(self):
        return unpack_tensors(parts.manifest().params, self.storage.blob(self.coordinator.checkpoint.sha256))


def moved(params, updates, weight=4.0):
    """Return where 2106.06639, Algorithm 1, puts the model: ``updates`` are pairs of a seed and a staleness."""
    bits = parts.manifest().layout(0)[1].fraction_bits
    total = np.zeros(parts.LENGTH)
    for seed, staleness in updates:
        delta = parts.values(weight, seed)["model"] * np.float32(1 / np.sqrt(1 + staleness))
        total += np.rint(delta.astype(np.float64) * 2.0**bits) * 2.0**-bits
    step, out, start = total / (weight * len(updates)), {}, 0
    for spec in parts.manifest().params:
        size = int(np.prod(spec.shape))
        part = step[start : start + size].reshape(spec.shape)
        out[spec.name] = (params[spec.name].astype(np.float64) + part).astype(np.float32)
        start += size
    return out


def same(one, other):
    return all((one[k] == other[k]).all() for k in one) and one.keys() == other.keys()


@contextlib.contextmanager
def broken(storage, name, error):
    """Let a call of the storage fail while the block lasts."""

    def fails(*args):
        raise error

    setattr(storage, name, fails)
    try:
        yield
    finally:
        delattr(storage, name)
