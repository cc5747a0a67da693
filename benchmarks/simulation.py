"""How many client steps per second does a simulation do, beside its peers?

Federated Averaging on MNIST: 100 devices with 600 examples each, 10 of them a round, one epoch in batches of 10, SGD
with a learning rate of 0.1. ``--model lstm``: the two-layer character LSTM on the first 40 pieces of 80 characters of
each of 100 Shakespeare roles. All contestants are started first and then take turns of a second or two, so that
whatever else runs on the machine slows them alike; every turn is whole rounds, from selection to the averaged model.
Covey runs its real device sessions and server roles; evaluation is left out for all.

Peers are installed by benchmarks/peers/install_*.sh into benchmarks/peers/.venv-*; COVEY_PEERS names another folder,
with NAME/bin/python in it.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Report, relative_spread
from covey.data.registry import load
from covey.simulation.pool import worker_environment

_PEERS = Path(__file__).parent / "peers"
_GOALS = {"2nn": 4.0, "cnn": 1.3, "lstm": 1.0}
_NAMES = {"2nn": "MNIST 2NN", "cnn": "MNIST CNN", "lstm": "character LSTM"}
_PIECES = 40
_QUICK_READY_S = 36.0
_FULL_READY_S = 600.0
_QUICK_END_S = 46.0

CONTESTANTS = [
    ("Covey", "", "covey_run.py", ("",)),
    ("torch loop", "torch", "torch_loop.py", ("2x1", "1x2")),
    ("pfl-research", "pfl", "pfl_research.py", ("2x1", "1x2")),
    ("FedJAX", "fedjax", "fedjax_run.py", ("",)),
    ("Flower", "flower", "flower.py", ("",)),
]
"""Name, environment, script, and ways to use two cores (processes x threads), of which the better one counts."""


@dataclass
class Contestant:
    """A process that runs rounds when it is told to; see benchmarks/peers/gate.py."""

    name: str
    variant: str
    process: subprocess.Popen[str]
    log: Path
    speeds: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    fault: str = ""

    def answer(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next answer; None, and ``fault`` says why, if there is none in time."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], max(0.0, timeout_s))[0]:
            self.fault = "not ready in time"
            return None
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            self.fault = f"failed: {''.join(last)[:150]}"
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self, seconds: float) -> float | None:
        """Let it run for about so long; return its client steps per second."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        except OSError:
            self.fault = "ended"
            return None
        answer = self.answer(seconds + 120)
        return None if answer is None else float(answer["steps_per_s"])

    def end(self) -> None:
        """End it and what it started: politely, then firmly."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def python_of(environment: str) -> Path:
    """Return the interpreter of a peer's environment, whether it is there or not."""
    if not environment:
        return Path(sys.executable)
    folder = os.environ.get("COVEY_PEERS")
    return (Path(folder) / environment if folder else _PEERS / f".venv-{environment}") / "bin" / "python"


def start(name: str, python: Path, script: str, variant: str, folder: Path, args: argparse.Namespace) -> Contestant:
    """Start a contestant; it is ready when it says so."""
    log = folder / f"{script}-{variant}.log"
    command = [str(python), str(_PEERS / script), "--data", str(folder / "data.npz"), "--model", args.model]
    command += ["--cohort", str(args.cohort), "--variant", variant]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    return Contestant(name, variant, process, log)


def take_turns(contestants: list[Contestant], repeats: int, seconds: float, end_at: float) -> list[Contestant]:
    """Run all in turns and return those that stayed; of a peer's variants only the better one goes past the first."""
    alive = contestants
    for repeat in range(repeats):
        order = alive if repeat % 2 == 0 else alive[::-1]
        for contestant in order:
            if time.monotonic() > end_at:
                return [c for c in alive if c.speeds]
            speed = contestant.turn(seconds)
            if speed is not None:
                contestant.speeds.append(speed)
        alive = [c for c in alive if not c.fault]
        if repeat == 0:
            best = {c.name: max(d.speeds[0] for d in alive if d.name == c.name) for c in alive}
            for loser in (c for c in alive if c.speeds[0] < best[c.name]):
                loser.end()
            alive = [c for c in alive if c.speeds[0] == best[c.name]]
    return alive


def save_data(model: str, path: Path) -> None:
    """Write the devices' examples: x and y [devices, n, ...], float32 images or int64 numbers."""
    if model == "lstm":
        data = load("shakespeare", num_clients=100)
        clients = [{k: v[:_PIECES].astype(np.int64) for k, v in data.train(c).items()} for c in data.client_ids]
    else:
        data = load("mnist", partition="iid", num_clients=100, seed=0)
        clients = [data.train(c) for c in data.client_ids]
    x, y = (np.stack([c[name] for c in clients]) for name in ("x", "y"))
    np.savez(path, x=x, y=y.astype(np.int64))


