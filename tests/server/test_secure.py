"""The secure aggregator with real devices' halves at its other end: sums, dropouts, deadlines, repetitions."""

import dataclasses
import os
import random

import numpy as np
import pytest
from device import world
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.compression.codec import codec_named, segment_seed
from covey.device.secure import SecureReport, sum_session
from covey.device.update import summed_integers
from covey.plans.plan import unpack_plan
from covey.plans.signing import generate_owner_key
from covey.secagg import EnrolmentAuthority
from covey.secagg.encoding import bitmap
from covey.secagg.messages import Advertisement, Roster, Signature, Signatures, Survivors
from covey.server.groups import deal
from covey.server.messages import (
    AbandonArrived,
    CloseShard,
    Counted,
    DiscardShard,
    Lost,
    OpenShard,
    Reply,
    ShardClosed,
    StepArrived,
    StepAwaited,
    coordinator_address,
)
from covey.server.opening import opened_reals
from covey.server.secure import SecureAggregator
from covey.types.errors import (
    AlreadyCountedError,
    ConsistencyError,
    CoveyError,
    EnrolmentError,
    RoundClosedError,
    SecAggMessageError,
    SessionUnknownError,
    StateError,
    ThresholdError,
)
from covey.types.segments import SegmentSum
from covey.wire.messages import ACTIVE_STEPS, SECURE_STEPS, Abandoned, Joined, Reported, Taken

from . import parts

TIMEOUT_S = 30.0


class Round:
    """One attempt of ``count`` devices: the role, the devices' halves, and what the coordinator was told."""

    def __init__(
        self, count=6, group_size=6, min_cohort=3, seed=0, codec="float32", active=False, now_s=0.0, plan_data=None
    ):
        self.plan_data = plan_data or world.secure_plan_bytes(group_size, min_cohort, codec)
        if active:
            self.plan_data = world.active_plan_bytes(group_size, min_cohort)
        self.steps = ACTIVE_STEPS if active else SECURE_STEPS
        self.manifest = unpack_plan(self.plan_data).manifest
        self.offer = world.assignment(self.plan_data, mode="secure", public_seed=os.urandom(32).hex())
        self.role = SecureAggregator(
            parts.POPULATION, self.manifest, chance=random.Random(seed), step_timeout_s=TIMEOUT_S
        )
        self.now_s, self.told = now_s, []
        self.sessions = [f"s{i}" for i in range(count)]
        self.values = {s: self.contribution(i) for i, s in enumerate(self.sessions)}
        self.devices = {s: self.device(s, self.offer) for s in self.sessions}
        self.answers = {}
        self.route(self.role.receive(OpenShard("a", 0, tuple(self.sessions), self.offer), 0.0))

    def contribution(self, index):
        """Return what a device made of its training, as reals."""
        return parts.values(weight=1.0 + index, seed=index)

    def device(self, session, offer):
        """Return a device that has trained, and was told ``offer``."""
        private = bytes([int(session[1:])]) * 32
        inputs = summed_integers(self.manifest, offer, dict(self.values[session]), private)
        report = SecureReport(self.manifest, offer, parts.POPULATION, inputs, randomness=os.urandom, used_sums=set())
        if report.is_active:
            report.certified(world.identity(), int(self.now_s))
        return report

    def route(self, envelopes):
        for e in envelopes:
            if e.to == coordinator_address(parts.POPULATION):
                self.told.append(e.message)
            else:
                assert isinstance(e.message, Reply)
                self.answers[e.to.removeprefix("device/")] = e.message.message

    def ask(self, message):
        """Send a message with a ticket; return its answer, or None while it waits."""
        self.answers.pop(message.ticket, None)
        self.route(self.role.receive(message, self.now_s))
        return self.answers.get(message.ticket)

    def send(self, session, step, body=b""):
        return self.ask(StepArrived(f"{session} sends", session, step, body))

    def wait(self, session, step):
        return self.ask(StepAwaited(f"{session} waits", session, step))

    def close(self):
        self.route(self.role.receive(CloseShard("a"), self.now_s))

    def expire(self):
        """Let time pass until the first step is due."""
        self.now_s = self.role.next_deadline_s()
        self.route(self.role.tick(self.now_s))

    def play(self, gone=()):
        """Take all steps; ``gone`` maps a session to the first step that it does not take any more."""
        gone, bodies = dict(gone), dict.fromkeys(self.sessions, b"")
        for step in self.steps:
            here = [s for s in bodies if gone.get(s) != step]
            for s in here:
                answer = self.send(s, step, bodies[s])
                assert isinstance(answer, Reported if step == "unmask" else Taken), answer
            if step == "ready":
                self.close()
            elif any(gone.get(s) == step for s in bodies) and not self.closed:
                self.expire()
            if step == "unmask" or self.closed:
                break
            answers = {s: self.wait(s, step) for s in here}
            following = {}
            for s, answer in answers.items():
                assert not isinstance(answer, CoveyError | None), answer
                device = self.devices[s]
                following[s] = device.joined(answer) if step == "ready" else device.told(step, answer)[1]
            bodies = following
        return self.closed

    @property
    def closed(self):
        found = [m for m in self.told if isinstance(m, ShardClosed)]
        assert len(found) <= 1
        return found[0] if found else None

    def expected(self, sessions):
        """Return the sum of these devices' updates, folded in the clear."""
        total = SegmentSum(self.manifest.layout(0))
        for s in sessions:
            total.fold_reals(self.values[s])
        return total


