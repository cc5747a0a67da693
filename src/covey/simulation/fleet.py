"""The devices of a simulation as its drivers see them: who may come, how long a session takes, and what it moved."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.device.batches import num_steps
from covey.plans.manifest import Phase
from covey.simulation.messages import Ended
from covey.simulation.population import DevicePopulation
from covey.simulation.roster import Roster

__all__ = ["Arrival", "Fleet"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One device's session: when it ends, and whether the device gives up."""

    at_s: float
    device: int
    dropped: bool


class Fleet:
    """All devices of a run. A few bytes for each, in arrays."""

    def __init__(
        self, num_examples: NDArray[np.int64], population: DevicePopulation, *, seed: int, plan_bytes: int
    ) -> None:
        """Make a fleet.

        Args:
            num_examples: of every device.
            population: how devices behave.
            seed: of the run.
            plan_bytes: the size of the plan, which a device downloads once.
        """
        self.num_examples = num_examples
        self.num_steps = 0
        self.traffic: Counter[str] = Counter()
        self._population, self._seed, self._plan_bytes = population, seed, plan_bytes
        self._roster = Roster(len(num_examples), population.times.trace(len(num_examples), seed), seed)
        self._has_plan = np.zeros(len(num_examples), np.bool_)

    def __len__(self) -> int:
        return len(self.num_examples)

    def draw(self, count: int, now_s: float, *labels: int) -> list[int]:
        """Take devices that are available; see :meth:`covey.simulation.roster.Roster.draw`."""
        return self._roster.draw(count, now_s, *labels)

    def release(self, devices: Iterable[int]) -> None:
        """Let devices check in again."""
        self._roster.release(devices)

    def hold(self, devices: Iterable[int]) -> None:
        """Take devices that a resumed run left in the middle of a session."""
        self._roster.hold(devices)

    def arrival(self, device: int, phase: Phase, attempt: int, now_s: float) -> Arrival:
        """Return how a session that begins now ends."""
        steps = num_steps(int(self.num_examples[device]), phase)
        at_s = now_s + self._population.session_s(self._seed, device, steps)
        dropped = self._population.drops_out(self._seed, device, attempt)
        return Arrival(at_s, device, dropped or not self._roster.is_available(device, at_s))

    def told(self, device: int, ended: Ended) -> int:
        """Book what a session moved, and return its bytes down."""
        bytes_down = ended.bytes_down
        if bytes_down and not self._has_plan[device]:
            self._has_plan[device] = True  # a plan is downloaded once and kept
            bytes_down += self._plan_bytes
            self.traffic["down: plan"] += self._plan_bytes
        self.traffic.update(ended.traffic)
        self.num_steps += ended.num_steps
        return bytes_down

    def plan_holders(self) -> bytes:
        """Return one bit for each device: whether it has the plan."""
        return np.packbits(self._has_plan).tobytes()

    def restore(self, plan_holders: bytes, num_steps: int, traffic: dict[str, int]) -> None:
        """Take up what a stored run had counted."""
        bits = np.unpackbits(np.frombuffer(plan_holders, np.uint8), count=len(self))
        self._has_plan = bits.astype(np.bool_)
        self.num_steps, self.traffic = num_steps, Counter(traffic)
