"""A task whose model names who was counted, for tests and benchmarks of a whole federation.

Beside a linear classifier the model has one parameter for each device, and each device's examples carry a one-hot
vector of its own. The loss falls along it at a constant rate, so that an update moves the device's own parameter by a
known amount and no other: a committed checkpoint says of every device how many times it is in the sum.

Every device has as many examples as any other, so that all weigh the same.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from covey.algorithms.local.fedavg import fedavg_local
from covey.device.policy import OwnerPolicy
from covey.plans.lowering.build import build_plan, initial_params
from covey.plans.manifest import ExampleSchema, FieldSpec, PrivacyTerms, Query, SecureTerms
from covey.plans.plan import Plan, unpack_plan
from covey.plans.signing import generate_owner_key, public_key_pem, sign_plan
from covey.plans.task import Out, PlanOptions, Task
from covey.types.tensors import Tensors, pack_tensors, sha256_hex

__all__ = ["EXAMPLES", "OWNER", "POPULATION", "ProbePlan", "counted", "examples", "policy", "schema", "write_directory"]

POPULATION = "probe"
OWNER = generate_owner_key()
EXAMPLES, BATCH, LEARNING_RATE = 12, 4, 0.1
NUM_FEATURES, NUM_CLASSES = 24, 4
MOVES = EXAMPLES // BATCH * LEARNING_RATE
"""How far one device moves its own parameter in one round: steps times learning rate."""


def schema(num_devices: int) -> ExampleSchema:
    """Return the schema of the examples."""
    return ExampleSchema(
        fields=(
            FieldSpec(name="x", shape=(NUM_FEATURES,)),
            FieldSpec(name="who", shape=(num_devices,)),
            FieldSpec(name="y", dtype="int32", role="label", num_values=NUM_CLASSES),
        ),
        query=Query(collection="points"),
    )


def _task(num_devices: int) -> Task:
    def init(key: jax.Array) -> dict[str, jax.Array]:
        w = 0.5 * jax.random.normal(key, (NUM_FEATURES, NUM_CLASSES))
        return {"w": w, "b": jnp.zeros(NUM_CLASSES), "probe": jnp.zeros(num_devices)}

    def loss(params: dict[str, jax.Array], batch: dict[str, jax.Array], key: jax.Array) -> Out:
        log_p = jax.nn.log_softmax(batch["x"] @ params["w"] + params["b"])
        cost = -jnp.take_along_axis(log_p, batch["y"][:, None], axis=1)[:, 0]
        return Out(cost - batch["who"] @ params["probe"], jnp.ones_like(cost), {"cost": cost})

    return Task(name="probe", init=init, loss=loss, examples=schema(num_devices))


class ProbePlan:
    """The plan for a number of devices, and its first checkpoint."""

    def __init__(self, num_devices: int, *, secure: bool, min_cohort: int = 3, codec: str = "float32") -> None:
        """Build it.

        Args:
            num_devices: of the population.
            secure: whether updates are masked, in one group.
            min_cohort: the fewest whose sum may be opened.
            codec: how updates travel.
        """
        terms = PrivacyTerms(
            mode="secure" if secure else "plain",
            min_cohort=min_cohort,
            n_max=100,
            max_weight=20,
            secure=SecureTerms(group_size=max(num_devices, min_cohort)) if secure else None,
        )
        options = PlanOptions(
            batch_size=BATCH, min_examples=EXAMPLES, max_examples=EXAMPLES, chunk_steps=3, eval_batch_size=4,
            compression=codec, privacy=terms,
        )  # fmt: skip
        task = _task(num_devices)
        self.num_devices = num_devices
        self.archive = build_plan(task, fedavg_local(LEARNING_RATE), options)
        self.checkpoint = pack_tensors(initial_params(task, seed=0), self.plan.manifest.params)

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan, unpacked."""
        return unpack_plan(self.archive)

    def write(self, directory: Path, config: str) -> Path:
        """Write what ``covey serve`` needs; ``config`` follows the population's name in ``server.toml``."""
        return write_directory(directory, self.archive, self.checkpoint, config)


def write_directory(directory: Path, archive: bytes, checkpoint: bytes, config: str) -> Path:
    """Write what ``covey serve`` needs for the population, with a plan that its owner signed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.covey").write_bytes(archive)
    (directory / "plan.sig").write_text(sign_plan(OWNER, POPULATION, sha256_hex(archive)).hex() + "\n")
    (directory / "checkpoint.bin").write_bytes(checkpoint)
    (directory / "owner.pub").write_bytes(public_key_pem(OWNER.public_key()))
    (directory / "server.toml").write_text(f'population = "{POPULATION}"\n{config}')
    return directory


def examples(device: int, num_devices: int) -> dict[str, NDArray[np.generic]]:
    """Return a device's examples: classes of a fixed linear rule."""
    rng = np.random.default_rng(device)
    x = rng.standard_normal((EXAMPLES, NUM_FEATURES)).astype(np.float32)
    rule = np.random.default_rng(10_000).standard_normal((NUM_FEATURES, NUM_CLASSES))
    who = np.zeros((EXAMPLES, num_devices), np.float32)
    who[:, device] = 1.0
    return {"x": x, "who": who, "y": (x @ rule).argmax(axis=1).astype(np.int32)}


def policy(*, secure: bool, min_cohort: int = 3) -> OwnerPolicy:
    """Return what a device of the population accepts."""
    return OwnerPolicy(OWNER.public_key(), POPULATION, accept_plain=not secure, min_cohort=min_cohort)


def counted(before: Tensors, after: Tensors, num_reported: int) -> NDArray[np.float64]:
    """Return how many times each device is in the sum that led from one checkpoint to the next.

    Every device weighs the same, so each of the counted ones moved its own parameter by ``MOVES / num_reported``.
    """
    return (after["probe"] - before["probe"]).astype(np.float64) * num_reported / MOVES
