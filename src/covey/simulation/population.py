"""How the devices of a simulation behave in virtual time: when they are there, how fast, and how often one gives up.

Off by default: every device is always there, takes one virtual second and never drops out, so that a learning curve
shows the algorithm alone. What a device does depends on the seed, on the device and on the round, never on the order of
use.
"""

from dataclasses import dataclass

import numpy as np

from covey.simulation.availability import Availability, parse_availability
from covey.types.errors import UsageError
from covey.types.rng import generator

__all__ = ["DevicePopulation"]


@dataclass(frozen=True, slots=True)
class DevicePopulation:
    """Who is there when, who takes how long, and who drops out.

    Attributes:
        dropout: the probability that a selected device gives up during a round.
        speed_spread: standard deviation of the logarithm of the devices' speeds; 0: all are equally fast. With 0.5,
            one device in six is more than 1.6 times slower than the median.
        seconds_per_step: what the median device needs for a step; 0: a session takes one second, whatever it does.
        availability: a trace; see :mod:`covey.simulation.availability`. A device whose time ends during a session gives
            up.
    """

    dropout: float = 0.0
    speed_spread: float = 0.0
    seconds_per_step: float = 0.0
    availability: str = "always"

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UsageError("--dropout", expected="a probability of at least 0 and below 1", got=f"{self.dropout:g}")
        if not (0 <= self.speed_spread <= 5 and 0 <= self.seconds_per_step < np.inf):
            raise UsageError(
                "device speeds",
                expected="a spread from 0 to 5 and seconds of at least 0",
                got=f"{self.speed_spread:g}, {self.seconds_per_step:g}",
            )
        parse_availability(self.availability)

    @property
    def times(self) -> Availability:
        """The parsed trace."""
        return parse_availability(self.availability)

    def session_s(self, seed: int, device: int, num_steps: int) -> float:
        """Return how long a device takes for ``num_steps`` steps, in virtual seconds."""
        slowness = 1.0
        if self.speed_spread:
            slowness = float(np.exp(self.speed_spread * generator(seed, "speed", device).standard_normal()))
        return slowness * (self.seconds_per_step * num_steps or 1.0)

    def drops_out(self, seed: int, device: int, attempt: int) -> bool:
        """Return whether a device gives up in this attempt at a round."""
        return self.dropout > 0 and generator(seed, "dropout", device, attempt).random() < self.dropout
