"""When the devices of a simulation may take part: always, by the time of day, or now and then.

A trace is a function of the seed, the device and the virtual time, computed for many devices at once: nothing is stored
for a device but one number, and two runs of one seed see the same devices at the same times.

``always``
    Every device, at all times.
``diurnal:swing=S,hours=H``
    A device is available for H hours each day (idle, charging, on a free network: at night, mostly). The middles of
    these windows are spread over the day with the density ``(1 + κ cos 2πu) / 24 h``, where κ makes the largest share
    of available devices S times the smallest; 1902.01046 saw 4 times within one country.
``intermittent:on=P,slot=T``
    Time is cut into slots of T seconds, for each device at other instants; in each slot it is available with
    probability P, independently of all others.
"""

import difflib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import UsageError
from covey.types.rng import generator

__all__ = ["Availability", "Trace", "parse_availability"]

Devices = NDArray[np.int64]

DAY_S = 86_400.0
_NUM_KNOTS = 4096
_DEFAULTS: dict[str, dict[str, float]] = {
    "always": {},
    "diurnal": {"swing": 4.0, "hours": 8.0},
    "intermittent": {"on": 0.2, "slot": 600.0},
}


@dataclass(frozen=True, slots=True)
class Availability:
    """A parsed trace: its kind and its numbers."""

    kind: str = "always"
    values: dict[str, float] = field(default_factory=dict)

    def trace(self, num_devices: int, seed: int) -> "Trace":
        """Return the trace of so many devices."""
        return Trace(self, num_devices, seed)


class Trace:
    """Who is available when. Holds four bytes for each device, or none."""

    def __init__(self, availability: Availability, num_devices: int, seed: int) -> None:
        self._kind, self._values = availability.kind, availability.values
        self._offsets: NDArray[np.float32] = np.empty(0, np.float32)
        self._seed = np.uint64(int.from_bytes(generator(seed, "availability").bytes(8)))
        if self._kind != "always":
            uniform = generator(seed, "availability", "offset").random(num_devices, np.float32)
            self._offsets = _middles(uniform, **self._values) if self._kind == "diurnal" else uniform

    @property
    def always(self) -> bool:
        """Whether every device is available at all times."""
        return self._kind == "always"

    def at(self, devices: Devices, now_s: float) -> NDArray[np.bool_]:
        """Return, for each of ``devices``, whether it is available at a virtual time."""
        if self._kind == "always":
            return np.ones(len(devices), np.bool_)
        offsets = self._offsets[devices].astype(np.float64)
        if self._kind == "diurnal":
            apart = np.abs((now_s / DAY_S - offsets + 0.5) % 1.0 - 0.5)
            return np.asarray(apart < self._values["hours"] / 48)
        slots = np.floor(now_s / self._values["slot"] + offsets).astype(np.uint64)
        drawn = _mixed(devices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _mixed(slots + self._seed))
        return np.asarray(drawn < np.uint64(self._values["on"] * 2.0**64 * (1 - 2.0**-53)))


def parse_availability(text: str) -> Availability:
    """Parse ``always``, ``diurnal:swing=S,hours=H`` or ``intermittent:on=P,slot=T``; what is left out has a default.

    Raises:
        UsageError: another kind or name (with the near misses), or a number that makes no sense.
    """
    kind, _, rest = text.partition(":")
    if kind not in _DEFAULTS:
        raise _refused(text, f"one of {', '.join(_DEFAULTS)}", difflib.get_close_matches(kind, _DEFAULTS, n=2))
    values = dict(_DEFAULTS[kind])
    for item in filter(None, rest.split(",")):
        name, _, number = item.partition("=")
        if name not in values:
            expected = f"{kind} with {', '.join(values) or 'nothing after it'}"
            raise _refused(text, expected, difflib.get_close_matches(name, values, n=2))
        try:
            values[name] = float(number)
        except ValueError:
            raise _refused(text, f"a number after {name}=", []) from None
    if kind == "diurnal":
        if not 0 < values["hours"] < 24:
            raise _refused(text, "hours above 0 and below 24", [])
        most = _largest_swing(values["hours"])
        if not 1 <= values["swing"] <= most:
            raise _refused(text, f"a swing from 1 to {most:.3g} with windows of {values['hours']:g} hours", [])
    if kind == "intermittent" and not (0 < values["on"] <= 1 and 0 < values["slot"] < np.inf):
        raise _refused(text, "on above 0 and at most 1, and a slot of some seconds", [])
    return Availability(kind, values)


def _middles(uniform: NDArray[np.float32], swing: float, hours: float) -> NDArray[np.float32]:
    """Map uniform numbers to the middles of the windows, as fractions of a day from its busiest instant.

    The share that is available at time u is the density smoothed over a window: ``h (1 + κ sinc(h) cos 2πu)`` with
    ``h = hours/24`` and ``sinc(h) = sin(πh)/(πh)``. Its extremes have the ratio ``swing`` for the κ taken here.
    """
    kappa = (swing - 1) / (swing + 1) / np.sinc(hours / 24)
    knots = np.linspace(0.0, 1.0, _NUM_KNOTS)
    cumulative = knots + kappa * np.sin(2 * np.pi * knots) / (2 * np.pi)
    return np.interp(uniform, cumulative, knots).astype(np.float32)


def _largest_swing(hours: float) -> float:
    smooth = float(np.sinc(hours / 24))
    return (1 + smooth) / (1 - smooth)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finalizer of SplitMix64 of each element: neighbouring integers give unrelated ones."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _refused(text: str, expected: str, near: Any) -> UsageError:
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    return UsageError("--availability", expected=expected, got=text, hint=hint)
