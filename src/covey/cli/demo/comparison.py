"""What the federated model is compared with: models that were trained by as many steps in other places.

``python -m covey.cli.demo.comparison`` is one process of them: it reads what to do as a line of JSON from stdin and
says on stdout how far it is, and at the end its sums. Each uses the plan's own graphs, batch size and learning rate.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covey.algorithms.fedavg import MODEL
from covey.data.dataset import Examples, pooled
from covey.device.evaluate import Evaluator
from covey.device.trainer import OnnxTrainer, TrainingJob
from covey.plans.plan import Plan, unpack_plan
from covey.recipes.recipe import load_recipe
from covey.types.errors import WorkerError
from covey.types.rng import derive_seed, generator
from covey.types.tensors import Tensors, unflatten_tensors, unpack_tensors

__all__ = ["Comparison", "best_constant", "compare", "train_on"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Top-1 accuracies, fractions of the held-out characters of all devices.

    Attributes:
        federated: the federated model.
        constant: the most frequent character of all training lines, always.
        local: the mean over devices of models trained on each device alone, for as many steps as that device took.
        local_own: the same models, each on its own device's held-out lines only, pooled.
        central: a model trained on the shuffled lines of all devices in one place, for as many steps as all devices
            took together.
    """

    federated: float
    constant: float
    local: float
    local_own: float
    central: float

    def table(self) -> dict[str, float]:
        """Return the values by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def rows(self) -> list[tuple[str, float]]:
        """Return a label and a value for each row of the table that is printed."""
        return [
            ("federated: the lines never left their devices", self.federated),
            ("the best constant guess", self.constant),
            ("each device alone, as many steps; the mean", self.local),
            ("  the same, each on its own device's lines only", self.local_own),
            ("central: all lines in one place, as many steps", self.central),
        ]


def compare(
    recipe: str,
    server_dir: Path,
    steps: Mapping[str, int],
    *,
    num_devices: int,
    federated: float,
    held_out: Examples,
    train: Sequence[Examples],
    on_progress: Callable[[int, int], None],
) -> Comparison:
    """Train the models to compare with, in two processes, and return all accuracies.

    Args:
        recipe: its name.
        server_dir: holds the plan and the first checkpoint.
        steps: for each client how many steps of its were counted; one without any is left out of the local mean.
        num_devices: how many clients the recipe's data set is cut to.
        federated: the federated model's accuracy.
        held_out: the held-out examples of all.
        train: the training examples of each.
        on_progress: gets how many steps are done, and how many there are.

    Raises:
        WorkerError: a process failed.
    """
    took_part = {c: n for c, n in steps.items() if n}
    common = {"recipe": recipe, "dir": str(server_dir), "num_devices": num_devices, "seed": 0}
    central = _Process({**common, "clients": list(steps), "central": sum(steps.values())})
    local = _Process({**common, "clients": list(took_part), "steps": list(took_part.values())})
    with contextlib.ExitStack() as stack:
        for process in (central, local):
            stack.callback(process.kill)
            process.start()
        while central.running or local.running:
            on_progress(central.done + local.done, 2 * sum(steps.values()))
            (central if central.running else local).join(0.2)
        answers = {"central": central.answer(), **local.answer()}
    return Comparison(
        federated, best_constant(train, held_out), answers["pooled"], answers["own"], answers["central"]["pooled"]
    )


def train_on(
    plan: Plan,
    params: Tensors,
    examples: Examples,
    steps: int,
    *,
    seed: int,
    on_steps: Callable[[int], None] = lambda steps: None,
) -> Tensors:
    """Train in one place for so many steps: shuffled passes, the plan's batch size and learning rate.

    A device's session on a slice of a shuffled pass, again and again: FedAvg with one device is plain SGD.
    """
    phase = plan.manifest.phases[0]
    specs = next(s.tensors for s in phase.segments if s.name == MODEL)
    trainer, count = OnnxTrainer(), len(next(iter(examples.values())))
    order, epoch, done = np.empty(0, np.int64), 0, 0
    while done < steps:
        if not len(order):
            order, epoch = generator(seed, "order", epoch).permutation(count), epoch + 1
        at_most = min(phase.max_steps, steps - done) * phase.batch_size
        rows, order = order[:at_most], order[at_most:]
        part = {k: v[rows] for k, v in examples.items()}
        result = trainer.run(TrainingJob(plan, 0, params, {}, {}, derive_seed(seed, "session", done)), part)
        change: Mapping[str, Any] = unflatten_tensors(result.segments[MODEL] / np.float32(result.weight), specs)
        params = {k: np.asarray(v, np.float32) + change[k] for k, v in params.items()}
        done += result.num_steps
        on_steps(result.num_steps)
    return params


def best_constant(train: Sequence[Examples], held_out: Examples) -> float:
    """Return how often the most frequent label of the training examples is right on the held-out ones."""
    labels, counts = np.unique(np.concatenate([t["y"] for t in train]), return_counts=True)
    return float(np.mean(held_out["y"] == labels[counts.argmax()]))


class _Process:
    """One process of this module."""

    def __init__(self, work: Mapping[str, Any]) -> None:
        self._work = work
        self._answer: dict[str, Any] | None = None
        self.done = 0

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._reader.is_alive()

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "covey.cli.demo.comparison"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._work) + "\n")
        self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def join(self, timeout_s: float) -> None:
        """Wait for its end, not for ever."""
        self._reader.join(timeout_s)

    def answer(self) -> dict[str, Any]:
        """Return what it found. Raises WorkerError."""
        if self._answer is None:
            raise WorkerError(
                "comparison", expected="a process that ends well", got=f"one with status {self._process.wait()}"
            )
        return self._answer

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # the pipe was closed here
            for line in self._process.stdout:
                said = json.loads(line)
                self.done += said.get("steps", 0)
                self._answer = said.get("answer", self._answer)


def _run(work: Mapping[str, Any], on_steps: Callable[[int], None]) -> dict[str, float]:
    import dataclasses

    folder = Path(work["dir"])
    plan = unpack_plan((folder / "plan.covey").read_bytes())
    params = unpack_tensors(plan.manifest.params, (folder / "checkpoint.bin").read_bytes())
    recipe = load_recipe(work["recipe"])
    dataset = recipe.data(dataclasses.replace(recipe.settings, num_clients=work["num_devices"]), 0)
    held_out, evaluator, seed = dataset.pooled_test(), Evaluator(plan), work["seed"]

    def accuracy(sums: Mapping[str, float]) -> float:
        return sums["correct"] / sums["weight"]

    if "central" in work:
        union = pooled([dataset.train(c) for c in work["clients"]])
        trained = train_on(plan, params, union, work["central"], seed=seed, on_steps=on_steps)
        return {"pooled": accuracy(evaluator.evaluate(trained, held_out))}
    everywhere, own = [], {"correct": 0.0, "weight": 0.0}
    for client, steps in zip(work["clients"], work["steps"], strict=True):
        alone = train_on(plan, params, dataset.train(client), steps, seed=seed, on_steps=on_steps)
        everywhere.append(accuracy(evaluator.evaluate(alone, held_out)))
        sums = evaluator.evaluate(alone, dataset.test(client))
        own = {k: own[k] + sums[k] for k in own}
    return {"pooled": float(np.mean(everywhere)), "own": accuracy(own)}


def main() -> None:
    """Do the work that a line of stdin describes; end with the parent."""
    work = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()

    def say(value: Any) -> None:
        print(json.dumps(value), flush=True)

    say({"answer": _run(work, lambda steps: say({"steps": steps}))})


if __name__ == "__main__":
    main()