def same(a: SegmentSum, b: SegmentSum):
    return a.num_folded == b.num_folded and all(
        np.array_equal(a.integers(s.name), b.integers(s.name)) for s in a.segments
    )


@pytest.mark.parametrize("active", [False, True])
def test_the_opened_sum_is_the_plain_sum_bit_for_bit(active):
    r = Round(active=active)
    closed = r.play()
    assert same(closed.total, r.expected(r.sessions)) and closed.reason == ""
    assert [type(m) for m in r.told] == [Counted] * 6 + [ShardClosed]
    masked = sum_session(r.manifest, r.offer, parts.POPULATION, group=0).packed_bytes
    assert closed.bytes_up > 6 * masked
    assert r.role.next_deadline_s() is None and not r.role._shards and not r.role._attempt_of


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_whoever_drops_out_wherever_the_sum_is_that_of_the_survivors_or_nothing(data):
    r = Round(seed=data.draw(st.integers(0, 99)), active=data.draw(st.booleans()))
    steps = st.sampled_from(r.steps)
    gone = data.draw(st.dictionaries(st.sampled_from(r.sessions), steps, max_size=4))
    closed = r.play(gone)
    survivors = [s for s in r.sessions if gone.get(s) in (None, "consistency", "unmask")]
    session = sum_session(r.manifest, r.offer, parts.POPULATION, group=0)
    left = [sum(gone.get(s, "zzz") not in r.steps[: i + 1] for s in r.sessions) for i in range(1, len(r.steps))]
    needed = [session.quorum] * 3 + [session.threshold] * (len(r.steps) - 4)
    if all(n >= m for n, m in zip(left, needed, strict=True)):
        assert same(closed.total, r.expected(survivors)), gone
    else:
        assert closed.total.num_folded == 0 and closed.reason == "secagg_threshold", gone
        assert not closed.total.integers("model").any()


def test_a_cohort_is_split_into_groups_and_one_that_fails_is_discarded_alone():
    r = Round(count=12, group_size=6)
    for s in r.sessions:
        r.send(s, "ready")
    r.close()
    joined = {s: r.wait(s, "ready") for s in r.sessions}
    assert {j.group for j in joined.values()} == {0, 1}
    assert sorted((j.group, j.index) for j in joined.values()) == [(g, i) for g in (0, 1) for i in range(6)]
    bad = [s for s in r.sessions if joined[s].group == 1][:3]
    good = [s for s in r.sessions if joined[s].group == 0]
    bodies = {s: r.devices[s].joined(j) for s, j in joined.items() if s not in bad}
    r.now_s += 1.0  # the good group's next step begins later, and so ends later
    for step in SECURE_STEPS[1:]:
        for s, body in bodies.items():
            assert not isinstance(r.send(s, step, body), CoveyError)
        if step == "advertise":
            r.expire()  # three are gone from one group: it ends here
            assert isinstance(r.wait(next(s for s in bodies if s not in good), step), CoveyError)
            bodies = {s: b for s, b in bodies.items() if s in good}
        if step != "unmask":
            bodies = {s: r.devices[s].told(step, r.wait(s, step))[1] for s in bodies}
    assert same(r.closed.total, r.expected(good)) and r.closed.reason == "secagg_threshold"


