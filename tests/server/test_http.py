"""The HTTP application in memory: a whole round, and every way in which a request can be wrong."""

import asyncio

import msgspec
import pytest
from device import world

from covey.server.credentials import Credentials
from covey.types.tensors import sha256_hex
from covey.wire.messages import (
    MAX_MESSAGE_BYTES,
    Abandon,
    Abandoned,
    Assignment,
    CheckIn,
    ComeBack,
    Enroll,
    Enrolled,
    ErrorBody,
    Reported,
    encode_message,
)

from . import parts
from .app import CHECK_IN, P, assert_failed, raw, run


def test_a_whole_round():
    rows = []

    async def device(s, seed):
        enrolled = msgspec.json.decode(
            (await s.client.post("/v1/enroll", content=encode_message(Enroll(population=P)))).content, type=Enrolled
        )
        headers = {"authorization": f"Bearer {enrolled.credential}"}
        got = await s.client.post("/v1/checkin", content=CHECK_IN, headers=headers)
        work = msgspec.json.decode(got.content, type=Assignment)
        for ref, data in ((work.plan, world.plan_bytes()), (work.checkpoint, world.checkpoint())):
            got = await s.client.get(ref.path, headers=headers)
            assert got.content == data and sha256_hex(data) == ref.sha256 and len(data) == ref.num_bytes
            assert "immutable" in got.headers["cache-control"]
        data = parts.body(parts.values(seed=seed))
        got = await s.client.post(f"/v1/sessions/{work.session}/report", content=data, headers=headers)
        assert msgspec.json.decode(got.content, type=Reported).counted
        assert got.headers["cache-control"] == "no-store"

    async def scenario(s):
        await asyncio.gather(device(s, 0), device(s, 1))
        await s.until(lambda: rows)
        status = await s.status()
        (row,) = status.rounds
        assert rows == [row] and (status.round, status.task, status.mode, status.min_cohort) == (
            1,
            "points",
            "plain",
            2,
        )
        assert (row.status, row.selected, row.reported, row.lost) == ("committed", 2, 2, 0)
        assert row.bytes_up == 2 * len(parts.body())
        assert row.bytes_down == 2 * (len(world.plan_bytes()) + len(world.checkpoint()))
        assert status.checkpoint.sha256 == row.checkpoint
        new = (await s.client.get(status.checkpoint.path)).content
        assert sha256_hex(new) == row.checkpoint and new != world.checkpoint() and len(new) == len(world.checkpoint())
        assert (await s.status(after=1)).rounds == ()

    run(scenario, on_round=rows.append)


def test_the_rest_of_a_download():
    async def scenario(s):
        ref = (await s.status()).checkpoint
        whole = await s.client.get(ref.path)
        etag = whole.headers["etag"]
        assert etag == f'"{ref.sha256}"' and whole.headers["accept-ranges"] == "bytes"
        for headers in ({"range": "bytes=5-"}, {"range": "bytes=5-", "if-range": etag}):
            rest = await s.client.get(ref.path, headers=headers)
            assert rest.status_code == 206 and rest.content == whole.content[5:]
            assert rest.headers["content-range"] == f"bytes 5-{ref.num_bytes - 1}/{ref.num_bytes}"
        for headers in (
            {"range": "bytes=0-"},
            {"range": "bytes=5-", "if-range": '"another"'},
            {"range": "bytes=5-9"},
            {"range": "bytes=-5"},
            {"range": "lines=1-"},
        ):
            got = await s.client.get(ref.path, headers=headers)
            assert got.status_code == 200 and got.content == whole.content
        beyond = await s.client.get(ref.path, headers={"range": f"bytes={ref.num_bytes}-"})
        assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{ref.num_bytes}"

    run(scenario)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_rounds_go_on_and_the_number_of_shards_changes_no_bit(num_shards):
    names = []

    async def scenario(s):
        for number in (1, 2):
            sessions = await s.sessions(4)
            for i, session in enumerate(sessions):
                assert (await s.report(session, parts.body(parts.values(seed=i)))).status_code == 200
            await s.until(lambda number=number: s.service.coordinator.round == number)
        names.append((await s.status()).checkpoint.sha256)

    run(scenario, num_shards=num_shards, rounds={"goal": 4})
    run(scenario, num_shards=2, rounds={"goal": 4})
    assert len(set(names)) == 1


def test_a_second_report_an_unknown_session_and_a_late_report():
    async def scenario(s):
        first, second = await s.sessions()
        assert (await s.report(first)).status_code == 200
        assert_failed(await s.report(first), 409, "already_counted")
        body = assert_failed(await s.report("nobody"), 404, "session_unknown")
        assert body.hint == "check in again"
        assert (await s.report(second)).status_code == 200
        await s.until(lambda: s.service.coordinator.round == 1)
        assert_failed(await s.report(second), 409, "round_closed")
        got = await s.post(f"/v1/sessions/{first}/abandon", encode_message(Abandon(reason="x")))
        assert msgspec.json.decode(got.content, type=Abandoned)

    run(scenario)


