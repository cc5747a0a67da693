"""Is every committed sum exactly the sum of the devices it names, whatever fails, and does the model keep improving?

A server in a process of its own and real device agents over HTTPS. Devices vanish before any of their messages and come
back; the server is killed with ``kill -9`` and restarted; between them the network loses requests and answers, delays
them and delivers them twice. The model names who was counted (``benchmarks.probe``), and every device's updates are
noted down: for each committed round the sum of the updates of the devices that it names, made anew, must give the
checkpoint bit for bit.
"""

import argparse
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from benchmarks import probe
from benchmarks.report import Report
from benchmarks.rough_network import Roughness, rough_network
from benchmarks.watched import PACE, Vanished, WatchedDevice, filled_homes
from covey.algorithms.algorithm import Aggregate, ServerState
from covey.algorithms.registry import server_half
from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.trainer import OnnxTrainer
from covey.plans.manifest import Manifest
from covey.server.opening import opened_reals
from covey.storage.sqlite import SqliteStorage
from covey.types.errors import CoveyError
from covey.types.segments import SegmentSum
from covey.types.tensors import Tensors, pack_tensors, unpack_tensors
from covey.wire.messages import RoundSummary

NUM_DEVICES, GOAL = 12, 8
_PATIENCE_S = 60.0
CONFIG = """port = {port}
poll_s = 5.0
retry_s = 0.1
keep_checkpoints = 100000
[round]
goal = {goal}
over_selection = 1.25
min_fraction = 0.5
patience_s = 0.3
selection_timeout_s = 10.0
report_timeout_s = 5.0
step_timeout_s = 1.5
[pace]
least_s = 0.05
most_s = 30
"""


@dataclass(slots=True)
class Chaos:
    """What one run did, and what its committed rounds turned out to be.

    Attributes:
        exact: committed rounds whose checkpoint is, bit for bit, what the sum of the named devices' updates gives.
        wrong: what is wrong with the others.
        abandoned: reasons of the abandoned rounds.
        events: how many times what failed.
        costs: the mean cost while training, of each committed round.
        sizes: how many devices were in each sum.
    """

    exact: int = 0
    wrong: list[str] = field(default_factory=list)
    abandoned: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    costs: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


def run(
    base: Path, *, secure: bool, lasts_s: float, kill_every_s: float, seed: int, roughness: Roughness | None = None
) -> Chaos:
    """Let everything fail for ``lasts_s`` seconds, then look at every committed round."""
    plan = probe.ProbePlan(NUM_DEVICES, secure=secure)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    directory = plan.write(base / "server", CONFIG.format(port=port, goal=GOAL))
    filled_homes(base / "homes", NUM_DEVICES)
    trainer, chaos = OnnxTrainer(), Chaos()
    watched = [WatchedDevice(trainer) for _ in range(NUM_DEVICES)]
    with _server(directory, base / "server.log") as server:
        upstream, authority = f"https://127.0.0.1:{port}", directory / "authority"
        with rough_network(upstream, authority, seed=seed, roughness=roughness) as (url, counts):
            with _devices(watched, url, authority / "ca.pem", base / "homes", secure, chaos, seed):
                _kill_now_and_then(server, lasts_s, kill_every_s, random.Random(seed), chaos)
            chaos.events += counts
    _judge(chaos, plan.plan.manifest, watched, directory)
    return chaos


class _Server:
    def __init__(self, directory: Path, log: Path) -> None:
        self._directory, self._log = directory, log
        self.num_committed = 0
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "covey", "serve", "--dir", str(self._directory)],
                stdout=subprocess.PIPE, stderr=out, env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True,
            )  # fmt: skip
        assert self.child.stdout is not None
        if not self.child.stdout.readline():
            raise RuntimeError(f"the server does not start: {self._log.read_text()}")
        threading.Thread(target=self._count, args=(self.child.stdout,), daemon=True).start()

    def _count(self, lines: IO[str]) -> None:
        with contextlib.suppress(ValueError):  # closed under its hands
            for line in lines:
                self.num_committed += " committed" in line

    def kill(self) -> None:
        self.child.kill()
        self.child.wait(30)
        if self.child.stdout is not None:
            self.child.stdout.close()


@contextlib.contextmanager
def _server(directory: Path, log: Path) -> Iterator[_Server]:
    server = _Server(directory, log)
    try:
        yield server
    finally:
        server.kill()


def _kill_now_and_then(
    server: _Server, lasts_s: float, kill_every_s: float, chance: random.Random, chaos: Chaos
) -> None:
    until_s = time.monotonic() + lasts_s
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, chance.uniform(0.5, 1.5) * kill_every_s))
        if time.monotonic() < until_s:
            server.kill()
            chaos.events["server killed"] += 1
            time.sleep(chance.uniform(0.0, 0.5))
            server.start()
    while not server.num_committed and time.monotonic() < until_s + _PATIENCE_S:
        time.sleep(0.1)  # on a busy machine nothing may have been committed between two kills