@pytest.mark.parametrize(
    ("count", "most", "least", "sizes"),
    [(6, 6, 4, [6]), (3, 6, 4, [3]), (0, 6, 4, [0]), (12, 6, 5, [6, 6]), (11, 6, 5, [6, 5]), (7, 6, 4, [6]),
     (101, 100, 59, [100]), (201, 100, 59, [67] * 3), (117, 100, 59, [100]), (118, 100, 59, [59, 59])],
)  # fmt: skip
def test_groups_are_as_few_as_can_be_and_none_too_small_to_open(count, most, least, sizes):
    groups = deal(list(range(count)), most, least)
    assert [len(g) for g in groups] == sizes
    dealt = [x for g in groups for x in g]
    assert len(set(dealt)) == len(dealt) == sum(sizes) and set(dealt) <= set(range(count))


def test_one_device_too_many_is_left_out_so_that_the_others_sum_opens():
    r = Round(count=7, group_size=6)
    for s in r.sessions:
        r.send(s, "ready")
        r.wait(s, "ready")
    r.close()
    places = {s: r.answers[f"{s} waits"] for s in r.sessions}
    (out,) = [s for s, p in places.items() if isinstance(p, RoundClosedError)]
    assert sorted(p.index for s, p in places.items() if s != out) == list(range(6))
    assert isinstance(r.wait(out, "ready"), RoundClosedError)


def test_the_consistency_step_belongs_to_the_active_mode_alone():
    r = Round()
    for s in r.sessions:
        r.send(s, "ready")
    r.close()
    assert isinstance(r.send("s0", "consistency", b""), StateError)
    assert isinstance(r.wait("s0", "consistency"), StateError)


def active_until(step, **options):
    """Return a round against an active server, and the bodies of ``step``, not sent yet."""
    r = Round(active=True, **options)
    for s in r.sessions:
        r.send(s, "ready")
    r.close()
    bodies = {s: r.devices[s].joined(r.wait(s, "ready")) for s in r.sessions}
    for before in r.steps[1 : r.steps.index(step)]:
        for s in r.sessions:
            assert r.send(s, before, bodies[s]) == Taken(step=before)
        bodies = {s: r.devices[s].told(before, r.wait(s, before))[1] for s in r.sessions}
    return r, bodies