def test_a_session_of_a_server_that_was_restarted_is_unknown():
    storage, _ = parts.storage_with_population()
    sessions = []

    async def before(s):
        sessions.extend(await s.sessions())
        await s.report(sessions[0])

    async def after(s):
        for session in sessions:
            assert_failed(await s.report(session), 404, "session_unknown")
        assert s.service.coordinator.round == 0

    run(before, storage=storage)
    run(after, storage=storage)


def test_reports_that_cannot_be_folded_end_the_round_and_leave_the_buffers_empty():
    async def scenario(s):
        first, second = await s.sessions()
        assert_failed(await s.report(first, parts.body()[:-1]), 422, "update_format")
        await s.until(lambda: s.service.coordinator.summaries == 1)
        (row,) = (await s.status()).rounds
        assert (row.status, row.reason, row.reported) == ("abandoned", "too_many_lost", 0)
        assert_failed(await s.report(second), 409, "round_closed")
        # The second report may have come before the first one's buffer was back: then there are two.
        await s.until(lambda: len(s.service.buffers.free) == s.service.buffers.num >= 1)
        assert not any(any(buffer) for buffer in s.service.buffers.free)

    run(scenario)


def test_an_abandoned_session_is_lost():
    async def scenario(s):
        first, _ = await s.sessions()
        got = await s.post(f"/v1/sessions/{first}/abandon", encode_message(Abandon(reason="condition_lapsed")))
        assert msgspec.json.decode(got.content, type=Abandoned).retry_after_s >= 0
        await s.until(lambda: s.service.coordinator.summaries == 1)

    run(scenario)


@pytest.mark.parametrize(
    ("length", "sent", "status", "code"),
    [
        (None, 10, 400, "wire_invalid"),
        ("ten", 10, 400, "wire_invalid"),
        ("-1", 10, 400, "wire_invalid"),
        ("1000000", 10, 413, "body_too_large"),
        ("9" * 30, 10, 413, "body_too_large"),
        ("10", 11, 413, "body_too_large"),
        ("10", 5000, 413, "body_too_large"),
        ("10", 9, 422, "update_format"),
        ("0", 0, 422, "update_format"),
    ],
)
def test_a_report_whose_length_is_wrong(length, sent, status, code):
    async def scenario(s):
        session, _ = await s.sessions()
        path = f"/v1/sessions/{session}/report"
        headers = [(b"authorization", s.headers["authorization"].encode())]
        headers += [] if length is None else [(b"content-length", length.encode())]
        got_status, content = await raw(s.app, "POST", path, headers, [bytes(sent)])
        assert (got_status, msgspec.json.decode(content, type=ErrorBody).code) == (status, code)
        await s.until(lambda: len(s.service.buffers.free) == s.service.buffers.num)
        # An empty body is a report that cannot be folded. Whatever never was a whole body leaves the session open.
        assert (await s.report(session)).status_code == (200 if sent else 409)

    run(scenario)


def test_a_device_that_hangs_up_waits_no_longer():
    async def scenario(s):
        gone = asyncio.Event()
        headers = [(b"authorization", s.headers["authorization"].encode())]
        call = asyncio.create_task(raw(s.app, "POST", "/v1/checkin", headers, [CHECK_IN], gone))
        await s.until(lambda: s.service.selector.num_waiting == 1)
        gone.set()
        await call
        assert s.service.selector.num_waiting == 0 and not s.service._tickets._waiting
        assert len(set(await s.sessions())) == 2  # two others make the cohort

    run(scenario)


def test_more_reports_at_once_than_buffers_are_asked_to_come_again():
    async def scenario(s):
        first, second = await s.sessions()
        data, hold = parts.body(), asyncio.Event()
        headers = [(b"authorization", s.headers["authorization"].encode()), (b"content-length", b"%d" % len(data))]
        path = f"/v1/sessions/{first}/report"
        slow = asyncio.create_task(raw(s.app, "POST", path, headers, [data[:50], hold, data[50:]]))
        await s.until(lambda: s.service.buffers.num == 1)
        got = await s.report(second)
        assert assert_failed(got, 503, "busy").retry_after_s == 1.0 and got.headers["retry-after"] == "1"
        hold.set()
        assert (await slow)[0] == 200
        await s.until(lambda: s.service.buffers.free)
        assert (await s.report(second)).status_code == 200

    run(scenario, buffers=1)


