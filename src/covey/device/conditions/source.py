"""What a condition is: something that can be read, now."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Assumed", "Reading", "Source", "failing", "holding"]


@dataclass(frozen=True, slots=True)
class Reading:
    """Whether a condition holds, and if not, what to do about it. What cannot be told does not hold."""

    holds: bool
    hint: str = ""


class Source(Protocol):
    """One condition. An application that knows better than the operating system brings its own.

    Attributes:
        max_age_s: for how long a reading serves. Below a second where a lapse has to end training within one.
    """

    max_age_s: float

    def read(self) -> Reading:
        """Read the condition. Must be quick, and never raises for what the platform does not tell."""
        ...


class Assumed:
    """A condition that the owner, or the application, takes for granted."""

    max_age_s = float("inf")

    def read(self) -> Reading:
        """Return that it holds."""
        return holding()


def holding() -> Reading:
    """Return a reading of a condition that holds."""
    return Reading(True)


def failing(hint: str) -> Reading:
    """Return a reading of a condition that does not hold, or that cannot be told."""
    return Reading(False, hint)
