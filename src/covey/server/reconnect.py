"""When devices come back: the one place that fills in every ``retry_after_s`` of an answer to a device.

Roles say why a device leaves and leave the time at 0; whoever sends the answer lets :meth:`Reconnect.stamped` fill it
in. A device that may be needed again gets its time from the steering of the pace, where there is one. Sans-I/O, one
thread.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec

from covey.server.config import ServerConfig
from covey.server.messages import WantDevices
from covey.server.pace import Chance, PaceSettings, PaceSteering
from covey.types.errors import AlreadyInRoundError, BusyError
from covey.wire.messages import Abandoned, ComeBack, Reported

__all__ = ["Reconnect"]

_ABANDONED, _BUSY, _COUNTED, _PAUSED = "abandoned", "busy", "counted", "paused"
_BUSY_S = 1.0
_PACED = ("counted", "abandoned", "not_selected", "between_rounds")


@dataclass(slots=True)
class Reconnect:
    """When a device that leaves shall check in again.

    Attributes:
        retry_s: after it found a server that stops; without a steering, after it was not needed, too.
        paused_retry_s: while no round is to come.
        pace: the steering of the pace.
        chance: for moments within a window.
        wish: the last wish of a selection that the steering was told of.
    """

    retry_s: float = 1.0
    paused_retry_s: float = 60.0
    pace: PaceSteering | None = None
    chance: Chance = field(default_factory=random.SystemRandom)
    wish: WantDevices | None = None

    @classmethod
    def steered(cls, config: ServerConfig) -> "Reconnect":
        """Return what a configuration says."""
        own = config.pace
        settings = PaceSettings(config.round.goal, config.poll_s, own.margin, own.least_s, own.most_s)
        return cls(config.retry_s, pace=PaceSteering(settings))

    def observe_checkin(self, now_s: float) -> None:
        """Note that a device checked in."""
        if self.pace is not None:
            self.pace.observe_checkin(now_s)

    def observe_wish(self, wish: WantDevices | None, now_s: float) -> None:
        """Note how many devices are wanted, and when; each wish counts once."""
        if self.pace is None or wish is None or wish is self.wish:
            return
        lasts_s = 0.0 if wish.expected_at_s is None else wish.expected_at_s - now_s
        self.pace.observe_round(now_s, wanted=wish.count, at_least=wish.at_least, lasts_s=lasts_s)
        self.wish = wish

    def after_s(self, reason: str, now_s: float, expected_at_s: float | None = None) -> float:
        """Return how many seconds a device shall stay away.

        Args:
            reason: a reason of ComeBack; ``counted`` after a report, ``abandoned`` after giving up, ``busy`` where
                a report found no room.
            now_s: the time.
            expected_at_s: when devices are next wanted, where that is known.
        """
        if self.pace is not None and reason in _PACED:
            return self.pace.reconnect_after_s(now_s, self.chance)
        match reason:
            case "counted" | "abandoned":
                return 0.0  # it may take part in the next round, and its own pace keeps it from hurrying
            case "busy":
                return _BUSY_S
            case "paused":
                return self.paused_retry_s
        return self.retry_s if expected_at_s is None else max(self.retry_s, expected_at_s - now_s)

    def stamped(self, message: Any, now_s: float, expected_at_s: float | None = None) -> Any:
        """Return an answer to a device with its time filled in; what has none goes through as it is."""
        match message:
            case ComeBack(reason=reason):
                return msgspec.structs.replace(message, retry_after_s=self.after_s(reason, now_s, expected_at_s))
            case Reported():
                return msgspec.structs.replace(message, retry_after_s=self.after_s(_COUNTED, now_s, expected_at_s))
            case Abandoned():
                return msgspec.structs.replace(message, retry_after_s=self.after_s(_ABANDONED, now_s, expected_at_s))
            case AlreadyInRoundError():
                message.retry_after_s = self.after_s("not_selected", now_s, expected_at_s)
            case BusyError():
                message.retry_after_s = self.after_s(_BUSY, now_s, expected_at_s)
        return message
