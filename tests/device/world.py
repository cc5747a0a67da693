"""A tiny population for the tests of the device: a task, its plans, an owner, and examples."""

import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from covey.algorithms.local.fedavg import fedavg_local
from covey.algorithms.local.fedsgd import fedsgd_local
from covey.compression.codec import codec_named
from covey.device.policy import OwnerPolicy
from covey.plans.lowering.build import build_plan, initial_params
from covey.plans.manifest import ACTIVE_SCHEMA, ExampleSchema, FieldSpec, PrivacyTerms, Query, RingPlan, SecureTerms
from covey.plans.plan import Plan, pack_plan, unpack_plan
from covey.plans.signing import generate_owner_key, sign_plan
from covey.plans.task import Out, PlanOptions, Task
from covey.secagg import EnrolmentAuthority, Identity
from covey.types.tensors import pack_tensors, sha256_hex
from covey.wire.messages import Assignment, BlobRef

POPULATION = "tests"
OWNER = generate_owner_key()
AUTHORITY = EnrolmentAuthority(generate_owner_key(), POPULATION)
"""The enrolment authority of plans against an active server."""
NUM_FEATURES, NUM_CLASSES = 3, 2


def _init(key):
    return {"w": 0.1 * jax.random.normal(key, (NUM_FEATURES, NUM_CLASSES)), "b": jnp.zeros(NUM_CLASSES)}


def _logits(params, x):
    return x @ params["w"] + params["b"]


def _loss(params, batch, key):
    log_p = jax.nn.log_softmax(_logits(params, batch["x"]))
    loss = -jnp.take_along_axis(log_p, batch["y"][:, None], axis=1)[:, 0]
    correct = (jnp.argmax(log_p, axis=1) == batch["y"]).astype(jnp.float32)
    return Out(loss, jnp.ones_like(loss), {"correct": correct})


SCHEMA = ExampleSchema(
    fields=(
        FieldSpec(name="x", shape=(NUM_FEATURES,)),
        FieldSpec(name="y", dtype="int32", role="label", num_values=NUM_CLASSES),
    ),
    query=Query(collection="points"),
)

TASK = Task(
    name="points",
    init=_init,
    loss=_loss,
    examples=SCHEMA,
    predict=lambda params, inputs: {"p": jax.nn.softmax(_logits(params, inputs["x"]))},
)


@functools.cache
def plan_bytes(algorithm: str = "fedavg") -> bytes:
    local = fedavg_local(0.1) if algorithm == "fedavg" else fedsgd_local()
    options = PlanOptions(
        batch_size=4,
        epochs=2,
        chunk_steps=3,
        eval_batch_size=5,
        min_examples=3,
        max_examples=50,
        privacy=PrivacyTerms(min_cohort=2, n_max=100, max_weight=20),
    )
    return build_plan(TASK, local, options)


def plan(algorithm: str = "fedavg") -> Plan:
    return unpack_plan(plan_bytes(algorithm))


@functools.cache
def secure_plan_bytes(group_size: int = 6, min_cohort: int = 3, codec: str = "float32", **ring) -> bytes:
    """Return the plan in secure mode, for groups of at most ``group_size``; ``ring`` overrides what the codec makes."""
    terms = PrivacyTerms(
        mode="secure", min_cohort=min_cohort, n_max=100, max_weight=20, secure=SecureTerms(group_size=group_size)
    )
    phase = plan().manifest.phases[0]
    (segment,) = phase.segments
    if (named := codec_named(codec)).ring is not None:
        made = named.ring_segment(segment.name, segment.length)
        base = {"num_values": made.length, "bound": made.bound, "ring_bits": made.ring_bits, "n_max": made.n_max}
        segment = msgspec.structs.replace(segment, codec=codec, ring=RingPlan(**{**base, **ring}))
    return changed(plan(), privacy=terms, phases=(msgspec.structs.replace(phase, segments=(segment,)),))


@functools.cache
def active_plan_bytes(group_size: int = 6, min_cohort: int = 3, authority: bytes = AUTHORITY.public_key) -> bytes:
    """Return the secure plan for a server that may lie; ``authority`` is whose certificates it asks for."""
    base = unpack_plan(secure_plan_bytes(group_size, min_cohort))
    terms = msgspec.structs.replace(base.manifest.privacy.secure, mode="active", authority=authority.hex())
    return changed(base, schema=ACTIVE_SCHEMA, privacy=msgspec.structs.replace(base.manifest.privacy, secure=terms))


def identity(expires_at: int = 4_000_000_000, authority: EnrolmentAuthority = AUTHORITY) -> Identity:
    """Return a certified identity of somebody."""
    return authority.enrol(generate_owner_key(), expires_at)


def changed(base: Plan, graphs=None, **fields) -> bytes:
    """Return another plan's archive: the same, but for some fields of the manifest or some graphs."""
    kept = {f: getattr(base.manifest, f) for f in base.manifest.__struct_fields__}
    return pack_plan(type(base.manifest)(**{**kept, **fields}), {**base.graphs, **(graphs or {})})


@functools.cache
def checkpoint() -> bytes:
    return pack_tensors(initial_params(TASK, seed=0), plan().manifest.params)


def points(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return ``count`` linearly separable examples."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, NUM_FEATURES)).astype(np.float32)
    return {"x": x, "y": (x.sum(axis=1) > 0).astype(np.int32)}


def ref(data: bytes, kind: str) -> BlobRef:
    name = sha256_hex(data)
    return BlobRef(sha256=name, num_bytes=len(data), path=f"/v1/{kind}/{name}")


def assignment(plan_data: bytes | None = None, checkpoint_data: bytes | None = None, **fields) -> Assignment:
    data = plan_bytes() if plan_data is None else plan_data
    base = {
        "session": "s1",
        "round": 1,
        "phase": 0,
        "plan": ref(data, "plans"),
        "signature": sign_plan(OWNER, POPULATION, sha256_hex(data)).hex(),
        "checkpoint": ref(checkpoint() if checkpoint_data is None else checkpoint_data, "checkpoints"),
        "report_within_s": 60.0,
    }
    return Assignment(**{**base, **fields})


def policy(**fields) -> OwnerPolicy:
    base = {"owner_key": OWNER.public_key(), "population": POPULATION, "accept_plain": True, "min_cohort": 2}
    return OwnerPolicy(**{**base, **fields})
