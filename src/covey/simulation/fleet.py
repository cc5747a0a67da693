"""The devices of a simulation as its drivers see them: who may come, how long a session takes, and what it moved."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey.device.batches import num_steps
from covey.simulation.load import Load
from covey.simulation.messages import Ended
from covey.simulation.population import DevicePopulation, SessionTimes
from covey.simulation.roster import Roster

__all__ = ["Arrival", "Fleet", "FleetState"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One device's session: when it ends, what it takes, and whether the device gives up."""

    at_s: float
    device: int
    dropped: bool
    times: SessionTimes


class FleetState(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has counted of its devices.

    Attributes:
        plan_holders: one bit for each device: whether it has the plan.
        plan_booked: one bit for each device: whether the bytes of its plan were counted.
        num_steps: local steps.
        traffic: bytes, by kind.
        device_s: virtual seconds of all sessions, by what they went to; see :meth:`Fleet.spent`.
        reports: of each phase, how many reports came and their bytes.
    """

    plan_holders: bytes
    plan_booked: bytes
    num_steps: int
    traffic: dict[str, int]
    device_s: dict[str, float]
    reports: tuple[tuple[int, int], ...]


class Fleet:
    """All devices of a run. A few bytes for each, in arrays."""

    def __init__(
        self,
        num_examples: NDArray[np.int64],
        population: DevicePopulation,
        loads: Sequence[Load],
        *,
        seed: int,
        plan_bytes: int,
    ) -> None:
        """Make a fleet.

        Args:
            num_examples: of every device.
            population: how devices behave.
            loads: what a session of each phase asks of a device.
            seed: of the run.
            plan_bytes: the size of the plan, which a device downloads once.
        """
        self.num_examples = num_examples
        self.num_steps = 0
        self.traffic: Counter[str] = Counter()
        self.device_s: dict[str, float] = dict.fromkeys(("download", "training", "upload", "waiting", "lost"), 0.0)
        self._population, self._loads, self._seed, self._plan_bytes = population, loads, seed, plan_bytes
        self._roster = Roster(len(num_examples), population.trace(len(num_examples), seed), seed)
        # Not the same devices: bytes of sessions that were not counted are not booked.
        self._has_plan = np.zeros(len(num_examples), np.bool_)
        self._booked_plan = np.zeros(len(num_examples), np.bool_)
        self._reports = [(0, 0)] * len(loads)

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

    def arrival(self, device: int, phase: int, attempt: int, now_s: float) -> Arrival:
        """Return how a session that begins now ends. A device that does not give up has the plan from then on."""
        load, (count, total) = self._loads[phase], self._reports[phase]
        steps = num_steps(int(self.num_examples[device]), load.phase)
        down_bytes = load.down_bytes + (0 if self._has_plan[device] else self._plan_bytes)
        up_bytes = total / count if count else load.up_bytes
        times = self._population.session_times(self._seed, device, steps, down_bytes, up_bytes)
        at_s = now_s + sum(times)
        dropped = self._population.drops_out(self._seed, device, attempt)
        dropped = dropped or not self._roster.is_available(device, at_s)
        self._has_plan[device] |= not dropped
        return Arrival(at_s, device, dropped, times)

    def told(self, device: int, phase: int, ended: Ended) -> int:
        """Book what a session moved, and return its bytes down."""
        bytes_down = ended.bytes_down
        if bytes_down and not self._booked_plan[device]:
            self._booked_plan[device] = True  # a plan is downloaded once and kept
            bytes_down += self._plan_bytes
            self.traffic["down: plan"] += self._plan_bytes
        self.traffic.update(ended.traffic)
        self.num_steps += ended.num_steps
        if not ended.code:
            count, total = self._reports[phase]
            self._reports[phase] = (count + 1, total + ended.bytes_up)
        return bytes_down

    def spent(self, times: SessionTimes, *, counted: bool, until_s: float | None = None) -> None:
        """Book what a session's time went to: download, training, upload and waiting, or all of it lost.

        Args:
            times: the session's.
            counted: whether its update was.
            until_s: how long after its beginning the round closed; None: nobody waits for anybody.
        """
        total_s = sum(times)
        closed_s = total_s if until_s is None else until_s
        if not counted:
            self.device_s["lost"] += min(total_s, closed_s)
            return
        for kind, seconds in zip(("download", "training", "upload"), times, strict=True):
            self.device_s[kind] += seconds
        self.device_s["waiting"] += max(0.0, closed_s - total_s)  # of a last arrival it is a rounding's

    def state(self) -> FleetState:
        """Return what was counted."""
        return FleetState(
            plan_holders=np.packbits(self._has_plan).tobytes(),
            plan_booked=np.packbits(self._booked_plan).tobytes(),
            num_steps=self.num_steps,
            traffic=dict(self.traffic),
            device_s=dict(self.device_s),
            reports=tuple(self._reports),
        )

    def restore(self, state: FleetState) -> None:
        """Take up what a stored run had counted."""
        self._has_plan, self._booked_plan = (
            np.unpackbits(np.frombuffer(bits, np.uint8), count=len(self)).astype(np.bool_)
            for bits in (state.plan_holders, state.plan_booked)
        )
        self.num_steps, self.traffic = state.num_steps, Counter(state.traffic)
        self.device_s, self._reports = dict(state.device_s), list(state.reports)
