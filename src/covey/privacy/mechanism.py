"""What a task promises: which noise, on what, and what one opened sum costs. One object, the same on both sides.

The device computes its share from these numbers alone; it takes nothing on the server's word.

Everything is in integer units: a contribution is clipped to ``clip`` and scaled so that this becomes ``clip_units``.
``noise_multiplier`` (the papers' z) is the standard deviation of the noise in the sum over ``clip``. What rounding adds
to a contribution's length is accounted for, so the multiplier that counts is a little smaller.

Central noise (``gaussian``, ``tree``) is a discrete Gaussian of at least 16 units. It protects what a continuous
Gaussian of variance σ² - 16 does, exactly as well but for a factor of 1 ± 2**-450: by C. Peikert, An Efficient and
Parallel Gaussian Sampler for Lattices, 2010, Theorem 3.1, it *is* that Gaussian, rounded at random with parameter 4.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from covey.privacy import distributed_discrete_gaussian, skellam_mechanism
from covey.privacy.accounting import ORDERS, GaussianLoss, Loss, RenyiLoss, Spent, check_delta
from covey.privacy.clip import check_clip
from covey.privacy.discrete_gaussian import DiscreteGaussian
from covey.privacy.dp_ftrl import tree_sensitivity_squared
from covey.privacy.rounding import l1_bound, l2_bound
from covey.privacy.sampler import IntegerNoise
from covey.privacy.skellam import Skellam
from covey.types.errors import NoiseError, PrivacyError

__all__ = ["COUNT_UNITS", "DISTRIBUTED", "KINDS", "MIN_SHARE_UNITS", "Mechanism"]

DISTRIBUTED = ("discrete-gaussian", "skellam")
KINDS = ("gaussian", "tree", *DISTRIBUTED)

COUNT_UNITS = 256
"""What the clip's indicator weighs: +256 where the contribution was short enough, -256 where it was not."""

MIN_SHARE_UNITS = 2.0
"""A device's share of noise has at least this standard deviation: below it, integers no longer look like noise."""

