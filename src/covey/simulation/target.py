"""In which round an accuracy was reached, as 1602.05629 counts it (section 3).

"We construct a learning curve for each combination of parameter settings, optimizing η and then making each curve
monotonically improving by taking the best value of test-set accuracy achieved over all prior rounds. We then calculate
the number of rounds where the curve crosses the target accuracy, using linear interpolation between the discrete
points forming the curve."
"""

from collections.abc import Sequence
from dataclasses import dataclass

from covey.simulation.report import RoundRow

__all__ = ["Crossing", "monotone", "target_round"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a run's curve crosses a target: by round, by bytes up and down until then, and by virtual time.

    All three are None where it does not, or where there is no target.
    """

    round: float | None = None
    num_bytes: float | None = None
    at_s: float | None = None

    @classmethod
    def of(cls, rows: Sequence[RoundRow], target: float | None) -> "Crossing":
        """Return it for the committed rounds of a run."""
        if target is None:
            return cls()
        total, points, accuracies = 0, list[tuple[float, ...]](), list[float]()
        for row in rows:
            total += row.bytes_up + row.bytes_down
            if row.accuracy is not None:
                points.append((row.round, total, row.at_s))
                accuracies.append(row.accuracy)
        return cls(*(target_round([p[axis] for p in points], accuracies, target) for axis in range(3)))


def monotone(accuracies: Sequence[float]) -> list[float]:
    """Return the best value so far at every point."""
    out: list[float] = []
    for value in accuracies:
        out.append(max(value, out[-1]) if out else value)
    return out


def target_round(rounds: Sequence[float], accuracies: Sequence[float], target: float) -> float | None:
    """Return where the monotone curve crosses ``target``, interpolated; None where it never does.

    Args:
        rounds: increasing; 0 is the model before training. Bytes or seconds until then do as well.
        accuracies: fractions, one for each of ``rounds``.
        target: a fraction.
    """
    curve = monotone(accuracies)
    for i, value in enumerate(curve):
        if value >= target:
            if i == 0:
                return float(rounds[0])
            before = curve[i - 1]
            return rounds[i - 1] + (rounds[i] - rounds[i - 1]) * (target - before) / (value - before)
    return None
