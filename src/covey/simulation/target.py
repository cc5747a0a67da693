"""In which round an accuracy was reached, as 1602.05629 counts it (section 3).

"We construct a learning curve for each combination of parameter settings, optimizing η and then making each curve
monotonically improving by taking the best value of test-set accuracy achieved over all prior rounds. We then calculate
the number of rounds where the curve crosses the target accuracy, using linear interpolation between the discrete
points forming the curve."
"""

from collections.abc import Sequence

__all__ = ["monotone", "target_round"]


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
