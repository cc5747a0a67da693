"""The administrator's requests: who may send them, and what each of them does; over the application in memory."""

import asyncio
import stat

import httpx
import msgspec
import pytest
from device import world

from covey.plans.evaluation import evaluation_plan
from covey.plans.signing import generate_owner_key, sign_plan
from covey.server.admin import Admin, load_or_make_token
from covey.server.http import create_app
from covey.storage.memory import MemoryStorage
from covey.types.errors import UsageError
from covey.types.tensors import sha256_hex
from covey.wire.administration import PopulationDetails, Populations, TaskChange, TaskStatus, TaskWanted
from covey.wire.messages import (
    BlobRef,
    encode_message,
)

from . import parts
from .app import P, assert_failed, serving

TOKEN = "t" * 43
BASE = f"/v1/admin/populations/{P}"


class Administrator:
    """The application with the administrator's routes, and a client that has the token."""

    def __init__(self, served, client, storage):
        self.served, self.client, self.storage = served, client, storage

    async def get(self, path, kind):
        got = await self.client.get(path)
        assert got.status_code == 200, got.content
        return msgspec.json.decode(got.content, type=kind)

    async def post(self, path, message, kind=None, **params):
        body = message if isinstance(message, bytes) else encode_message(message)
        got = await self.client.post(f"{BASE}{path}", content=body, params=params)
        if kind is None:
            return got
        assert got.status_code == 200, got.content
        return msgspec.json.decode(got.content, type=kind)

    async def create(self, name, data, kind="evaluate", **fields):
        """Send a plan that the owner signed, and create a task of it."""
        signature = signed(data)
        await self.post("/plans", data, BlobRef, signature=signature)
        wanted = TaskWanted(task=name, kind=kind, plan=sha256_hex(data), signature=signature, **fields)
        return await self.post("/tasks", wanted)

    async def change(self, action, name=parts.TASK, number=0):
        return await self.post(f"/tasks/{name}", TaskChange(action=action, round=number))


def signed(data, key=world.OWNER, population=P):
    return sign_plan(key, population, sha256_hex(data)).hex()


def run(scenario, tmp_path, **options):
    parts.write_directory(tmp_path)

    async def main():
        storage = options.pop("storage", None) or parts.begin(MemoryStorage())
        async with asyncio.timeout(60), serving(storage, **options) as served:
            admin = Admin(served.service, storage, tmp_path, served.service.config, TOKEN)
            app = create_app(served.service, more=admin.routes())
            network = httpx.ASGITransport(app, raise_app_exceptions=False)
            headers = {"authorization": f"Bearer {TOKEN}"}
            async with httpx.AsyncClient(transport=network, base_url="https://s", headers=headers) as client:
                await scenario(Administrator(served, client, storage))

    asyncio.run(main())


def test_a_token_is_made_once_and_for_its_owner_only(tmp_path):
    path = tmp_path / "admin.token"
    token = load_or_make_token(path)
    assert len(token) >= 43 and load_or_make_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("\n")
    with pytest.raises(UsageError, match="a token of at least 32 characters, got 0"):
        load_or_make_token(path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/admin/populations"),
        ("GET", BASE),
        ("POST", f"{BASE}/plans"),
        ("POST", f"{BASE}/tasks"),
        ("POST", f"{BASE}/tasks/train"),
    ],
)
def test_every_request_needs_the_administrators_own_credential(tmp_path, method, path):
    async def scenario(a):
        device = a.served.service.credentials.issue(P, a.served.service.now_s())
        for wrong in (None, "", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}"):
            headers = {} if wrong is None else {"authorization": wrong}
            a.client.headers.pop("authorization", None)
            assert_failed(await a.client.request(method, path, headers=headers), 401, "unauthorized")
        got = await a.client.request(method, path, headers={"authorization": f"Bearer {device}"})
        assert_failed(got, 401, "unauthorized")
        got = await a.client.request(method, path, headers={"authorization": "Bearer \xff".encode("latin-1")})
        assert_failed(got, 401, "unauthorized")

    run(scenario, tmp_path)


