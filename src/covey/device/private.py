"""Differential privacy on the device: what it refuses, and what it sends instead of its update.

The device takes nothing on the server's word: noise and bounds are recomputed from the signed plan.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.compression.codec import codecs_of, norm_share
from covey.device.trainer import LocalResult, hyper_values
from covey.device.update import projected
from covey.plans.manifest import CLIP, CLIP_COUNT, Manifest, NoiseTerms
from covey.privacy.contribution import contribute
from covey.privacy.mechanism import Mechanism
from covey.privacy.randomness import Randomness
from covey.types.errors import PlanRefusedError, PrivacyError
from covey.types.segments import HEADER
from covey.wire.messages import Assignment

__all__ = ["PrivacyFloor", "check_privacy", "private_segments"]


@dataclass(frozen=True, slots=True)
class PrivacyFloor:
    """The least that a device's owner accepts.

    Attributes:
        noise_multiplier: the least sigma / clip of the noise in a sum; above 0, plans without noise are refused.
        spaced: whether the device's own ledger keeps the plan's limits on how often, and how soon again, it takes part:
            then it accepts trees, whose noise counts on them.
        simulated: whether this is a simulation's device: it accepts seeded noise, noise of devices without masks, and
            trees, whose limits on participation the simulation enforces.
    """

    noise_multiplier: float = 0.0
    spaced: bool = False
    simulated: bool = False


def check_privacy(floor: PrivacyFloor, manifest: Manifest) -> None:
    """Check a plan's noise against the owner's floor, against itself and against the plan's codec.

    Raises:
        PlanRefusedError: below the floor, or a promise that this device cannot help to keep.
        PrivacyError: terms that no device can follow.
        CompressionSpecError: a codec that would change what was noised.
    """
    terms, noise = manifest.privacy, manifest.privacy.noise
    if noise is None:
        if floor.noise_multiplier > 0:
            raise _refused("noise", f"a noise multiplier of at least {floor.noise_multiplier:g}", "no noise")
        return
    mechanism = Mechanism.of(noise, terms.min_cohort)
    if noise.noise_multiplier < floor.noise_multiplier:
        expected = f"at least {floor.noise_multiplier:g}, the floor of this device's owner"
        raise _refused("noise_multiplier", expected, f"{noise.noise_multiplier:g}")
    bounds = (mechanism.coordinate_bound(_limit(manifest, mechanism)), mechanism.count_bound())
    if noise.coordinate_bound < bounds[0] or noise.count_bound < bounds[1]:
        got = f"{noise.coordinate_bound}, {noise.count_bound}"
        raise _refused("bounds", f"at least {bounds[0]}, {bounds[1]}: the clip and all the noise", got)
    if floor.simulated:
        return
    if mechanism.distributed and terms.mode != "secure":
        raise _refused("mode", "secure aggregation: a device's own share hides too little by itself", terms.mode)
    if mechanism.kind == "tree" and not floor.spaced:
        raise _refused("kind", "noise that needs no limit on how often a device takes part", "tree")


def private_segments(
    result: LocalResult, manifest: Manifest, assignment: Assignment, source: Randomness | None
) -> dict[str, NDArray[np.floating]]:
    """Return what is encoded instead of the update: integers as reals, a uniform weight, no metrics.

    Where the codec has a ring, the integers are those of the rotated coordinates that are sent, and the clip is on
    them: its length is that of the whole times what a part of that size has of a norm, in the mean.

    Args:
        result: of training; its segments are taken out of it.
        manifest: of a plan with noise.
        assignment: with the round's clip, within the plan's bounds, and the round's seed.
        source: of rounding and noise.

    Raises:
        PrivacyError: no source of randomness.
        UpdateNotFiniteError: a NaN or an infinity.
    """
    terms = manifest.privacy
    assert isinstance(terms.noise, NoiseTerms)
    if source is None:
        raise PrivacyError("session", expected="a source of noise", got="none", hint="this is a defect: report it")
    mechanism = Mechanism.of(terms.noise, terms.min_cohort)
    segments = manifest.phases[assignment.phase].segments
    codecs = codecs_of(segments, terms)
    share = norm_share((codecs[s.name], s.length) for s in segments)
    clip = share * hyper_values(manifest, assignment.hyper)[CLIP]
    header = np.zeros_like(result.segments.pop(HEADER))
    header[:2] = 1.0  # the public counter and a uniform weight; metrics would be opened without noise: absent
    sent = projected(manifest, assignment, result.segments)
    made = contribute(mechanism, sent, clip, source, limit=_limit(manifest, mechanism))
    out: dict[str, NDArray[np.floating]] = {HEADER: header}
    for name, vector in made.vectors.items():
        out[name] = vector.astype(np.float32)  # exact: the plan bounds magnitudes below 2**24
    if made.count is not None:
        out[CLIP_COUNT] = np.array([made.count], np.float64)
    return out


def _limit(manifest: Manifest, mechanism: Mechanism) -> int | None:
    """Return where a coordinate is clamped, in units; None where it travels as it is."""
    (codec, *_) = codecs_of(manifest.phases[0].segments, manifest.privacy).values()  # the plan has one for all segments
    return None if codec.ring is None else mechanism.limit(manifest.num_opened, codec.ring.clamp)


def _refused(what: str, expected: str, got: str) -> PlanRefusedError:
    return PlanRefusedError(
        f"plan: privacy.{what}", expected=expected, got=got, hint="the device's owner decides what it accepts"
    )
