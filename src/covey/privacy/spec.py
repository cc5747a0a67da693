"""``--privacy SPEC``: the small grammar, and what it becomes for a cohort, a population and a model.

::

    SPEC    = "none" | KIND ":" PAIR { "," PAIR }
    KIND    = "gaussian" | "tree" | "discrete-gaussian" | "skellam"
    PAIR    = KEY "=" VALUE

``docs/privacy.md`` explains every key.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from covey.privacy.accounting import epsilon, solve_noise
from covey.privacy.mechanism import DISTRIBUTED, KINDS, Mechanism
from covey.types.errors import ClipMissingError, NoiseError, PrivacyError, PrivacySpecError

__all__ = ["KEYS", "RingRoom", "Setting", "Spec", "is_noised", "parse_spec"]

_COMMON = ("clip", "noise", "epsilon", "delta", "budget", "population", "units", "sampling")
_ADAPTIVE = ("start", "quantile", "clip_lr", "count_noise")
KEYS: Mapping[str, tuple[str, ...]] = {
    "gaussian": (*_COMMON, *_ADAPTIVE),
    "tree": (*(k for k in _COMMON if k != "sampling"), "max_participation", "min_separation"),
    "discrete-gaussian": (*_COMMON, *_ADAPTIVE, "bits", "colluders", "min_survivors"),
    "skellam": (*_COMMON, *_ADAPTIVE, "bits", "colluders", "min_survivors"),
}
"""The keys that each kind understands."""

_WHOLE = ("population", "units", "bits", "colluders", "min_survivors", "max_participation", "min_separation")
_CENTRAL_UNITS = 1 << 16
_MOST_UNITS = 1 << 14
_SKELLAM_UNITS = 1 << 14  # the largest share that its sampler draws
_MOST_ON_THE_WIRE = 1 << 24  # integers below it are exact in float32, which is what plain bodies carry
_CLIP_RANGE = 1e4  # an adapting clip stays within this factor of where it starts


@dataclass(frozen=True, slots=True)
class Setting:
    """What a SPEC is resolved for.

    Attributes:
        cohort: the goal of a round: the public denominator.
        min_survivors: the fewest devices whose sum may be opened.
        num_selected: the most devices that may be in one sum.
        rounds: how many are planned.
        population: how many devices there are.
        dim: coordinates that a device sends of the model's segments, together.
        ring: where a codec rotates and rounds are summed in its ring: that; None: coordinates travel as they are.
    """

    cohort: int
    min_survivors: int
    num_selected: int
    rounds: int
    population: int
    dim: int
    ring: "RingRoom | None" = None


@dataclass(frozen=True, slots=True)
class RingRoom:
    """The ring of a codec: B bits for at most n_max devices, whose coordinates are clamped at so many deviations."""

    bits: int
    n_max: int
    clamp: float


@dataclass(frozen=True, slots=True)
class Spec:
    """A SPEC that was read: the kind and the values as they were given."""

    kind: str
    values: Mapping[str, float | str]

    def bits(self, setting: Setting) -> int:
        """Return the ring's width: a codec's, or 64 for sums that the server noises and 32 for those of devices.

        Raises:
            PrivacyError: two widths.
        """
        if setting.ring is None:
            return int(self.values.get("bits", 32)) if self.kind in DISTRIBUTED else 64
        if self.values.get("bits", setting.ring.bits) != setting.ring.bits:
            got = f"bits={self.values['bits']:g}"
            raise PrivacyError("--privacy: bits", expected=f"none, or the codec's {setting.ring.bits}", got=got)
        return setting.ring.bits

    def resolve(self, setting: Setting) -> Mechanism:
        """Return the promise for a setting; with ``epsilon`` the noise is found that keeps it.

        Raises:
            PrivacyError: a promise that cannot be kept; see :meth:`Mechanism.check`.
        """
        first = self._mechanism(setting)
        if "noise" in self.values:
            mechanism = self._fitted(first, setting)
        else:
            target = float(self.values["epsilon"])

            def epsilon_at(noise: float) -> float:
                tried = self._fitted(first.with_noise(noise), setting, strict=False)
                return epsilon(tried.spent(setting.dim, setting.rounds), tried.delta)

            mechanism = self._fitted(first.with_noise(solve_noise(epsilon_at, target)), setting)
        mechanism.check()
        bound = mechanism.coordinate_bound(_limit(mechanism, setting))
        most = min(_MOST_ON_THE_WIRE, math.floor(self._room(setting)))
        if bound >= most:
            raise NoiseError(
                "units",
                expected=f"contributions below {most} units, noise included",
                got=str(bound),
                hint="fewer units to the clip, less noise of each device, a wider ring, or fewer devices in a sum",
            )
        return mechanism

    def _room(self, setting: Setting) -> float:
        """Return what one device may send, so that a sum of the most devices cannot wrap."""
        return ((1 << (self.bits(setting) - 1)) - 1) / self._devices(setting)

    def _mechanism(self, setting: Setting) -> Mechanism:
        v = self.values
        adaptive = v["clip"] == "adaptive"
        clip = float(v.get("start", 0.1)) if adaptive else float(v["clip"])
        reach = _CLIP_RANGE if adaptive else 1.0
        noise = float(v.get("noise", 1.0))
        population = int(v.get("population", setting.population))
        return Mechanism(
            kind=self.kind,
            clip=clip,
            clip_low=clip / reach,
            clip_high=clip * reach,
            noise_multiplier=noise,
            clip_units=int(v.get("units", _CENTRAL_UNITS)),
            min_survivors=int(v.get("min_survivors", setting.min_survivors)),
            denominator=setting.cohort,
            population=population,
            delta=float(v.get("delta", population**-1.1 if population > 1 else 0.5)),
            num_rounds=setting.rounds,
            colluders=int(v.get("colluders", 0)),
            budget=float(v["budget"]) if "budget" in v else None,
            quantile=float(v.get("quantile", 0.5)) if adaptive else None,
            clip_lr=float(v.get("clip_lr", 0.2)),
            count_noise=float(v.get("count_noise", max(setting.cohort / 20, noise))) if adaptive else 0.0,
            max_participation=int(v.get("max_participation", setting.rounds)),
            min_separation=int(v.get("min_separation", 0)),
            sampling=str(v.get("sampling", "none")),
        )

    def _fitted(self, mechanism: Mechanism, setting: Setting, *, strict: bool = True) -> Mechanism:
        """Choose the units: the finest that the ring holds, unless they were given."""
        if "units" in self.values or (self.kind not in DISTRIBUTED and setting.ring is None):
            return mechanism
        room = min(self._room(setting), _MOST_ON_THE_WIRE)
        units, most = _MOST_UNITS, _SKELLAM_UNITS if self.kind == "skellam" else math.inf
        while units > 1:
            fitted = dataclasses.replace(mechanism, clip_units=units)
            limit = _limit(fitted, setting)
            before = units + 1 if limit is None else limit
            # 14 standard deviations are beyond what the samplers can give, see their tables.
            noise = 14 * fitted.share_units + 160 if fitted.distributed else 0.0
            if before + 1 + noise < room and (fitted.share_units <= most or not fitted.distributed):
                return fitted
            units //= 2
        if strict:
            raise NoiseError(
                "bits",
                expected=f"a ring in which {self._devices(setting)} devices and their noise cannot wrap",
                got=f"{self.bits(setting)} bits",
                hint="a wider ring, a smaller cohort, or less noise",
            )
        return dataclasses.replace(mechanism, clip_units=1)

    @staticmethod
    def _devices(setting: Setting) -> int:
        return setting.num_selected if setting.ring is None else setting.ring.n_max


def _limit(mechanism: Mechanism, setting: Setting) -> int | None:
    return None if setting.ring is None else mechanism.limit(setting.dim, setting.ring.clamp)


def parse_spec(text: str) -> Spec | None:
    """Read a SPEC; None for ``none``.

    Raises:
        PrivacySpecError: not of this grammar; names the near misses.
        ClipMissingError: noise without a clip.
    """
    kind, colon, rest = text.strip().partition(":")
    if text.strip() == "none":
        return None
    if kind not in KINDS:
        raise _refused("mechanism", (*KINDS, "none"), kind)
    values: dict[str, float | str] = {}
    for pair in rest.split(",") if colon else []:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if key not in KEYS[kind]:
            raise _refused(f"{kind}: key", KEYS[kind], key)
        if not equals or not value:
            raise PrivacySpecError(f"--privacy: {key}", expected=f"{key}=VALUE", got=pair.strip() or "nothing")
        if key in values:
            raise PrivacySpecError(f"--privacy: {key}", expected="each key once", got="it twice")
        values[key] = _value(key, value)
    _check_together(kind, values)
    return Spec(kind, values)


def is_noised(text: str | None) -> bool:
    """Return whether a SPEC, if there is one, asks for noise. Raises what :func:`parse_spec` does."""
    return text is not None and parse_spec(text) is not None


def _check_together(kind: str, values: Mapping[str, float | str]) -> None:
    if "clip" not in values:
        raise ClipMissingError(
            "--privacy",
            expected="clip=LENGTH or clip=adaptive",
            got="noise without a clip",
            hint="noise hides a device only if no device can change the sum by more than a known length",
        )
    if ("noise" in values) == ("epsilon" in values):
        got = "both" if "noise" in values else "neither"
        raise PrivacySpecError("--privacy", expected="noise=MULTIPLIER or epsilon=TARGET", got=got)
    if kind == "tree" and values["clip"] == "adaptive":
        raise PrivacySpecError("--privacy: clip", expected="a fixed clip under a tree", got="adaptive")
    extra = [k for k in _ADAPTIVE if k in values]
    if extra and values["clip"] != "adaptive":
        raise PrivacySpecError("--privacy", expected=f"{extra[0]} with clip=adaptive only", got="a fixed clip")


def _value(key: str, text: str) -> float | str:
    words: Mapping[str, tuple[str, ...]] = {"clip": ("adaptive",), "sampling": ("none", "poisson")}
    if text in words.get(key, ()):
        return text
    if key == "sampling":
        raise _refused(f"{key}=", words[key], text)
    if key in _WHOLE:
        return _number(key, text, lambda s: float(int(s)), "a whole number of at least 0")
    expected = "a number above 0" + (" or adaptive" if key == "clip" else "")
    near = difflib.get_close_matches(text, words.get(key, ()), n=1)
    return _number(key, text, float, expected, f"did you mean {near[0]}?" if near else "")


def _number(key: str, text: str, read: Callable[[str], float], expected: str, hint: str = "") -> float:
    try:
        number = read(text)
    except ValueError:
        number = math.nan
    least_allowed = 0 if key in ("colluders", "min_separation") else math.ulp(0.0)
    if not least_allowed <= number < math.inf:
        raise PrivacySpecError(f"--privacy: {key}", expected=expected, got=text, hint=hint)
    return number


def _refused(where: str, known: tuple[str, ...], got: str) -> PrivacySpecError:
    near = difflib.get_close_matches(got, known, n=2, cutoff=0.5)
    return PrivacySpecError(
        f"--privacy: {where}",
        expected=f"one of {', '.join(known)}",
        got=got or "nothing",
        hint=f"did you mean {' or '.join(near)}?" if near else "see docs/privacy.md for the grammar",
    )