def test_the_administrators_token_is_no_device_credential(tmp_path):
    async def scenario(a):
        a.served.headers = {"authorization": f"Bearer {TOKEN}"}
        assert_failed(await a.served.post("/v1/checkin", b'{"population":"tests"}'), 401, "unauthorized")

    run(scenario, tmp_path)


def test_a_population_as_it_stands(tmp_path):
    async def scenario(a):
        assert await a.get("/v1/admin/populations", Populations) == Populations(populations=(P,))
        for session in await a.served.sessions():
            await a.served.report(session)
        await a.served.until(lambda: a.served.service.coordinator.round == 1)
        found = await a.get(BASE, PopulationDetails)
        assert (found.population, found.round, found.versions, found.waiting) == (P, 1, (1,), 0)
        assert found.checkpoint.sha256 == a.storage.load(P).checkpoint
        (task,) = found.tasks
        assert (task.task, task.kind, task.state, task.rounds, task.mode) == ("train", "train", "running", 1, "plain")
        assert (task.plan_task, task.min_cohort, task.settings["round"]["goal"]) == ("points", 2, 2)
        assert_failed(await a.client.get("/v1/admin/populations/other"), 404, "not_found")

    run(scenario, tmp_path)


def test_a_plan_that_the_owner_signed_becomes_a_task_whose_rounds_come(tmp_path):
    async def scenario(a):
        got = await a.create("measure", evaluation_plan(world.plan()), settings={"every": 5, "round": {"goal": 2}})
        status = msgspec.json.decode(got.content, type=TaskStatus)
        assert (status.task, status.kind, status.state) == ("measure", "evaluate", "running")
        assert (status.settings["every"], status.settings["round"]["goal"]) == (5, 2)
        # What is not said is as in server.toml, but for what belongs to a task.
        assert (status.settings["round"]["patience_s"], status.settings["round"]["hyper"]) == (0.0, {})
        for session in await a.served.sessions():  # of the round that was under way
            await a.served.report(session)
        assignments = await asyncio.gather(a.served.check_in(), a.served.check_in())
        assert {(m.task, m.kind) for m in assignments} == {("measure", "evaluate")}

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    ("signature", "status", "code"),
    [
        (signed(world.plan_bytes(), generate_owner_key()), 400, "plan_signature"),
        (signed(world.plan_bytes(), population="other"), 400, "plan_signature"),
        (signed(b"another plan"), 400, "plan_signature"),
        ("", 400, "plan_signature"),
        ("no hex", 400, "plan_signature"),
    ],
    ids=["key", "population", "plan", "none", "hex"],
)
def test_a_plan_with_a_wrong_signature_is_told_at_once_and_not_kept(tmp_path, signature, status, code):
    async def scenario(a):
        data = world.plan_bytes("fedsgd")
        bad = signature if signature != signed(world.plan_bytes()) else ""
        assert_failed(await a.post("/plans", data, signature=bad), status, code)
        assert sha256_hex(data) not in a.storage._blobs
        wanted = TaskWanted(task="t", plan=sha256_hex(world.plan_bytes()), signature=signature)
        assert_failed(await a.post("/tasks", wanted), status, code)

    run(scenario, tmp_path)


def test_without_the_owners_public_key_no_plan_is_taken(tmp_path):
    async def scenario(a):
        (tmp_path / "owner.pub").unlink()
        data = world.plan_bytes()
        assert_failed(await a.post("/plans", data, signature=signed(data)), 400, "usage", "owner.pub")

    run(scenario, tmp_path)