def run(report: Report, folder: Path) -> tuple[list[Contestant], dict[str, str]]:
    """Start everybody, take turns, end everybody; return who finished, and why others did not."""
    args = report.args
    save_data(args.model, folder / "data.npz")
    absent: dict[str, str] = {}
    started: list[Contestant] = []
    try:
        for name, environment, script, variants in CONTESTANTS:
            python = python_of(environment)
            if not python.exists():
                absent[name] = f"not installed: benchmarks/peers/install_{environment}.sh"
                continue
            for variant in variants[:1] if args.quick else variants:
                started.append(start(name, python, script, variant, folder, args))
        ready_by = time.monotonic() - report.elapsed_s + (_QUICK_READY_S if args.quick else _FULL_READY_S)
        for contestant in started:
            answer = contestant.answer(ready_by - time.monotonic())
            if answer is not None:
                contestant.versions = answer["versions"]
        for contestant in started:
            if contestant.fault:
                contestant.end()
                label = f"{contestant.name} {contestant.variant}".strip()
                absent[label] = contestant.fault
                report.note(f"{label}: {contestant.fault}")
        end_at = time.monotonic() - report.elapsed_s + (_QUICK_END_S if args.quick else 1e9)
        ready = [c for c in started if not c.fault]
        report.note(f"{len(ready)} contestants ready after {report.elapsed_s:.0f} s")
        return take_turns(ready, args.repeats, args.seconds, end_at), absent
    finally:
        for contestant in started:
            contestant.end()


def note_fraction(report: Report, covey: Contestant, folder: Path) -> None:
    """Print which part of the cores' speed in matrix products Covey's client steps are."""
    args, cores = report.args, 2
    source = str(_PEERS / "lstm_recipe.py") if args.model == "lstm" else f"mnist-{args.model}"
    environment = worker_environment() | {"COVEY_BENCH_DATA": str(folder / "data.npz")}
    command = [sys.executable, "-m", "benchmarks.sgemm", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    counted = json.loads(done.stdout)
    speed = statistics.median(covey.speeds) * counted["step_flop"]
    report.facts(
        operations_of_a_step=f"{counted['step_flop'] / 1e6:.3g} MFLOP",
        sgemm_peak_of_a_core=f"{counted['peak_flop_per_s'] / 1e9:.0f} GFLOP/s",
        part_of_the_peak=f"{100 * speed / (cores * counted['peak_flop_per_s']):.1f} % (Covey, {cores} cores)",
    )


def show(report: Report, done: list[Contestant], absent: dict[str, str]) -> None:
    """Print the table and the goal."""
    covey = next((c for c in done if c.name == "Covey"), None)
    rows: list[list[Any]] = []
    for c in sorted(done, key=lambda c: -statistics.median(c.speeds)):
        ratios = paired(covey, c) if covey else []
        label = f"{c.name} ({c.variant})" if c.variant else c.name
        versions = ", ".join(f"{k} {v}" for k, v in c.versions.items() if c is not covey)
        ratio = round(statistics.median(ratios), 2) if ratios else None
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-"
        row = [label, statistics.median(c.speeds), relative_spread(c.speeds), len(c.speeds), ratio, spread, versions]
        rows.append(row)
    rows += [[name, None, "-", 0, None, "-", why] for name, why in absent.items()]
    title = f"client steps per second, {_NAMES[report.args.model]} (medians of turns)"
    report.table(title, ["", "steps/s", "spread", "turns", "Covey / it", "range", "versions"], rows)
    name = f"simulation {report.args.model.upper()}: Covey / best peer"
    wanted = _GOALS[report.args.model]
    peers = [c for c in done if c is not covey]
    if covey is None or not peers:
        report.goal(name, None, f">= {wanted:g}", None, "; ".join(f"{k} {v}" for k, v in absent.items()))
        return
    value = min(statistics.median(paired(covey, c)) for c in peers)
    missing = sorted({n for n, *_ in CONTESTANTS} - {c.name for c in done})
    turns = min(len(c.speeds) for c in done)
    if missing:
        report.goal(name, value, f">= {wanted:g}", None, f"without {', '.join(missing)}")
    elif report.args.quick and (turns < 3 or report.args.cohort < 10):
        why = f"quick: {turns} turn{'s' * (turns > 1)} of {report.args.cohort} devices a round"
        report.goal(name, value, f">= {wanted:g}", None, why)
    else:
        report.goal(name, value, f">= {wanted:g}", value >= wanted)


def paired(covey: Contestant, other: Contestant) -> list[float]:
    """Return Covey's speed over another's, turn by turn."""
    return [a / b for a, b in zip(covey.speeds, other.speeds, strict=False)]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # contestants have sessions of their own, and must be ended

    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", choices=["2nn", "cnn", "lstm"], default="2nn")
        parser.add_argument("--repeats", type=int, help="turns of each")
        parser.add_argument("--seconds", type=float, help="length of a turn")

    report = Report(__doc__, configure)
    args = report.args
    args.cohort = 2 if args.quick and args.model != "2nn" else 10
    args.repeats = args.repeats or (3 if args.quick else 15 if args.model == "2nn" else 7)
    args.seconds = args.seconds or (0.3 if args.quick else 1.0)
    report.facts(
        model=args.model,
        devices="100, by role, 40 pieces each" if args.model == "lstm" else "100 with 600 examples each (IID)",
        cohort=args.cohort,
        seeds="partition 0, first parameters and cohorts 0",
        repeats=f"{args.repeats} interleaved turns of at least {args.seconds:g} s and one round",
        cores="two processes of one thread each, where a contestant has a choice",
    )
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as folder:
        done, absent = run(report, Path(folder))
        show(report, done, absent)
        for contestant in (c for c in done if c.name == "Covey"):
            note_fraction(report, contestant, Path(folder))
    report.finish()


if __name__ == "__main__":
    main()
