"""Run every benchmark, one after the other, and print which goals hold.

``python -m benchmarks [--quick] [--json FILE]``
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import Goal

RUNS = [
    ("simulation", "--model", "2nn"),
    ("simulation", "--model", "cnn"),
    ("production_path",),
    ("rounds",),
    ("population",),
    ("demo",),
    ("compression",),
    ("device_memory",),
    ("device",),
    ("first_round",),
    ("privacy",),
    ("secagg",),
    ("predict",),
    ("personalization",),
    ("pace",),
    ("chaos",),
    ("server",),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each within 50 s on two cores")
    parser.add_argument("--json", metavar="FILE", help="write all results as one JSON object")
    args = parser.parse_args()
    results, failed = {}, []
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as folder:
        for number, (module, *flags) in enumerate(RUNS):
            name = " ".join([module, *flags])
            print(f"== {name}", flush=True)
            file = Path(folder) / f"{number}.json"
            quick = ["--quick"] if args.quick else []
            command = [sys.executable, "-m", f"benchmarks.{module}", *flags, *quick, "--json", str(file)]
            if subprocess.run(command).returncode or not file.exists():
                failed.append(name)
            else:
                results[name] = json.loads(file.read_text())
            print()
    print("== goals")
    for result in results.values():
        for goal in result["goals"]:
            print(Goal(**goal).line())
    for name in failed:
        print(f"FAILED         {name}")
    if args.json:
        Path(args.json).write_text(json.dumps({"results": results, "failed": failed}, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
