"""Measure the trainers on a recipe, each in a process of its own, and suggest one; nothing is chosen for anybody.

The trainers do not agree bit for bit, so that a run's trainer is part of its settings. What runs out of memory, or ends
its process, is noted and the others are measured all the same.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from covey.data.dataset import FederatedDataset, sizes_of
from covey.plans.manifest import PrivacyTerms
from covey.recipes.prepare import Prepared, prepare
from covey.recipes.recipe import TRAINERS, Settings, load_recipe
from covey.server.settings import RoundSettings
from covey.simulation.federation import Federation, owner_key, public_bytes
from covey.simulation.fleet import Fleet
from covey.simulation.load import loads_of
from covey.simulation.messages import Setup
from covey.simulation.pool import WorkerPool
from covey.simulation.population import DevicePopulation
from covey.types.errors import CoveyError, WorkerError

__all__ = ["Calibration", "Measured", "calibrate"]

_SECONDS = 3.0
_MOST_ROUNDS = 50
_MEMORY = ("RESOURCE_EXHAUSTED", "MemoryError", "bad_alloc", "Out of memory", "out of memory")


@dataclass(frozen=True, slots=True)
class Measured:
    """One trainer.

    Attributes:
        trainer: its name.
        steps_per_s: local steps a second in one worker, sessions and folding included.
        first_s: until the first device was done, compilation included.
        failed: why it could not be measured; empty where it was.
    """

    trainer: str
    steps_per_s: float
    first_s: float
    failed: str = ""

    @property
    def summary(self) -> str:
        """What the trainer is, in a few words."""
        return TRAINERS[self.trainer]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, what is suggested, and why with a reserve, where there is one."""

    measured: list[Measured]
    suggested: str
    note: str = ""


def calibrate(
    source: str, settings: Settings, *, seed: int = 0, on_trainer: Callable[[str], None] = lambda name: None
) -> Calibration:
    """Measure every trainer for some seconds on the recipe's own devices.

    Args:
        source: the recipe's name or path.
        settings: how it is trained.
        seed: of the data and the first parameters.
        on_trainer: is told which trainer is measured.

    Raises:
        WorkerError: no trainer could be measured; says what each one met.
        CoveyError: what makes the recipe unusable with any trainer.
    """
    recipe = load_recipe(source)
    dataset = recipe.data(settings, seed)
    prepared = prepare(recipe, source, settings, PrivacyTerms(min_cohort=1), dataset, seed=seed)
    measured = []
    for name in ("jax-step", "jax-loop", "onnx"):  # "jax" is one of the first two
        on_trainer(name)
        measured.append(_measured(source, dataclasses.replace(settings, trainer=name), dataset, prepared, seed))
    good = [m for m in measured if not m.failed]
    if not good:
        listed = "; ".join(f"{m.trainer}: {m.failed}" for m in measured)
        raise WorkerError("calibration", expected="one trainer that works", got=listed, hint="a smaller --batch")
    best = max(good, key=lambda m: m.steps_per_s)
    failed = [m.trainer for m in measured if m.failed]
    note = f" (fell back from {', '.join(failed)}, which could not be measured)" if failed else ""
    return Calibration(measured, best.trainer, note)


def _measured(source: str, settings: Settings, dataset: FederatedDataset, prepared: Prepared, seed: int) -> Measured:
    setup = Setup(source, settings, seed, prepared.plan_bytes, public_bytes(owner_key(seed)))
    started_s = time.monotonic()
    try:
        with WorkerPool(1, setup) as pool:
            pool.ready()
            return _timed(settings.trainer, dataset, prepared, pool, seed, settings)
    except MemoryError:
        return Measured(settings.trainer, 0.0, 0.0, "out of memory")
    except WorkerError as error:
        return Measured(settings.trainer, 0.0, time.monotonic() - started_s, f"its process ended: {error.got}")
    except RuntimeError as error:
        found = any(word in str(error) for word in _MEMORY)
        last = str(error).strip().splitlines()[-1][:120]
        return Measured(settings.trainer, 0.0, 0.0, "out of memory" if found else last)
    except CoveyError as error:
        return Measured(settings.trainer, 0.0, 0.0, str(error)[:120])


def _timed(
    name: str, dataset: FederatedDataset, prepared: Prepared, pool: WorkerPool, seed: int, settings: Settings
) -> Measured:
    """Run rounds of one typical device each until the time is up; the first compiles and is timed alone."""
    sizes = sizes_of(dataset)
    fleet = Fleet(
        sizes, DevicePopulation(), loads_of(prepared.plan.manifest), seed=seed, plan_bytes=len(prepared.plan_bytes)
    )
    hyper = {"lr": settings.lr} if any(h.name == "lr" for h in prepared.plan.manifest.hyper) else {}
    federation = Federation(
        prepared.plan, prepared.plan_bytes, prepared.checkpoint, fleet, RoundSettings(1, 1.0, hyper=hyper), pool,
        seed=seed, on_session=lambda done, total: None,
    )  # fmt: skip
    begun_s = time.monotonic()
    federation.next_round()
    first_s, before = time.monotonic() - begun_s, fleet.num_steps
    begun_s = time.monotonic()
    for _ in range(_MOST_ROUNDS):
        federation.next_round()
        if time.monotonic() - begun_s > _SECONDS:
            break
    return Measured(name, (fleet.num_steps - before) / (time.monotonic() - begun_s), first_s)