def test_a_check_in_that_nobody_needs_is_told_to_come_back():
    async def scenario(s):
        answer = await s.check_in()
        # To the next slot but one at the latest, and within half of what a check-in is held.
        assert answer.reason == "not_selected" and 60.0 <= answer.retry_after_s <= 121.0

    run(scenario, poll_s=0.05)


def test_after_the_last_round_devices_are_sent_away():
    async def scenario(s):
        for session in await s.sessions():
            await s.report(session)
        await s.until(lambda: s.service.coordinator.finished)
        answer = await s.check_in()
        assert answer.reason == "paused" and answer.retry_after_s >= 1
        assert (await s.status()).state == "paused"

    run(scenario, rounds={"max_rounds": 1})


def test_who_waits_when_the_server_stops_is_told_so_and_closing_takes_no_time():
    async def scenario(s):
        waiting = asyncio.create_task(s.check_in())
        await s.until(lambda: s.service.selector.num_waiting == 1)
        s.service.stop()
        assert await waiting == await s.check_in() == ComeBack(retry_after_s=1.0, reason="restarting")
        async with asyncio.timeout(30):
            await s.service.close()

    run(scenario)


@pytest.mark.parametrize("credential", [None, "", "Bearer", "Bearer ", "Bearer x.y", "Basic abc", "bearer x.y"])
@pytest.mark.parametrize("path", ["/v1/checkin", "/v1/sessions/s/report", "/v1/sessions/s/abandon"])
def test_without_a_credential_nobody_comes_in(path, credential):
    content = {"/v1/checkin": CHECK_IN, "/v1/sessions/s/abandon": encode_message(Abandon(reason="x"))}.get(path, b"")

    async def scenario(s):
        headers = {} if credential is None else {"authorization": credential}
        assert_failed(await s.client.post(path, content=content, headers=headers), 401, "unauthorized")
        assert s.service.selector.num_waiting == 0

    run(scenario)


def test_an_expired_credential_and_one_of_another_population():
    async def scenario(s):
        for token, status, code in (
            (s.service.credentials.issue(P, s.service.now_s() - 20.0), 401, "unauthorized"),
            (s.service.credentials.issue("other", s.service.now_s()), 404, "not_found"),
            (Credentials(b"k" * 32).issue(P, s.service.now_s()), 401, "unauthorized"),
        ):
            s.headers = {"authorization": f"Bearer {token}"}
            assert_failed(await s.post("/v1/checkin", CHECK_IN), status, code)
            got = await s.client.get(f"/v1/plans/{sha256_hex(world.plan_bytes())}", headers=s.headers)
            assert_failed(got, status, code)

    run(scenario, lifetime_s=10.0)


@pytest.mark.parametrize("path", ["/v1/enroll", "/v1/checkin", "/v1/sessions/s/abandon"])
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "wire_invalid"),
        (b"{", 400, "wire_invalid"),
        (b"[]", 400, "wire_invalid"),
        (b"{}", 400, "wire_invalid"),
        (b"\xff\xfe", 400, "wire_invalid"),
        (b'{"population": 7, "reason": 7}', 400, "wire_invalid"),
        (b" " * (MAX_MESSAGE_BYTES + 1), 413, "body_too_large"),
    ],
)
def test_a_message_that_cannot_be_read(path, content, status, code):
    async def scenario(s):
        assert_failed(await s.post(path, content), status, code)

    run(scenario)


def test_other_wrong_requests():
    async def scenario(s):
        other = encode_message(Enroll(population="other"))
        assert_failed(await s.client.post("/v1/enroll", content=other), 404, "not_found")
        assert_failed(await s.post("/v1/checkin", encode_message(CheckIn(population="other"))), 404, "not_found")
        newer = encode_message(CheckIn(population=P, protocol=99))
        assert_failed(await s.post("/v1/checkin", newer), 400, "wire_version")
        get = s.client.get
        assert_failed(await get("/v1/checkin"), 405, "wire_invalid")
        for path in (
            "/",
            "/v1",
            "/v2/checkin",
            "/v1/plans",
            "/v1/populations/other",
            "/v1/plans/x",
            "/v1/plans/..%2Fx",
        ):
            assert_failed(await get(path), 404, "not_found")
        assert_failed(await get("/v1/checkpoints/" + "0" * 64), 404, "not_found")
        for after in ("x", "-1", "1.5", "²", "9" * 13, ""):
            assert_failed(await get(f"/v1/populations/{P}", params={"after": after}), 400, "wire_invalid")

    run(scenario)


def test_a_bug_is_a_500_that_tells_nothing(monkeypatch):
    async def scenario(s):
        monkeypatch.setattr(s.service, "status", lambda *args: 1 / 0)
        got = await s.client.get(f"/v1/populations/{P}")
        assert_failed(got, 500, "error", "the server failed")
        assert b"Zero" not in got.content

    run(scenario)
