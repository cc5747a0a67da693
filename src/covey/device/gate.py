"""Whether one population may train on this device now: the conditions, the person's choices, the application's word."""

from collections.abc import Callable

import msgspec

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
        over_network: bool = True,
    ) -> None:
        """Join what has a say.

        Args:
            population: of the gate.
            clock: for a pause that ends by itself.
            conditions: of the device; None: the application alone knows.
            choices: the person's; None: there are none.
            may_train: the application's own word.
            over_network: False where the server is on this device: then no network has to be unmetered.
        """
        self.needs: Eligibility | None = None
        self._over_network = over_network
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
        if self._conditions is None:
            return Verdict(True)
        if self._over_network:
            return self._conditions.check(self.needs)
        return self._conditions.check(msgspec.structs.replace(self.needs or Eligibility(), unmetered=False))

    def is_open(self) -> bool:
        """Say whether the device may train now."""
        return self.check().holds
