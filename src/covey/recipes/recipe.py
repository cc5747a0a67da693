"""What a recipe is: a task, its data, and settings that work, in one small file.

A user's own file defines ``recipe = Recipe(...)`` and is used by its path wherever a recipe's name is.
"""

import difflib
import importlib
import runpy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from covey.data.dataset import FederatedDataset
from covey.plans.manifest import ExampleSchema
from covey.plans.task import Task
from covey.types.errors import RecipeError, UsageError

__all__ = ["RECIPES", "TRAINERS", "Recipe", "Settings", "load_recipe", "recipe_source"]

RECIPES: Mapping[str, str] = {
    "cifar10-cnn": "covey.recipes.cifar",
    "keyboard": "covey.recipes.keyboard",
    "mnist-2nn": "covey.recipes.mnist",
    "mnist-cnn": "covey.recipes.mnist",
    "shakespeare-lstm": "covey.recipes.shakespeare",
}
"""The recipes that come with Covey, and the module that holds each."""


TRAINERS: Mapping[str, str] = {
    "jax": "XLA, in steps or in a loop as suits the model",
    "jax-step": "XLA, single steps",
    "jax-loop": "XLA, a loop around the steps",
    "onnx": "what a device runs",
}
"""What can train in a simulation."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a recipe is trained; a command's flags replace single values.

    Attributes:
        algorithm: ``NAME`` or ``NAME:parameter=value,...``; see :mod:`covey.algorithms.registry`.
        cohort: devices whose updates make a round.
        epochs: E, passes over a device's examples in a round.
        batch_size: B; None is infinity: all of a device's examples in one batch.
        lr: the learning rate η; FedSGD applies it on the server.
        lr_decay: the devices' learning rate is multiplied by it from every round to the next.
        server_lr: the learning rate of the server's step; None: the algorithm's default.
        optimizer: the devices' own: ``sgd``, ``momentum`` or ``adam``.
        max_steps: the most local steps in a round; None: what the epochs need.
        max_examples: the most examples that a device uses.
        partition: how the data are dealt out; None: the data set's own way.
        num_clients: how many devices there are; None: the data set's own number.
        compression: how updates are encoded: a spec of docs/compression.md.
        download: how checkpoints are: ``quantize:B``; empty: float32.
        trainer: one of :data:`TRAINERS`.
        chunk_steps: steps in one call of the runtime, about a second of work.
        eval_batch_size: examples in one step of an evaluation.
    """

    algorithm: str = "fedavg"
    cohort: int = 10
    epochs: int = 1
    batch_size: int | None = 10
    lr: float = 0.1
    lr_decay: float = 1.0
    server_lr: float | None = None
    optimizer: str = "sgd"
    max_steps: int | None = None
    max_examples: int = 10_000
    partition: str | None = None
    num_clients: int | None = None
    compression: str = "float32"
    download: str = ""
    trainer: str = "jax"
    chunk_steps: int = 60
    eval_batch_size: int = 100


@dataclass(frozen=True, slots=True)
class Recipe:
    """A task, its data, and settings that work.

    Attributes:
        name: of the recipe.
        summary: one line.
        task: makes the task. JAX is imported in here, not at the top of the file: a cached plan needs none of it.
        examples: the task's schema, for what is done without JAX: filling a device.
        data: makes the data set for some settings and a seed.
        settings: the defaults.
        lrs: learning rates for other algorithms than the default one.
    """

    name: str
    summary: str
    task: Callable[[], Task]
    examples: ExampleSchema
    data: Callable[[Settings, int], FederatedDataset]
    settings: Settings = field(default_factory=Settings)
    lrs: Mapping[str, float] = field(default_factory=dict)


def load_recipe(name: str) -> Recipe:
    """Return a recipe by name, or from a user's Python file.

    Raises:
        UsageError: no such recipe (names the nearest) or file, or a file that defines no ``recipe``.
        RecipeError: the file raised an error.
        ModuleNotFoundError: it imports a package of an extra that is not installed.
    """
    if name in RECIPES:
        module = importlib.import_module(RECIPES[name])
        found: Recipe = module.RECIPES[name]
        return found
    path = Path(name)
    if not (name.endswith(".py") or "/" in name):
        near = difflib.get_close_matches(name, RECIPES, n=2)
        raise UsageError(
            "recipe",
            expected=f"one of {', '.join(RECIPES)}, or a path to a Python file",
            got=name,
            hint=f"did you mean {' or '.join(near)}?" if near else "",
        )
    if not path.is_file():
        raise UsageError("recipe", expected="a Python file", got=f"no such file: {name}")
    try:
        defined = runpy.run_path(str(path), run_name="covey_recipe").get("recipe")
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] in ("jax", "jaxlib", "onnx", "optax"):
            raise  # the command line says which extra is missing
        raise _failed(path, e) from e
    except Exception as e:
        raise _failed(path, e) from e
    if not isinstance(defined, Recipe):
        raise UsageError(
            f"recipe {name}",
            expected="recipe = covey.recipes.Recipe(...)",
            got="no such name" if defined is None else type(defined).__name__,
        )
    return defined


def _failed(path: Path, error: Exception) -> RecipeError:
    frames = traceback.extract_tb(error.__traceback__)
    own = next((i for i, f in enumerate(frames) if f.filename == str(path)), len(frames))
    return RecipeError(
        f"recipe {path}",
        expected="a file that runs",
        got="".join(traceback.format_exception_only(error)).strip(),
        hint="".join(traceback.format_list(frames[own:])).strip(),
    )


def recipe_source(name: str) -> bytes:
    """Return the source text of a recipe, part of its plan's cache key."""
    if name in RECIPES:
        file = importlib.import_module(RECIPES[name]).__file__
        assert file is not None
        return Path(file).read_bytes()
    return Path(name).read_bytes()
