"""Write a promise of differential privacy into a plan that was built without one. The graphs stay as they are."""

import dataclasses
from collections.abc import Sequence

import msgspec

from covey.compression.codec import Codec, codec_for
from covey.plans.manifest import (
    CLIP,
    HyperBound,
    Manifest,
    NoiseTerms,
    Phase,
    RingPlan,
    SegmentPlan,
    needed_schema,
)
from covey.plans.plan import pack_plan
from covey.privacy.mechanism import Mechanism
from covey.privacy.spec import RingRoom, Setting, Spec
from covey.recipes.prepare import Prepared
from covey.types.errors import PrivacyError

__all__ = ["sent_by", "with_privacy"]


def with_privacy(prepared: Prepared, spec: Spec, setting: Setting) -> tuple[Prepared, Mechanism]:
    """Return the plan with ``spec`` written into its terms, and the mechanism that it became.

    Args:
        prepared: a plan without noise, and its first checkpoint.
        spec: what was asked for.
        setting: the cohort, the population and the rounds; its ``dim`` and ``ring`` are the plan's.

    Raises:
        PrivacyError: a promise that cannot be kept.
        CompressionSpecError: updates that are encoded by what would change the noise.
    """
    manifest = prepared.plan.manifest
    terms = manifest.privacy
    codec = _only_codec(manifest)
    if spec.kind == "tree" and (len(manifest.phases) > 1 or codec.ring is not None):
        got = f"{len(manifest.phases)} phases" if codec.ring is None else "a rotation of each round's own"
        raise PrivacyError("--privacy: tree", expected="an algorithm with one phase, and no ring", got=got)
    if any(h.name == CLIP for h in manifest.hyper):
        raise PrivacyError("--privacy", expected=f"a task without a per-round value {CLIP!r} of its own", got="one")
    setting = sent_by(codec, setting, [[s.length for s in p.segments] for p in manifest.phases])
    mechanism = spec.resolve(setting)
    noise = _noise_terms(mechanism, spec.bits(setting), setting)
    terms = msgspec.structs.replace(
        terms,
        min_cohort=mechanism.min_survivors,
        n_max=terms.n_max if terms.secure else setting.num_selected,
        noise=noise,
    )
    clip = HyperBound(name=CLIP, default=mechanism.clip, low=mechanism.clip_low, high=mechanism.clip_high)
    private = msgspec.structs.replace(
        manifest,
        schema=needed_schema(terms, manifest.phases, manifest.download),
        privacy=terms,
        phases=tuple(_noised(p, codec, noise) for p in manifest.phases),
        hyper=(*manifest.hyper, clip),
    )
    for index in range(len(private.phases)):
        private.layout(index)  # refuses a ring that could wrap
    data = pack_plan(private, prepared.plan.graphs)
    return Prepared(data, prepared.checkpoint, prepared.cached), mechanism


def sent_by(codec: Codec, setting: Setting, phases: Sequence[Sequence[int]]) -> Setting:
    """Return the setting with what a codec sends and has room for.

    Args:
        codec: of all segments.
        setting: the rest of it.
        phases: the lengths of each phase's segments.
    """
    dim = max(sum(_num_sent(codec, length) for length in segments) for segments in phases)
    room = None if codec.ring is None else RingRoom(codec.ring.bits, codec.ring.n_max, codec.ring.clamp)
    return dataclasses.replace(setting, dim=dim, ring=room)


def _only_codec(manifest: Manifest) -> Codec:
    terms = manifest.privacy
    named = sorted({s.codec for p in manifest.phases for s in p.segments})
    if len(named) > 1:
        raise PrivacyError("--privacy", expected="one codec for all segments", got=", ".join(named))
    return codec_for(named[0], terms.mode, terms.most_in_sum, noised=True)


def _num_sent(codec: Codec, length: int) -> int:
    return length if codec.ring is None else codec.projection(length).num_values


def _noise_terms(mechanism: Mechanism, ring_bits: int, setting: Setting) -> NoiseTerms:
    fields = {f.name: getattr(mechanism, f.name) for f in dataclasses.fields(mechanism) if f.name != "min_survivors"}
    limit = None if setting.ring is None else mechanism.limit(setting.dim, setting.ring.clamp)
    return NoiseTerms(
        **fields,
        ring_bits=ring_bits,
        coordinate_bound=mechanism.coordinate_bound(limit),
        count_bound=mechanism.count_bound(),
    )


def _noised(phase: Phase, codec: Codec, noise: NoiseTerms) -> Phase:
    """Return a phase whose weights are uniform, with the integers that its ring sums."""

    def with_ring(segment: SegmentPlan) -> SegmentPlan:
        ring = None
        if codec.ring is not None:
            ring = RingPlan(
                num_values=_num_sent(codec, segment.length),
                bound=noise.coordinate_bound + 1,
                ring_bits=noise.ring_bits,
                n_max=codec.ring.n_max,
            )
        return msgspec.structs.replace(segment, weighting="none", ring=ring)

    return msgspec.structs.replace(phase, segments=tuple(map(with_ring, phase.segments)))
