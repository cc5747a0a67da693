"""Write a promise of differential privacy into a plan that was built without one. The graphs stay as they are."""

import dataclasses

import msgspec

from covey.plans.manifest import CLIP, HyperBound, Manifest, NoiseTerms, needed_schema
from covey.plans.plan import pack_plan
from covey.privacy.mechanism import Mechanism
from covey.privacy.spec import Setting, Spec
from covey.recipes.prepare import Prepared
from covey.types.errors import PrivacyError

__all__ = ["model_dim", "with_privacy"]


def model_dim(manifest: Manifest) -> int:
    """Return how many coordinates a phase opens, the largest of all phases."""
    return max(sum(s.length for s in phase.segments) for phase in manifest.phases)


def with_privacy(prepared: Prepared, spec: Spec, setting: Setting) -> tuple[Prepared, Mechanism]:
    """Return the plan with ``spec`` written into its terms, and the mechanism that it became.

    Args:
        prepared: a plan without noise, and its first checkpoint.
        spec: what was asked for.
        setting: the cohort, the population and the rounds; its ``dim`` is the plan's.

    Raises:
        PrivacyError: a promise that cannot be kept.
    """
    manifest = prepared.plan.manifest
    named = {s.codec for phase in manifest.phases for s in phase.segments} - {"float32"}
    if named:
        raise PrivacyError(
            "--privacy",
            expected="updates that are clipped, noised and sent as they are",
            got=f"--compression {min(named)}",
            hint="leave --compression out: another codec would change what was clipped and noised",
        )
    if spec.kind == "tree" and len(manifest.phases) > 1:
        raise PrivacyError("--privacy: tree", expected="an algorithm with one phase", got=str(len(manifest.phases)))
    if any(h.name == CLIP for h in manifest.hyper):
        raise PrivacyError("--privacy", expected=f"a task without a per-round value {CLIP!r} of its own", got="one")
    mechanism = spec.resolve(dataclasses.replace(setting, dim=model_dim(manifest)))
    fields = {f.name: getattr(mechanism, f.name) for f in dataclasses.fields(mechanism) if f.name != "min_survivors"}
    noise = NoiseTerms(
        **fields,
        ring_bits=spec.bits,
        coordinate_bound=mechanism.coordinate_bound(),
        count_bound=mechanism.count_bound(),
    )
    terms = msgspec.structs.replace(
        manifest.privacy, min_cohort=mechanism.min_survivors, n_max=setting.num_selected, noise=noise
    )
    phases = tuple(
        msgspec.structs.replace(p, segments=tuple(msgspec.structs.replace(s, weighting="none") for s in p.segments))
        for p in manifest.phases
    )
    clip = HyperBound(name=CLIP, default=mechanism.clip, low=mechanism.clip_low, high=mechanism.clip_high)
    private = msgspec.structs.replace(
        manifest, schema=needed_schema(terms), privacy=terms, phases=phases, hyper=(*manifest.hyper, clip)
    )
    for index in range(len(phases)):
        private.layout(index)  # refuses a ring that could wrap
    data = pack_plan(private, prepared.plan.graphs)
    return Prepared(data, prepared.checkpoint, prepared.cached), mechanism
