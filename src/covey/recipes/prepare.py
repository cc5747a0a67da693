"""From a recipe and settings to a plan and a first checkpoint, cached by the source that made them.

Tracing and checking a plan takes seconds, and JAX has to be imported for it. The cache's key covers everything that
the result depends on (the recipe's source, the settings, Covey's own code for plans, models and algorithms, the
versions of JAX and ONNX), so that a hit is the same bytes and needs no JAX at all.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

import covey
from covey.algorithms.registry import parse_algorithm
from covey.compression.checkpoint import download_spec
from covey.compression.codec import codec_for, codec_named
from covey.compression.structured_updates import ROW_VALUES, LowRank, RandomMask
from covey.data.dataset import FederatedDataset, sizes_of
from covey.plans.manifest import PrivacyTerms, RingPlan, SegmentPlan
from covey.plans.plan import Plan, pack_plan, unpack_plan
from covey.plans.task import Local, PlanOptions
from covey.recipes.recipe import Recipe, Settings, recipe_source
from covey.types.errors import AsynchronousError, CoveyError, UsageError
from covey.types.tensors import Tensors, pack_tensors, unpack_tensors

__all__ = ["Prepared", "local_halves", "plan_options", "prepare"]

_PACKAGES = ("types", "plans", "algorithms", "models", "recipes")
_GRADIENT_BATCHES = (50, 25, 12)
_MOST_PADDING = 1.25


@dataclass(frozen=True)
class Prepared:
    """A plan's archive and the first checkpoint, packed; ``cached`` says whether they were there already."""

    plan_bytes: bytes
    checkpoint: bytes
    cached: bool

    @cached_property
    def plan(self) -> Plan:
        """The plan, verified."""
        return unpack_plan(self.plan_bytes)

    @property
    def params(self) -> Tensors:
        """The first checkpoint's tensors."""
        return unpack_tensors(self.plan.manifest.params, self.checkpoint)


