"""The personal model: verified releases that only move forward, and tuning that is used only where it helps."""

import functools
import os

import msgspec
import numpy as np
import pytest

from covey.device.examples import ExampleStore
from covey.device.personal import PersonalModel
from covey.device.trainer import TrainingStopped
from covey.device.tuning import tunable_phase
from covey.plans.release import decode_release, encode_release
from covey.plans.signing import generate_owner_key, sign_plan
from covey.types.errors import (
    BlobHashError,
    ExampleError,
    NoReleaseError,
    NotFoundError,
    PlanSignatureError,
    ReleaseRefusedError,
    StorageFullError,
    TransportError,
)
from covey.types.tensors import pack_tensors, sha256_hex, unpack_tensors

from . import world
from .release_server import EXPIRES_AT, RELEASE_KEY, ReleaseServer

PARAMS = world.plan().manifest.params


@functools.cache
def checkpoint(shift=0.0):
    """Return a model that leans towards class 1 the more, the larger ``shift`` is."""
    params = {k: np.array(v) for k, v in unpack_tensors(PARAMS, world.checkpoint()).items()}
    params["b"] = params["b"] + np.float32([0.0, shift])
    return pack_tensors(params, PARAMS)


@pytest.fixture
def server():
    return ReleaseServer()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def model(home, now_s=1000.0):
    home.mkdir(exist_ok=True)
    return PersonalModel(home, world.OWNER.public_key(), world.POPULATION, clock=lambda: now_s)


INPUT = {"x": np.zeros(3, np.float32)}


def leaning(m):
    return float(m.predict(INPUT)["p"][1])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_without_a_release_there_is_no_prediction(home, server):
    m = model(home)
    for call in (lambda: m.predict(INPUT), m.tune, m.compare):
        with pytest.raises(NoReleaseError, match="a release on this device"):
            call()
    with pytest.raises(NotFoundError):
        m.refresh(server)
    assert m.version == 0


def test_a_release_serves_at_once_and_offline(home, server):
    server.publish(1, checkpoint(1.0))
    m = model(home)
    assert m.refresh(server) and m.version == 1
    assert leaning(m) == pytest.approx(sigmoid(1.0), rel=1e-5)
    assert not m.refresh(server)
    assert leaning(model(home)) == leaning(m)  # another process, without a network
    assert leaning(model(home, now_s=EXPIRES_AT + 1e6)) == leaning(m)  # months later: it was in time when it came
    server.publish(2, checkpoint(2.0))
    before = server.num_fetches
    assert m.refresh(server) and m.version == 2 and leaning(m) == pytest.approx(sigmoid(2.0), rel=1e-5)
    assert server.num_fetches == before + 1  # the plan was here
    names = sorted(p.name for p in (home / "personal").glob("*/*") if len(p.name) == 64)
    assert names == sorted([sha256_hex(world.plan_bytes()), sha256_hex(checkpoint(2.0))])


def test_a_release_of_another_process_is_taken_up(home, server, monkeypatch):
    from covey.device import personal

    monkeypatch.setattr(personal, "_LOOK_S", 0.0)
    server.publish(1, checkpoint(1.0))
    one, other = model(home), model(home)
    other.refresh(server)
    assert leaning(one) == pytest.approx(sigmoid(1.0), rel=1e-5) and one.version == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"owner": generate_owner_key()}, "signature by the pinned owner key"),
        ({"population": "other"}, "expected the pinned one"),
        ({"expires_at": 999}, "one that has not expired"),
        ({"version": 1}, "at least 3, seen before"),
        ({"version": 3}, "one model for one version"),
        ({"num_bytes": 1 << 40}, "num_bytes"),
    ],
)
def test_a_release_that_is_forged_stale_or_foreign_is_refused_and_the_one_before_serves_on(
    home, server, change, message
):
    server.publish(3, checkpoint(1.0))
    m = model(home)
    m.refresh(server)
    server.publish(checkpoint=checkpoint(2.0), **{"version": 4, **change})
    with pytest.raises(ReleaseRefusedError, match=message):
        m.refresh(server)
    assert m.version == 3 and leaning(m) == pytest.approx(sigmoid(1.0), rel=1e-5)
    assert model(home).version == 3


def test_going_back_needs_a_new_version(home, server):
    m = model(home)
    for version, shift, of in ((1, 1.0, 0), (2, 2.0, 0), (3, 1.0, 1)):
        server.publish(version, checkpoint(shift), rollback_of=of)
        m.refresh(server)
    assert m.version == 3 and leaning(m) == pytest.approx(sigmoid(1.0), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "damage", "error"),
    [
        ("checkpoint", lambda b: b[:-1] + b"\x00", BlobHashError),
        ("checkpoint", lambda b: b[:-4], BlobHashError),
        ("checkpoint", lambda b: b + b"more", BlobHashError),
        ("plan", lambda b: b[:-1] + b"\x01", BlobHashError),
    ],
)
def test_what_arrives_damaged_is_not_kept(home, server, kind, damage, error):
    server.publish(1, checkpoint(1.0))
    m = model(home)
    m.refresh(server)
    plan = world.changed(world.plan(), max_examples=49)
    release = server.publish(2, checkpoint(2.0), plan_bytes=plan)
    name = getattr(release, kind)
    server.blobs[name] = damage(server.blobs[name])
    with pytest.raises(error):
        m.refresh(server)
    assert model(home).version == 1
    server.publish(2, checkpoint(2.0), plan_bytes=plan)
    assert m.refresh(server) and m.version == 2


