"""What the ledger says of a session, in which order, and what a device refuses because of it."""

import msgspec
import pytest

from covey.device.agent import DeviceAgent
from covey.device.clock import SystemClock
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger, LedgerEntry
from covey.device.pace import Pace
from covey.device.recorder import INTERRUPTED, Recorder
from covey.plans.manifest import NoiseTerms, PrivacyTerms
from covey.types.clock import VirtualClock
from covey.types.errors import (
    ParticipationError,
    PlanError,
    PlanSignatureError,
    RoundClosedError,
    StorageFullError,
    TransportError,
)
from covey.types.tensors import sha256_hex

from . import world
from .fake_server import FakeServer

QUICK = Pace(first_s=0.001, most_s=0.004, jitter=0.0, conditions_s=0.001)


@pytest.fixture
def home(tmp_path):
    with DeviceHome(tmp_path / "home") as h:
        h.examples.add_many("points", world.points(13), world.SCHEMA)
        yield h


@pytest.fixture
def server():
    return FakeServer()


def agent(home, server, **options):
    return DeviceAgent(home, "https://server", world.policy(), transport=server, pace=QUICK, **options)


def entries(home):
    return list(Ledger.of_home(home.path).entries())


def full(*args):
    raise StorageFullError("ledger", expected="room", got="none")


def test_a_counted_session(home, server):
    def upload(call):
        if call == "report":  # it is about to arrive: the ledger knows already
            assert entries(home)[-1].kind == "sending"

    server.on_call = upload
    agent(home, server).run(once=True)
    started, sending, counted = entries(home)
    assert [e.kind for e in (started, sending, counted)] == ["session_started", "sending", "counted"]
    for e in (started, sending, counted):
        assert (e.population, e.session, e.round, e.mode, e.min_cohort) == ("tests", "s1", 1, "plain", 2)
        assert e.plan == world.assignment().plan.sha256 and e.epsilon is None
        assert e.summary == "points: fedavg on 3 to 50 examples of 'points' (train: 2 passes in batches of 4)"
    assert (started.num_examples, started.body_sha256) == (0, "")
    (body,) = server.bodies["s1"]
    assert (sending.body_sha256, sending.bytes_up, sending.num_examples) == (sha256_hex(body), len(body), 13)
    assert counted.bytes_down == len(world.plan_bytes()) + len(world.checkpoint())
    Ledger.of_home(home.path).verify()


def test_a_retry_is_no_second_upload(home, server):
    server.failures = {"report": [TransportError("s", expected="a", got="b") for _ in range(3)]}
    agent(home, server).run(once=True)
    assert [e.kind for e in entries(home)] == ["session_started", "sending", "counted"]
    assert len(server.bodies["s1"]) == 4 and len(set(server.bodies["s1"])) == 1


@pytest.mark.parametrize("when", ["started", "sending"])
def test_what_cannot_be_written_down_is_not_sent(home, server, monkeypatch, when):
    subject = agent(home, server)
    monkeypatch.setattr(subject._parts.recorder, when, full)
    with pytest.raises(StorageFullError):
        subject.run(once=True) if when == "started" else subject.turn(once=True) and full()
    assert "report" not in server.calls


def test_a_refused_plan_a_closed_round_and_a_lapse(home, server):
    server.assigned = {"signature": "00" * 64}
    with pytest.raises(PlanSignatureError):
        agent(home, server).run(once=True)
    server.assigned = {}
    server.failures = {"report": [RoundClosedError("r", expected="open", got="closed")]}
    agent(home, server).run(once=True)
    looks = iter([True, True, False])
    subject = agent(home, server, may_train=lambda: next(looks, True))
    subject.turn()
    told = [(e.kind, e.reason.partition(":")[0]) for e in entries(home) if e.kind not in ("session_started", "sending")]
    assert told == [
        ("refused", f"plan {world.assignment().plan.sha256[:12]}… for population 'tests'"),
        ("lost", "round_closed"),
        ("counted", ""),
        ("gave_up", "condition_lapsed"),
    ]