def local_halves(settings: Settings, dataset: FederatedDataset) -> tuple[Local, ...]:
    """Return the algorithm's device half, phase by phase, for some settings; imports JAX.

    Raises:
        UsageError: no such algorithm or optimizer, or a structured update that the algorithm cannot train.
    """
    from covey.algorithms.local.registry import Facts, device_halves

    batch_size = settings.batch_size or largest_device(settings, dataset)
    facts = Facts(
        choice=parse_algorithm(settings.algorithm),
        lr=settings.lr,
        server_lr=settings.server_lr,
        optimizer=settings.optimizer,
        num_devices=len(dataset.client_ids),
        most_steps=settings.max_steps or settings.epochs * -(-largest_device(settings, dataset) // batch_size),
    )
    return _structured(device_halves(facts), settings)


def _structured(halves: tuple[Local, ...], settings: Settings) -> tuple[Local, ...]:
    """Return the halves as the compression has them train, where it names a structured update."""
    from covey.algorithms.local.structured import low_rank_in_place, masked_in_place

    structure = codec_named(settings.compression).structure
    if structure is not None and len(halves) > 1:
        raise UsageError("--compression", expected="an algorithm with one phase", got=halves[0].algorithm)
    if isinstance(structure, RandomMask):
        return tuple(map(masked_in_place, halves))
    if isinstance(structure, LowRank):
        if settings.optimizer == "adam":
            raise UsageError("--optimizer", expected="sgd or momentum under lowrank", got="adam", hint=_LINEAR)
        return tuple(low_rank_in_place(half, ROW_VALUES, structure.rank) for half in halves)
    return halves


_LINEAR = (
    "a step of adam is not linear in the gradient, and would leave the directions that are sent; mask:P goes with it"
)


def largest_device(settings: Settings, dataset: FederatedDataset) -> int:
    """Return how many examples the device with the most of them uses."""
    return min(settings.max_examples, int(sizes_of(dataset).max()))


def plan_options(
    settings: Settings, privacy: PrivacyTerms, dataset: FederatedDataset, *, noised: bool = False
) -> PlanOptions:
    """Return what the plan fixes. B of infinity becomes the largest client's size, padded and masked for the others.

    Raises:
        CompressionSpecError, MissingExtraError: a compression or a download that cannot be used.
    """
    batch_size = settings.batch_size
    largest = largest_device(settings, dataset)
    if batch_size is None:
        batch_size = largest
    return PlanOptions(
        batch_size=batch_size,
        gradient_batch_size=_gradient_batch_size(np.minimum(sizes_of(dataset), settings.max_examples)),
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        chunk_steps=settings.chunk_steps,
        eval_batch_size=settings.eval_batch_size,
        max_examples=settings.max_examples,
        compression=codec_for(settings.compression, privacy.mode, privacy.most_in_sum, noised=noised).text,
        download=download_spec(settings.download),
        privacy=privacy,
    )


def _gradient_batch_size(sizes: NDArray[np.int64]) -> int:
    """Return the size of the pieces that a full gradient is summed over.

    The sum is that of one batch of everything, so the size decides memory and time only: the last piece of every
    device is filled up, and where most devices are small, large pieces would be mostly filling.
    """
    for size in _GRADIENT_BATCHES:
        if (-(-sizes // size) * size).sum() <= _MOST_PADDING * sizes.sum():
            break
    return int(min(size, sizes.max()))


def prepare(
    recipe: Recipe,
    source: str,
    settings: Settings,
    privacy: PrivacyTerms,
    dataset: FederatedDataset,
    *,
    seed: int = 0,
    noised: bool = False,
    on_build: Callable[[], None] = lambda: None,
) -> Prepared:
    """Return the plan and the first checkpoint of a recipe, from the cache or built now.

    Args:
        recipe: what to build.
        source: the name or path that it was loaded by.
        settings: how it is trained.
        privacy: what the plan promises.
        dataset: its data; only their sizes matter here.
        seed: of the first checkpoint.
        noised: whether differential privacy will be written into the plan (:mod:`covey.recipes.private`).
        on_build: called before a build, which takes seconds.

    Raises:
        PlanBuildError, UsageError: what cannot become a plan.
        AsynchronousError: an asynchronous algorithm with secure aggregation or differential privacy.
    """
    if parse_algorithm(settings.algorithm).name == "fedbuff":
        _check_asynchronous(privacy, noised)
    options = plan_options(settings, privacy, dataset, noised=noised)
    folder = _cache_dir()
    name = _cache_key(source, settings, options, len(dataset.client_ids), seed, noised)
    try:
        prepared = Prepared((folder / f"{name}.covey").read_bytes(), (folder / f"{name}.params").read_bytes(), True)
        unpack_tensors(prepared.plan.manifest.params, prepared.checkpoint)  # a damaged cache is no reason to fail
        return prepared
    except (OSError, CoveyError):
        pass
    on_build()
    from covey.plans.lowering.build import build_plan, initial_params

    task = recipe.task()
    if task.examples != recipe.examples:
        raise UsageError(f"recipe {source}", expected="one schema in the recipe and in its task", got="two")
    plan = build_plan(task, local_halves(settings, dataset), options)
    plan = plan if noised else _with_rings(plan)  # under noise the integers depend on that
    checkpoint = pack_tensors(initial_params(task, seed), unpack_plan(plan).manifest.params)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.params", checkpoint)
        _write(folder / f"{name}.covey", plan)
    return Prepared(plan, checkpoint, False)


def _check_asynchronous(privacy: PrivacyTerms, noised: bool) -> None:
    if privacy.mode == "secure":
        raise AsynchronousError(
            "--algorithm fedbuff",
            expected="plain mode: masks cancel only within a cohort that was fixed before anyone trained",
            got="secure aggregation",
            hint="covey init --plain (elsewhere no --secure), or an algorithm that has rounds: fedavg",
        )
    if noised:
        raise AsynchronousError(
            "--algorithm fedbuff",
            expected="no differential privacy: no guarantee is known for who is in a buffer",
            got="--privacy",
            hint="no --privacy, or an algorithm that has rounds: fedavg",
        )


def _with_rings(data: bytes) -> bytes:
    """Return a secure plan with the integers that its codecs make written into it; another as it is."""
    plan = unpack_plan(data)
    terms = plan.manifest.privacy
    if terms.mode != "secure":
        return data

    def with_ring(segment: SegmentPlan) -> SegmentPlan:
        codec = codec_for(segment.codec, terms.mode, terms.most_in_sum)
        if codec.ring is None:
            return segment
        made = codec.ring_segment(segment.name, segment.length)
        ring = RingPlan(num_values=made.length, bound=made.bound, ring_bits=made.ring_bits, n_max=made.n_max)
        return msgspec.structs.replace(segment, ring=ring)

    phases = tuple(msgspec.structs.replace(p, segments=tuple(map(with_ring, p.segments))) for p in plan.manifest.phases)
    return pack_plan(msgspec.structs.replace(plan.manifest, phases=phases), plan.graphs)


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "covey" / "plans"


def _cache_key(source: str, settings: Settings, options: PlanOptions, num_devices: int, seed: int, noised: bool) -> str:
    digest = hashlib.sha256()
    # The data only matter through the sizes in options, the trainer and the cohort not at all.
    kept = {k: v for k, v in asdict(settings).items() if k not in ("trainer", "cohort", "partition", "num_clients")}
    # Only some algorithms write the number of devices into the plan.
    devices = num_devices if parse_algorithm(settings.algorithm).name == "scaffold" else 0
    digest.update(f"{source} {seed} {kept} {options} {devices} {noised}".encode())
    digest.update(recipe_source(source))
    root = Path(covey.__file__).parent
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    for distribution in ("jax", "onnx", "optax", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{distribution} {metadata.version(distribution)}".encode())
    return digest.hexdigest()[:32]


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(temporary).replace(path)
