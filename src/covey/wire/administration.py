"""What an administrator sends and is told; the rest of the protocol is in :mod:`covey.wire.messages`."""

from typing import Any

import msgspec

from covey.wire.messages import BlobRef, Message

__all__ = [
    "BufferStatus",
    "PopulationDetails",
    "Populations",
    "ReleaseWanted",
    "TaskChange",
    "TaskStatus",
    "TaskWanted",
]


class BufferStatus(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How far the buffer of an asynchronous task is: counts, nothing of any device.

    ``updates`` are in it, of a mean ``staleness``; so many ``devices`` train at this moment.
    """

    updates: int = 0
    devices: int = 0
    staleness: float = 0.0


class TaskStatus(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What an administrator is told of a task.

    Attributes:
        task: its name in the population.
        kind: ``train`` or ``evaluate``.
        state: ``created``, ``running``, ``paused``, ``completed`` or ``cancelled``.
        plan: SHA-256 of its plan.
        plan_task: what the plan calls its task.
        mode: ``plain`` or ``secure``.
        min_cohort: the fewest devices in a sum.
        rounds: how many of its rounds are committed.
        settings: how its rounds go and when they are due.
        checkpoint: what an evaluation reads; empty: the newest.
        buffer: of an asynchronous training that has begun.
    """

    task: str
    kind: str
    state: str
    plan: str
    plan_task: str
    mode: str
    min_cohort: int
    rounds: int
    settings: dict[str, Any]
    checkpoint: str = ""
    buffer: BufferStatus | None = None


class TaskWanted(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A task to create, of a plan that was sent before.

    Attributes:
        task: its name.
        kind: ``train`` or ``evaluate``.
        plan: SHA-256 of its plan.
        signature: the owner's signature over population and plan hash, hex.
        settings: how its rounds go and when they are due; what is missing has its default.
        checkpoint: SHA-256 of what an evaluation reads; empty: the newest at each round.
    """

    task: str
    kind: str = "train"
    plan: str
    signature: str
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    checkpoint: str = ""


class TaskChange(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What to do with a task: ``pause``, ``resume``, ``cancel`` or ``rollback``, this to the version ``round``."""

    action: str
    round: int = 0


class ReleaseWanted(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Publish the checkpoint of an earlier release, ``version``, again: as a new version."""

    version: int


class Populations(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The names of the populations that a server serves."""

    populations: tuple[str, ...]


class PopulationDetails(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What an administrator is told of a population: its state, its model, its tasks.

    Attributes:
        population: its name.
        state: as in PopulationStatus.
        round: the newest version of the model.
        checkpoint: that version.
        waiting: how many devices wait for a round.
        tasks: all of them, in the order of their creation.
        versions: to which versions a task can be rolled back.
    """

    population: str
    state: str
    round: int
    checkpoint: BlobRef
    waiting: int
    tasks: tuple[TaskStatus, ...] = ()
    versions: tuple[int, ...] = ()
