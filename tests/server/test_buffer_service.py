"""Asynchronous aggregation behind the HTTP application: once in a commit, what an administrator sees and is refused."""

import asyncio

import msgspec
import pytest
from device import world
from device.test_private import private_plan

from covey.plans.manifest import AlgorithmRef
from covey.plans.plan import unpack_plan
from covey.plans.signing import public_key_pem, sign_plan
from covey.server.participation import Aboard
from covey.storage.interface import PopulationRecord
from covey.storage.memory import MemoryStorage
from covey.types.errors import AlreadyInRoundError
from covey.types.tensors import sha256_hex
from covey.wire.administration import PopulationDetails
from covey.wire.messages import Assignment

from . import parts
from .app import CHECK_IN, P, assert_failed, run
from .buffers import ROUNDS, plan

SUBJECT = "0123456789abcdef" * 2
ROUND = {"goal": 2, "report_timeout_s": 60.0}


def test_a_device_is_aboard_until_its_session_ended_and_its_buffer_is_committed():
    a = Aboard()
    a.embark("s1", "x", 60.0, 0.0)
    with pytest.raises(AlreadyInRoundError):
        a.embark("s2", "x", 60.0, 1.0)
    a.landed("s1", 1)
    assert a.has("x", 2.0) and not a.has("y", 2.0)
    a.committed(1)
    a.embark("s3", "x", 60.0, 3.0)
    a.landed("s3", 0)  # lost
    assert not a.has("x", 4.0)


def test_what_was_folded_while_a_buffer_closed_is_aboard_for_the_next_one():
    a = Aboard()
    a.embark("s1", "x", 60.0, 0.0)
    a.embark("s2", "y", 60.0, 0.0)
    a.landed("s1", 1)
    a.landed("s2", 2)
    a.committed(1)
    assert not a.has("x", 1.0) and a.has("y", 1.0)
    a.end()
    assert not a.has("y", 1.0)


def test_a_device_that_vanished_is_aboard_until_its_deadline():
    a = Aboard()
    a.embark("s1", "x", 60.0, 0.0)
    assert a.has("x", 59.9) and not a.has("x", 60.0)
    a.embark("s2", "x", 120.0, 60.0)
    a.landed("s1", 1)  # too late: another session has its place
    assert a.has("x", 119.0) and not a.has("x", 120.0)


def test_memory_holds_marks_only_shows_neither_and_its_key_goes_when_nobody_is_aboard():
    a = Aboard()
    a.embark("s1", SUBJECT, 60.0, 0.0)
    key = a._key
    a.landed("s1", 1)
    assert SUBJECT not in str(vars(a)) and SUBJECT.encode() not in {*a._training, *a._counted}
    assert repr(a) == "Aboard(0 train, 1 are counted)"
    a.committed(1)
    a.embark("s2", SUBJECT, 60.0, 1.0)
    assert a._key != key
    assert {len(v) for v in (a._training, a._mark_of, a._until_s)} == {1} and a._counted == {}


def asynchronous(**fields):
    return parts.begin(MemoryStorage(), plan(**fields), ROUNDS)


async def check_in(s, subject):
    got = await s.post("/v1/checkin", CHECK_IN, **s.credential(subject))
    return msgspec.json.decode(got.content, type=Assignment) if got.status_code == 200 else got


def test_one_credential_counts_once_in_a_commit_and_again_in_the_next():
    async def scenario(s):
        one = await check_in(s, "a")
        assert_failed(await check_in(s, "a"), 409, "already_in_round")  # it trains
        assert (await s.report(one.session)).status_code == 200
        refused = await check_in(s, "a")  # it is in the buffer
        assert assert_failed(refused, 409, "already_in_round").retry_after_s > 0
        two = await check_in(s, "b")
        assert (await s.report(two.session)).status_code == 200
        await s.until(lambda: s.service.coordinator.round == 1)
        again = await check_in(s, "a")
        assert (again.round, s.service.coordinator.tasks()[0].buffer.devices) == (2, 1)
        assert (await s.post(f"/v1/sessions/{again.session}/abandon", b'{"reason":"condition_lapsed"}')).is_success
        assert (await check_in(s, "a")).round == 2

    run(scenario, storage=asynchronous(), rounds=ROUND)


