"""A device counts once in a round: two check-ins, two sessions, one credential; and nothing of it is kept or shown."""

import asyncio

import msgspec
import pytest

from covey.server.messages import DeviceArrived
from covey.server.participation import Participation
from covey.storage.sqlite import SqliteStorage
from covey.types.errors import AlreadyInRoundError
from covey.wire.messages import Assignment

from . import parts
from .app import CHECK_IN, assert_failed, run
from .leak import Detector

SUBJECT = "0123456789abcdef" * 2


def test_a_subject_is_admitted_once_to_a_round():
    p = Participation()
    p.admit("round 1", "a")
    p.admit("round 1", "b")
    with pytest.raises(AlreadyInRoundError) as caught:
        p.admit("round 1", "a")
    assert caught.value.code == "already_in_round" and "wait" in caught.value.hint
    p.admit("round 2", "a")  # the next round is another one


def test_the_key_dies_with_the_round():
    p = Participation()
    p.admit("round 1", "a")
    key, mark = p._key, *p._marks
    p.end()
    assert (p._key, p._marks) == (b"", set())
    p.admit("round 1", "a")  # of a round that was forgotten nothing can be told
    assert p._key != key and p._marks != {mark} and len(p._key) == 32


def test_a_subject_has_one_place_among_those_who_wait():
    p = Participation()
    assert [p.arrived("t1", "a"), p.arrived("t2", "b"), p.arrived("t3", "a")] == ["", "", "t1"]
    assert (p.left("t1"), p.left("t3"), p.left("t2")) == ("", "a", "b")
    assert (p._ticket_of, p._subject_of) == ({}, {})


def test_memory_holds_marks_and_no_subject_of_a_round_and_shows_neither():
    p = Participation()
    p.arrived("ticket", SUBJECT)
    p.admit("round", p.left("ticket"))
    held = [v for v in vars(p).values() for v in ([v] if not isinstance(v, dict | set) else [*v])]
    assert not any(SUBJECT in str(v) or SUBJECT.encode() in (v if isinstance(v, bytes) else b"") for v in held)
    assert repr(p) == "Participation(0 wait, 1 take part)"


async def check_in(s, subject):
    return await s.post("/v1/checkin", CHECK_IN, **s.credential(subject))


def test_two_check_ins_of_one_credential_have_one_place():
    async def scenario(s):
        first = asyncio.create_task(check_in(s, SUBJECT))
        await s.until(lambda: s.service.selector.num_waiting == 1)
        second = asyncio.create_task(check_in(s, SUBJECT))  # two of the two that the round wants, but for the subject
        body = assert_failed(await first, 409, "already_in_round", "a device once")
        assert 60 <= body.retry_after_s <= 200 and SUBJECT not in body.message
        assert s.service.selector.num_waiting == 1 and not second.done()
        other = await check_in(s, "another")
        sessions = {msgspec.json.decode(a.content, type=Assignment).session for a in (await second, other)}
        assert len(sessions) == 2
        for session in sessions:
            assert (await s.report(session)).status_code == 200
        await s.until(lambda: s.service.coordinator.round == 1)
        assert (await s.status()).rounds[-1].reported == 2
        assert s.service.participation._marks == set()  # they died with the round

    run(scenario)


def test_a_second_session_of_one_credential_ends_before_it_begins():
    async def scenario(s):
        # A selection that draws the same device twice: the reservoir never has it twice, so the test puts it there.
        one, two = s.service._tickets.take(), s.service._tickets.take()
        s.service.participation._subject_of |= {one[0]: SUBJECT, two[0]: SUBJECT}
        for ticket in (one[0], two[0]):
            s.service.selector._waiting[ticket] = s.service.now_s() + 20
        third = asyncio.create_task(check_in(s, "another"))
        answers = await asyncio.gather(one[1], two[1], return_exceptions=True)
        given, refused = sorted(answers, key=lambda answer: isinstance(answer, AlreadyInRoundError))
        assert isinstance(refused, AlreadyInRoundError)
        sessions = [given.session, msgspec.json.decode((await third).content, type=Assignment).session]
        for session in sessions:
            assert (await s.report(session)).status_code == 200
        await s.until(lambda: s.service.coordinator.round == 1)
        row = (await s.status()).rounds[-1]
        assert (row.selected, row.reported, row.lost) == (
            3,
            2,
            1,
        )  # the refused session is lost, and nobody waits for it

    run(scenario, rounds={"goal": 2, "over_selection": 1.5, "min_fraction": 1.0})


def test_a_device_that_asks_again_after_its_round_is_welcome():
    async def scenario(s):
        for number in (1, 2):
            answers = await asyncio.gather(check_in(s, SUBJECT), check_in(s, "another"))
            for a in answers:
                await s.report(msgspec.json.decode(a.content, type=Assignment).session)
            await s.until(lambda number=number: s.service.coordinator.round == number)

    run(scenario)


def test_who_hangs_up_leaves_no_place_behind():
    async def scenario(s):
        ticket, _ = s.service.ask_selector(DeviceArrived, SUBJECT)
        s.service.leave(ticket)
        assert s.service.participation._ticket_of == {} and s.service.selector.num_waiting == 0

    run(scenario)


def test_nothing_of_it_is_stored(tmp_path):
    storage = SqliteStorage(tmp_path)
    parts.begin(storage)
    secrets = []

    async def scenario(s):
        answers = await asyncio.gather(check_in(s, SUBJECT), check_in(s, "another"))
        secrets.extend([s.service.participation._key, *s.service.participation._marks, SUBJECT.encode()])
        for a in answers:
            await s.report(msgspec.json.decode(a.content, type=Assignment).session)
        await s.until(lambda: s.service.coordinator.round == 1)

    run(scenario, storage=storage)
    storage.close()
    assert len(Detector(secrets).windows) >= 17 and Detector(secrets).search(tmp_path) == []
