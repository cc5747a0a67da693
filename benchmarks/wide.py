"""A plan of any size for measuring a server: a linear model whose devices need no trainer."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec

from benchmarks.probe import write_directory
from covey.algorithms.local.fedavg import fedavg_local
from covey.compression.codec import codec_named
from covey.plans.lowering.build import build_plan, initial_params
from covey.plans.manifest import ExampleSchema, FieldSpec, Manifest, PrivacyTerms, Query, RingPlan, SecureTerms
from covey.plans.plan import pack_plan, unpack_plan
from covey.plans.task import Out, PlanOptions, Task
from covey.types.tensors import pack_tensors

__all__ = ["WidePlan"]

_CLASSES = 100


def _task(num_features: int) -> Task:
    def loss(params: dict[str, jax.Array], batch: dict[str, jax.Array], key: jax.Array) -> Out:
        log_p = jax.nn.log_softmax(batch["x"] @ params["w"])
        cost = -jnp.take_along_axis(log_p, batch["y"][:, None], axis=1)[:, 0]
        return Out(cost, jnp.ones_like(cost))

    fields = (
        FieldSpec(name="x", shape=(num_features,)),
        FieldSpec(name="y", dtype="int32", role="label", num_values=_CLASSES),
    )
    schema = ExampleSchema(fields=fields, query=Query(collection="points"))
    return Task("wide", lambda key: {"w": jnp.zeros((num_features, _CLASSES))}, loss, schema)


class WidePlan:
    """A plan of about ``num_params`` parameters, and its first checkpoint."""

    def __init__(self, num_params: int, *, secure: bool, cohort: int = 1000, codec: str = "float32") -> None:
        """Build it; ``cohort`` is the size of a secure group."""
        task = _task(num_params // _CLASSES)
        self.num_params = num_params
        self.archive = _with_terms(_built(task, num_params), secure, cohort, codec)
        self.checkpoint = pack_tensors(initial_params(task, seed=0), self.manifest.params)

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The plan's manifest."""
        return unpack_plan(self.archive).manifest

    def write(self, directory: Path, config: str) -> Path:
        """Write what ``covey serve`` needs; ``config`` follows the population's name in ``server.toml``."""
        return write_directory(directory, self.archive, self.checkpoint, config)


@functools.lru_cache(1)
def _built(task: Task, num_params: int) -> bytes:
    return build_plan(task, fedavg_local(0.1), PlanOptions(batch_size=2, max_examples=4, eval_batch_size=2))


def _with_terms(archive: bytes, secure: bool, cohort: int, codec: str) -> bytes:
    """Return the plan with other terms: what is built does not depend on them."""
    plan = unpack_plan(archive)
    terms = PrivacyTerms(
        mode="secure" if secure else "plain", min_cohort=max(2, cohort // 2) if secure else 2, n_max=10_000,
        max_weight=1, secure=SecureTerms(group_size=cohort) if secure else None,
    )  # fmt: skip
    (phase,) = plan.manifest.phases
    (segment,) = phase.segments
    segment = msgspec.structs.replace(segment, codec=codec)
    if secure and (named := codec_named(codec)).ring is not None:
        made = named.ring_segment(segment.name, segment.length)
        ring = RingPlan(num_values=made.length, bound=made.bound, ring_bits=made.ring_bits, n_max=made.n_max)
        segment = msgspec.structs.replace(segment, ring=ring)
    fields = {f: getattr(plan.manifest, f) for f in plan.manifest.__struct_fields__}
    fields |= {"privacy": terms, "phases": (msgspec.structs.replace(phase, segments=(segment,)),)}
    return pack_plan(type(plan.manifest)(**fields), dict(plan.graphs))
