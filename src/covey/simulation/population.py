"""How the devices of a simulation behave in virtual time: when they are there, how fast, and how often one gives up.

Off by default: every device is always there, trains for one virtual second, moves any number of bytes at once and never
drops out, so that a learning curve shows the algorithm alone. What a device does depends on the seed, on the device and
on the round, never on the order of use: nothing is stored for a device.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from covey.simulation.availability import Trace, parse_availability
from covey.types.errors import UsageError
from covey.types.rng import generator

__all__ = ["DevicePopulation", "SessionTimes"]

_MBIT_BYTES = 125_000


class SessionTimes(NamedTuple):
    """What a session takes, in virtual seconds: it downloads, then trains, then uploads."""

    down_s: float = 0.0
    training_s: float = 0.0
    up_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DevicePopulation:
    """Who is there when, who takes how long, and who drops out.

    Attributes:
        dropout: the probability that a selected device gives up during a round.
        speed_spread: standard deviation of the logarithm of the devices' speeds; 0: all are equally fast. With 0.5,
            one device in six is more than 1.6 times slower than the median.
        seconds_per_step: what the median device needs for a step; 0: training takes one second, whatever it does.
        down_mbit_per_s: what the median device downloads in a second, in 10^6 bits; 0: it is at no time.
        up_mbit_per_s: the same of uploads.
        network_spread: standard deviation of the logarithm of the devices' bandwidths. A device that is slow at one of
            both is as slow at the other; how fast it trains says nothing of it.
        availability: a trace; see :mod:`covey.simulation.availability`. A device whose time ends during a session gives
            up.
    """

    dropout: float = 0.0
    speed_spread: float = 0.0
    seconds_per_step: float = 0.0
    down_mbit_per_s: float = 0.0
    up_mbit_per_s: float = 0.0
    network_spread: float = 0.0
    availability: str = "always"

    def __post_init__(self) -> None:
        spread, rate = "a spread from 0 to 5", "10^6 bits in a second, or 0: bytes take no time"
        has_network = bool(self.down_mbit_per_s or self.up_mbit_per_s)
        checks: list[tuple[bool, str, str, float]] = [
            (0 <= self.dropout < 1, "--dropout", "a probability of at least 0 and below 1", self.dropout),
            (0 <= self.speed_spread <= 5, "--speed-spread", spread, self.speed_spread),
            (0 <= self.seconds_per_step < np.inf, "--seconds-per-step", "at least 0", self.seconds_per_step),
            (0 <= self.down_mbit_per_s < np.inf, "--down-mbit-per-s", rate, self.down_mbit_per_s),
            (0 <= self.up_mbit_per_s < np.inf, "--up-mbit-per-s", rate, self.up_mbit_per_s),
            (0 <= self.network_spread <= 5, "--network-spread", spread, self.network_spread),
            (
                has_network or not self.network_spread,
                "--network-spread",
                "--down-mbit-per-s or --up-mbit-per-s beside it, of the median device",
                self.network_spread,
            ),
        ]
        for ok, flag, expected, got in checks:
            if not ok:
                raise UsageError(flag, expected=expected, got=f"{got:g}")
        parse_availability(self.availability)

    def trace(self, num_devices: int, seed: int) -> Trace:
        """Return who of so many devices is available when."""
        return parse_availability(self.availability).trace(num_devices, seed)

    def session_times(
        self, seed: int, device: int, num_steps: int, down_bytes: float = 0, up_bytes: float = 0
    ) -> SessionTimes:
        """Return how long a device takes for a session of so many steps and bytes."""
        training_s = _slowness(seed, "speed", device, self.speed_spread) * (self.seconds_per_step * num_steps or 1.0)
        slowness = _slowness(seed, "network", device, self.network_spread)
        down_s, up_s = (
            slowness * num_bytes / (_MBIT_BYTES * rate) if rate else 0.0
            for num_bytes, rate in ((down_bytes, self.down_mbit_per_s), (up_bytes, self.up_mbit_per_s))
        )
        return SessionTimes(down_s, training_s, up_s)

    def drops_out(self, seed: int, device: int, attempt: int) -> bool:
        """Return whether a device gives up in this attempt at a round."""
        return self.dropout > 0 and generator(seed, "dropout", device, attempt).random() < self.dropout


def _slowness(seed: int, what: str, device: int, spread: float) -> float:
    """Return how many times slower than the median a device is: log-normal, and its own in every run of the seed."""
    return float(np.exp(spread * generator(seed, what, device).standard_normal())) if spread else 1.0
