"""How good is the demo's keyboard, and how long does its reader wait?

``covey demo`` as a reader runs it (24 devices, 60 rounds): a server and the devices in processes of their own, over
HTTPS. Accuracies are top-1, pooled over the held-out lines of all devices; the models that it is compared with take as
many steps. Once with an empty plan cache, as on the first run, and then with the plan cached.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import Report


def demo(cache: Path, rounds: int) -> dict[str, Any]:
    """Run the demo and return its JSON."""
    command = [sys.executable, "-m", "covey", "demo", "--no-prompt", "--rounds", str(rounds), "--json", "-"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, timeout=600
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    report = Report(__doc__)
    quick = report.args.quick
    rounds, repeats = (20, 1) if quick else (60, 3)
    report.facts(rounds=rounds, devices=24, seeds="parameters and data 0; timing is real", repeats=repeats)
    runs = []
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as name:
        for _ in range(repeats):
            runs.append(demo(Path(name), rounds))
            table = ", ".join(f"{k} {v:.1%}" for k, v in runs[-1]["table"].items())
            report.note(f"{table}; first round {runs[-1]['first_round_s']:.1f} s, all {runs[-1]['seconds']:.0f} s")
    middle = {k: statistics.median(100 * r["table"][k] for r in runs) for k in runs[0]["table"]}
    report.table("accuracy after all rounds, % (median of runs)", list(middle), [list(middle.values())])
    why = f"quick: {rounds} rounds of 60" if quick else ""
    above, below = middle["federated"] - middle["local"], middle["central"] - middle["federated"]
    seconds = max(r["seconds"] for r in runs)
    report.goal("federated above the mean local-only model, points", above, ">= 5", None if quick else above >= 5, why)
    report.goal("federated below the central model, points", below, "<= 3", None if quick else below <= 3, why)
    report.goal("the whole demo, s (slowest)", seconds, "< 90", None if quick else seconds < 90, why)
    first = runs[0]["first_round_s"]
    report.goal("first round, plan not cached, s", first, "<= 12", first <= 12)
    report.finish()


if __name__ == "__main__":
    main()
