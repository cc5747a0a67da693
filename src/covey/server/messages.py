"""What the server's roles tell each other. Every message can be serialised; none holds a clock, a socket or a lock.

::

    adapter     -> selector     DeviceArrived, DeviceLeft
    coordinator -> selector     WantDevices, WantNobody
    selector    -> coordinator  DevicesSelected
    coordinator -> aggregator   OpenShard, CloseShard, DiscardShard, EndSessions
    adapter     -> aggregator   ReportArrived, AbandonArrived; in secure mode StepArrived, StepAwaited
    aggregator  -> coordinator  Counted, Lost, ShardClosed
    adapter     -> coordinator  BytesServed; for an administrator CreateTask, ChangeTask
    any role    -> device/...   Reply (to the request with that ticket)
"""

from dataclasses import dataclass
from typing import Any

from covey.storage.interface import TaskRecord
from covey.types.errors import CoveyError
from covey.types.segments import SegmentSum
from covey.types.tensors import sha256_hex
from covey.wire.administration import TaskStatus
from covey.wire.messages import Abandoned, Assignment, ComeBack, Joined, Reported, Taken

__all__ = [
    "AbandonArrived",
    "BytesServed",
    "ChangeTask",
    "CloseShard",
    "Counted",
    "CreateTask",
    "DeviceArrived",
    "DeviceLeft",
    "DevicesSelected",
    "DiscardShard",
    "EndSessions",
    "Envelope",
    "Lost",
    "OpenShard",
    "Reply",
    "ReportArrived",
    "ShardClosed",
    "StepArrived",
    "StepAwaited",
    "WantDevices",
    "WantNobody",
    "aggregator_address",
    "coordinator_address",
    "device_address",
    "public_seed",
    "selector_address",
]


def public_seed(attempt: str) -> str:
    """Return the public seed of a round, 64 hex digits, from its attempt's unguessable name."""
    return sha256_hex(attempt.encode())


def selector_address(population: str) -> str:
    """Return the address of a population's selector."""
    return f"selector/{population}"


def coordinator_address(population: str) -> str:
    """Return the address of a population's coordinator."""
    return f"coordinator/{population}"


def aggregator_address(population: str, task: str, shard: int) -> str:
    """Return the address of one of a task's aggregators."""
    return f"aggregator/{population}/{task}/{shard}"


def device_address(ticket: str) -> str:
    """Return the address of a request that waits for its answer."""
    return f"device/{ticket}"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message on its way."""

    to: str
    message: Any


@dataclass(frozen=True, slots=True)
class DeviceArrived:
    """A device checked in and waits. ``ticket`` names the request, not the device."""

    ticket: str


@dataclass(frozen=True, slots=True)
class DeviceLeft:
    """A waiting device hung up."""

    ticket: str


@dataclass(frozen=True, slots=True)
class WantDevices:
    """Select ``count`` devices.

    After ``patience_s``, ``at_least`` of them will do; at ``give_up_at_s``, none are selected. A wish that is ``held``
    is for the round after the present one: who comes is gathered, and nobody is selected until the same attempt is
    wanted again, not held. Devices are then expected ``expected_at_s``, where that can be said.
    """

    attempt: str
    count: int
    at_least: int
    patience_s: float
    give_up_at_s: float
    held: bool = False
    expected_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class WantNobody:
    """Take back the wish for devices of this attempt, if it was not granted."""

    attempt: str


@dataclass(frozen=True, slots=True)
class CreateTask:
    """Add a task whose plan and signature were checked. Answered with its TaskStatus, or an error."""

    ticket: str
    record: TaskRecord


@dataclass(frozen=True, slots=True)
class ChangeTask:
    """Pause, resume, cancel or roll back a task, to the version ``round``. Answered like CreateTask."""

    ticket: str
    name: str
    action: str
    round: int = 0


@dataclass(frozen=True, slots=True)
class DevicesSelected:
    """The selected tickets, drawn uniformly from those that waited; empty where too few came in time."""

    attempt: str
    tickets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request; ``number``: of the round whose sum the update is in, where it was counted."""

    message: Assignment | ComeBack | Reported | Abandoned | Taken | Joined | TaskStatus | bytes | CoveyError
    number: int = 0


@dataclass(frozen=True, slots=True)
class OpenShard:
    """Begin a sum for these sessions of one attempt at a round; where the attempt has one already, they join it.

    ``offer`` is what all of them are assigned, without their session: a secure sum is bound to it, and an update's
    staleness counts from its round. ``number`` is the round whose sum begins, 0: the offer's. A session that began more
    than ``max_staleness`` rounds before the sum at hand is over.
    """

    attempt: str
    phase: int
    sessions: tuple[str, ...]
    offer: Assignment | None = None
    number: int = 0
    max_staleness: int = 0


@dataclass(frozen=True, slots=True)
class ReportArrived:
    """An update's body. It is folded and forgotten; nobody keeps this message."""

    ticket: str
    session: str
    body: bytes | bytearray | memoryview

    def __repr__(self) -> str:
        """Show sizes only: this message must never print an update or a session's token."""
        return f"ReportArrived({len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class StepArrived:
    """A device's message of one step of a secure sum; ``step`` is one of ``SECURE_STEPS``."""

    ticket: str
    session: str
    step: str
    body: bytes | bytearray | memoryview

    def __repr__(self) -> str:
        """Show the step and the size only: this message must never print a session's token."""
        return f"StepArrived({self.step}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class StepAwaited:
    """A device waits for what a step leads to. The ticket is answered when the step ends, or never."""

    ticket: str
    session: str
    step: str


@dataclass(frozen=True, slots=True)
class AbandonArrived:
    """A device ends its session early."""

    ticket: str
    session: str
    reason: str


@dataclass(frozen=True, slots=True)
class Counted:
    """One update is in the sum, that of the round ``number``, weighed by its ``staleness``."""

    attempt: str
    bytes_up: int
    number: int = 0
    staleness: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """One session ended without an update."""

    attempt: str
    reason: str


@dataclass(frozen=True, slots=True)
class CloseShard:
    """Hand over the sum and accept nothing more for this attempt.

    ``following`` above 0: an empty sum, of the round of that number, takes its place at once, and sessions stay open.
    """

    attempt: str
    following: int = 0


@dataclass(frozen=True, slots=True)
class DiscardShard:
    """Overwrite the sum and accept nothing more for this attempt."""

    attempt: str


@dataclass(frozen=True, slots=True)
class EndSessions:
    """The time of these sessions is up: those that are still open are lost."""

    attempt: str
    sessions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShardClosed:
    """One shard's sum. In secure mode ``bytes_up`` of the protocol, and the code of why a group failed, if one did."""

    attempt: str
    total: SegmentSum
    bytes_up: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BytesServed:
    """Payload bytes of plans and checkpoints that went down to devices."""

    num_bytes: int
