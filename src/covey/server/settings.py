"""How a task's rounds go and when they are due: the settings, and the check that they can work with a plan."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from covey.algorithms.fedbuff import asynchrony
from covey.plans.manifest import Manifest
from covey.types.errors import AsynchronousError, UsageError

__all__ = [
    "RoundSettings",
    "TaskSettings",
    "check_asynchronous",
    "check_schedule",
    "check_settings",
    "decode_settings",
    "encode_settings",
    "hyper_in",
]


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """How a round goes.

    Attributes:
        goal: how many reports close a round, or of an asynchronous algorithm a buffer; of the rest, that one needs
            ``report_timeout_s``, ``pause_s``, ``max_rounds`` and ``hyper`` only.
        over_selection: how many times the goal is selected, because some devices drop out.
        min_fraction: the fraction of the goal that is enough at the deadline.
        patience_s: how long to wait for the whole selection once the goal is there.
        selection_timeout_s: when to give up waiting for devices, and begin again.
        report_timeout_s: how long devices have for downloading, training and reporting.
        step_timeout_s: how long a step of a secure sum may take.
        pause_s: between two rounds.
        max_rounds: stop after so many committed rounds; 0: never.
        hyper: per-round values for the devices; the plan's defaults fill the rest.
        lr_decay: the devices' learning rate ``lr`` is multiplied by it from every round to the next.
    """

    goal: int
    over_selection: float = 1.3
    min_fraction: float = 0.7
    patience_s: float = 1.0
    selection_timeout_s: float = 300.0
    report_timeout_s: float = 600.0
    step_timeout_s: float = 30.0
    pause_s: float = 0.0
    max_rounds: int = 0
    hyper: Mapping[str, float] = field(default_factory=dict)
    lr_decay: float = 1.0

    @property
    def num_selected(self) -> int:
        """How many devices a round asks for."""
        return math.ceil(self.goal * self.over_selection - 1e-9)

    @property
    def at_least(self) -> int:
        """How many reports are enough at the deadline."""
        return max(1, math.ceil(self.goal * self.min_fraction - 1e-9))


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How a task's rounds go, and when they are due.

    Attributes:
        round: how each of them goes.
        every: an evaluation is due again when the model has moved by so many versions.
        start_at: when the task starts by itself, in seconds since 1970; 0: when it is created.
        until: when it is completed, in seconds since 1970; 0: never.
        candidate: SHA-256 of the checkpoint that an evaluation reads for the release desk, which keeps it.
        reference: SHA-256 of the checkpoint that the candidate is compared with on every device; empty: none.
    """

    round: RoundSettings
    every: int = 1
    start_at: float = 0.0
    until: float = 0.0
    candidate: str = ""
    reference: str = ""


def encode_settings(settings: TaskSettings) -> bytes:
    """Encode for storage: JSON."""
    return msgspec.json.encode(settings)


def decode_settings(data: bytes, where: str = "settings") -> TaskSettings:
    """Invert :func:`encode_settings`.

    Raises:
        UsageError: not the settings of a task.
    """
    try:
        return msgspec.json.decode(data, type=TaskSettings)
    except msgspec.MsgspecError as e:
        raise UsageError(where, expected="the settings of a task", got=str(e)) from e


def check_schedule(settings: TaskSettings) -> None:
    """Raise UsageError for a schedule that cannot be kept."""
    _require(settings.every >= 1, "every", "at least 1", settings.every)
    for name in ("start_at", "until"):
        value = getattr(settings, name)
        _require(0 <= value < math.inf, name, "seconds since 1970, or 0", value)
    late = bool(settings.until) and settings.until <= settings.start_at
    _require(not late, "until", "a time after start_at", settings.until)


def check_settings(settings: RoundSettings, manifest: Manifest) -> None:
    """Raise UsageError for settings that cannot work with a plan.

    A value that is no number, a selection that could overflow a sum, a goal that could open a sum of too few devices,
    or a per-round value that every device would refuse.
    """
    _check_ranges(settings)
    terms = manifest.privacy
    _require(
        settings.num_selected <= terms.n_max, "goal", f"a selection of at most {terms.n_max}", settings.num_selected
    )
    _require(
        settings.at_least >= terms.min_cohort,
        "goal * min_fraction",
        f"at least the plan's min_cohort, {terms.min_cohort}",
        settings.at_least,
    )
    if terms.noise is not None:
        # Another goal would divide sums by another number than the one that was promised and trained with.
        wanted = terms.noise.denominator
        _require(settings.goal == wanted, "goal", f"{wanted}, the plan's public denominator", settings.goal)
    bounds = {h.name: h for h in manifest.hyper}
    for name, value in settings.hyper.items():
        _require(name in bounds, "hyper", f"names among {', '.join(bounds) or 'none'}", name)
        low, high = bounds[name].low, bounds[name].high
        _require(low <= value <= high, f"hyper.{name}", f"{low:g} to {high:g}, the plan's bounds", value)
    _require(
        settings.lr_decay == 1 or "lr" in bounds, "lr_decay", "1: no device has a learning rate", settings.lr_decay
    )


def hyper_in(settings: RoundSettings, manifest: Manifest, number: int) -> dict[str, float]:
    """Return the values of round ``number``, from 1; a learning rate that decays stays in the plan's bounds."""
    values = dict(settings.hyper)
    if settings.lr_decay != 1:
        bound = next(h for h in manifest.hyper if h.name == "lr")
        values["lr"] = max(bound.low, values.get("lr", bound.default) * settings.lr_decay ** (number - 1))
    return values


def check_asynchronous(settings: RoundSettings, manifest: Manifest) -> None:
    """Raise for a plan of an asynchronous algorithm that cannot run, or settings that cannot work with it.

    Raises:
        AsynchronousError: secure aggregation, or differential privacy.
        UsageError: so many devices at once that a sum could overflow.
    """
    name, terms = manifest.algorithm.name, manifest.privacy
    if terms.mode == "secure":
        raise AsynchronousError(
            f"algorithm {name}",
            expected="plain mode: masks cancel only within a cohort that was fixed before anyone trained",
            got="secure aggregation",
            hint="build the plan with --plain, or with an algorithm that has rounds: fedavg",
        )
    if terms.noise is not None:
        raise AsynchronousError(
            f"algorithm {name}",
            expected="no differential privacy: no guarantee is known for who is in a buffer",
            got=f"{terms.noise.kind} noise",
            hint="build the plan without --privacy, or with an algorithm that has rounds: fedavg",
        )
    most = asynchrony(manifest.algorithm.settings, settings.goal).concurrency
    _require(
        settings.goal + most <= terms.n_max,
        "goal",
        f"with the plan's concurrency, {most}, at most its n_max, {terms.n_max}: so many updates may be in a sum",
        settings.goal,
    )


def _check_ranges(settings: RoundSettings) -> None:
    _require(settings.goal >= 1, "goal", "at least 1", settings.goal)
    _require(1 <= settings.over_selection < math.inf, "over_selection", "at least 1", settings.over_selection)
    _require(0 < settings.min_fraction <= 1, "min_fraction", "above 0, at most 1", settings.min_fraction)
    _require(0 < settings.lr_decay <= 1, "lr_decay", "above 0, at most 1", settings.lr_decay)
    _require(settings.max_rounds >= 0, "max_rounds", "at least 0", settings.max_rounds)
    for name in ("patience_s", "selection_timeout_s", "report_timeout_s", "step_timeout_s", "pause_s"):
        value = getattr(settings, name)
        _require(0 <= value < math.inf, name, "a number of seconds, at least 0", value)


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise UsageError(f"round: {name}", expected=expected, got=str(got))
