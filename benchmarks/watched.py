"""Real device agents under watch: what they trained, what they sent, and the names they went by."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import probe
from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.pace import Pace
from covey.device.trainer import LocalResult, OnnxTrainer, TrainingJob, never
from covey.device.transport import HttpTransport
from covey.types.errors import CoveyError
from covey.types.tensors import Tensors
from covey.wire.messages import Assignment, CheckIn, ComeBack, Enroll, Enrolled, Reported, Taken

__all__ = ["Vanished", "WatchedDevice", "devices"]

PACE = Pace(first_s=0.05, most_s=0.3, jitter=0.0)


class Vanished(BaseException):
    """The device's process died; nobody catches this on the way."""


def _pass(step: str) -> None:
    pass


class _WatchedTransport(HttpTransport):
    def __init__(self, url: str, ca_file: Path, device: "WatchedDevice") -> None:
        super().__init__(url, ca_file)
        self._device = device

    def enroll(self, message: Enroll) -> Enrolled:
        answer = super().enroll(message)
        self._device.names.append(answer.credential)
        return answer

    def check_in(self, message: CheckIn, credential: str) -> Assignment | ComeBack:
        self._device.before("check in")
        answer = super().check_in(message, credential)
        if isinstance(answer, Assignment):
            self._device.assignment = answer
            self._device.names.append(answer.session)
        return answer

    def report(self, session: str, body: bytes, credential: str) -> Reported:
        self._device.note(body)
        self._device.before("report")
        answer = super().report(session, body, credential)
        self._device.after("report")
        return answer

    def send_step(self, session: str, step: str, body: bytes, credential: str) -> Taken | Reported:
        self._device.note(body)
        self._device.before(step)
        answer = super().send_step(session, step, body, credential)
        self._device.after(step)
        return answer


class WatchedDevice:
    """One device; also the trainer that its agent uses.

    Attributes:
        updates: what it trained, by the round's public seed, which names an attempt at a round.
        sent: the bodies of its messages, each with the assignment of its session.
        names: its credentials and the tokens of its sessions.
        assignment: the last one.
        before: called before a message is sent, with its step; it may wait, or raise :class:`Vanished`.
        after: called when the message was answered.
    """

    def __init__(self, trainer: OnnxTrainer) -> None:
        """Train with ``trainer``, which devices may share."""
        self.updates: dict[str, dict[str, NDArray[np.floating]]] = {}
        self.sent: list[tuple[Assignment, bytes]] = []
        self.names: list[str] = []
        self.assignment: Assignment | None = None
        self.before: Callable[[str], None] = _pass
        self.after: Callable[[str], None] = _pass
        self._trainer = trainer

    def note(self, body: bytes) -> None:
        """Keep a message that is about to be sent."""
        assert self.assignment is not None
        self.sent.append((self.assignment, bytes(body)))

    def run(self, job: TrainingJob, examples: Tensors, should_stop: Callable[[], bool] = never) -> LocalResult:
        """Train as always; keep a copy."""
        result = self._trainer.run(job, examples, should_stop)
        assert self.assignment is not None
        self.updates[self.assignment.public_seed] = {k: v.copy() for k, v in result.segments.items()}
        return result

    def transport(self, url: str, ca_file: Path) -> HttpTransport:
        """Return a connection of this device."""
        return _WatchedTransport(url, ca_file, self)


@contextlib.contextmanager
def devices(
    watched: Sequence[WatchedDevice], url: str, ca_file: Path, homes: Path, *, secure: bool, first: int = 0
) -> Iterator[list[DeviceAgent]]:
    """Let devices run, each an agent with a home of its own, until the end of the block.

    Args:
        watched: the devices, numbered from ``first``; one that vanishes stays away.
        url: of the server.
        ca_file: the authority that they trust.
        homes: where their state lies; it is used again by a device of the same number.
        secure: whether they accept secure rounds only.
        first: the number of the first one; its probe is its number.
    """
    agents = []
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(watched)) as pool:
        for number, device in enumerate(watched, first):
            home = stack.enter_context(DeviceHome(homes / f"device{number}"))
            transport = device.transport(url, ca_file)
            policy = probe.policy(secure=secure)
            agents.append(DeviceAgent(home, url, policy, transport=transport, trainer=device, pace=PACE))
        jobs = [pool.submit(agent.run) for agent in agents]
        try:
            yield agents
        finally:
            for agent in agents:
                agent.stop()
            for job in jobs:
                with contextlib.suppress(Vanished, CoveyError):
                    job.result(timeout=60)


def filled_homes(homes: Path, num_devices: int) -> None:
    """Give every device its examples."""
    schema = probe.schema(num_devices)
    for number in range(num_devices):
        with DeviceHome(homes / f"device{number}") as home:
            home.examples.add_many("points", probe.examples(number, num_devices), schema)