NOW_S = 1_000_000
OTHERS = {
    "forged": lambda: world.identity(authority=EnrolmentAuthority(generate_owner_key(), parts.POPULATION)),
    "expired": lambda: world.identity(expires_at=NOW_S),
    "of another population": lambda: world.identity(authority=EnrolmentAuthority(world.AUTHORITY._key, "other")),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_certificate_that_is_not_good_is_refused_by_the_server_and_by_every_device(kind):
    r, bodies = active_until("advertise", now_s=NOW_S)
    liar = OTHERS[kind]()
    session = sum_session(r.manifest, r.offer, parts.POPULATION, group=0)
    index = r.role._shards["a"].place["s5"][1]
    own = Advertisement.decode(session, index, bodies["s5"])
    unsigned = Advertisement(index, own.cipher_key, own.mask_key, liar.certificate)
    forged = dataclasses.replace(unsigned, signature=liar.key.sign(unsigned.statement(session)))
    for s in r.sessions[:5]:
        r.send(s, "advertise", bodies[s])
    assert isinstance(r.send("s5", "advertise", forged.encode(session)), EnrolmentError)
    # A server that lets it pass gains nothing: no device shares a key with anybody in such a roster.
    entries = [Advertisement.decode(session, r.role._shards["a"].place[s][1], bodies[s]) for s in r.sessions[:5]]
    roster = Roster.of(sorted([*entries, forged], key=lambda e: e.index)).encode(session)
    for s in r.sessions[:5]:
        with pytest.raises(EnrolmentError):
            r.devices[s].told("advertise", roster)
    r.expire()
    assert isinstance(r.wait("s0", "advertise"), bytes)  # the honest server goes on with the five


def test_a_server_that_tells_two_devices_different_survivors_gets_no_share():
    r, bodies = active_until("mask")
    for s in r.sessions:
        r.send(s, "mask", bodies[s])
    session, place = sum_session(r.manifest, r.offer, parts.POPULATION, group=0), r.role._shards["a"].place
    index = {s: place[s][1] for s in r.sessions}
    # Half of them are told that everybody survived, half that the device of index 5 did not: with both kinds of its
    # shares the server could take all masks off that one's input.
    stories = {s: set(range(6)) if index[s] % 2 else set(range(5)) for s in r.sessions}
    signed = {
        s: r.devices[s].told("mask", Survivors(bitmap(stories[s], 6)).encode(session))
        for s in r.sessions if index[s] in stories[s]
    }  # fmt: skip
    assert {step for step, _ in signed.values()} == {"consistency"}
    signatures = {index[s]: Signature.decode(session, index[s], body).signature for s, (_, body) in signed.items()}
    for s, (_, body) in signed.items():
        if stories[s] != set(range(6)):
            assert isinstance(r.send(s, "consistency", body), ConsistencyError)  # the honest server finds out
        same = {i: v for i, v in signatures.items() if (i % 2) == (index[s] % 2)}
        for shown, error in ((same, ThresholdError), (signatures, ConsistencyError)):
            device = twin_of(r.devices[s]) if shown is same else r.devices[s]
            with pytest.raises(error):
                device.told("consistency", Signatures(tuple(sorted(shown.items()))).encode(session))
            with pytest.raises(StateError):  # it has left, and dropped its secrets
                device.told("consistency", Signatures(tuple(sorted(signatures.items()))).encode(session))


def twin_of(device):
    """Return a device that stands where another does, so that two lies can be tried on it."""
    party = device._party
    twin = object.__new__(type(device))
    twin.__dict__.update(device.__dict__)
    twin._party = object.__new__(type(party))
    twin._party.__dict__.update(party.__dict__)
    return twin


@pytest.mark.parametrize("active", [False, True])
def test_garbage_ring_elements_open_nothing(active):
    """They look like any masked input; only the counter tells, and it discards the sum."""
    r = Round(active=active)
    honest = r.devices["s3"].told
    session = sum_session(r.manifest, r.offer, parts.POPULATION, group=0)

    def garbage(step, message):
        following, body = honest(step, message)
        return following, body[:40] + os.urandom(session.packed_bytes) if step == "share" else body

    r.devices["s3"].told = garbage
    closed = r.play()
    assert closed.total.num_folded == 0 and not closed.total.integers("model").any()
    assert closed.reason == "secagg_counter"


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:40], lambda b: b"\0" * len(b)])
def test_a_masked_input_that_is_malformed_is_refused_and_missed_by_nobody(change):
    r, bodies = active_until("mask")
    for s in r.sessions[:5]:
        r.send(s, "mask", bodies[s])
    assert isinstance(r.send("s5", "mask", change(bodies["s5"])), SecAggMessageError)
    assert r.send("s5", "mask", bodies["s5"]) == Taken(step="mask")  # the sum was untouched


@pytest.mark.parametrize("step", ["advertise", "share", "mask"])
def test_a_message_of_another_round_is_refused_however_good_it_was_there(step):
    (r, bodies), (_, others) = active_until(step), active_until(step)
    for s in r.sessions:
        assert isinstance(r.send(s, step, others[s]), SecAggMessageError)
        assert r.send(s, step, bodies[s]) == Taken(step=step)


def test_ten_thousand_sessions_that_never_report_leave_nothing_behind():
    r = Round(count=0)
    for number in range(3):
        attempt, sessions = f"big{number}", tuple(f"{number}/{i}" for i in range(10_000))
        r.route(r.role.receive(OpenShard(attempt, 0, sessions, r.offer), 0.0))
        for s in sessions[:100]:
            r.send(s, "ready")
            r.wait(s, "ready")
        r.route(r.role.receive(DiscardShard(attempt), 0.0))
        assert isinstance(r.answers[f"{number}/99 waits"], RoundClosedError)
        assert isinstance(r.send(sessions[0], "ready"), RoundClosedError | SessionUnknownError)
        assert isinstance(r.send(sessions[-1], "ready"), RoundClosedError)
    assert set(r.role._shards) == {"a"} and not r.role._attempt_of and len(r.role._over) == 10_000