def test_what_is_no_plan_is_refused_though_it_is_signed(tmp_path):
    async def scenario(a):
        assert_failed(await a.post("/plans", b"junk", signature=signed(b"junk")), 400, "plan_format")

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"task": "a/b"}, "usage", "letters, digits"),
        ({"task": ""}, "usage", "letters, digits"),
        ({"kind": "guess"}, "wire_invalid", "train or evaluate"),
        ({"kind": "train", "checkpoint": "ab" * 32}, "wire_invalid", "a training goes on from the newest"),
        ({"settings": {"evry": 2}}, "wire_invalid", "evry"),
        ({"settings": {"round": {"gaol": 2}}}, "wire_invalid", "gaol"),
        ({"settings": {"round": {"goal": "many"}}}, "wire_invalid", "the right type"),
        ({"settings": {"round": 3}}, "wire_invalid", "an object"),
        ({"settings": {"every": 0}}, "usage", "every"),
        ({"settings": {"round": {"goal": 1000}}}, "usage", "goal"),
        ({"plan": "cd" * 32, "signature": sign_plan(world.OWNER, P, "cd" * 32).hex()}, "not_found", "stored blob"),
    ],
)
def test_a_task_that_cannot_be_is_refused(tmp_path, fields, code, text):
    async def scenario(a):
        data = evaluation_plan(world.plan())
        await a.post("/plans", data, BlobRef, signature=signed(data))
        base = {"task": "t", "kind": "evaluate", "plan": sha256_hex(data), "signature": signed(data)}
        got = await a.post("/tasks", TaskWanted(**{**base, **fields}))
        assert got.status_code < 500
        assert_failed(got, got.status_code, code, text)
        assert [t.name for t in a.storage.tasks(P)] == ["train"]

    run(scenario, tmp_path)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"action":3}', b'{"action":"complete"}', b'{"action":"extend"}'])
def test_a_change_that_cannot_be_read_is_refused(tmp_path, body):
    async def scenario(a):
        got = await a.post("/tasks/train", body)
        assert_failed(got, 400, "wire_invalid")
        assert_failed(await a.post("/tasks/train", b"x" * (1 << 17)), 413, "body_too_large")

    run(scenario, tmp_path)


def test_pause_resume_rollback_and_cancel(tmp_path):
    async def scenario(a):
        for _ in range(2):
            before = a.served.service.coordinator.round
            for session in await a.served.sessions():
                await a.served.report(session)
            await a.served.until(lambda before=before: a.served.service.coordinator.round > before)
        for action, number, state in (
            ("pause", 0, "paused"),
            ("rollback", 1, "paused"),
            ("resume", 0, "running"),
            ("cancel", 0, "cancelled"),
        ):
            got = await a.change(action, number=number)
            assert msgspec.json.decode(got.content, type=TaskStatus).state == state
        found = await a.get(BASE, PopulationDetails)
        assert (found.round, found.state, found.versions) == (3, "paused", (2, 3))  # two are kept
        rows = [(r.status, r.reason) for r in (await a.served.status()).rounds[2:]]
        assert rows == [("abandoned", "paused"), ("rolled_back", "to round 1"), ("abandoned", "cancelled")]
        assert_failed(await a.change("resume"), 409, "task_state", "cancelled")
        assert_failed(await a.change("pause", "nobody"), 404, "not_found")
        assert (await a.served.check_in()).reason == "paused"

    run(scenario, tmp_path)


def test_a_population_without_a_task_waits_for_one(tmp_path):
    from covey.storage.interface import PopulationRecord

    storage = MemoryStorage()
    storage.create(PopulationRecord(P, 0, storage.put_blob(world.checkpoint())))

    async def scenario(a):
        assert (await a.served.check_in()).reason == "paused"
        assert_failed(await a.served.client.get(f"/v1/populations/{P}"), 404, "not_found", "a task that trains")
        got = await a.create("first", world.plan_bytes(), "train", settings={"round": {"hyper": {"lr": 0.5}}})
        assert msgspec.json.decode(got.content, type=TaskStatus).state == "running"
        work = await asyncio.gather(a.served.check_in(), a.served.check_in())
        assert {(m.task, m.round, tuple(m.hyper.items())) for m in work} == {("first", 1, (("lr", 0.5),))}
        for assignment in work:
            await a.served.report(assignment.session)
        await a.served.until(lambda: a.served.service.coordinator.round == 1)

    run(scenario, tmp_path, storage=storage)
