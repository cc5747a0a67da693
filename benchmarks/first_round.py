"""How long does a practitioner wait from the command to the first finished round?

``covey simulate mnist-2nn`` from the command to its first printed round, evaluated on the whole test set: with the plan
in the cache, as after any change that leaves the task alone, and without. Peers: from the start of their process to the
end of their first round, without evaluation, with the same model and data (see benchmarks/simulation.py).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import Report, relative_spread
from benchmarks.simulation import CONTESTANTS, python_of
from covey.data.locate import cache_dir
from covey.data.registry import load

_PEERS = Path(__file__).parent / "peers"
_GOAL_S = 3.0


def covey(cache: Path) -> float:
    """Return the seconds from the command to the first round's line."""
    command = [sys.executable, "-m", "covey", "simulate", "mnist-2nn", "--rounds", "1"]
    started = time.perf_counter()
    data = os.environ.get("COVEY_DATA") or str(cache_dir())  # only the plans shall be missing
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "COVEY_DATA": data, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.split()[:1] == ["1"]:
                took = time.perf_counter() - started
                child.wait()
                return took
    raise SystemExit("covey simulate ended without a round")


def peer(environment: str, script: str, variant: str, data: Path) -> float:
    """Return the seconds from a peer's start to the end of its first round."""
    command = [str(python_of(environment)), str(_PEERS / script), "--data", str(data), "--model", "2nn"]
    command += ["--cohort", "10", "--variant", variant]
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        line = child.stdout.readline()
        took = time.perf_counter() - started
        child.stdin.close()
        if not line or not json.loads(line).get("ready"):
            raise SystemExit(f"{script} ended without a round")
    return took


def main() -> None:
    report = Report(__doc__)
    repeats = 1 if report.args.quick else 5
    report.facts(model="mnist-2nn", devices="100, 10 a round", seeds="0", repeats=f"{repeats}, in turns")
    data = load("mnist", partition="iid", num_clients=100, seed=0)
    clients = [data.train(c) for c in data.client_ids]
    times: dict[str, list[float]] = {"Covey, plan cached": [], "Covey, plan built": []}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as name:
        folder = Path(name)
        arrays = folder / "mnist.npz"
        labels = np.stack([c["y"] for c in clients]).astype(np.int64)
        np.savez(arrays, x=np.stack([c["x"] for c in clients]), y=labels)
        for repeat in range(repeats):
            cache = folder / f"cache-{repeat}"
            times["Covey, plan built"].append(covey(cache))
            times["Covey, plan cached"].append(covey(cache))
            for label, environment, script, variants in CONTESTANTS[1:]:
                if report.args.quick and label != "Flower":
                    absent[label] = "left out by --quick"
                elif python_of(environment).exists():
                    times.setdefault(label, []).append(peer(environment, script, variants[0], arrays))
                else:
                    absent[label] = f"not installed: benchmarks/peers/install_{environment}.sh"
    rows = [
        [label, statistics.median(taken), f"{min(taken):.2f} to {max(taken):.2f}", relative_spread(taken)]
        for label, taken in sorted(times.items(), key=lambda item: statistics.median(item[1]))
    ]
    rows += [[label, None, why, "-"] for label, why in absent.items()]
    report.table("seconds from the command to the first finished round", ["", "median", "range", "spread"], rows)
    cached = statistics.median(times["Covey, plan cached"])
    report.goal("covey simulate to its first round, plan cached, s", cached, f"<= {_GOAL_S:g}", cached <= _GOAL_S)
    report.finish()


if __name__ == "__main__":
    main()