_SMOOTHING_UNITS = 4.0
_MIN_CENTRAL_UNITS = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """The promise of one task.

    Attributes:
        kind: one of :data:`KINDS`.
        clip: the length to which contributions are clipped; the first one where it adapts.
        clip_low, clip_high: what an assignment may set it to; equal to ``clip`` where it is fixed.
        noise_multiplier: z, of everything that a round opens together.
        clip_units: how many integer units the clip is.
        min_survivors: the fewest devices whose sum may be opened: the worst group shares the noise among so many.
        colluders: how many of them may tell the server their noise.
        denominator: the public constant that sums are divided by.
        population: N, how many devices there are.
        delta: of every figure.
        num_rounds: how many rounds are planned; a tree has so many leaves.
        budget: the largest epsilon that the population may spend in all, or None.
        quantile: the fraction of contributions that the adapting clip aims to leave whole, or None where it is fixed.
        clip_lr: how fast it adapts.
        count_noise: standard deviation of the noise on how many were left whole, in devices.
        max_participation, min_separation: of a tree; see :mod:`covey.privacy.dp_ftrl`.
        sampling: ``none``, or ``poisson`` to have the amplified figure printed besides.
    """

    kind: str
    clip: float
    clip_low: float
    clip_high: float
    noise_multiplier: float
    clip_units: int
    min_survivors: int
    denominator: int
    population: int
    delta: float
    num_rounds: int
    colluders: int = 0
    budget: float | None = None
    quantile: float | None = None
    clip_lr: float = 0.2
    count_noise: float = 0.0
    max_participation: int = 0
    min_separation: int = 0
    sampling: str = "none"

    @classmethod
    def of(cls, terms: Any, min_survivors: int) -> "Mechanism":
        """Return the mechanism of a plan's terms: any object with attributes of these names.

        Raises:
            PrivacyError: a promise that cannot be kept; see :meth:`check`.
        """
        names = (f.name for f in dataclasses.fields(cls) if f.name != "min_survivors")
        mechanism = cls(min_survivors=min_survivors, **{name: getattr(terms, name) for name in names})
        mechanism.check()
        return mechanism

    @property
    def distributed(self) -> bool:
        """Whether devices add the noise."""
        return self.kind in DISTRIBUTED

    @property
    def adaptive(self) -> bool:
        """Whether the clip adapts."""
        return self.quantile is not None

    @property
    def num_shares(self) -> int:
        """How many honest shares make up the promised noise: one where the server adds it."""
        return self.min_survivors - self.colluders if self.distributed else 1

    @property
    def model_multiplier(self) -> float:
        """The multiplier of the model's noise alone: the clip's indicator spends a part (1905.03871, Theorem 1)."""
        if not self.adaptive:
            return self.noise_multiplier
        return 1 / math.sqrt(self.noise_multiplier**-2 - (2 * self.count_noise) ** -2)

    @property
    def sigma_units(self) -> float:
        """Standard deviation of the promised noise on a coordinate of the model's sum, in units."""
        return self.model_multiplier * self.clip_units

    @property
    def share_units(self) -> float:
        """Standard deviation of one share: σ_local = σ / √(min_survivors - colluders)."""
        return self.sigma_units / math.sqrt(self.num_shares)

    @property
    def count_share_units(self) -> float:
        """Standard deviation of one share of the noise on the clip's indicator, in units; half a device is 256."""
        return 2 * self.count_noise * COUNT_UNITS / math.sqrt(self.num_shares)

    def check(self) -> None:
        """Raise unless this is a promise that can be kept.

        Raises:
            ClipMissingError: no clip.
            DeltaError: delta of 1/population or more.
            NoiseError: no noise, or a share under 2 units.
            PrivacyError: anything else.
        """
        check_clip(self.clip, f"privacy: {self.kind}")
        check_delta(self.delta, self.population)
        _require(self.kind in KINDS, "mechanism", f"one of {', '.join(KINDS)}", self.kind)
        _require(0 < self.clip_low <= self.clip <= self.clip_high < math.inf, "clip", "within its bounds", self.clip)
        _require(self.adaptive or self.clip_low == self.clip_high, "clip", "equal bounds for a fixed clip", self.clip)
        _require(self.clip_units >= 1, "units", "at least 1", self.clip_units)
        _require(min(self.denominator, self.num_rounds) >= 1, "denominator, rounds", "at least 1", self.denominator)
        least_colluders = 0 <= self.colluders < self.min_survivors
        _require(least_colluders, "colluders", f"fewer than the {self.min_survivors} survivors", self.colluders)
        _require(
            self.distributed or self.colluders == 0, "colluders", "none: the server adds the noise", self.colluders
        )
        _require(self.sampling in ("none", "poisson"), "sampling", "none or poisson", self.sampling)
        _require(self.kind != "tree" or not self.adaptive, "clip", "a fixed clip under a tree", "an adapting one")
        self._check_noise()

    def _check_noise(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise NoiseError("noise", expected="a noise multiplier above 0", got=f"{self.noise_multiplier:g}")
        if self.adaptive:
            quantile = self.quantile or 0.0
            _require(0 < quantile < 1 and 0 < self.clip_lr <= 2, "quantile, clip_lr", "in (0, 1), (0, 2]", quantile)
            if 2 * self.count_noise <= self.noise_multiplier:
                raise NoiseError(
                    "count_noise",
                    expected=f"more than half the noise multiplier, {self.noise_multiplier / 2:g}",
                    got=f"{self.count_noise:g}",
                    hint="the clip's indicator spends a part of the budget, and must leave the rest to the model",
                )
        least = MIN_SHARE_UNITS if self.distributed else _MIN_CENTRAL_UNITS
        shares = [self.share_units, *([self.count_share_units] if self.adaptive else [])]
        if min(shares) < least:
            raise NoiseError(
                "sigma_local" if self.distributed else "sigma",
                expected=f"at least {least:g} integer units",
                got=f"{min(shares):.3g}",
                hint="more noise, more units to the clip, or fewer devices that share the noise",
            )

    def noise(self) -> IntegerNoise:
        """Return the sampler of one share of the model's noise: a device's, or the server's whole noise."""
        return _sampler(self.kind, self.share_units)

    def count_noise_sampler(self) -> IntegerNoise:
        """Return the sampler of one share of the noise on the clip's indicator."""
        return _sampler(self.kind, self.count_share_units)

    def limit(self, dim: int, clamp: float) -> int:
        """Return a clamp of so many deviations of a coordinate in units, for a vector of the clip's length."""
        return min(self.clip_units + 1, math.ceil(clamp * self.clip_units / math.sqrt(dim)))

    def coordinate_bound(self, limit: int | None = None) -> int:
        """Return the largest magnitude, in units, of a coordinate that a device sends: clipped, rounded, noised.

        It holds for every draw: a sampler's table ends where less than ``2**-128`` of the distribution is left.

        Args:
            limit: of a coordinate before noise (:meth:`limit`); None: what the clip allows.
        """
        before = self.clip_units + 1 if limit is None else limit
        return before + (self.noise().bound if self.distributed else 0)

    def count_bound(self) -> int:
        """Return the same for the clip's indicator; 0 where the clip is fixed."""
        if not self.adaptive:
            return 0
        return COUNT_UNITS + (self.count_noise_sampler().bound if self.distributed else 0)

    def losses(self, dim: int) -> tuple[Loss, ...]:
        """Return what one opened sum costs, for a model of ``dim`` coordinates; under a tree, all of its sums."""
        out = [self._loss(self.share_units, l2_bound(self.clip_units, dim), dim)]
        if self.adaptive:
            out.append(self._loss(self.count_share_units, float(COUNT_UNITS), 1))
        return tuple(out)

    def spent(self, dim: int, rounds: int) -> tuple[Spent, ...]:
        """Return what ``rounds`` opened sums cost. A tree is paid for whole, for each ``num_rounds`` that begin."""
        times = -(-rounds // self.num_rounds) if self.kind == "tree" else rounds
        return tuple(Spent(loss, times) for loss in self.losses(dim))

    def with_noise(self, noise_multiplier: float) -> "Mechanism":
        """Return the same with another noise multiplier; the indicator's noise follows where it must."""
        count = max(self.count_noise, noise_multiplier) if self.adaptive else self.count_noise
        return dataclasses.replace(self, noise_multiplier=noise_multiplier, count_noise=count)

    def _loss(self, share_units: float, l2: float, dim: int) -> Loss:
        if not self.distributed:
            # Rényi and all: a continuous Gaussian of variance σ² - 16, see the module's docstring.
            multiplier = math.sqrt(max(share_units**2 - _SMOOTHING_UNITS**2, 0.0)) / l2
            if self.kind == "tree":
                zeta = tree_sensitivity_squared(self.num_rounds, self.max_participation, self.min_separation)
                multiplier /= math.sqrt(zeta)
            return GaussianLoss(multiplier)
        l1 = l1_bound(l2, dim)
        if self.kind == "skellam":
            variance = self.num_shares * share_units**2
            return RenyiLoss(skellam_mechanism.renyi_curve(ORDERS, l1=l1, l2=l2, variance=variance))
        curve = distributed_discrete_gaussian.renyi_curve(
            ORDERS, l1=l1, l2=l2, dim=dim, sigma=share_units, num_shares=self.num_shares
        )
        return RenyiLoss(curve)


def _sampler(kind: str, sigma: float) -> IntegerNoise:
    return Skellam(sigma) if kind == "skellam" else DiscreteGaussian(sigma)


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise PrivacyError(f"privacy: {name}", expected=expected, got=str(got))
