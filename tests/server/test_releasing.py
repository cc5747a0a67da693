"""Rounds, evaluations and releases together, over HTTP: what a device gets, what it may send, and what is released."""

import asyncio
import io
import json
import time

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device import world

from covey.plans.evaluation import comparison, evaluation_plan
from covey.plans.plan import unpack_plan
from covey.plans.release import decode_release, delegate, verify_release
from covey.plans.signing import private_key_pem, public_key_pem, sign_plan
from covey.server.config import ReleaseConfig, ServerConfig
from covey.server.logs import logging_to
from covey.server.release_key import DELEGATION_FILE, KEY_FILE
from covey.server.releases import ReleaseHistory
from covey.server.releasing import load_evaluation
from covey.server.tasks import TaskState
from covey.storage.memory import MemoryStorage
from covey.types.errors import PlanSignatureError, UsageError
from covey.types.segments import HEADER
from covey.types.tensors import sha256_hex
from covey.wire.framing import encode_update

from . import app as apps
from . import parts

P = parts.POPULATION
GATE = ReleaseConfig(every=1, min_devices=3)
ROUNDS = {"goal": 3, "report_timeout_s": 30.0}
EVALUATION = evaluation_plan(world.plan())


@pytest.fixture
def directory(tmp_path):
    key = Ed25519PrivateKey.generate()
    (tmp_path / KEY_FILE).write_bytes(private_key_pem(key))
    (tmp_path / "owner.pub").write_bytes(public_key_pem(world.OWNER.public_key()))
    word = delegate(world.OWNER, P, key.public_key(), int(time.time()) + 3600)
    (tmp_path / DELEGATION_FILE).write_bytes(msgspec.json.encode(word))
    (tmp_path / "evaluation.covey").write_bytes(EVALUATION)
    (tmp_path / "evaluation.sig").write_text(sign_plan(world.OWNER, P, sha256_hex(EVALUATION)).hex())
    return tmp_path


def header(assignment, d: float) -> bytes:
    """Return the update of a device on which the candidate's loss is higher by ``d``."""
    metrics = {"examples": 5.0, "loss": 2.0, "weight": 5.0, "correct": 3.0, **comparison("loss", 1.0 + d, 1.0)}
    names = unpack_plan(EVALUATION).manifest.metrics
    assert assignment.shared is not None
    return encode_update([(HEADER, np.array([1.0, 5.0, *(metrics[k] for k in names)], "<f8").tobytes())])


async def round_of(served, d=0.0):
    """Play one round of three devices, whatever it is for; return the assignments."""
    given = await asyncio.gather(*(served.check_in() for _ in range(3)))
    (kind,) = {a.kind for a in given}
    ended = served.service.coordinator.summaries
    for i, a in enumerate(given):
        data = parts.body(parts.values(seed=i)) if kind == "train" else header(a, d + 0.001 * i)
        assert (await served.report(a.session, data)).status_code == 200
    await served.until(lambda: served.service.coordinator.summaries > ended)
    await asyncio.sleep(0)  # what the desk asks for is sent when the round's end is told
    return given


async def evaluated(served, d):
    """Play rounds up to the next evaluation; a round of training may be under way when it is asked for."""
    for _ in range(3):
        if (given := await round_of(served, d))[0].kind == "evaluate":
            return given
    raise AssertionError("no evaluation came")


async def release(served):
    got = await served.client.get(f"/v1/populations/{P}/release")
    return decode_release(got.content) if got.status_code == 200 else apps.assert_failed(got, 404, "not_found")


async def history(served):
    got = await served.client.get(f"/v1/populations/{P}/releases")
    return msgspec.json.decode(got.content, type=ReleaseHistory)