def test_a_plan_that_breaks_its_own_rules_is_refused(home, server):
    graphs = dict(world.plan().graphs)
    del graphs["predict"]
    from covey.plans.plan import pack_plan
    from covey.types.errors import PlanError

    server.publish(1, checkpoint(1.0), plan_bytes=pack_plan(world.plan().manifest, graphs))
    with pytest.raises(PlanError):
        model(home).refresh(server)
    server.publish(1, checkpoint(1.0), plan_bytes=b"no plan")
    with pytest.raises(PlanError):
        model(home).refresh(server)


def test_a_release_key_cannot_make_a_device_run_a_plan_that_the_owner_did_not_sign(home, server):
    """The release itself is signed as it should be: by the key that the owner delegates to."""
    server.publish(1, checkpoint(1.0))
    m = model(home)
    m.refresh(server)
    forged = world.changed(world.plan(), max_examples=49)
    for signature in (
        sign_plan(RELEASE_KEY, world.POPULATION, sha256_hex(forged)).hex(),
        sign_plan(world.OWNER, world.POPULATION, sha256_hex(world.plan_bytes())).hex(),
        sign_plan(world.OWNER, "other", sha256_hex(forged)).hex(),
    ):
        server.publish(2, checkpoint(2.0), plan_bytes=forged, plan_signature=signature)
        before = server.num_fetches
        with pytest.raises(PlanSignatureError):
            m.refresh(server)
        assert server.num_fetches == before  # neither plan nor checkpoint was even asked for
    server.publish(2, checkpoint(2.0), plan_bytes=forged, plan_signature="")
    with pytest.raises(ReleaseRefusedError, match="plan_signature"):
        m.refresh(server)
    assert m.version == 1 and model(home).version == 1
    server.publish(2, checkpoint(2.0), plan_bytes=forged)  # by the owner after all
    assert m.refresh(server) and m.version == 2


def test_a_stored_release_whose_plan_is_not_the_owners_does_not_serve(home, server):
    server.publish(1, checkpoint(1.0))
    m = model(home)
    m.refresh(server)
    (path,) = (home / "personal").glob("*/release.json")
    release = decode_release(path.read_bytes())
    for signature in ("", "00" * 64):
        path.write_bytes(encode_release(msgspec.structs.replace(release, plan_signature=signature)))
        assert model(home).version == 0 and not path.exists()
    m.refresh(server)
    assert m.version == 1 and path.exists()


def test_a_broken_connection_and_a_full_disk_cost_nothing(home, server, monkeypatch):
    import errno

    from covey.device import files

    server.publish(1, checkpoint(1.0))
    m = model(home)
    m.refresh(server)
    server.publish(2, checkpoint(2.0))

    def cut(ref, credential):
        yield b"a few bytes"
        raise TransportError("server", expected="an answer", got="none")

    monkeypatch.setattr(server, "fetch", cut)
    with pytest.raises(TransportError):
        m.refresh(server)
    monkeypatch.undo()

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageFullError):
        m.refresh(server)
    monkeypatch.undo()
    assert m.version == model(home).version == 1
    assert m.refresh(server)


@pytest.mark.parametrize("which", ["release.json", "plan", "checkpoint"])
@pytest.mark.parametrize("content", [b"", b"\xff broken"])
def test_a_damaged_file_is_fetched_again_and_does_not_open_the_way_back(home, server, which, content):
    release = server.publish(5, checkpoint(1.0))
    m = model(home)
    m.refresh(server)
    (folder,) = (home / "personal").iterdir()
    (folder / (which if which == "release.json" else getattr(release, which))).write_bytes(content)
    m = model(home)
    assert m.version == 0
    old = server.publish(4, checkpoint(2.0))
    assert old.version == 4
    with pytest.raises(ReleaseRefusedError, match="at least 5, seen before"):
        m.refresh(server)
    server.publish(5, checkpoint(1.0))
    assert m.refresh(server) and m.version == 5
    assert leaning(model(home)) == pytest.approx(sigmoid(1.0), rel=1e-5)


def test_inputs_are_checked(home, server):
    server.publish(1, checkpoint())
    m = model(home)
    m.refresh(server)
    for wrong in ({}, {"x": np.zeros(4, np.float32)}, {"x": np.zeros(3)}):
        with pytest.raises(ExampleError, match="input 'x': expected float32"):
            m.predict(wrong)


