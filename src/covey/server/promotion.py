"""Whether a checkpoint becomes a release: a pure decision on evidence (docs/releases.md).

*Not worse* means: shown not to be worse than by a margin. A candidate and the present release are evaluated on the
same held-out examples of each device; d is the device's mean under the candidate minus that under the release, turned
so that above 0 is worse. The null hypothesis is that the mean of d over devices is ``margin`` or more; the candidate is
promoted where a one-sided paired t test rejects it at the wanted confidence, that is where

    mean + t(confidence, n - 1) * sqrt(variance / n) < margin

(a test of non-inferiority). Few devices, or devices that disagree, therefore keep a candidate out. The other reading,
"not significantly worse", would let everything in that too few devices looked at.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from covey.plans.evaluation import lower_is_better
from covey.types.errors import UsageError

__all__ = ["REASONS", "Comparison", "Evidence", "ReleaseSettings", "Verdict", "decide", "student_quantile"]

REASONS: Mapping[str, str] = {
    "not_finite": "a parameter or a metric of the round is not finite",
    "cohort_too_small": "the sum of its round was over fewer devices than a release needs",
    "privacy_budget": "the population has spent more than the plan's privacy budget",
    "no_evaluation_under_privacy": "devices send no metrics under differential privacy: nothing can be compared",
    "no_evaluation_plan": "there is no evaluation plan, signed by the owner",
    "evaluation_failed": "no evaluation round was committed in the attempts that a candidate has",
    "too_few_devices": "fewer devices compared it than a decision needs",
    "not_shown_not_worse": "the evidence does not exclude that it is worse by the margin",
    "first": "there was no release to compare it with",
    "not_worse": "it was shown not to be worse by the margin",
    "evaluation_off": "the configuration asks for no evaluation",
}
"""Every stable reason of a verdict, and what it means; the last three promote."""

_PROMOTING = ("first", "not_worse", "evaluation_off")


@dataclass(frozen=True, slots=True)
class ReleaseSettings:
    """What a release needs.

    Attributes:
        every: so many committed rounds lie between two candidates; 0: there are none.
        min_cohort: the fewest devices in the sum of a candidate's round; the plan's own minimum holds anyway.
        evaluate: whether a candidate is compared with the release before it.
        min_devices: the fewest devices that must have compared, at least 3.
        margin: the difference, in the metric's own unit, that does not count as worse; above 0. 0.01 is a hundredth of
            a nat of loss, or one right prediction in a hundred.
        confidence: of the one-sided test.
        attempts: how many rounds of evaluation may fail before the candidate stays out.
    """

    every: int = 10
    min_cohort: int = 0
    evaluate: bool = True
    min_devices: int = 30
    margin: float = 0.01
    confidence: float = 0.95
    attempts: int = 3

    def __post_init__(self) -> None:
        checks = (
            (self.every >= 0, "every", "at least 0", self.every),
            (self.min_cohort >= 0, "min_cohort", "at least 0", self.min_cohort),
            (self.min_devices >= 3, "min_devices", "at least 3", self.min_devices),
            (0 < self.margin < math.inf, "margin", "above 0", self.margin),
            (0.5 < self.confidence <= 0.99, "confidence", "above 0.5, at most 0.99", self.confidence),
            (self.attempts >= 1, "attempts", "at least 1", self.attempts),
        )
        for holds, name, expected, got in checks:
            if not holds:
                raise UsageError(f"release: {name}", expected=expected, got=str(got))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models over devices: how many compared, and mean and mean square of d; above 0, the first is worse."""

    num_devices: int
    mean: float
    mean_square: float

    @classmethod
    def of(cls, metric: str, means: Mapping[str, float]) -> "Comparison":
        """Read the metrics of an evaluation round; none compared where they are absent."""
        sign = 1.0 if lower_is_better(metric) else -1.0
        return cls(
            round(means.get("compared", 0.0)),
            sign * means.get("difference", 0.0),
            means.get("difference_squared", 0.0),
        )

    def limit(self, confidence: float) -> float:
        """Return the one-sided upper confidence limit of the mean; infinite below 2 devices, which have no spread."""
        n = self.num_devices
        if n < 2 or not math.isfinite(self.mean) or not math.isfinite(self.mean_square):
            return math.inf
        # Squares are rounded by 2**-41 at most: an honest cohort's variance is not below 0 by more than that.
        variance = max(0.0, self.mean_square - self.mean**2) * n / (n - 1)
        return self.mean + student_quantile(confidence, n - 1) * math.sqrt(variance / n)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a candidate.

    Attributes:
        finite: whether all parameters and metrics are.
        cohort: devices in the sum of its round.
        within_budget: whether the privacy ledger allows it.
        first: whether there is no release yet.
        comparison: with the release before it; None where none was made, for the reason ``missing``.
        missing: one of :data:`REASONS`; empty where the comparison is still to come.
    """

    finite: bool
    cohort: int
    within_budget: bool
    first: bool
    comparison: Comparison | None = None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate is promoted, for which stable reason, and the confidence limit where it was compared."""

    reason: str
    limit: float = 0.0

    @property
    def promoted(self) -> bool:
        """Whether it becomes a release."""
        return self.reason in _PROMOTING


def decide(evidence: Evidence, settings: ReleaseSettings) -> Verdict | None:
    """Return the verdict; None where a comparison is needed, was not made, and nothing else keeps the candidate out."""
    if not evidence.finite:
        return Verdict("not_finite")
    if evidence.cohort < settings.min_cohort:
        return Verdict("cohort_too_small")
    if not evidence.within_budget:
        return Verdict("privacy_budget")
    if evidence.first:
        return Verdict("first")
    if not settings.evaluate:
        return Verdict("evaluation_off")
    found = evidence.comparison
    if found is None:
        return Verdict(evidence.missing) if evidence.missing else None
    limit = found.limit(settings.confidence)
    if found.num_devices < settings.min_devices:
        return Verdict("too_few_devices", limit)
    return Verdict("not_worse" if limit < settings.margin else "not_shown_not_worse", limit)


def student_quantile(p: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution.

    The expansion of Cornish and Fisher in 1/degrees (Abramowitz and Stegun, 26.7.5): at p = 0.95 within 0.3 % at 2
    degrees of freedom and within 4e-5 from 5 on; at p = 0.99 within 2.3 % and 4e-4.

    Args:
        p: between 0.5 and 0.99.
        degrees: of freedom, at least 2.
    """
    z = float(NormalDist().inv_cdf(p))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / float(degrees) ** (i + 1) for i, term in enumerate(terms))
