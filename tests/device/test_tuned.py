"""The tuned model as an evaluation sees it: which one is at hand, what it is measured on, and that it stays here."""

import msgspec
import numpy as np
import pytest

from covey.device.child import ChildTrainer
from covey.device.comparison import hashes
from covey.device.evaluate import evaluate
from covey.device.personal import PersonalModel
from covey.device.recorder import _summary
from covey.device.released import ReleaseStore
from covey.device.trainer import OnnxTrainer, TrainingJob
from covey.device.tuned import TunedModel, personal_params
from covey.plans.evaluation import comparison, evaluation_plan
from covey.plans.manifest import COMPARISON
from covey.plans.plan import unpack_plan
from covey.types.tensors import pack_tensors, unpack_tensors

from . import world
from .release_server import ReleaseServer

PLAN = unpack_plan(evaluation_plan(world.plan(), against="personal"))
SPECS = PLAN.manifest.params
GLOBAL = unpack_tensors(SPECS, world.checkpoint())
TUNED = {"b": np.float32([0.5, -0.25]), "w": np.float32([[-2, 2]] * 3)}
EXAMPLES = world.points(40, seed=7)


@pytest.fixture
def home(tmp_path):
    """Return the state directory of a device that serves release 1 and uses a tuned model."""
    server = ReleaseServer()
    server.publish(1, world.checkpoint())
    model = PersonalModel(tmp_path, world.OWNER.public_key(), world.POPULATION, clock=lambda: 1000.0)
    model.refresh(server)
    TunedModel(store(tmp_path)).keep(store(tmp_path).load(), TUNED)
    return tmp_path


def store(home):
    return ReleaseStore(home, world.OWNER.public_key(), world.POPULATION)


def changed(manifest, **fields):
    return msgspec.structs.replace(manifest, **fields)


def test_the_model_in_use_is_handed_to_an_evaluation(home):
    found = personal_params(store(home), PLAN.manifest)
    assert pack_tensors(found, SPECS) == pack_tensors(TUNED, SPECS)


def test_a_device_without_one_has_none(home, tmp_path_factory):
    assert personal_params(store(tmp_path_factory.mktemp("fresh")), PLAN.manifest) == {}
    TunedModel(store(home)).forget()
    assert personal_params(store(home), PLAN.manifest) == {}


def test_a_model_that_was_tuned_from_an_earlier_release_is_not_in_use(home):
    server = ReleaseServer()
    server.publish(2, pack_tensors(TUNED, SPECS))
    PersonalModel(home, world.OWNER.public_key(), world.POPULATION, clock=lambda: 1000.0).refresh(server)
    assert personal_params(store(home), PLAN.manifest) == {}


def test_a_plan_of_another_model_or_of_other_examples_gets_none(home):
    manifest = PLAN.manifest
    assert personal_params(store(home), changed(manifest, params=manifest.params[:1])) == {}
    fields = (changed(manifest.examples.fields[0], shape=(4,)), *manifest.examples.fields[1:])
    other = changed(manifest, examples=changed(manifest.examples, fields=fields))
    assert personal_params(store(home), other) == {}
    assert personal_params(store(home), changed(manifest, max_examples=7, task="another")) != {}


@pytest.mark.parametrize("content", [b"", b"\xff\n", b'{"checkpoint":"","plan":"","sha256":""}\nxxxx'])
def test_a_damaged_one_is_not_used(home, content):
    (path,) = home.glob("personal/*/tuned")
    path.write_bytes(content)
    assert personal_params(store(home), PLAN.manifest) == {}


def job(personal=TUNED):
    return TrainingJob(PLAN, 0, GLOBAL, {}, {}, bytes(32), personal=personal)


def means(params, rows):
    part = {k: v[rows] for k, v in EXAMPLES.items()}
    sums = evaluate(PLAN, params, part)
    return sums["loss"] / sums["weight"]


def test_both_models_are_compared_on_the_report_part_and_the_checkpoint_is_evaluated_on_all():
    rows = np.flatnonzero(hashes(EXAMPLES) >= 0.8)  # docs/personalization.md: the last fifth of the hash's range
    assert 0 < len(rows) < 40
    result = OnnxTrainer().run(job(), EXAMPLES)
    expected = comparison("loss", means(GLOBAL, rows), means(TUNED, rows))
    assert {k: result.metrics[k] for k in COMPARISON} == pytest.approx(expected, rel=1e-9)
    everywhere = comparison("loss", means(GLOBAL, slice(None)), means(TUNED, slice(None)))
    assert abs(expected["difference"] - everywhere["difference"]) > 1  # a thousandth: the part does matter
    every = evaluate(PLAN, GLOBAL, EXAMPLES)
    assert {k: result.metrics[k] for k in every} == every and result.num_examples == 40
    assert result.kept == {} and list(result.segments) == ["header"]


def test_what_the_model_was_tuned_on_has_no_say():
    """Examples of the other parts may change as they like: the comparison does not."""
    rows = np.flatnonzero(hashes(EXAMPLES) >= 0.8)
    alone = OnnxTrainer().run(job(), {k: v[rows] for k, v in EXAMPLES.items()}).metrics
    among = OnnxTrainer().run(job(), EXAMPLES).metrics
    assert {k: alone[k] for k in COMPARISON} == {k: among[k] for k in COMPARISON} and alone["compared"] == 1
    others = np.flatnonzero(hashes(EXAMPLES) < 0.8)
    without = OnnxTrainer().run(job(), {k: v[others] for k, v in EXAMPLES.items()}).metrics
    assert {k: without[k] for k in COMPARISON} == dict.fromkeys(COMPARISON, 0.0)


def test_without_a_tuned_model_nothing_is_compared():
    result = OnnxTrainer().run(job({}), EXAMPLES)
    assert {k: result.metrics[k] for k in COMPARISON} == dict.fromkeys(COMPARISON, 0.0)
    assert result.metrics["examples"] == 40


def test_a_child_process_compares_too():
    here, there = (t.run(job(), EXAMPLES).metrics for t in (OnnxTrainer(), ChildTrainer()))
    assert here == there and there["compared"] == 1


def test_the_owner_reads_in_the_ledger_what_was_compared():
    assert _summary(PLAN.manifest).endswith("compared with the model tuned on this device")
    assert "tuned" not in _summary(unpack_plan(evaluation_plan(world.plan())).manifest)
