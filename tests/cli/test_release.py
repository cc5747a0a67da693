"""``covey release``: a server in a process of its own, a device that trains, and what is released of it."""

import json
import time
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey.device.evaluate import predict
from covey.plans.plan import unpack_plan
from covey.plans.release import decode_delegation, verify_delegation
from covey.plans.signing import load_private_key, public_key_pem
from covey.types.tensors import unpack_tensors

from .test_federation import line_with, running


@pytest.fixture
def serving(tiny, tmp_path):
    """The tiny recipe, with a model that also predicts."""
    text, plain = Path(tiny).read_text(), 'Task("blobs", init, loss, EXAMPLES)'
    predict = '{"p": jax.nn.softmax(inputs["x"] @ params["w"] + params["b"])}'
    assert plain in text
    path = tmp_path / "serving.py"
    path.write_text(
        text.replace(plain, f'Task("blobs", init, loss, EXAMPLES, predict=lambda params, inputs: {predict})')
    )
    return path


@pytest.fixture
def world(covey, serving, tmp_path):
    done = covey(
        "init", tmp_path / "fed", "--recipe", serving, "--plain", "--cohort", 1, "--min-cohort", 1, "--port", 0,
        "--host", "localhost", "--population", "p",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    toml = tmp_path / "fed" / "server" / "server.toml"
    toml.write_text(toml.read_text().replace("every = 10", "every = 1"))
    assert covey("device", "fill", "--home", tmp_path / "home", "--recipe", serving, "--client", 4).returncode == 0
    return tmp_path


def options(world, line):
    return "--server", line.split(" on ")[1].split(",")[0], "--population", "p", "--ca", authority(world)


def authority(world):
    return world / "fed" / "server" / "authority" / "ca.pem"


def test_a_model_is_trained_released_listed_and_exported(covey, world):
    owner = world / "fed" / "owner" / "owner.pub"
    with running("serve", "--dir", world / "fed" / "server") as server:
        where = options(world, line_with(server, "serving"))
        before = covey("release", "list", *where)
        assert before.returncode == 0 and "released nothing" in before.stdout
        missing = covey("release", "export", *where, "--owner-key", owner, "-o", world / "none")
        assert missing.returncode == 1 and "not_found" in missing.stderr and not (world / "none").exists()
        trained = covey(
            "device", "run", *where, "--home", world / "home", "--owner-key", owner, "--min-cohort", 1,
            "--accept-plain", "--once",
        )  # fmt: skip
        assert trained.returncode == 0, trained.stderr
        told = json.loads(covey("release", "list", *where, "--json", "-").stdout)
        assert [(c["status"], c["reason"]) for c in told["candidates"]] == [("promoted", "first")]
        shown = covey("release", "list", *where).stdout
        assert "promoted" in shown and told["releases"][0]["checkpoint"][:12] in shown
        for kind in ("safetensors", "onnx"):
            done = covey("release", "export", *where, "--owner-key", owner, "--format", kind, "-o", world / kind)
            assert done.returncode == 0 and "version 1 of population 'p', verified" in done.stdout, done.stderr
        refused = covey("release", "rollback", 1, *where, "--token-file", world / "fed" / "server" / "admin.token")
        assert refused.returncode == 1 and "the one that is served" in refused.stderr
        unknown = covey("release", "rollback", 7, *where, "--token-file", world / "fed" / "server" / "admin.token")
        assert unknown.returncode == 1 and "not_found" in unknown.stderr
        (world / "other.pub").write_bytes(public_key_pem(Ed25519PrivateKey.generate().public_key()))
        forged = covey("release", "export", *where, "--owner-key", world / "other.pub", "-o", world / "forged")
        assert forged.returncode == 1 and "release_refused" in forged.stderr and not (world / "forged").exists()
    check_files(world, told["releases"][0])


def check_files(world, release):
    server = world / "fed" / "server"
    plan = unpack_plan((server / "plan.covey").read_bytes(), expected_hash=release["plan"])
    data = (server / "data" / "blobs" / release["checkpoint"]).read_bytes()
    params = unpack_tensors(plan.manifest.params, data)
    session = ort.InferenceSession(world / "onnx", providers=["CPUExecutionProvider"])
    fields = [f for f in plan.manifest.examples.fields if f.role == "input"]
    rng = np.random.default_rng(0)
    inputs = {f.name: rng.standard_normal(f.shape).astype(f.dtype) for f in fields}
    expected = predict(plan, params, inputs)
    got = session.run(None, {f"input.{k}": v[None] for k, v in inputs.items()})
    for value, wanted in zip(got, expected.values(), strict=True):
        # With constant parameters the runtime may order the same few float32 operations otherwise: a logit is a sum of
        # five terms below 4, each rounded by at most 2**-24 of 16, twice over; a probability moves by less.
        np.testing.assert_allclose(value[0], wanted, rtol=0, atol=2 * 5 * 16 * 2.0**-24)
    load = pytest.importorskip("safetensors.numpy", reason="needs safetensors").load_file
    assert {k: v.tobytes() for k, v in load(world / "safetensors").items()} == {
        k: v.tobytes() for k, v in params.items()
    }


def test_a_delegation_is_renewed_by_the_owner(covey, world):
    path, key_file = world / "fed" / "server" / "delegation.json", world / "fed" / "owner" / "owner.key"
    old = decode_delegation(path.read_bytes())
    done = covey("release", "delegate", path, "--sign-with", key_file, "--days", 200)
    assert done.returncode == 0, done.stderr
    new = decode_delegation(path.read_bytes())
    assert (new.population, new.release_key) == (old.population, old.release_key)
    assert new.expires_at > old.expires_at
    owner = load_private_key(key_file.read_bytes(), "owner.key").public_key()
    verify_delegation(owner, new, population="p", now_s=time.time() + 199 * 86_400)
    fresh = covey(
        "release", "delegate", world / "new.json", "--sign-with", key_file, "--new-key", world / "new.key",
        "--population", "q",
    )  # fmt: skip
    assert fresh.returncode == 0, fresh.stderr
    made, key = decode_delegation((world / "new.json").read_bytes()), (world / "new.key").read_bytes()
    assert made.release_key == load_private_key(key, "new.key").public_key().public_bytes_raw().hex()
    assert made.release_key != old.release_key and (world / "new.key").stat().st_mode & 0o077 == 0
    verify_delegation(owner, made, population="q", now_s=time.time())
    again = covey(
        "release", "delegate", path, "--sign-with", key_file, "--new-key", world / "new.key", "--population", "q"
    )
    assert again.returncode == 2 and "which exists" in again.stderr and (world / "new.key").read_bytes() == key
    assert covey("release", "delegate", path, "--sign-with", key_file, "--population", "q").returncode == 2
    path.write_bytes(msgspec.json.encode({"population": "p"}))
    refused = covey("release", "delegate", path, "--sign-with", key_file)
    assert refused.returncode == 1 and "release_refused" in refused.stderr


def test_init_writes_what_releases_need_and_keeps_the_owners_key_out_of_it(covey, world):
    server, owner = world / "fed" / "server", world / "fed" / "owner"
    for name in ("release.key", "delegation.json", "owner.pub", "evaluation.covey", "evaluation.sig"):
        assert (server / name).is_file()
    assert (server / "release.key").stat().st_mode & 0o077 == 0
    assert (server / "release.key").read_bytes() != (owner / "owner.key").read_bytes()
    shown = covey("plan", "inspect", server / "evaluation.covey").stdout
    assert "two models by their loss" in shown and "split 'test'" in shown
    made = covey(
        "plan", "evaluation", server / "plan.covey", "-o", world / "e.covey", "--sign-with", owner / "owner.key",
        "--population", "p",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (world / "e.covey").read_bytes() == (server / "evaluation.covey").read_bytes()
    assert (world / "e.covey.sig").read_text() == (server / "evaluation.sig").read_text()
    made = covey("plan", "evaluation", server / "plan.covey", "-o", world / "p.covey", "--against", "personal")
    assert made.returncode == 0, made.stderr
    shown = covey("plan", "inspect", world / "p.covey").stdout
    assert "the model with the device's own tuned one by their loss" in shown
    wrong = covey("plan", "evaluation", server / "plan.covey", "-o", world / "f.covey", "--compares", "beauty")
    assert wrong.returncode == 1 and "plan_build" in wrong.stderr and not (world / "f.covey").exists()


def test_devices_evaluate_a_candidate_under_masks_before_it_is_released(covey, serving, tmp_path):
    """Five devices train and evaluate in secure mode; the second release exists because they compared two models."""
    made = covey(
        "init", tmp_path / "fed", "--recipe", serving, "--cohort", 5, "--min-cohort", 3, "--port", 0,
        "--host", "localhost", "--population", "p",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    toml = tmp_path / "fed" / "server" / "server.toml"
    # All that is asked here is whether the comparison is made: a margin of 3 nats lets any candidate in.
    toml.write_text(toml.read_text().replace("every = 10", "every = 1").replace("margin = 0.01", "margin = 3.0"))
    homes = []
    for i in range(5):
        homes += ["--home", home := tmp_path / f"home-{i}"]
        assert covey("device", "fill", "--home", home, "--recipe", serving, "--client", i + 3).returncode == 0
    owner = tmp_path / "fed" / "owner" / "owner.pub"
    with running("serve", "--dir", tmp_path / "fed" / "server") as server:
        where = options(tmp_path, line_with(server, "serving"))
        with running("device", "run", *where, *homes, "--owner-key", owner, "--min-cohort", 3):
            end = time.monotonic() + 90
            while True:
                told = json.loads(covey("release", "list", *where, "--json", "-").stdout)
                if len(told["releases"]) > 1:
                    break
                assert time.monotonic() < end, told
                time.sleep(0.2)
    second = told["candidates"][1]
    assert (second["status"], second["reason"], second["version"]) == ("promoted", "not_worse", 2)
    assert second["compared"] >= 4 and second["difference"] != 0 and second["limit"] > second["difference"]
