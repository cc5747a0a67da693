import math

import msgspec
import pytest
from device import world
from hypothesis import given
from hypothesis import strategies as st

from covey.plans.evaluation import DIFFERENCE_LIMIT, DIFFERENCE_SCALE, comparison, evaluation_plan
from covey.plans.lint import lint_plan
from covey.plans.manifest import COMPARISON, EVALUATION_SCHEMA, NoiseTerms, decode_manifest, encode_manifest
from covey.plans.plan import unpack_plan
from covey.types.errors import PlanBuildError, PlanFormatError
from covey.types.segments import HEADER

replace = msgspec.structs.replace


def evaluation(**options):
    return unpack_plan(evaluation_plan(world.plan(), **options))


def test_an_evaluation_plan_sends_the_header_alone_over_held_out_examples():
    base, plan = world.plan(), evaluation()
    lint_plan(plan)
    manifest = plan.manifest
    (phase,) = manifest.phases
    assert (phase.graph, phase.segments, phase.shared, phase.compares) == ("eval", (), base.manifest.params, "loss")
    assert [s.name for s in manifest.layout(0)] == [HEADER]
    assert manifest.layout(0)[0].length == 2 + len(base.manifest.metrics) + len(COMPARISON)
    assert manifest.examples.query == replace(base.manifest.examples.query, split="test")
    assert manifest.graph_metrics == base.manifest.metrics
    assert plan.graphs == {"eval": base.graphs["eval"]}
    assert manifest.privacy == base.manifest.privacy
    assert evaluation_plan(base) == evaluation_plan(base)


def test_an_evaluation_against_personal_models_broadcasts_no_second_model():
    manifest = evaluation(against="personal").manifest
    (phase,) = manifest.phases
    assert (phase.against, phase.shared, phase.compares) == ("personal", (), "loss")
    same = replace(phase, against="", shared=manifest.params)
    assert replace(manifest, phases=(same,)) == evaluation().manifest
    with pytest.raises(PlanBuildError, match="none named, or personal"):
        evaluation(against="neighbour")


def test_only_a_metric_of_the_task_is_compared():
    assert evaluation(compares="correct").manifest.phases[0].compares == "correct"
    for wrong in ("weight", "examples", "compared", "perplexity", ""):
        with pytest.raises(PlanBuildError, match="a metric among loss, correct"):
            evaluation_plan(world.plan(), compares=wrong)


NOISE = NoiseTerms(
    kind="gaussian", clip=1.0, clip_low=1.0, clip_high=1.0, noise_multiplier=1.0, clip_units=1000, denominator=2,
    population=100, delta=1e-3, num_rounds=1, coordinate_bound=1 << 20,
)  # fmt: skip


def test_a_plan_with_differential_privacy_cannot_be_evaluated_and_says_why():
    base = world.plan()
    private = replace(base.manifest, privacy=replace(base.manifest.privacy, noise=NOISE))
    with pytest.raises(PlanBuildError) as caught:
        evaluation_plan(type(base)(private, base.graphs, base.hash, base.num_bytes))
    assert "metrics get no noise" in caught.value.hint


PHASE = evaluation().manifest.phases[0]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"schema": EVALUATION_SCHEMA - 1}, "schema"),
        ({"phases": (PHASE, PHASE)}, "phases"),
        ({"phases": (replace(PHASE, segments=world.plan().manifest.phases[0].segments),)}, "phases"),
        ({"phases": (replace(PHASE, shared=()),)}, "shared"),
        ({"phases": (replace(PHASE, against="personal"),)}, "against"),  # it would broadcast a model to no purpose
        ({"phases": (replace(PHASE, against="neighbour"),)}, "against"),
        ({"phases": (replace(PHASE, against="neighbour", shared=()),)}, "against"),
        ({"phases": (replace(PHASE, compares="nothing"),)}, "compares"),
        ({"phases": (replace(PHASE, compares="weight"),)}, "compares"),
        ({"phases": (replace(PHASE, graph="train"),)}, "segments"),
        ({"phases": (replace(PHASE, graph="predict"),)}, "graph"),
        ({"metrics": world.plan().manifest.metrics}, "metrics"),
        ({"hyper": world.plan().manifest.hyper}, "hyper"),
        ({"privacy": replace(world.plan().manifest.privacy, noise=NOISE)}, "noise"),
    ],
)
def test_a_manifest_that_is_no_evaluation_is_refused(fields, where):
    with pytest.raises(PlanFormatError, match=where):
        decode_manifest(encode_manifest(replace(evaluation().manifest, **fields)))


def test_a_training_phase_compares_nothing():
    base = world.plan().manifest
    with pytest.raises(PlanFormatError, match="compares"):
        decode_manifest(encode_manifest(replace(base, phases=(replace(base.phases[0], compares="loss"),))))
    with pytest.raises(PlanFormatError, match="compares"):
        decode_manifest(encode_manifest(replace(base, phases=(replace(base.phases[0], against="personal"),))))


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_a_comparison_is_the_clipped_difference_of_two_means(first, second):
    made = comparison("loss", first, second)
    expected = max(-DIFFERENCE_LIMIT, min(DIFFERENCE_LIMIT, first - second))
    assert made == {
        "compared": 1.0,
        "difference": expected * DIFFERENCE_SCALE,
        "difference_squared": (expected * DIFFERENCE_SCALE) ** 2,
    }
    assert made["difference_squared"] < 2.0**26  # fits the header


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_that_breaks_down_is_the_worse_one(broken):
    limit = DIFFERENCE_LIMIT * DIFFERENCE_SCALE
    assert comparison("loss", broken, 1.0)["difference"] == limit
    assert comparison("loss", 1.0, broken)["difference"] == -limit
    assert comparison("correct", math.nan, 0.5)["difference"] == -limit
    assert comparison("correct", 0.5, math.nan)["difference"] == limit
    assert comparison("loss", broken, broken)["difference"] == 0.0
