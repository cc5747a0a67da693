"""Every algorithm keeps the shared contract, and both engines compute its device half alike."""

import numpy as np
import pytest

from covey.algorithms.registry import ALGORITHMS
from covey.device.trainer import OnnxTrainer, TrainingJob
from covey.plans.lowering.check import tolerance
from covey.testing.algorithms import Subject, algorithm_checks
from covey.types.segments import HEADER

from .plans import world

SEED = bytes(range(32))


@pytest.mark.parametrize("check", algorithm_checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_keeps_the_contract(name, check):
    plan, server, *_ = world(name)
    check(Subject(server, plan.manifest))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_both_engines_compute_the_same_update_in_every_phase(name):
    plan, server, trainer, params, dataset = world(name)
    hyper = {h.name: h.default / 10 for h in plan.manifest.hyper if h.name == "lr"}
    state = server.init(params)
    rng = np.random.default_rng(0)
    for phase, step in enumerate(server.phases):
        shared = {k: rng.standard_normal(v.shape).astype(v.dtype) for k, v in step.shared(state).items()}
        kept = {s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in plan.manifest.phases[phase].kept}
        job = TrainingJob(plan, phase, params, shared, hyper, SEED, kept)
        a, b = (t.run(job, dataset.train("client-7")) for t in (trainer, OnnxTrainer()))
        assert (
            a.segments.keys() == b.segments.keys() == {HEADER, *(s.name for s in plan.manifest.phases[phase].segments)}
        )
        # About 40 roundings in a step, relative to the largest value; SCAFFOLD divides a change by the sum of its
        # learning rates, 0.03 for each of 6 steps.
        room = 1 / (0.03 * 6) if name == "scaffold" else 1.0
        for values, others in [(v, b.segments[k]) for k, v in a.segments.items()] + [
            (v, b.kept[k]) for k, v in a.kept.items()
        ]:
            assert np.abs(values - others).max() <= room * tolerance(40 * a.num_steps) * max(1.0, np.abs(values).max())