def test_two_check_ins_of_one_credential_have_one_place():
    async def scenario(s):
        first, second = await asyncio.gather(check_in(s, "a"), check_in(s, "a"))
        (assigned,) = [x for x in (first, second) if isinstance(x, Assignment)]
        assert assigned.round == 1 and s.service.coordinator.tasks()[0].buffer.devices == 1

    run(scenario, storage=asynchronous(), rounds=ROUND)


TOKEN = "t" * 43


def test_nobody_is_remembered_when_the_task_is_over():
    async def scenario(s):
        one = await check_in(s, "a")
        assert (await s.report(one.session)).status_code == 200
        assert s.service.aboard._counted
        got = await s.post(
            f"/v1/admin/populations/{P}/tasks/train", b'{"action":"cancel"}', authorization=f"Bearer {TOKEN}"
        )
        assert got.is_success and not s.service.aboard._counted

    run(scenario, storage=asynchronous(), rounds=ROUND, admin_token=TOKEN)


def test_an_administrator_and_the_metrics_see_how_far_a_buffer_is(tmp_path):
    async def details(s):
        got = await s.client.get(f"/v1/admin/populations/{P}", headers={"authorization": f"Bearer {TOKEN}"})
        return msgspec.json.decode(got.content, type=PopulationDetails)

    async def scenario(s):
        one, _two = await check_in(s, "a"), await check_in(s, "b")
        await s.report(one.session)
        (task,) = (await details(s)).tasks
        assert (task.buffer.updates, task.buffer.devices, task.buffer.staleness) == (1, 1, 0.0)
        value = s.service.metrics.registry.get_sample_value
        assert (value("covey_buffer_updates"), value("covey_buffer_devices")) == (1, 1)

    run(scenario, storage=asynchronous(), rounds=ROUND, admin_token=TOKEN)


REFUSED = {
    "secure": (lambda: fedbuff(world.secure_plan_bytes()), {"goal": 6}, "asynchronous", "--plain"),
    "private": (lambda: fedbuff(private_plan("gaussian:clip=1,noise=1")), {"goal": 10}, "asynchronous", "fedavg"),
    "many": (lambda: plan(concurrency=99), {"goal": 2}, "usage", "concurrency, 99, at most its n_max, 100"),
}


def fedbuff(data):
    return world.changed(unpack_plan(data), algorithm=AlgorithmRef(name="fedbuff", settings={}))


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_compose_is_refused_when_the_task_is_created(tmp_path, what):
    made, rounds, code, text = REFUSED[what]
    data = made()
    signature = sign_plan(world.OWNER, P, sha256_hex(data)).hex()
    storage = MemoryStorage()
    storage.create(PopulationRecord(P, 0, storage.put_blob(world.checkpoint())))
    (tmp_path / "owner.pub").write_bytes(public_key_pem(world.OWNER.public_key()))

    async def scenario(s):
        headers = {"authorization": f"Bearer {TOKEN}"}
        path = f"/v1/admin/populations/{P}"
        assert (await s.client.post(f"{path}/plans?signature={signature}", content=data, headers=headers)).is_success
        wanted = {"task": "t", "plan": sha256_hex(data), "signature": signature, "settings": {"round": rounds}}
        got = await s.client.post(f"{path}/tasks", content=msgspec.json.encode(wanted), headers=headers)
        body = assert_failed(got, 400 if code != "usage" else got.status_code, code)
        assert text in f"{body.message} {body.hint}" and s.service.coordinator.tasks() == ()

    run(scenario, storage=storage, directory=tmp_path, admin_token=TOKEN)
