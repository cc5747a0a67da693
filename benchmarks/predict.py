"""How much longer does PersonalModel.predict take than the bare runtime with the same graph and the same inputs?

The keyboard's model answers one context after another, offline: bare onnxruntime with its inputs made ready beforehand,
and ``PersonalModel.predict``, which checks the inputs and looks now and then for a newer release. Both in turns in one
process, single calls timed. The goal is about the 99th percentile.

``python -m benchmarks.predict [--quick] [--json FILE]``
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.personalization import Released
from benchmarks.report import Report
from covey.device.personal import PersonalModel
from covey.plans.manifest import PrivacyTerms
from covey.recipes.keyboard import CONTEXT
from covey.recipes.prepare import prepare
from covey.recipes.recipe import load_recipe


def bare_session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def timed(call: Any, inputs: list[Any]) -> list[float]:
    out = []
    for x in inputs:
        started_s = time.perf_counter()
        call(x)
        out.append(1e6 * (time.perf_counter() - started_s))
    return out


def main() -> int:
    report = Report(__doc__)
    turns = 10 if report.args.quick else 60
    recipe = load_recipe("keyboard")
    prepared = prepare(recipe, "keyboard", recipe.settings, PrivacyTerms(), recipe.data(recipe.settings, 0))
    released = Released(prepared.plan_bytes, prepared.checkpoint)
    session = bare_session(prepared.plan.graphs["predict"])
    wanted = {i.name for i in session.get_inputs()}
    fixed = {f"params.{k}": v for k, v in prepared.params.items() if f"params.{k}" in wanted}
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, 60, CONTEXT).astype(np.int32) for _ in range(500)]
    feeds = [{**fixed, "input.x": x[None]} for x in inputs]
    times: dict[str, list[float]] = {"bare onnxruntime": [], "PersonalModel.predict": []}
    with tempfile.TemporaryDirectory() as folder:
        model = PersonalModel(Path(folder), released.owner.public_key(), "bench")
        model.refresh(released)
        for turn in range(turns + 1):
            bare = timed(lambda f: session.run(None, f), feeds)
            ours = timed(model.predict, [{"x": x} for x in inputs])
            if turn:  # the first warms up
                times["bare onnxruntime"] += bare
                times["PersonalModel.predict"] += ours
    report.facts(calls=len(times["bare onnxruntime"]), model="keyboard, 37,000 parameters")
    rows = [[n, *(f"{np.quantile(t, q):.0f}" for q in (0.5, 0.9, 0.99))] for n, t in times.items()]
    report.table("microseconds a call", ("what", "median", "p90", "p99"), rows)
    bare99, ours99 = (float(np.quantile(t, 0.99)) for t in times.values())
    report.goal("predict p99 over bare onnxruntime's", ours99 / bare99, "<= 1.5", ours99 <= 1.5 * bare99)
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
