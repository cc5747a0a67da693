"""How many bytes does a device send for the accuracy of uncompressed Federated Averaging, less one point?

MNIST, dealt out so that a device has two digits (1602.05629): 100 devices, 10 a round, one epoch in batches of 10. A*
is the best test accuracy of float32 within R rounds, for each seed; the figure is the cumulative upload of the cohort,
whole report bodies with their headers, at the *first* round whose accuracy is at least A* - 1 point. Every arm has the
same rule, the same rounds and the same learning rate: the one that is best for *float32* on seed 0, so that what tuning
there is favours the baseline (four are tried for the 2NN; the CNN and the reduced CIFAR-10 model have one, for time).

The secure rows travel as they would under masks (rotated, one seed for the round, integers of a ring that cannot
overflow) and are opened by the plain aggregator: the same sum. For the keys and shares of secure aggregation the bytes
of Bonawitz et al. 2017 for a complete graph of n devices are added to every report, the baseline's too: (7 n - 4) x 32.

"private" compares the secure path with and without noise of devices (benchmarks/compression_private.py).

Curves are kept in --state and not run again; a run that exceeds --budget-s says what is missing, and the next goes on.
Besides: time and size of encoding 1.66M parameters on one core, and EDEN's error beside the paper's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compression_curves import Curve, CurveStore, bytes_to, reached_round
from benchmarks.compression_private import compare_private
from benchmarks.compression_speed import NUM_PARAMETERS
from benchmarks.report import Report
from covey.compression.codec import codec_named
from covey.privacy.randomness import AesCtr
from covey.recipes.recipe import load_recipe
from covey.types.errors import CoveyError, DatasetMissingError

_EXPECTED_ERROR = {1: 0.571, 2: 0.133, 3: 0.0357, 4: 0.0096}
_POINT = 0.01


@dataclass(frozen=True)
class Arm:
    """A row: a spec, and the devices that its secure aggregation is sized for; 0 on the plain path."""

    name: str
    spec: str
    secure_devices: int = 0

    def key_bytes(self) -> int:
        """Return the bytes of keys and shares that a device sends besides its report."""
        return (7 * self.secure_devices - 4) * 32 if self.secure_devices else 0


@dataclass(frozen=True)
class Experiment:
    """A model, how it is trained, and the arms that are compared on it."""

    recipe: str
    rounds: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    batch_size: int
    plain: tuple[Arm, ...]
    secure: tuple[Arm, ...]


BASELINE = Arm("float32", "float32")
NORM = 1500
"""A little above the norm of a device's weighted update (600 examples times about 2), from `covey compression try`."""

EXPERIMENTS = {
    "2nn": Experiment(
        "mnist-2nn",
        200,
        (0, 1, 2),
        (0.05, 0.1, 0.2, 0.4),
        10,
        (
            Arm("1610.05492: HD, 1/16, 2 bits", "hd|subsample:0.0625|quantize:2"),
            Arm("EDEN, 1 bit", "hd|eden:1"),
            Arm("EDEN, 0.1 bit", "hd|eden:0.1"),
            Arm("HD interleaved, wide steps, entropy coded", "hd:interleaved|uniform:5"),
            Arm("HD, wide steps, entropy coded", "hd|uniform:6"),
            Arm("wide steps, entropy coded", "uniform:8"),
            Arm("structured: mask 1/16, EDEN 1 bit", "mask:0.0625|hd|eden:1"),
            Arm("structured: rank 16 of 256, EDEN 1 bit", "lowrank:16|hd|eden:1"),
            Arm("top 1 %, 2 bits", "topk:0.01|quantize:2"),
        ),
        (
            Arm("secure, 32-bit ring", f"hd|ring:32:10:{NORM}", 10),
            Arm("secure, 8 bits for 10, 1/8", f"hd|subsample:0.125|ring:8:10:{NORM}", 10),
            Arm("secure, 12 bits for 100, 1/16", f"hd|subsample:0.0625|ring:12:100:{NORM}", 100),
            Arm("secure, mask 1/8, 8 bits for 10", f"mask:0.125|hd|ring:8:10:{NORM // 2}", 10),
        ),
    ),
    "cnn": Experiment(
        "mnist-cnn",
        25,
        (0, 1, 2),
        (0.1,),
        10,
        (
            Arm("1610.05492: HD, 1/16, 2 bits", "hd|subsample:0.0625|quantize:2"),
            Arm("EDEN, 0.1 bit", "hd|eden:0.1"),
        ),
        (
            Arm("secure, 32-bit ring", f"hd|ring:32:10:{NORM}", 10),
            Arm("secure, 8 bits for 10, 1/8", f"hd|subsample:0.125|ring:8:10:{NORM}", 10),
        ),
    ),
    "cifar": Experiment(
        str(Path(__file__).with_name("cifar_small.py")),
        60,
        (0, 1, 2),
        (0.05,),
        50,
        (
            Arm("1610.05492: HD, 1/16, 2 bits", "hd|subsample:0.0625|quantize:2"),
            Arm("EDEN, 0.1 bit", "hd|eden:0.1"),
        ),
        (
            Arm("secure, 32-bit ring", f"hd|ring:32:10:{NORM}", 10),
            Arm("secure, 8 bits for 10, 1/8", f"hd|subsample:0.125|ring:8:10:{NORM}", 10),
        ),
    ),
}


