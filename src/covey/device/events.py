"""What an agent tells while it runs, and what it did in all."""

from collections.abc import Callable
from dataclasses import dataclass

from covey.types.errors import CoveyError

__all__ = ["AgentEvent", "AgentSummary", "Tell", "silent"]


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """Something worth a line of progress.

    ``kind``: ``enrolled``, ``held`` (a condition does not hold, or the person said no), ``waiting``, ``assigned``,
    ``training``, ``counted``, ``gave_up``, ``lost``, ``retrying``, ``refused``, ``stopped``. ``round`` is 0 where no
    round is at hand; ``error`` is set where there is one; ``num_steps`` are those of an update that was counted.
    """

    kind: str
    text: str
    round: int = 0
    error: CoveyError | None = None
    num_steps: int = 0
    population: str = ""


Tell = Callable[[AgentEvent], None]


@dataclass(slots=True)
class AgentSummary:
    """What an agent did: sessions that were counted, gave up or were lost, and payload bytes in both directions."""

    counted: int = 0
    gave_up: int = 0
    lost: int = 0
    bytes_down: int = 0
    bytes_up: int = 0


def silent(event: AgentEvent) -> None:
    """Tell nobody."""
