"""What a simulation and its worker processes tell each other, besides the server's own messages."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from covey.recipes.recipe import Settings
from covey.types.errors import CoveyError
from covey.wire.messages import Assignment

__all__ = [
    "Blobs",
    "Crashed",
    "Ended",
    "Evaluate",
    "EvaluateDevice",
    "Failed",
    "POPULATION",
    "RunSession",
    "Setup",
]

POPULATION = "simulation"
"""The one population of a simulation."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker must know before its first session.

    Attributes:
        source: the recipe's name or path.
        settings: how it is trained; names the trainer.
        seed: of the run.
        plan: the plan's archive.
        owner_key: raw bytes of the key that signed it.
        states: the folder of what devices keep for themselves.
    """

    source: str
    settings: Settings
    seed: int
    plan: bytes
    owner_key: bytes
    states: str = ""


@dataclass(frozen=True, slots=True)
class Blobs:
    """New blobs, by hash, that devices may download from now on; all but these and those of ``keep`` go."""

    blobs: Mapping[str, bytes]
    keep: frozenset[str] = frozenset()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the blobs as buffers, so that :mod:`covey.simulation.channel` copies them once."""
        return Blobs, ({k: pickle.PickleBuffer(v) for k, v in self.blobs.items()}, self.keep)


@dataclass(frozen=True, slots=True)
class RunSession:
    """One device's part in a round: its number in the data set, and what it was assigned.

    ``joins``: in asynchronous aggregation, the attempt whose sum takes its update; it was opened without its session.
    """

    device: int
    assignment: Assignment
    joins: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a session ended: ``code`` is empty where the update was counted, else the reason that it was not.

    ``traffic`` says what the bytes were, as ``up: model`` or ``down: checkpoint``.
    """

    code: str = ""
    message: str = ""
    num_steps: int = 0
    traffic: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes_up(self) -> int:
        """Bytes of the report."""
        return sum(n for k, n in self.traffic.items() if k.startswith("up"))

    @property
    def bytes_down(self) -> int:
        """Bytes of what was downloaded, the plan excepted."""
        return sum(n for k, n in self.traffic.items() if k.startswith("down"))


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate a packed checkpoint on rows ``start`` to ``stop`` of the held-out examples of all."""

    params: bytes
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class EvaluateDevice:
    """Evaluate a packed checkpoint on one device's own examples: those held out, or where it has none, all."""

    params: bytes
    device: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An error of Covey's own that a message caused; others come with their traceback, as :class:`Crashed`."""

    error: CoveyError


@dataclass(frozen=True, slots=True)
class Crashed:
    """A defect, in Covey or in the recipe."""

    traceback: str