@contextlib.contextmanager
def _devices(
    watched: list[WatchedDevice], url: str, ca_file: Path, homes: Path, secure: bool, chaos: Chaos, seed: int
) -> Iterator[None]:
    """Run every device in a thread, which starts it anew after it has vanished."""
    stopping, agents, lock = threading.Event(), {}, threading.Lock()

    def live(number: int, device: WatchedDevice) -> None:
        chance = random.Random(f"{seed}/{number}")

        def vanish(step: str) -> None:
            if chance.random() < 0.01:
                with lock:
                    chaos.events["device vanished"] += 1
                raise Vanished

        device.before = vanish
        while not stopping.is_set():
            with DeviceHome(homes / f"device{number}") as home, contextlib.suppress(Vanished, CoveyError):
                agents[number] = DeviceAgent(
                    home, url, probe.policy(secure=secure), transport=device.transport(url, ca_file), trainer=device,
                    pace=PACE,
                )  # fmt: skip
                agents[number].run()
            stopping.wait(chance.uniform(0.1, 2.0))

    threads = [threading.Thread(target=live, args=item) for item in enumerate(watched)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            while thread.is_alive():  # an agent may just have been made
                for agent in list(agents.values()):
                    agent.stop()
                thread.join(0.2)


def _judge(chaos: Chaos, manifest: Manifest, watched: list[WatchedDevice], directory: Path) -> None:
    storage = SqliteStorage(directory / "data", keep_checkpoints=100_000)
    before = unpack_tensors(manifest.params, (directory / "checkpoint.bin").read_bytes())
    for row in storage.rounds(probe.POPULATION):
        if row.status != "committed":
            chaos.abandoned[row.reason] += 1
            continue
        after = unpack_tensors(manifest.params, storage.blob(row.checkpoint))
        wrong = _wrong(manifest, watched, row, before, after)
        chaos.exact += not wrong
        chaos.wrong += [f"round {row.round}: {wrong}"] if wrong else []
        chaos.costs.append(row.metrics["cost"])
        chaos.sizes.append(row.reported)
        before = after
    storage.close()


def _wrong(manifest: Manifest, watched: list[WatchedDevice], row: RoundSummary, before: Tensors, after: Tensors) -> str:
    """Return what is wrong with a committed round, or nothing."""
    times = probe.counted(before, after, row.reported)
    whole = np.rint(times)
    if np.abs(times - whole).max() > 1e-3 or not set(whole) <= {0.0, 1.0}:
        return f"devices are counted {np.round(times, 3).tolist()} times"
    who = np.flatnonzero(whole)
    if len(who) != row.reported:
        return f"{row.reported} reported, {len(who)} are in the sum"
    attempts = set.intersection(*(set(watched[i].updates) for i in who))
    sums = (applied(manifest, [watched[i].updates[seed] for i in who], before, seed) for seed in attempts)
    return "" if pack_tensors(after, manifest.params) in sums else "not the sum of the devices that it names"


def applied(manifest: Manifest, updates: list[dict[str, np.ndarray]], before: Tensors, seed: str) -> bytes:
    """Return the checkpoint that the sum of some updates leads to."""
    total = SegmentSum(manifest.layout(0))
    for update in updates:
        total.fold_reals(update)
    reals = opened_reals(manifest, 0, total, seed)
    aggregate = Aggregate.opened(total, manifest.phases[0], manifest.metrics, reals)
    algorithm = server_half(manifest.algorithm.name, manifest.algorithm.settings)
    state = algorithm.phases[0].apply(ServerState(before, algorithm.init(before).extra), aggregate)
    return pack_tensors(state.params, manifest.params)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, help="of each mode: 90, so that both take three minutes")


def main() -> None:
    report = Report(__doc__, _configure)
    lasts_s = report.args.seconds or (15.0 if report.args.quick else 90.0)
    report.facts(devices=NUM_DEVICES, goal=GOAL, seconds_of_each_mode=lasts_s, seeds="0; timing is real")
    rows = []
    for secure in (False, True):
        mode = "secure" if secure else "plain"
        with tempfile.TemporaryDirectory(prefix="covey-chaos-") as name:
            c = run(Path(name), secure=secure, lasts_s=lasts_s, kill_every_s=lasts_s / 12, seed=0)
        for text in c.wrong:
            report.note(f"{mode}: {text}")
        tenth = max(1, len(c.costs) // 10)
        first, last = float(np.mean(c.costs[:tenth])), float(np.mean(c.costs[-tenth:]))
        rows.append(
            (mode, c.exact, len(c.wrong), sum(c.abandoned.values()), f"{min(c.sizes)} to {max(c.sizes)}", first, last)
        )
        report.note(f"{mode}: {dict(c.events)}; abandoned: {dict(c.abandoned)}")
        report.goal(f"{mode}: committed sums that are exact", c.exact, "all", not c.wrong and c.exact > 0)
        report.goal(f"{mode}: cost in the last tenth of the rounds / in the first", last / first, "< 1", last < first)
    columns = ("mode", "exact", "wrong", "abandoned", "devices in a sum", "cost, first tenth", "cost, last tenth")
    report.table("committed rounds", columns, rows)
    report.finish()


if __name__ == "__main__":
    main()