def contrary(count, seed):
    """Return examples whose labels are the opposite of what the release says."""
    points = world.points(count, seed)
    return {**points, "y": 1 - points["y"]}


@functools.cache
def good_checkpoint():
    """Return a model that knows :func:`world.points`."""
    params = {"w": np.float32([[-2, 2]] * 3), "b": np.zeros(2, np.float32)}
    return pack_tensors(params, PARAMS)


@pytest.fixture
def served(home, server):
    server.publish(1, good_checkpoint())
    m = model(home)
    m.refresh(server)
    return m


def accuracy(metrics):
    return metrics["correct"] / metrics["weight"]


def fill(home, examples):
    with ExampleStore.of_home(home) as store:
        store.add_many("points", examples, world.SCHEMA)


PLAN_WITH_ROOM = world.changed(world.plan(), max_examples=400)


def test_a_person_who_differs_gets_a_model_of_their_own(home, server):
    server.publish(1, good_checkpoint(), plan_bytes=PLAN_WITH_ROOM)
    m = model(home)
    m.refresh(server)
    fill(home, contrary(400, 1))
    assert accuracy(m.compare().release) < 0.1
    tuning = m.tune()
    assert tuning.used and m.is_personal and tuning.reason == ""
    assert tuning.personal_loss < tuning.global_loss and tuning.p_value <= 0.05
    assert tuning.num_train + tuning.num_gate + m.compare().num_examples == 400
    assert accuracy(m.compare().personal) > 0.5 > accuracy(m.compare().release)
    again = model(home)
    assert again.is_personal and leaning(again) == leaning(m)
    (folder,) = (home / "personal").iterdir()
    assert (folder / "tuned").stat().st_mode & 0o777 == 0o600


def test_an_ordinary_person_keeps_the_release(home, served):
    fill(home, world.points(50, 3))
    tuning = served.tune()
    assert not tuning.used and not served.is_personal
    comparison = served.compare()
    assert comparison.personal == comparison.release


def test_the_tuned_model_goes_when_it_is_better_no_more(home, server):
    undecided = pack_tensors({"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}, PARAMS)
    server.publish(1, undecided, plan_bytes=PLAN_WITH_ROOM)
    m = model(home)
    m.refresh(server)
    fill(home, world.points(300, 1))
    assert m.tune().used
    with ExampleStore.of_home(home) as store:
        store.delete("points")
    coins = np.random.default_rng(4).integers(0, 2, 300).astype(np.int32)
    fill(home, {**world.points(300, 2), "y": coins})  # nothing to learn: no model is better than an undecided one
    assert not m.tune().used and not m.is_personal and not model(home).is_personal


def test_a_new_release_takes_the_place_of_a_tuned_one(home, server):
    server.publish(1, good_checkpoint(), plan_bytes=PLAN_WITH_ROOM)
    m = model(home)
    m.refresh(server)
    fill(home, contrary(300, 1))
    assert m.tune().used
    server.publish(2, checkpoint(1.0), plan_bytes=PLAN_WITH_ROOM)
    m.refresh(server)
    assert not m.is_personal and leaning(m) == pytest.approx(sigmoid(1.0), rel=1e-5)
    assert m.tune().num_train > 0


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_too_few_examples_are_no_error(home, served, count):
    fill(home, contrary(count, 1))
    tuning = served.tune()
    assert not tuning.used and tuning.reason
    assert served.compare().num_examples <= count


def test_tuning_can_be_stopped_and_leaves_what_served(home, served):
    fill(home, contrary(50, 1))
    with pytest.raises(TrainingStopped):
        served.tune(should_stop=lambda: True)
    assert not served.is_personal and served.version == 1


def test_equal_examples_give_equal_models(home, server, tmp_path):
    server.publish(1, good_checkpoint(), plan_bytes=PLAN_WITH_ROOM)
    found = []
    for name in ("a", "b"):
        m = model(tmp_path / name)
        m.refresh(server)
        fill(tmp_path / name, contrary(200, 1))
        m.tune()
        found.append(leaning(m))
    assert found[0] == found[1]


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff", b'{"checkpoint":"","plan":"","sha256":""}\nxxxx'])
def test_a_damaged_tuned_model_is_left_out(home, served, content):
    (folder,) = (home / "personal").iterdir()
    (folder / "tuned").write_bytes(content)
    m = model(home)
    assert not m.is_personal and leaning(m) == leaning(served)


def test_a_plan_that_cannot_train_by_itself_serves_the_release(home, server):
    assert tunable_phase(world.plan("fedsgd").manifest) is None
    assert tunable_phase(world.plan().manifest) == 0
    server.publish(1, good_checkpoint(), plan_bytes=world.plan_bytes("fedsgd"))
    m = model(home)
    m.refresh(server)
    fill(home, contrary(50, 1))
    assert m.tune().reason == "the plan has no graph that trains the model by itself"
