"""What does a device's agent cost its owner: while it waits, while it trains, when it starts, and when it predicts?

*While it waits*: ``covey device run`` of a device that may not train (an unknown network), for a minute: CPU seconds of
the process over wall time, its start left out. With a mocked system bus where python-dbusmock is installed.
*While it trains*: a real ``covey device run --once`` in a round of a real server over HTTPS, against a bare process
with the plan's own graphs: the training loop's time and peak memory, as ``benchmarks.device_memory`` measures them.
*When it starts*: from the start of the process to the moment at which the server sees its check-in.
*When it predicts*: one example through the plan's ``predict`` graph, in turns with onnxruntime alone.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil

from benchmarks import device_memory
from benchmarks.report import Report, relative_spread
from covey.device.evaluate import Evaluator
from covey.plans.plan import unpack_plan
from covey.types.tensors import unpack_tensors

_GOAL_IDLE = 0.001
_GOAL_OVERHEAD = 0.05
_GOAL_START_S = 1.0
_GOAL_PREDICT = 1.5
_MB = 1e6
_SERVICES = ("upower", "logind", "networkmanager")

_STARTED = """\
import sys, time
sys.modules["rich"] = sys.modules["pygments"] = None  # as in a base install: see benchmarks.device_memory
from covey.device.transport import HttpTransport
check_in = HttpTransport.check_in
def timed(*args):
    print("check-in", time.time(), file=sys.stderr, flush=True)
    return check_in(*args)