def test_candidates_are_evaluated_by_devices_and_the_good_ones_are_released(directory):
    async def scenario(served):
        assert (await served.status()).releasing == "on"
        await release(served)  # none yet
        await round_of(served)
        first = await release(served)
        verify_release(world.OWNER.public_key(), first, population=P, now_s=time.time(), newest_seen=0)
        assert (first.version, first.plan, first.checkpoint) == (1, world.plan().hash, (await last(served)).checkpoint)

        await round_of(served)
        candidate = (await last(served)).checkpoint
        given = await evaluated(served, d=-0.1)
        assert {(a.checkpoint.sha256, a.shared.sha256, a.plan.sha256) for a in given} == {
            (candidate, first.checkpoint, sha256_hex(EVALUATION))
        }
        for ref in (given[0].checkpoint, given[0].shared, given[0].plan):
            got = await served.client.get(ref.path)
            assert sha256_hex(got.content) == ref.sha256
        second = await release(served)
        assert (second.version, second.checkpoint) == (2, candidate)

        while len((await history(served)).candidates) < 3:
            await round_of(served)
        await evaluated(served, d=0.2)
        told = await history(served)
        assert [r.version for r in told.releases] == [1, 2]
        assert [(c.status, c.reason) for c in told.candidates] == [
            ("promoted", "first"), ("promoted", "not_worse"), ("refused", "not_shown_not_worse")
        ]  # fmt: skip
        assert told.candidates[2].difference == pytest.approx(0.201) and told.candidates[2].compared == 3
        assert (await served.status()).release == 2
        assert [t.state for t in served.service.coordinator.tasks()] == ["running", "completed", "completed"]
        await round_of(served)

    apps.run(scenario, directory=directory, release=GATE, rounds=ROUNDS)


async def last(served):
    return [r for r in (await served.status()).rounds if r.kind == "train" and r.status == "committed"][-1]


def test_a_candidate_that_was_pending_is_evaluated_after_a_restart(directory):
    storage, _ = parts.storage_with_population()

    async def before(served):
        await round_of(served)
        await round_of(served)
        assert (await history(served)).candidates[1].status == "pending"

    async def after(served):
        assert (await history(served)).candidates[1].status == "pending"
        await evaluated(served, d=-0.1)
        assert (await release(served)).version == 2

    for scenario in (before, after):
        apps.run(scenario, storage=storage, directory=directory, release=GATE, rounds=ROUNDS)


def test_a_verdict_that_was_lost_in_a_crash_is_found_again(directory):
    storage, _ = parts.storage_with_population()
    settle = storage.release_store.settle

    async def before(served):
        await round_of(served)
        await round_of(served)
        storage.release_store.settle = lambda *args: (_ for _ in ()).throw(parts.disk_full())
        await evaluated(served, d=-0.1)
        assert (await history(served)).candidates[1].status == "pending"

    async def after(served):
        assert (await release(served)).version == 2
        await round_of(served)

    apps.run(before, storage=storage, directory=directory, release=GATE, rounds=ROUNDS)
    storage.release_store.settle = settle
    apps.run(after, storage=storage, directory=directory, release=GATE, rounds=ROUNDS)


def test_evaluations_that_fail_keep_a_candidate_out_and_training_goes_on(directory):
    gate = msgspec.structs.replace(GATE, attempts=1)

    async def scenario(served):
        await round_of(served)
        await round_of(served)
        while (given := await asyncio.gather(*(served.check_in() for _ in range(3))))[0].kind == "train":
            for i, a in enumerate(given):
                await served.report(a.session, parts.body(parts.values(seed=i)))
        for a in given:
            await served.post(f"/v1/sessions/{a.session}/abandon", b'{"reason": "too_few_examples"}')
        await served.until(lambda: served.service.coordinator.tasks()[-1].state == "cancelled")
        await round_of(served)
        told = (await history(served)).candidates
        assert [(c.round, c.status, c.reason) for c in told[:2]] == [
            (1, "promoted", "first"), (2, "refused", "evaluation_failed")
        ]  # fmt: skip
        assert (await release(served)).version == 1

    apps.run(scenario, directory=directory, release=gate, rounds=ROUNDS)