def test_a_wait_is_answered_when_the_step_ends():
    r = Round()
    for s in r.sessions:
        r.send(s, "ready")
        assert r.wait(s, "ready") is None
    r.close()
    places = {s: r.answers[f"{s} waits"] for s in r.sessions}
    assert all(isinstance(p, Joined) for p in places.values())
    bodies = {s: r.devices[s].joined(p) for s, p in places.items()}
    for s in r.sessions[:5]:
        r.send(s, "advertise", bodies[s])
        assert r.wait(s, "advertise") is None
    r.send("s5", "advertise", bodies["s5"])
    assert len({r.answers[f"{s} waits"] for s in r.sessions[:5]}) == 1  # everybody hears of the same roster


@pytest.mark.parametrize("active", [False, True])
def test_every_message_may_be_sent_again(active):
    r = Round(active=active)
    for s in r.sessions:
        for _ in range(2):
            assert r.send(s, "ready") == Taken(step="ready")
    assert r.told == [Counted("a", 0)] * 6
    r.close()
    bodies = {s: r.devices[s].joined(r.wait(s, "ready")) for s in r.sessions}
    for step in r.steps[1:]:
        for s in r.sessions[:-1]:
            for _ in range(2):  # while the step is open
                assert not isinstance(r.send(s, step, bodies[s]), CoveyError), step
        r.send("s5", step, bodies["s5"])
        if step != "unmask":
            assert r.send("s0", step, bodies["s0"]) == Taken(step=step)  # and after it has ended
            bodies = {s: r.devices[s].told(step, r.wait(s, step))[1] for s in r.sessions}
    assert same(r.closed.total, r.expected(r.sessions))
    assert isinstance(r.send("s0", "unmask", bodies["s0"]), AlreadyCountedError)  # the device reads it as success


def test_late_unknown_and_untimely_messages_are_refused():
    r = Round()
    assert isinstance(r.send("nobody", "ready"), SessionUnknownError)
    assert isinstance(r.send("s0", "advertise", b"early"), StateError)
    assert isinstance(r.wait("s0", "ready"), StateError)
    for s in r.sessions[:5]:
        r.send(s, "ready")
    r.close()
    assert isinstance(r.send("s5", "ready"), RoundClosedError)
    assert isinstance(r.send("s0", "mask", b"early"), StateError)
    assert isinstance(r.send("s0", "advertise", b"rubbish"), CoveyError)
    bodies = {s: r.devices[s].joined(r.wait(s, "ready")) for s in r.sessions[:5]}
    for s in r.sessions[1:5]:
        r.send(s, "advertise", bodies[s])
    r.expire()
    assert isinstance(r.send("s0", "advertise", bodies["s0"]), RoundClosedError)
    assert isinstance(r.wait("s0", "advertise"), RoundClosedError)
    assert isinstance(r.wait("s1", "mask"), RoundClosedError | StateError)


def test_an_abandoned_session_is_not_waited_for():
    r = Round()
    assert r.ask(AbandonArrived("t", "s5", "condition_lapsed")) == Abandoned(retry_after_s=0.0)
    assert r.told == [Lost("a", "condition_lapsed")]
    for s in r.sessions[:5]:
        r.send(s, "ready")
    r.close()
    bodies = {s: r.devices[s].joined(r.wait(s, "ready")) for s in r.sessions[:5]}
    for s in r.sessions[:4]:
        r.send(s, "advertise", bodies[s])
        r.wait(s, "advertise")
    assert r.ask(AbandonArrived("t", "s4", "condition_lapsed")) == Abandoned(retry_after_s=0.0)
    assert isinstance(r.answers["s0 waits"], bytes)  # the step ended with the last one that was still there
    assert r.ask(AbandonArrived("t", "nobody", "x")) == Abandoned(retry_after_s=0.0)


def test_a_ready_device_that_leaves_before_the_groups_form_is_in_none():
    r = Round(count=7, group_size=7)
    for s in r.sessions:
        r.send(s, "ready")
    r.ask(AbandonArrived("t", "s6", "condition_lapsed"))
    r.close()
    assert isinstance(r.wait("s6", "ready"), RoundClosedError)
    assert sorted(r.wait(s, "ready").index for s in r.sessions[:6]) == list(range(6))


