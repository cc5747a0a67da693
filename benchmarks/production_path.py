"""What does the production path (sessions, encoding, folding, storage) cost beside training alone?

Rounds of a simulation with one worker process, the device's and the server's own code in them, take turns with a bare
loop: the same trainer, compiled program, devices and examples, but no session, encoding, fold, storage or process to
hand anything to. The profile is of a third turn, in which the worker's part runs in this process (its messages still
go through the same channel), so that one clock sees all of it; each part is without the parts that it calls.
"""

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.report import Report, relative_spread
from covey.data.dataset import FederatedDataset, PartitionedDataset, sizes_of
from covey.device import session
from covey.device.trainer import TrainingJob, never
from covey.plans.manifest import PrivacyTerms
from covey.recipes.prepare import Prepared, prepare
from covey.recipes.recipe import Settings, load_recipe
from covey.server import round as server_round
from covey.server import work
from covey.server.aggregator import Aggregator
from covey.server.settings import RoundSettings
from covey.simulation import federation, worker
from covey.simulation.channel import Channel, shared_memory
from covey.simulation.federation import Federation, owner_key, public_bytes
from covey.simulation.fleet import Fleet
from covey.simulation.jax_trainer import JaxTrainer
from covey.simulation.load import loads_of
from covey.simulation.messages import Setup
from covey.simulation.pool import WorkerPool, worker_environment
from covey.simulation.population import DevicePopulation
from covey.types.tensors import unpack_tensors

_GOAL = 0.10
_SEED = 0


class Profile:
    """Seconds by part; a part's time is without that of the parts within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Time every call of ``owner.name`` as ``part`` from now on."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with_inner = time.perf_counter()
            self._inner.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                took = time.perf_counter() - with_inner
                self.seconds[part] += took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        setattr(owner, name, timed)


class PoolHere:
    """A pool of one worker that lives in this process, behind a channel as any other."""

    def __init__(self, setup: Setup) -> None:
        pipes, memory = multiprocessing.Pipe(), shared_memory()
        self._ours, self._theirs = (Channel(p, memory, is_worker=i == 1) for i, p in enumerate(pipes))
        os.close(memory)
        self._worker = worker.Worker(setup)

    def everywhere(self, message: Any) -> list[Any]:
        """See :meth:`covey.simulation.pool.WorkerPool.everywhere`."""
        self._ours.send(message)
        self._theirs.send(self._worker.receive(self._theirs.recv()))
        return [self._ours.recv()]

    def scattered(self, messages: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See :meth:`covey.simulation.pool.WorkerPool.scattered`."""
        for i, message in enumerate(messages):
            yield i, self.everywhere(message)[0]


def profiled(profile: Profile) -> None:
    """Time the parts of a round in this process."""
    for owner, name, part in [
        (JaxTrainer, "run", "training"),
        (PartitionedDataset, "train", "examples"),
        (worker.Worker, "run", "session"),
        (session, "encoded_update", "encode"),
        (Aggregator, "receive", "fold"),
        (Channel, "send", "transfer"),
        (Channel, "recv", "transfer"),
        (server_round.Round, "_apply", "opening and applying the sum"),
        (work.Training, "commit", "storage and commit"),
        (federation.Federation, "_gather", "selection"),
        (federation.Federation, "next_round", "rest"),
    ]:
        profile.wrap(owner, name, part)


def federated(prepared: Prepared, dataset: FederatedDataset, settings: Settings, pool: Any) -> Federation:
    """Return a federation on the pool, with its first round behind it: everything is compiled."""
    fleet = Fleet(
        sizes_of(dataset), DevicePopulation(), loads_of(prepared.plan.manifest), seed=_SEED,
        plan_bytes=len(prepared.plan_bytes),
    )  # fmt: skip
    rounds = RoundSettings(settings.cohort, 1.0, hyper={"lr": settings.lr})
    made = Federation(
        prepared.plan, prepared.plan_bytes, prepared.checkpoint, fleet, rounds, pool, seed=_SEED, on_session=_nobody
    )
    made.next_round()
    return made


def bare_loop(prepared: Prepared, dataset: FederatedDataset, settings: Settings, trainer: Any) -> Callable[[], None]:
    """Return what trains as many devices as a round, and nothing else."""
    params = unpack_tensors(prepared.plan.manifest.params, prepared.checkpoint)
    job = TrainingJob(prepared.plan, 0, params, {}, {"lr": settings.lr}, bytes(32))
    devices = [dataset.train(client) for client in dataset.client_ids[: settings.cohort]]

    def train() -> None:
        for examples in devices:
            trainer.run(job, examples, never)

    train()
    return train


def _nobody(done: int, total: int) -> None:
    """Tell nobody how far a round is."""


def _timed(call: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


def main() -> None:
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", choices=["2nn", "cnn"], default="cnn")

    report = Report(__doc__, configure)
    source = f"mnist-{report.args.model}"
    recipe = load_recipe(source)
    settings = dataclasses.replace(recipe.settings, cohort=2 if report.args.quick else 5)
    repeats = 3 if report.args.quick else 7
    dataset = recipe.data(settings, _SEED)
    prepared = prepare(recipe, source, settings, PrivacyTerms(min_cohort=1), dataset, seed=_SEED)
    setup = Setup(source, settings, _SEED, prepared.plan_bytes, public_bytes(owner_key(_SEED)))
    report.facts(
        recipe=source,
        cohort=f"{settings.cohort} devices of 600 examples, one epoch in batches of {settings.batch_size}",
        seeds=f"all {_SEED}",
        repeats=f"{repeats} interleaved turns of one round",
        cores="one worker, one thread",
    )
    profile = Profile()
    with WorkerPool(1, setup) as pool:
        pool.ready()
        whole = federated(prepared, dataset, settings, pool)
        alone = bare_loop(prepared, dataset, settings, worker.make_trainer(recipe.task, settings, dataset))
        here = federated(prepared, dataset, settings, PoolHere(setup))
        profiled(profile)
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(repeats):
            kept = dict(profile.seconds)
            times["whole rounds"].append(_timed(whole.next_round))
            times["the bare loop"].append(_timed(alone))
            profile.seconds = defaultdict(float, kept)  # those two are not what is profiled
            times["rounds in one process"].append(_timed(here.next_round))
    columns = ["", "s", "spread"]
    rows = [[name, statistics.median(taken), relative_spread(taken)] for name, taken in times.items()]
    report.table("seconds a round", columns, rows)
    total = sum(profile.seconds.values())
    parts = sorted(profile.seconds.items(), key=lambda item: -item[1])
    report.table(
        "where a round's seconds go (one process)",
        ["", "s a round", "%"],
        [[name, seconds / repeats, 100 * seconds / total] for name, seconds in parts],
    )
    ratios = [a / b - 1 for a, b in zip(times["whole rounds"], times["the bare loop"], strict=True)]
    value = statistics.median(ratios)
    name = f"production path, {report.args.model.upper()}: whole rounds / training alone, less one"
    report.goal(name, value, f"<= {_GOAL:g}", value <= _GOAL, f"{min(ratios):.3f} to {max(ratios):.3f}")
    report.finish()


if __name__ == "__main__":
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # the bare loop runs as a worker does
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.production_path", *sys.argv[1:]], worker_environment()
        )
    main()