def test_an_administrator_rolls_back_and_a_candidate_is_compared_anew(directory):
    token = "t" * 43

    async def scenario(served):
        async def roll_back(version, bearer=token):
            path = f"/v1/admin/populations/{P}/releases"
            headers = {"authorization": f"Bearer {bearer}"}
            return await served.client.post(path, content=b'{"version": %d}' % version, headers=headers)

        await round_of(served)
        await round_of(served)
        await evaluated(served, d=-0.1)
        assert (await release(served)).version == 2
        while not any(t.name.startswith("release-") and t.state == "running" for t in tasks(served)):
            await round_of(served)
        (before,) = [t for t in tasks(served) if t.state == "running" and t.kind == "evaluate"]
        apps.assert_failed(await roll_back(2), 400, "release_refused")
        apps.assert_failed(await roll_back(9), 404, "not_found")
        apps.assert_failed(await roll_back(1, served.headers["authorization"].split()[1]), 401, "unauthorized")
        made = decode_release((await roll_back(1)).content)
        assert (made.version, made.rollback_of) == (3, 1) and await release(served) == made
        await served.until(lambda: before.name in [t.name for t in tasks(served) if t.state == "cancelled"])
        given = await evaluated(served, d=-0.1)
        assert {a.shared.sha256 for a in given} == {made.checkpoint}
        assert (await release(served)).version == 4
        assert (await history(served)).candidates[-1].status == "promoted"

    apps.run(scenario, directory=directory, release=GATE, rounds=ROUNDS, admin_token=token)


def tasks(served):
    return served.service._storage.tasks(P)


@pytest.mark.parametrize("gone", [KEY_FILE, DELEGATION_FILE])
def test_without_the_owners_word_nothing_is_released_and_training_goes_on(directory, gone):
    (directory / gone).unlink()
    out = io.StringIO()

    async def scenario(served):
        await round_of(served)
        await round_of(served)
        await release(served)
        state = "no_release_key" if gone == KEY_FILE else "no_delegation"
        assert (await served.status()).releasing == state and (await history(served)).candidates == ()
        events = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [e["state"] for e in events if e["event"] == "releases"] == [state]
        level = "info" if gone == KEY_FILE else "warning"
        assert [e["level"] for e in events if e["event"] == "releases"] == [level]

    with logging_to("json", "info", out):
        apps.run(scenario, directory=directory, release=GATE, rounds=ROUNDS)


def test_the_log_names_no_session_no_credential_and_no_ticket(directory):
    out, secret = io.StringIO(), set()

    async def scenario(served):
        secret.add(served.headers["authorization"].split()[1])
        for _ in range(4):
            secret.update(a.session for a in await round_of(served))
        await served.report("nobody", b"x")

    with logging_to("text", "debug", out):
        apps.run(scenario, directory=directory, release=GATE, rounds=ROUNDS)
    text = out.getvalue()
    assert "round ended round=1 kind=train" in text and "candidate for release round=2" in text
    assert len(secret) == 13 and not any(s in text for s in secret)
    assert "127.0.0.1" not in text


def test_metrics_follow_rounds_and_releases(directory):
    async def scenario(served):
        await round_of(served)
        await served.report("nobody")
        sample = served.service.metrics.registry.get_sample_value
        assert sample("covey_rounds_total", {"kind": "train", "status": "committed", "reason": ""}) == 1
        assert sample("covey_check_ins_total", {"answer": "assigned"}) == 3
        assert sample("covey_reports_total", {"outcome": "counted"}) == 3
        assert sample("covey_errors_total", {"code": "session_unknown"}) == 1
        assert sample("covey_candidates_total", {"status": "promoted", "reason": "first"}) == 1
        assert (sample("covey_release_version"), sample("covey_round"), sample("covey_waiting_devices")) == (1, 1, 0)

    apps.run(scenario, directory=directory, release=GATE, rounds=ROUNDS)


def test_health_says_what_does_not_work():
    async def scenario(served):
        got = await served.client.get("/healthz")
        assert (got.status_code, got.content) == (200, b'{"status":"ok"}')
        storage = served.service._storage
        load, storage.load = storage.load, lambda population: (_ for _ in ()).throw(parts.disk_full())
        apps.assert_failed(await served.client.get("/healthz"), 503, "unhealthy", "storage")
        storage.load = load
        running, served.service._ticker = served.service._ticker, asyncio.create_task(asyncio.sleep(0))
        await served.service._ticker
        apps.assert_failed(await served.client.get("/healthz"), 503, "unhealthy", "clock")
        served.service._ticker = running

    apps.run(scenario)


