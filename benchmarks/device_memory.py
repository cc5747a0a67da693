"""How much memory does a device need beside a bare onnxruntime process that trains the same plan?

A real ``covey device run --once`` trains the MNIST CNN of 1602.05629 on 600 examples in a round of a real server, over
HTTPS: example store, TLS, signatures, encoding included. The bare process has NumPy and onnxruntime, the plan's own
graphs and the same examples, and nothing else; once with onnxruntime's default memory options and once with the
device's. Peaks are the kernel's high-water marks (VmHWM) of each process, which neither sees the other.
"""

import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.report import Report, relative_spread
from covey.data.registry import load
from covey.plans.plan import unpack_plan
from covey.recipes.recipe import load_recipe
from covey.types.rng import key_words
from covey.types.tensors import unpack_tensors

_RECIPE = "mnist-cnn"
_MB = 1e6
_GOAL_MB = 30
_DEVICE = """\
import sys
# Here for the linters and tests only: a base install has neither, and httpx would load them for its command line.
sys.modules["rich"] = sys.modules["pygments"] = None
from benchmarks.bare_runtime import peak_bytes
from covey.device.trainer import OnnxTrainer
import time
run, seconds = OnnxTrainer._train, []
def timed(*args):
    started = time.perf_counter()
    try:
        return run(*args)
    finally:
        seconds.append(time.perf_counter() - started)
OnnxTrainer._train = timed
from covey.cli import main
try:
    main()
finally:
    print("peak", peak_bytes(), seconds[-1] if seconds else -1, file=sys.stderr)
"""
"""A device that says at its end how much memory it took, and how long its training loop."""


def prepare(folder: Path) -> None:
    """Make a population, a device with 600 examples, and what the bare process needs."""
    fed = folder / "fed"
    command = [sys.executable, "-m", "covey", "init", fed, "--recipe", _RECIPE, "--plain", "--cohort", "1"]
    subprocess.run([*command, "--min-cohort", "1", "--port", "0"], check=True, stdout=subprocess.DEVNULL)
    config = fed / "server" / "server.toml"
    config.write_text(config.read_text().replace("over_selection = 1.3", "over_selection = 1.0"))
    fill = [sys.executable, "-m", "covey", "device", "fill", "--home", folder / "home", "--recipe", _RECIPE]
    subprocess.run([*fill, "--client", "0"], check=True, stdout=subprocess.DEVNULL)
    plan = unpack_plan((fed / "server" / "plan.covey").read_bytes())
    bare = folder / "bare"
    bare.mkdir()
    for name in ("train", "begin"):
        (bare / f"{name}.onnx").write_bytes(plan.graphs[name])
    params = unpack_tensors(plan.manifest.params, (fed / "server" / "checkpoint.bin").read_bytes())
    constants = {f"params.{k}": v for k, v in params.items()} | {"key": key_words(bytes(32), "dropout")}
    constants |= {f"hyper.{h.name}": np.float32(h.default) for h in plan.manifest.hyper}
    np.savez(bare / "constants.npz", **constants)
    data = load("mnist", partition="iid", num_clients=100, seed=0)
    examples = data.train(data.client_ids[0])
    phase = plan.manifest.phases[0]
    steps = len(examples["y"]) // phase.batch_size
    batches = {f"batch.{k}": v.reshape(steps, phase.batch_size, *v.shape[1:]) for k, v in examples.items()}
    np.savez(bare / "examples.npz", mask=np.ones((steps, phase.batch_size), bool), **batches)
    (bare / "chunk.txt").write_text(str(phase.chunk_steps))


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run the server; yield its address."""
    command = [sys.executable, "-m", "covey", "serve", "--dir", folder / "fed" / "server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"https://\S+:\d+", server.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            yield found.group()
        finally:
            server.terminate()


def device(folder: Path, url: str) -> tuple[float, float]:
    """Let the device take part in one round; return its peak in bytes and the seconds of its training loop."""
    fed = folder / "fed"
    where = ["--server", url, "--population", _RECIPE, "--owner-key", str(fed / "owner" / "owner.pub")]
    terms = ["--ca", str(fed / "server" / "authority" / "ca.pem"), "--accept-plain", "--min-cohort", "1", "--once"]
    terms += [
        "--assume",
        "idle,charging,battery",
        "--priority",
        "normal",
    ]  # the bare process gives way to nobody either
    command = [sys.executable, "-c", _DEVICE, "device", "run", *where, *terms, "--home", str(folder / "home")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert "counted 600 examples" in done.stdout, done.stdout
    peak, seconds = done.stderr.rpartition("peak ")[2].split()
    return float(peak), float(seconds)


def bare(folder: Path, options: str) -> tuple[float, float]:
    """Train without Covey; return the peak in bytes and the seconds of the loop."""
    command = [sys.executable, "-m", "benchmarks.bare_runtime", str(folder / "bare"), options]
    peak, seconds = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split()
    return float(peak), float(seconds)


def main() -> None:
    report = Report(__doc__)
    repeats = 3 if report.args.quick else 9
    settings = load_recipe(_RECIPE).settings
    report.facts(
        model=_RECIPE, examples=600, batch=settings.batch_size, steps_per_chunk=settings.chunk_steps,
        repeats=f"{repeats}, in turns", seeds="partition 0",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as name:
        folder = Path(name)
        prepare(folder)
        with serving(folder) as url:
            device(folder, url)  # downloads plan and model, which later runs have
            runs: dict[str, list[tuple[float, float]]] = {"default": [], "tuned": [], "device": []}
            for _ in range(repeats):
                runs["device"].append(device(folder, url))
                for options in ("default", "tuned"):
                    runs[options].append(bare(folder, options))
    peaks = {k: [peak / _MB for peak, _ in v] for k, v in runs.items()}
    seconds = {k: [s for _, s in v] for k, v in runs.items()}
    labels = {
        "device": "covey device run",
        "default": "bare, onnxruntime's defaults",
        "tuned": "bare, the device's options",
    }
    report.table(
        "peak resident memory (MB = 10^6 bytes) and time of 60 steps of the CNN, medians",
        ["", "peak MB", "spread", "training s", "spread"],
        [
            [label, statistics.median(peaks[k]), relative_spread(peaks[k]), statistics.median(seconds[k]),
             relative_spread(seconds[k])]
            for k, label in labels.items()
        ],
    )  # fmt: skip
    lowest = min(statistics.median(peaks[k]) for k in ("default", "tuned"))
    above = statistics.median(peaks["device"]) - lowest
    report.goal("device's peak above the lower bare process, MB", above, f"<= {_GOAL_MB}", above <= _GOAL_MB)
    pairs = [min(a, b) / d for d, a, b in zip(seconds["device"], seconds["default"], seconds["tuned"], strict=True)]
    speed = statistics.median(pairs)
    known = len(pairs) >= 5
    report.goal("device's training speed / the faster bare process", speed, ">= 0.95", speed >= 0.95 if known else None,
                "" if known else f"quick: {repeats} repeats")  # fmt: skip
    report.finish()


if __name__ == "__main__":
    main()
