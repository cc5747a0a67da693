"""The terms of a plan: when it may run, what it may cost, and what the population's owner promises about privacy.

Every device checks them for itself, and refuses a plan that asks for more than its own owner accepts.
"""

import msgspec

__all__ = ["Budget", "Eligibility", "NoiseTerms", "PrivacyTerms", "SecureTerms"]


class Eligibility(msgspec.Struct, frozen=True, kw_only=True):
    """Under which conditions a device may train."""

    idle: bool = True
    charging: bool = True
    unmetered: bool = True


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a session may cost the device."""

    memory_bytes: int = 512 << 20
    time_s: float = 600.0


class SecureTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How sums are masked: the numbers from which every device computes degree and threshold for itself.

    A cohort is split into groups; each group's sum is opened by itself, of at least ``min_cohort`` devices or not at
    all.

    Attributes:
        group_size: the most devices in a group.
        adversary: the share of them that may collude with the server.
        dropout: the share of them that may vanish between the end of training and the opening.
        ring_bits: the model's coordinates are summed modulo ``2**ring_bits``.
        mode: ``honest-but-curious`` (the server follows the protocol) or ``active`` (it may lie to devices).
        authority: in active mode, the Ed25519 public key of the enrolment authority, hex; a device pins it besides.
    """

    group_size: int = 100
    adversary: float = 0.05
    dropout: float = 0.10
    ring_bits: int = 32
    mode: str = "honest-but-curious"
    authority: str = ""

    @property
    def is_active(self) -> bool:
        """Whether the server may deviate from the protocol."""
        return self.mode == "active"


class NoiseTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Differential privacy of a task: fixed in the plan, recomputed by every device, never taken from the server.

    The names and meanings of all but the last three are those of :class:`covey.privacy.mechanism.Mechanism`; its
    ``min_survivors`` is the terms' ``min_cohort``. The clip of a round travels as the per-round value ``clip``.

    Attributes:
        ring_bits: of the model's segments.
        coordinate_bound: the largest magnitude, in units, of one coordinate that one device sends, noise included.
        count_bound: the same for the indicator of the adapting clip.
    """

    kind: str
    clip: float
    clip_low: float
    clip_high: float
    noise_multiplier: float
    clip_units: int
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
    ring_bits: int = 64
    coordinate_bound: int
    count_bound: int = 0


class PrivacyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What the population's owner promises, and every device checks for itself.

    Attributes:
        mode: ``plain`` (the server could look at one update, though it stores none) or ``secure`` (it can only open
            the sum of a group).
        min_cohort: the fewest devices whose sum may be opened.
        n_max: the most devices that may ever be selected for one sum; makes overflow impossible.
        max_weight: cap on one device's weight.
        secure: how sums are masked; None in plain mode.
        noise: differential privacy, or None. With it, weights are uniform and metrics are absent.
    """

    mode: str = "plain"
    min_cohort: int = 100
    n_max: int = 10_000
    max_weight: int = 10_000
    secure: SecureTerms | None = None
    noise: NoiseTerms | None = None

    @property
    def most_in_sum(self) -> int:
        """The most devices in one opened sum: of a group in secure mode, of the whole cohort in plain mode."""
        return self.secure.group_size if self.secure else self.n_max