def test_a_clock_that_stops_is_told():
    out = io.StringIO()

    async def scenario(served):
        def broken(now_s):
            raise RuntimeError("a defect")

        await asyncio.sleep(0)  # the clock has begun to wait
        served.service._engine.tick = broken
        served.service._changed.set()
        await served.until(lambda: served.service._ticker.done())
        await asyncio.sleep(0)
        apps.assert_failed(await served.client.get("/healthz"), 503, "unhealthy", "clock")
        served.service._ticker = asyncio.create_task(asyncio.sleep(0))

    with logging_to("json", "info", out):
        apps.run(scenario)
    (told,) = [e for e in map(json.loads, out.getvalue().splitlines()) if e["event"] == "clock stopped"]
    assert "a defect" in told["traceback"] and told["level"] == "error"


# The files


def load(directory):
    return load_evaluation(MemoryStorage(), directory, ServerConfig(population=P))


def test_the_evaluation_plan_of_a_directory(directory):
    found = load(directory)
    assert (found.plan, found.metric) == (sha256_hex(EVALUATION), "loss")
    (directory / "evaluation.covey").unlink()
    assert load(directory) is None


def test_a_release_is_not_decided_by_personal_models(directory):
    data = evaluation_plan(world.plan(), against="personal")
    (directory / "evaluation.covey").write_bytes(data)
    (directory / "evaluation.sig").write_text(sign_plan(world.OWNER, P, sha256_hex(data)).hex())
    with pytest.raises(UsageError, match="a comparison with the release before, got one with personal models"):
        load_evaluation(MemoryStorage(), directory, ServerConfig(population=P, release=GATE))


def test_an_evaluation_plan_that_devices_would_refuse_is_refused_at_the_start(directory):
    (directory / "evaluation.sig").write_text(sign_plan(Ed25519PrivateKey.generate(), P, sha256_hex(EVALUATION)).hex())
    with pytest.raises(PlanSignatureError):
        load(directory)
    (directory / "evaluation.sig").unlink()
    with pytest.raises(UsageError, match="the owner's signature"):
        load(directory)
    (directory / "evaluation.covey").write_bytes(world.plan_bytes())
    with pytest.raises(UsageError, match="an evaluation plan, got a training plan"):
        load(directory)


def test_every_state_of_a_task_is_known_to_be_over_or_not():
    assert {s.value for s in TaskState if not s.live} == {"completed", "cancelled"}


def test_an_evaluation_that_cannot_be_made_keeps_a_candidate_out_and_is_told(directory):
    terms = msgspec.structs.replace(world.plan().manifest.privacy, min_cohort=50)  # more than a round here ever has
    data = evaluation_plan(unpack_plan(world.changed(world.plan(), privacy=terms)))
    (directory / "evaluation.covey").write_bytes(data)
    (directory / "evaluation.sig").write_text(sign_plan(world.OWNER, P, sha256_hex(data)).hex())
    out = io.StringIO()

    async def scenario(served):
        await round_of(served)
        await round_of(served)
        await served.until(lambda: out.getvalue().count("release desk failed"))
        second = (await history(served)).candidates[1]
        assert (second.status, second.reason) == ("refused", "evaluation_failed")
        await round_of(served)

    with logging_to("json", "error", out):
        apps.run(scenario, directory=directory, release=GATE, rounds=ROUNDS)
    (told, *_) = map(json.loads, out.getvalue().splitlines())
    assert told["code"] == "usage" and "min_cohort" in told["message"]


def test_a_key_file_that_holds_no_key_is_told_at_the_start(directory):
    (directory / KEY_FILE).write_bytes(b"no key")
    with pytest.raises(UsageError, match=r"release\.key"):
        apps.run(None, directory=directory, release=GATE, rounds=ROUNDS)
