"""Does a model tuned on the device serve its owner better than the federated one, and never by chance worse?

Two data sets: Shakespeare's roles (next characters) and MNIST by writer. The global model is trained by simulation on
every device's train part (60 % of its examples, by a hash of each). Then each device tunes it, as an application's
``PersonalModel`` does: on the train part, with the gate part (20 %) deciding whether the tuned model is used. The
report part (20 %) is seen by nobody before: the table is about it. For the roles there are, besides, the lines that
come later in the plays.

"Worse than chance allows" is a test. A device counts as shown to be worse if the sign-flip test on its report part
says so at 5 %. Were no tuned model in use worse than its release, those would be a binomial number with that
probability: the goal is to stay within its 99 % quantile.

``python -m benchmarks.personalization [--quick] [--state DIR] [--only 0|1] [--devices N] [--json FILE]``
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.report import Report
from covey.data.dataset import Examples
from covey.device.comparison import Part, block_losses, hashes, sign_flip_p_value, split
from covey.device.evaluate import Evaluator
from covey.device.examples import ExampleStore
from covey.device.personal import PersonalModel
from covey.device.released import Served
from covey.plans.release import delegate, encode_release, sign_release
from covey.plans.signing import generate_owner_key, sign_plan
from covey.recipes.recipe import load_recipe
from covey.simulation.run import SimulationOptions, simulate
from covey.types.tensors import sha256_hex

HERE = Path(__file__).parent
LEVEL = 0.05
PARTS = {"report": "report part", "later": "later lines"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set: its recipe's file, how many rounds the global model gets, and how many devices tune."""

    name: str
    recipe: str
    rounds: int
    devices: int
    quick_devices: int


CASES = (
    Case("Shakespeare's roles", str(HERE / "personal_roles.py"), 100, 100, 8),
    Case("MNIST by writer", str(HERE / "personal_writers.py"), 100, 300, 12),
)


class Released:
    """A release of a simulated model, as a server would hand it out."""

    def __init__(self, plan: bytes, checkpoint: bytes) -> None:
        self.owner, key = generate_owner_key(), generate_owner_key()
        self.blobs = {sha256_hex(plan): plan, sha256_hex(checkpoint): checkpoint}
        delegation = delegate(self.owner, "bench", key.public_key(), 1 << 40)
        made = sign_release(
            key, delegation, version=1, plan=sha256_hex(plan), checkpoint=sha256_hex(checkpoint),
            plan_signature=sign_plan(self.owner, "bench", sha256_hex(plan)).hex(), num_bytes=len(checkpoint),
            created_at=0,
        )  # fmt: skip
        self.data = encode_release(made)

    def release(self, population: str) -> bytes:
        """See :class:`covey.device.released.ReleaseSource`."""
        return self.data

    def fetch(self, ref: Any, credential: str) -> Any:
        """See :class:`covey.device.released.ReleaseSource`."""
        yield self.blobs[ref.sha256]


def trained(case: Case, state: Path, quick: bool) -> Released:
    """Return the global model: from ``state``, or trained now by simulation."""
    rounds = case.rounds // 5 if quick else case.rounds
    out = state / f"{Path(case.recipe).stem}-{rounds}"
    if not (out / "report.json").exists():
        simulate(case.recipe, None, SimulationOptions(rounds=rounds, workers=1, eval_every=rounds, out=out))
    return Released((out / "plan.covey").read_bytes(), (out / "checkpoint.params").read_bytes())


def one_device(released: Released, schema: Any, train: Examples, later: Examples, home: Path) -> dict[str, Any]:
    """Let one device tune, and look at the report part."""
    with ExampleStore.of_home(home) as store:
        store.add_many(schema.query.collection, train, schema)
    model = PersonalModel(home, released.owner.public_key(), "bench")
    model.refresh(released)
    started_s = time.monotonic()
    tuning = model.tune()
    seconds = time.monotonic() - started_s
    served, personal = model._served, model._personal
    assert isinstance(served, Served)
    evaluator = Evaluator(served.plan)
    row: dict[str, Any] = {"used": tuning.used, "passes": tuning.passes, "seconds": seconds}
    report = split({k: v[: served.plan.manifest.max_examples] for k, v in train.items()})["report"]
    for name, part in (("report", report), ("later", Part(later, hashes(later)))):
        if not len(part):
            continue
        before = evaluator.evaluate(served.params, part.examples)
        after = before if personal is None else evaluator.evaluate(personal, part.examples)
        row[name] = [m["correct"] / m["weight"] for m in (before, after)]
        if personal is not None:
            losses = [block_losses(evaluator, p, part) for p in (served.params, personal)]
            row[f"{name}_worse_p"] = sign_flip_p_value(losses[1] - losses[0])
    return row


def summary(name: str, rows: list[dict[str, Any]], part: str) -> list[Any]:
    """Return a row of the table: accuracies over devices, each device counting once."""
    before, after = np.array([r[part] for r in rows if part in r]).T
    return [
        name,
        len(before),
        f"{before.mean():.1%}",
        f"{after.mean():.1%}",
        f"{np.quantile(before, 0.1):.1%}",
        f"{np.quantile(after, 0.1):.1%}",
        f"{(after > before).mean():.0%}",
        f"{(after < before).mean():.0%}",
    ]


COLUMNS = ("on", "devices", "global", "personal", "global p10", "personal p10", "improved", "worse")


def run_case(report: Report, case: Case, released: Released, num_devices: int) -> None:
    recipe = load_recipe(case.recipe)
    dataset: Any = recipe.data(recipe.settings, 0)
    clients = dataset.client_ids
    chosen = [clients[i] for i in np.linspace(0, len(clients) - 1, min(num_devices, len(clients))).astype(int)]
    rows = []
    for client in chosen:
        with tempfile.TemporaryDirectory(prefix="covey-personal-") as folder:
            whole, later = dataset.whole.train(client), dataset.test(client)
            rows.append(one_device(released, recipe.examples, whole, later, Path(folder)))
    used = [r for r in rows if r["used"]]
    table = [summary("report part", rows, "report")]
    if used:
        table.append(summary("report part, devices with a tuned model", used, "report"))
    if any("later" in r for r in rows):
        table.append(summary("later lines", rows, "later"))
    report.table(f"{case.name}: accuracy", COLUMNS, table)
    seconds = float(np.median([r["seconds"] for r in rows]))
    report.note(f"{len(used)} of {len(rows)} devices use a tuned model; to tune takes {seconds:.1f} s (median)")
    bound = int(stats.binom.ppf(0.99, len(used), LEVEL))
    for part in ("report", "later"):
        if any(f"{part}_worse_p" in r for r in used):
            worse = sum(r.get(f"{part}_worse_p", 1.0) <= LEVEL for r in used)
            name = f"{case.name}, {PARTS[part]}: tuned models shown to be worse"
            report.goal(name, worse, f"<= {bound}", worse <= bound, f"of {len(used)}")


def main() -> int:
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--state", type=Path, metavar="DIR", help="where the global models are kept between runs")
        parser.add_argument("--only", type=int, choices=range(len(CASES)), help="one data set, by its number")
        parser.add_argument("--devices", type=int, metavar="N", help="how many devices tune, for each data set")

    report = Report(__doc__, configure)
    args = report.args
    with tempfile.TemporaryDirectory(prefix="covey-personal-state-") as folder:
        for case in CASES if args.only is None else (CASES[args.only],):
            released = trained(case, args.state or Path(folder), args.quick)
            report.note(f"{case.name}: the global model is there after {report.elapsed_s:.0f} s")
            run_case(report, case, released, args.devices or (case.quick_devices if args.quick else case.devices))
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
