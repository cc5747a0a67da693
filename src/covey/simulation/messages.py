"""What a simulation and its worker processes tell each other, besides the server's own messages."""

from collections.abc import Mapping
from dataclasses import dataclass

from covey.recipes.recipe import Settings
from covey.types.errors import CoveyError
from covey.wire.messages import Assignment

__all__ = ["Blobs", "Crashed", "Ended", "Evaluate", "Failed", "POPULATION", "RunSession", "Setup"]

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
    """

    source: str
    settings: Settings
    seed: int
    plan: bytes
    owner_key: bytes


@dataclass(frozen=True, slots=True)
class Blobs:
    """Blobs of a round, by hash: what a device would download."""

    blobs: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class RunSession:
    """One device's part in a round: its number in the data set, and what it was assigned."""

    device: int
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Ended:
    """How a session ended: ``code`` is empty where the update was counted, else the reason that it was not."""

    code: str = ""
    message: str = ""
    num_steps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate a packed checkpoint on rows ``start`` to ``stop`` of the held-out examples of all."""

    params: bytes
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An error of Covey's own that a message caused; others come with their traceback, as :class:`Crashed`."""

    error: CoveyError


@dataclass(frozen=True, slots=True)
class Crashed:
    """A defect, in Covey or in the recipe."""

    traceback: str