HttpTransport.check_in = timed
from covey.cli import main
main()
"""
"""A device that says when it sends its check-in: enrolled, over an open and verified connection or not."""


def command(folder: Path, url: str, *more: str) -> list[str]:
    """Return the arguments of a device in the population that :func:`device_memory.prepare` made."""
    fed = folder / "fed"
    where = ["--server", url, "--population", "mnist-cnn", "--owner-key", str(fed / "owner" / "owner.pub")]
    terms = ["--ca", str(fed / "server" / "authority" / "ca.pem"), "--accept-plain", "--min-cohort", "1"]
    return ["device", "run", *where, *terms, "--home", str(folder / "home"), *more]


@contextlib.contextmanager
def system_bus() -> Iterator[dict[str, str]]:
    """Yield the environment of a machine that somebody uses, with its services mocked; empty where they cannot be."""
    probe = ["/usr/bin/python3", "-c", "import dbusmock"]
    if (
        shutil.which("dbus-daemon") is None
        or not Path(probe[0]).exists()
        or subprocess.run(probe, capture_output=True).returncode
    ):
        yield {}
        return
    start = ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1", "--address=unix:tmpdir=/tmp"]
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(
            subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
        stack.callback(daemon.terminate)
        assert daemon.stdout is not None
        environment = {"DBUS_SYSTEM_BUS_ADDRESS": daemon.stdout.readline().strip()}
        for name in _SERVICES:
            mock = subprocess.Popen(
                [probe[0], "-m", "dbusmock", "--system", "--template", name],
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
            )
            stack.callback(mock.wait)
            stack.callback(mock.terminate)
        time.sleep(2.0)  # until they have their names
        yield environment


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, in nanoseconds' steps (Linux; ``times`` has hundredths)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((t / "schedstat").read_text().split()[0]) for t in tasks) / 1e9


def waiting(folder: Path, seconds: float) -> tuple[float, float, bool]:
    """Return CPU seconds and peak bytes of an agent that may not train for so long, and whether a bus was there."""
    # Nobody listens there, and nobody is asked: an address elsewhere makes the network count.
    arguments = command(folder, "https://192.0.2.1:8443", "--assume", "charging,battery")
    with system_bus() as environment:
        process = subprocess.Popen(
            [sys.executable, "-m", "covey", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("waits; "), line
            before_s = cpu_s(process.pid)
            time.sleep(seconds)
            spent_s, memory = cpu_s(process.pid) - before_s, psutil.Process(process.pid).memory_info().rss
            assert process.poll() is None
            return spent_s, memory, bool(environment)
        finally:
            process.terminate()
            process.communicate()


def start_to_check_in(folder: Path, url: str) -> float:
    """Return the seconds from the start of a device's process to its check-in."""
    begun = time.time()
    process = subprocess.Popen(
        [sys.executable, "-c", _STARTED, *command(folder, url, "--once", "--assume", "idle,charging,battery")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("check-in "):
                return float(line.split()[1]) - begun
        raise SystemExit("the device never checked in")
    finally:
        killer = threading.Timer(60, process.kill)
        killer.start()
        process.wait()
        killer.cancel()
        process.stderr.close()


def predictions(folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Return the seconds of single predictions by Covey and by onnxruntime alone, in turns, after a warm-up."""
    plan = unpack_plan((folder / "fed" / "server" / "plan.covey").read_bytes())
    params = unpack_tensors(plan.manifest.params, (folder / "fed" / "server" / "checkpoint.bin").read_bytes())
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    bare = ort.InferenceSession(plan.graphs["predict"], options, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in bare.get_outputs()]
    fixed = {f"params.{k}": v for k, v in params.items()}
    (field,) = (f for f in plan.manifest.examples.fields if f.role == "input")
    evaluator, rng = Evaluator(plan), np.random.default_rng(0)
    ours, theirs = [], []
    for number in range(count + 50):
        x = rng.random(field.shape).astype(field.dtype)
        begun = time.perf_counter()
        evaluator.predict(params, {field.name: x})
        between = time.perf_counter()
        bare.run(outputs, {f"input.{field.name}": x[None], **fixed})
        ended = time.perf_counter()
        if number >= 50:
            ours.append(between - begun)
            theirs.append(ended - between)
    return ours, theirs


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def report_waiting(report: Report, folder: Path, seconds: float) -> None:
    spent_s, memory, bus = waiting(folder, seconds)
    share = spent_s / seconds
    where = "UPower, logind, NetworkManager mocked" if bus else "no system bus here"
    report.table(
        f"an agent that may not train ({where})",
        ["wall s", "CPU s", "share", "resident MB"],
        [[seconds, spent_s, f"{share:.4%}", memory / _MB]],
    )
    known = seconds >= 60  # a look every 15 seconds: fewer than four are too few
    report.goal("CPU of a waiting agent / wall time", share, f"< {_GOAL_IDLE:g}", share < _GOAL_IDLE if known else None,
                "" if known else "quick: too short to tell")  # fmt: skip


def report_training(report: Report, folder: Path, url: str, repeats: int) -> None:
    device_memory.device(folder, url)  # downloads plan and model, which later runs have
    runs: dict[str, list[tuple[float, float]]] = {"device": [], "default": [], "tuned": []}
    for _ in range(repeats):
        runs["device"].append(device_memory.device(folder, url))
        for options in ("default", "tuned"):
            runs[options].append(device_memory.bare(folder, options))
    labels = {"device": "covey device run", "default": "bare, defaults", "tuned": "bare, the device's options"}
    report.table(
        "a round of the MNIST CNN, 60 steps (medians)",
        ["", "peak MB", "training s", "spread"],
        [
            [label, statistics.median(p for p, _ in runs[k]) / _MB, statistics.median(s for _, s in runs[k]),
             relative_spread([s for _, s in runs[k]])]
            for k, label in labels.items()
        ],
    )  # fmt: skip
    pairs = [
        d / min(a, b) - 1 for (_, d), (_, a), (_, b) in zip(runs["device"], runs["default"], runs["tuned"], strict=True)
    ]
    overhead, known = statistics.median(pairs), repeats >= 5
    report.goal("training time over the faster bare process, less one", overhead, f"< {_GOAL_OVERHEAD:g}",
                overhead < _GOAL_OVERHEAD if known else None, "" if known else f"quick: {repeats} repeats")  # fmt: skip
    lowest = min(statistics.median(p for p, _ in runs[k]) for k in ("default", "tuned"))
    above = (statistics.median(p for p, _ in runs["device"]) - lowest) / _MB
    report.goal("device's peak above the lower bare process, MB", above, "<= 30", above <= 30)


def report_start(report: Report, folder: Path, url: str, repeats: int) -> None:
    starts = [start_to_check_in(folder, url) for _ in range(repeats)]
    median = statistics.median(starts)
    report.table("process start to check-in", ["median s", "spread", "slowest s"],
                 [[median, relative_spread(starts), max(starts)]])  # fmt: skip
    report.goal("process start to check-in, s", median, f"< {_GOAL_START_S:g}", median < _GOAL_START_S)


def report_predictions(report: Report, folder: Path, count: int) -> None:
    ours, theirs = predictions(folder, count)
    report.table(
        f"one prediction of the MNIST CNN, no network ({count} in turns)",
        ["", "median ms", "p99 ms"],
        [
            ["Covey", 1e3 * statistics.median(ours), 1e3 * p99(ours)],
            ["onnxruntime alone", 1e3 * statistics.median(theirs), 1e3 * p99(theirs)],
        ],
    )
    ratio = p99(ours) / p99(theirs)
    report.goal("p99 of predict / onnxruntime alone", ratio, f"<= {_GOAL_PREDICT:g}", ratio <= _GOAL_PREDICT)


def main() -> None:
    report = Report(__doc__)
    quick = report.args.quick
    seconds, repeats, count = (10.0, 2, 500) if quick else (60.0, 7, 3000)
    report.facts(model="mnist-cnn", examples=600, repeats=f"{repeats}, in turns", waiting_s=seconds, predictions=count)
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as name:
        folder = Path(name)
        device_memory.prepare(folder)
        report_predictions(report, folder, count)
        with device_memory.serving(folder) as url:
            report_waiting(report, folder, seconds)
            report_training(report, folder, url, repeats)
            report_start(report, folder, url, repeats)
    report.finish()


if __name__ == "__main__":
    main()