def main() -> None:
    report = Report(__doc__, _configure)
    args = report.args
    speed(report, 9 if args.quick else 25)
    draws = 6 if args.quick else 60
    eden_error(report, draws)
    if (missing := _missing_data()) is not None:
        for name, goal in (("upload bytes, plain path", ">= 100"), ("upload bytes, secure path", ">= 16")):
            report.goal(name, None, goal, None, missing)
        report.finish()
        return
    end_at_s = time.monotonic() - report.elapsed_s + (42.0 if args.quick else args.budget_s)
    store = CurveStore(Path(args.state), end_at_s)
    if args.quick:
        quick(report, store)
    else:
        for name in args.models.split(","):
            if name == "private":
                compare_private(report, store, EXPERIMENTS["2nn"].seeds[: args.seeds])
                continue
            compare(report, store, name, EXPERIMENTS[name], args.seeds)
    report.finish()


def _configure(parser: argparse.ArgumentParser) -> None:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    parser.add_argument(
        "--models", default="2nn,private,cnn,cifar", help="some of 2nn, private, cnn and cifar; all unless told"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, up to 3")
    parser.add_argument("--budget-s", type=float, default=7200.0, help="begin no run after so many seconds")
    parser.add_argument("--state", default=f"{cache}/covey/benchmarks/compression", help="where curves are kept")


def speed(report: Report, repeats: int) -> None:
    """Time encoding on one core, in a process whose linear algebra has one thread."""
    environment = {**os.environ, **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
    command = [sys.executable, "-m", "benchmarks.compression_speed", str(repeats)]
    measured = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    columns = ["spec", "bytes", "bits a value", "error", "encode ms", "decode ms", "GB/s", "memcpy GB/s"]
    keys = ("spec", "bytes", "bits", "error", "encode_ms", "decode_ms", "encode_gb_s", "copy_gb_s")
    rows = measured["rows"]
    report.table(
        f"encoding {NUM_PARAMETERS:,} parameters (t3) on one core, median of {measured['repeats']}",
        columns,
        [[r[k] for k in keys] for r in rows],
    )
    for spec in ("hd|subsample:0.0625|quantize:2", "hd|eden:1", "hd|eden:2", "hd|uniform:1.2"):
        took_ms = next(r["encode_ms"] for r in rows if r["spec"] == spec)
        report.goal(f"encode and pack 1.66M, {spec}, ms", took_ms, "<= 30", took_ms <= 30)
    ring_ms = next(r["encode_ms"] for r in rows if r["spec"].startswith("hd|ring"))
    report.goal("encode and pack 1.66M, hd|ring:12, ms (no noise)", ring_ms, "<= 30", ring_ms <= 30)


def eden_error(report: Report, draws: int) -> None:
    """Measure EDEN's error on three distributions."""
    rows, worst = [], 0.0
    make = {
        "Gaussian": lambda r: r.standard_normal(2**17),
        "log-normal": lambda r: r.lognormal(0, 1, 2**17),
        "t3": lambda r: r.standard_t(3, 2**17),
    }
    private = AesCtr(bytes(32), private=False)
    for kind, draw in make.items():
        errors: dict[int, list[float]] = {b: [] for b in _EXPECTED_ERROR}
        for i in range(draws):
            values = draw(np.random.default_rng([3, i])).astype(np.float32)
            seed = i.to_bytes(32, "little")
            for bits, found in errors.items():
                codec = codec_named(f"hd|eden:{bits}")
                difference = codec.decode(codec.encode(values, seed, private), values.size, seed) - values
                found.append(float(np.vdot(difference, difference) / np.vdot(values, values)))
        means = {b: statistics.mean(v) for b, v in errors.items()}
        worst = max(worst, *(abs(means[b] / e - 1) for b, e in _EXPECTED_ERROR.items()))
        rows.append([kind, *(f"{means[b]:.4f}" for b in _EXPECTED_ERROR)])
    report.table(f"error of HD + EDEN, d = 2^17, mean of {draws} draws", ["vector", "1", "2", "3", "4 bits"], rows)
    report.goal(
        "EDEN's error: farthest from .571 .133 .0357 .0096, %",
        100 * worst,
        "<= 2",
        100 * worst <= 2 if draws >= 60 else None,
        "" if draws >= 60 else f"{draws} draws; the goal is about 60",
    )


def quick(report: Report, store: CurveStore) -> None:
    """Compare two arms over few rounds: a look, which can tell no goal."""
    settings = {"partition": "two-class", "lr": 0.1}
    spec = "hd|eden:0.1"
    base = store.curve("mnist-2nn", "float32", 0, 20, **settings)
    other = store.curve("mnist-2nn", spec, 0, 20, **settings)
    reason = f"20 rounds of mnist-2nn, one seed, {spec}; the goal is about the full run"
    ratio = None
    if base is not None and other is not None:
        target = max(base.accuracies) - _POINT
        sent = [bytes_to(c, target) for c in (base, other)]
        report.facts(target=f"{target:.4f}", float32_bytes=sent[0], compressed_bytes=sent[1])
        ratio = sent[0] / sent[1] if sent[0] and sent[1] else None
    report.goal("upload bytes, plain path", ratio, ">= 100", None, reason)
    report.goal("upload bytes, secure path", None, ">= 16", None, "not in a quick run")


def compare(report: Report, store: CurveStore, name: str, experiment: Experiment, num_seeds: int) -> None:
    """Run, or read, all arms of one experiment, and print what they cost."""
    settings: dict[str, Any] = {"partition": "two-class"}
    if experiment.batch_size != 10:
        settings["batch_size"] = experiment.batch_size
    tuned = {
        lr: store.curve(experiment.recipe, "float32", 0, experiment.rounds, lr=lr, **settings)
        for lr in experiment.learning_rates
    }
    if None in tuned.values():
        report.goal(f"{name}: upload bytes", None, ">= 100", None, "out of budget while tuning; run it again")
        return
    settings["lr"] = max(experiment.learning_rates, key=lambda lr: max(_present(tuned[lr]).accuracies))
    seeds = experiment.seeds[:num_seeds]
    base = {s: store.curve(experiment.recipe, "float32", s, experiment.rounds, **settings) for s in seeds}
    label = Path(experiment.recipe).stem
    report.facts(
        model=label,
        learning_rate=settings["lr"],
        tried={lr: f"{max(_present(c).accuracies):.4f}" for lr, c in tuned.items()},
        rounds=experiment.rounds,
        seeds=seeds,
        A_star=[None if c is None else f"{max(c.accuracies):.4f}" for c in base.values()],
    )
    targets = {s: max(c.accuracies) - _POINT for s, c in base.items() if c is not None}
    arms = (BASELINE, *experiment.secure, *experiment.plain)
    curves: dict[str, dict[int, Curve | None]] = {a.name: {} for a in arms}
    for s, target in targets.items():  # one seed of every arm before the next: a short budget compares all of them
        for arm in arms:
            stop = None if arm is BASELINE else target  # stopping at the target changes nothing before it
            curves[arm.name][s] = store.curve(experiment.recipe, arm.spec, s, experiment.rounds, stop, **settings)
    sent = {a.name: _sent(a, curves[a.name], targets) for a in arms}
    rows, ratios = [], {}
    for arm in (BASELINE, *experiment.plain, *experiment.secure):
        reference = experiment.secure[0] if arm.secure_devices else BASELINE
        ratios[arm.name] = _times_fewer(sent[reference.name], sent[arm.name])
        rows.append(_row(arm, curves[arm.name], targets, sent[arm.name], ratios[arm.name]))
    report.table(
        f"{label}: cumulative upload of 10 devices a round until A* - 1 point",
        ["row", "spec", "bytes a report", "rounds, by seed", "MB", "times fewer"],
        rows,
    )
    for path, candidates, goal in (("plain", experiment.plain, 100.0), ("secure", experiment.secure[1:], 16.0)):
        known = [a for a in candidates if ratios[a.name] is not None]
        best = max(known, key=lambda a: (len(sent[a.name]), ratios[a.name] or 0.0), default=None)  # of most seeds
        value = None if best is None else ratios[best.name]
        report.goal(
            f"{label}: upload bytes, {path} path, times fewer",
            value,
            f">= {goal:g}",
            None if value is None else value >= goal,
            "out of budget; run it again" if best is None else f"{len(sent[best.name])} seed(s), {best.spec}",
        )


def _present(curve: Curve | None) -> Curve:
    assert curve is not None
    return curve


def _row(
    arm: Arm,
    curves: dict[int, Curve | None],
    targets: dict[int, float],
    sent: dict[int, int | None],
    times_fewer: float | None,
) -> list[Any]:
    present = {s: c for s, c in curves.items() if c is not None}
    if not present:
        return [arm.name, arm.spec, None, "not run", None, None]
    per_report = statistics.mean(c.bytes_up[0] / 10 for c in present.values()) + arm.key_bytes()
    rounds = [reached_round(c, targets[s]) for s, c in present.items()]
    reached = [n for n in sent.values() if n is not None]
    return [
        arm.name,
        arm.spec,
        f"{per_report:,.0f}",
        " ".join("never" if r is None else str(r) for r in rounds),
        "-" if len(reached) < len(sent) else f"{statistics.mean(reached) / 1e6:.3f}",
        "-" if times_fewer is None else f"{times_fewer:.1f}",
    ]


def _sent(arm: Arm, curves: dict[int, Curve | None], targets: dict[int, float]) -> dict[int, int | None]:
    """Return the bytes sent until the target for each seed that was run; None where it was never reached."""
    out: dict[int, int | None] = {}
    for s, curve in curves.items():
        if curve is not None:
            at = reached_round(curve, targets[s])
            out[s] = None if at is None else curve.bytes_up[at - 1] + 10 * at * arm.key_bytes()
    return out


def _times_fewer(reference: dict[int, int | None], sent: dict[int, int | None]) -> float | None:
    """Return the ratio of the means over the seeds of ``sent``; None where one of them never reached its target."""
    pairs = [(reference.get(s), n) for s, n in sent.items()]
    if not pairs or any(r is None or n is None for r, n in pairs):
        return None
    return sum(r for r, _ in pairs if r is not None) / sum(n for _, n in pairs if n is not None)


def _missing_data() -> str | None:
    recipe = load_recipe("mnist-2nn")
    try:
        recipe.data(recipe.settings, 0)
    except DatasetMissingError as error:
        return f"no MNIST here ({error.hint})"
    return None


if __name__ == "__main__":
    try:
        main()
    except CoveyError as error:
        raise SystemExit(f"{error}\n  hint: {error.hint}") from error