def test_nobody_ready_opens_nothing():
    r = Round()
    r.close()
    assert r.closed.total.num_folded == 0 and r.closed.reason == "secagg_threshold"


def test_a_discarded_round_leaves_nothing_and_tells_who_waits():
    r = Round()
    for s in r.sessions:
        r.send(s, "ready")
    r.wait("s0", "ready")
    r.route(r.role.receive(DiscardShard("a"), 0.0))
    assert isinstance(r.answers["s0 waits"], RoundClosedError)
    assert isinstance(r.send("s1", "ready"), RoundClosedError)
    assert not r.role._shards and r.role.next_deadline_s() is None
    assert r.role.receive(DiscardShard("a"), 0.0) == r.role.receive(CloseShard("a"), 0.0) == []


@pytest.mark.parametrize("field", ["plan", "checkpoint", "public_seed"])
def test_devices_that_were_told_different_things_are_not_summed(field):
    r = Round()
    other = {
        "plan": {"plan_data": world.secure_plan_bytes(6, 4)},
        "checkpoint": {"checkpoint_data": bytes(len(world.checkpoint()))},
        "public_seed": {"public_seed": os.urandom(32).hex()},
    }[field]
    base = {"plan_data": r.plan_data, "mode": "secure", "public_seed": r.offer.public_seed}
    told = world.assignment(**{**base, **other})
    r.devices["s0"] = r.device("s0", told)
    for s in r.sessions:
        r.send(s, "ready")
    r.close()
    bodies = {s: r.devices[s].joined(r.wait(s, "ready")) for s in r.sessions}
    assert isinstance(r.send("s0", "advertise", bodies["s0"]), CoveyError)


def test_the_largest_body_is_that_of_a_masked_update():
    r = Round()
    session = sum_session(r.manifest, r.offer, parts.POPULATION, group=0)
    assert r.role.max_body_bytes == session.max_message_bytes >= session.packed_bytes


def test_messages_print_neither_session_nor_body():
    text = repr(StepArrived("ticket", "secret-session", "mask", b"body"))
    assert "secret-session" not in text and "body" not in text


NORM = 8.0  # of a weighted update here: at most 6 times sqrt(8) in magnitude


@pytest.mark.parametrize("spec", ["hd|ring:16:12:{}", "hd|ring:32:6:{}:8", "mask:0.5|hd|ring:20:6:{}"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_ring_is_opened_to_the_sum_of_the_updates(spec, groups):
    r = Round(count=6 * groups, codec=spec.format(NORM * 4))
    closed = r.play()
    assert closed.total.num_folded == 6 * groups and closed.reason == ""
    (plan,) = r.manifest.phases[0].segments
    got = opened_reals(r.manifest, 0, closed.total, r.offer.public_seed)["model"]
    want = sum(r.values[s]["model"].astype(np.float64) for s in r.sessions)
    codec = codec_named(plan.codec)
    if codec.structure is not None:  # only these were trained
        seed = segment_seed(codec, round_seed=r.offer.public_seed, session="", segment="model")
        at = codec.structure.positions(plan.length, seed)
        kept = np.zeros_like(want)
        kept[at] = want[at]
        want = kept
    # Rounding moves each integer by less than a step; the rotation keeps lengths, so the sum of n devices is off by at
    # most n steps times sqrt(m) in L2. Nothing is clamped: NORM * 4 at 4 deviations leaves room for any rotation.
    step = codec.ring.path(codec._shapes(plan.length)[-1][1]).step
    limit = len(r.sessions) * step * np.sqrt(plan.ring.num_values)
    assert np.linalg.norm(got - want) <= limit and limit < 0.2 * np.linalg.norm(want)
    assert closed.bytes_up > 0 and plan.ring.ring_bits == codec.ring.bits


def test_a_ring_costs_the_bits_that_it_names():
    sizes = [
        sum_session(r.manifest, r.offer, parts.POPULATION, group=0).packed_bytes
        for r in (Round(codec=f"hd|ring:{bits}:6:8") for bits in (8, 16, 32))
    ]
    fixed = sum_session(Round().manifest, Round().offer, parts.POPULATION, group=0).packed_bytes
    assert sizes == [fixed - 3 * parts.LENGTH, fixed - 2 * parts.LENGTH, fixed]