def test_a_device_that_is_sent_away_writes_nothing(home, server):
    from covey.wire.messages import ComeBack

    server.answers = [ComeBack(retry_after_s=0.0, reason="paused")]
    agent(home, server).turn()
    assert entries(home) == []


def test_what_a_killed_process_left_open_is_closed(home):
    ledger, clock = Ledger.of_home(home.path), VirtualClock(5.0)
    base = {"at_s": 1.0, "population": "p", "session": "s", "round": 3}
    ledger.append(LedgerEntry(kind="sending", body_sha256="b", **base))
    ledger.append(LedgerEntry(kind="sending", **{**base, "population": "q"}))
    ledger.append(LedgerEntry(kind="paused", at_s=2.0, population="p"))
    for _ in range(2):
        Recorder(ledger, "p", clock)
    assert [(e.kind, e.population) for e in ledger.entries()][-2:] == [("paused", "p"), ("lost", "p")]
    last = list(ledger.entries())[-1]
    assert (last.session, last.round, last.body_sha256, last.reason, last.at_s) == ("s", 3, "b", INTERRUPTED, 5.0)


# --- spacing ---


def manifest(most, separation):
    noise = NoiseTerms(
        kind="tree", clip=1.0, clip_low=1.0, clip_high=1.0, noise_multiplier=1.0, clip_units=1024, denominator=10,
        population=1000, delta=1e-4, num_rounds=64, budget=8.0, max_participation=most, min_separation=separation,
        coordinate_bound=10_000,
    )  # fmt: skip
    return msgspec.structs.replace(world.plan().manifest, privacy=PrivacyTerms(min_cohort=5, noise=noise))


def take_part(recorder, number, terms, *, plan=None, send=True):
    fields = {"plan": plan} if plan else {}
    recorder.assigned(world.assignment(session=f"s{number}", round=number, **fields))
    recorder.started(terms)
    if send:
        recorder.sending(b"%d" % number, 1, 2)


def test_the_devices_own_ledger_keeps_participations_apart(tmp_path):
    ledger, terms = Ledger(tmp_path / "l"), manifest(most=3, separation=4)
    recorder = Recorder(ledger, "p", SystemClock())
    take_part(recorder, 1, terms, send=False)  # it gave up before anything left: that does not count
    take_part(recorder, 1, terms)
    for number in (1, 2, 5):
        with pytest.raises(ParticipationError, match="more than 4 rounds since"):
            take_part(recorder, number, terms)
    recorder = Recorder(ledger, "p", SystemClock())  # a restart forgets nothing
    with pytest.raises(ParticipationError, match=f"round {5} after round 1"):
        take_part(recorder, 5, terms)
    take_part(recorder, 6, terms)
    with pytest.raises(ParticipationError):  # a server that turned its rounds back
        take_part(recorder, 3, terms)
    take_part(recorder, 11, terms)
    with pytest.raises(ParticipationError, match="at most 3 rounds"):
        take_part(recorder, 60, terms)
    take_part(recorder, 1, terms, plan=world.ref(b"another plan", "plans"))
    take_part(Recorder(ledger, "another", SystemClock()), 1, terms)
    told = [e for e in ledger.entries() if e.kind == "sending"]
    assert {(e.epsilon, e.delta) for e in told} == {(8.0, 1e-4)}


def test_the_server_is_told_and_nothing_is_trained(home, server, monkeypatch):
    subject = agent(home, server)

    def refuse(manifest):
        raise ParticipationError("privacy terms", expected="a", got="b")

    monkeypatch.setattr(subject._parts.recorder, "started", refuse)
    with pytest.raises(ParticipationError):
        subject.run(once=True)
    assert server.abandoned == [("s1", "participation")] and "report" not in server.calls
    assert [e.kind for e in entries(home)] == ["refused"]
    assert issubclass(ParticipationError, PlanError)
