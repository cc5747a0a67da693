"""Whether one population may train on this device now: the conditions, the person's choices, the application's word."""

from collections.abc import Callable

from covey.device.choices import Choices
from covey.device.conditions.conditions import Conditions, Verdict
from covey.plans.manifest import Eligibility
from covey.types.clock import Clock

__all__ = ["CHOICE", "Gate", "always"]

CHOICE = "choice"
"""In a verdict: the person paused everything, or refused this population."""

_HOST = "application"


def always() -> bool:
    """Say that the application has nothing against training."""
    return True


class Gate:
    """Asked before a check-in, between chunks of training, while a graph runs, and before anything is sent.

    ``needs`` are the terms of the plan at hand, or of the last one; until one is known every condition has to hold.
    """

    def __init__(
        self,
        population: str,
        clock: Clock,
        *,
        conditions: Conditions | None = None,
        choices: Choices | None = None,
        may_train: Callable[[], bool] = always,
    ) -> None:
        """Join what has a say. None of ``conditions``: the application alone knows; None of ``choices``: none exist."""
        self.needs: Eligibility | None = None
        self._population = population
        self._clock = clock
        self._conditions = conditions
        self._choices = choices
        self._may_train = may_train

    def check(self) -> Verdict:
        """Say whether the device may train now, and if not, why."""
        if self._choices is not None and not self._choices.allows(self._population, self._clock.now_s()):
            hint = "paused, or this population is refused: `covey device status` tells"
            return Verdict(False, (CHOICE,), (hint,))
        if not self._may_train():
            return Verdict(False, (_HOST,), ("the application says that this is no time to train",))
        return Verdict(True) if self._conditions is None else self._conditions.check(self.needs)

    def is_open(self) -> bool:
        """Say whether the device may train now."""
        return self.check().holds
