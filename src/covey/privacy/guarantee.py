"""What a run promises, in words: epsilon and delta, and every assumption that they stand on. Never a figure alone."""

from dataclasses import dataclass

from covey.privacy.accounting import amplified_epsilon, epsilon
from covey.privacy.dp_ftrl import tree_sensitivity_squared
from covey.privacy.mechanism import Mechanism
from covey.privacy.rounding import l2_bound

__all__ = ["Guarantee", "guarantee_of"]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The figure and its assumptions.

    Attributes:
        kind: of the mechanism.
        epsilon: for ``rounds`` opened sums.
        delta: of the figure.
        rounds: how many sums.
        noise_multiplier: z.
        amplified_epsilon: the smaller figure under Poisson sampling, where it was asked for.
        private: False where the noise was seeded: the figure is then that of a real run with the same settings.
        assumptions: one line each.
    """

    kind: str
    epsilon: float
    delta: float
    rounds: int
    noise_multiplier: float
    amplified_epsilon: float | None
    private: bool
    assumptions: tuple[str, ...]

    @property
    def headline(self) -> str:
        """One line."""
        text = f"epsilon {self.epsilon:.4g} at delta {self.delta:.2g} after {self.rounds} rounds"
        if self.amplified_epsilon is not None:
            text += f" ({self.amplified_epsilon:.4g} if sampling were Poisson)"
        return text if self.private else f"{text}; not private: the noise was seeded"


def guarantee_of(mechanism: Mechanism, dim: int, rounds: int, *, private: bool) -> Guarantee:
    """Return what ``rounds`` opened sums of a model of ``dim`` coordinates promise."""
    amplified = None
    if mechanism.sampling == "poisson":
        rate = min(1.0, mechanism.denominator / mechanism.population)
        amplified = amplified_epsilon(mechanism.losses(dim), rounds, mechanism.delta, rate)
    return Guarantee(
        kind=mechanism.kind,
        epsilon=epsilon(mechanism.spent(dim, rounds), mechanism.delta),
        delta=mechanism.delta,
        rounds=rounds,
        noise_multiplier=mechanism.noise_multiplier,
        amplified_epsilon=amplified,
        private=private,
        assumptions=tuple(_assumptions(mechanism, dim, rounds)),
    )


def _assumptions(m: Mechanism, dim: int, rounds: int) -> list[str]:
    return [
        "adjacency: one device's contribution replaced by nothing, in every round at once (device level)",
        _participation(m, rounds),
        _cohort(m),
        _noise(m, dim),
        f"delta: {m.delta:.3g}, below 1/population = {1 / m.population:.3g}",
        *_sampling(m),
        "opened: the model, clipped and noised"
        + (", the clip's count, noised" if m.adaptive else "")
        + "; weights are uniform, metrics absent; how many devices took part is public",
    ]


def _participation(m: Mechanism, rounds: int) -> str:
    if m.kind != "tree":
        return f"participation: a device may be in every one of the {rounds} rounds; no amplification by sampling"
    zeta = tree_sensitivity_squared(m.num_rounds, m.max_participation, m.min_separation)
    return (
        f"participation: a device is in at most {m.max_participation} of {m.num_rounds} rounds, with at least "
        f"{m.min_separation} rounds between (tree sensitivity squared {zeta}); no sampling is assumed"
    )


def _cohort(m: Mechanism) -> str:
    text = f"cohort: sums are divided by the public constant {m.denominator} and opened over {m.min_survivors} or more"
    if m.distributed:
        text += f"; {m.colluders} of them may tell the server their noise"
    return text


def _noise(m: Mechanism, dim: int) -> str:
    clip = f"clip {m.clip:g}" + (f", adapting to the quantile {m.quantile:g}" if m.adaptive else "")
    growth = l2_bound(m.clip_units, dim) / m.clip_units - 1
    units = f"{m.clip_units} integer units to the clip, which rounding lengthens by {100 * growth:.2g} % (accounted)"
    if m.distributed:
        where = (
            f"each device adds {m.share_units:.4g} units, so that {m.num_shares} honest ones add up to it; "
            "whoever sees one update unmasked sees only that much noise"
        )
    else:
        where = "the server adds it to the sum: it is trusted to, and with the clear sum"
    return f"noise: {m.kind}, sigma = {m.noise_multiplier:.4g} x clip; {clip}; {units}; {where}"


def _sampling(m: Mechanism) -> list[str]:
    if m.sampling != "poisson":
        return []
    rate = min(1.0, m.denominator / m.population)
    return [
        f"sampling: the figure in brackets assumes that each device joins each round with probability {rate:.3g}, "
        "independently and unknown to everybody; Covey draws a fixed number of those who check in"
    ]
