"""The session: the way to a counted update, every refusal on it, and no other transition."""

import inspect
import sys

import msgspec
import numpy as np
import pytest

from covey.compression.codec import codec_named
from covey.device.effects import (
    AwaitStep,
    Certify,
    Counted,
    FetchBlob,
    Finished,
    GaveUp,
    Lost,
    SendAbandon,
    SendCheckIn,
    SendReport,
    SendStep,
    Train,
    Waiting,
)
from covey.device.session import Session, SessionState
from covey.device.trainer import OnnxTrainer
from covey.device.verified import Verified
from covey.plans.manifest import SCHEMA_VERSION, Budget, PrivacyTerms
from covey.plans.plan import unpack_plan
from covey.plans.signing import generate_owner_key, sign_plan
from covey.secagg import EnrolmentAuthority
from covey.types.errors import (
    AlreadyCountedError,
    AttestationError,
    BusyError,
    CoveyError,
    EnrolmentError,
    NotFoundError,
    RateLimitedError,
    RoundClosedError,
    SessionUnknownError,
    StateError,
    StorageFullError,
    TooFewExamplesError,
    TransportError,
    UnauthorizedError,
)
from covey.types.tensors import sha256_hex
from covey.wire.messages import ComeBack, Joined, Reported, Taken

from . import world
from .fake_server import FakeServer

SEED = bytes(range(32))


def session(**policy) -> Session:
    return Session(world.policy(**policy), seed=SEED)


def error(kind=TransportError) -> CoveyError:
    return kind("here", expected="this", got="that")


def at(state: SessionState, **policy) -> Session:
    """Return a session that stands in ``state``."""
    s = session(**policy)
    way = [
        s.start,
        lambda: s.answered(world.assignment()),
        lambda: s.fetched(world.plan_bytes()),
        lambda: s.fetched(world.checkpoint()),
        lambda: s.trained(trained(s)),
        lambda: s.reported(Reported(counted=True, retry_after_s=1.0)),
    ]
    if state in (SessionState.SECURING, SessionState.AWAITING):
        data = world.secure_plan_bytes()
        way[1:3] = [
            lambda: s.answered(world.assignment(data, mode="secure", public_seed="5e" * 32)),
            lambda: s.fetched(data),
        ]
        way[5] = lambda: s.taken(Taken(step="ready"))
    if state is SessionState.CERTIFYING:
        data = world.active_plan_bytes()
        s = session(**{"authority": world.AUTHORITY.public_key, **policy})
        way[:3] = [
            s.start,
            lambda: s.answered(world.assignment(data, mode="secure", public_seed="5e" * 32)),
            lambda: s.fetched(data),
        ]
    if state is SessionState.ABANDONING:
        at_training = at(SessionState.TRAINING)
        at_training.stopped()
        return at_training
    for move in way:
        if s.state is state:
            break
        move()
    assert s.state is state
    return s


def trained(s: Session, count=13):
    return OnnxTrainer().run(s._effect.job, world.points(count))


def refused(effect, code: str) -> CoveyError:
    """Check that the session gives up with ``code``, tells the server, and ends; return the error."""
    assert isinstance(effect, SendAbandon)
    assert (effect.session, effect.message.reason) == ("s1", code)
    return effect


def test_the_whole_way():
    s, server = session(), FakeServer()
    effect = s.start()
    assert effect == SendCheckIn(effect.message) and effect.message.population == world.POPULATION
    effect = s.answered(server.check_in(effect.message, "c1"))
    assert effect == FetchBlob(world.assignment().plan, "plan")
    effect = s.fetched(world.plan_bytes())
    assert effect == FetchBlob(world.assignment().checkpoint, "checkpoint")
    effect = s.fetched(world.checkpoint())
    assert isinstance(effect, Train) and effect.within_s == 60.0 and effect.job.seed == SEED
    result = trained(s)
    expected = {k: v.copy() for k, v in result.segments.items()}
    effect = s.trained(result)
    assert isinstance(effect, SendReport)
    server.fold("s1", effect.body)
    assert s.outcome is None
    effect = s.reported(Reported(counted=True, retry_after_s=7.0))
    assert effect == Finished(Counted(round=1, num_examples=13, num_steps=8, retry_after_s=7.0))
    assert s.outcome == effect.outcome
    # What the server added up is what the device sent, rounded to the segment's step.
    for seg in server.total.segments:
        np.testing.assert_allclose(server.total.reals(seg.name), expected[seg.name], atol=2.0**-seg.fraction_bits)


MOVES = {
    "start": lambda s: s.start(),
    "answered": lambda s: s.answered(world.assignment()),
    "fetched": lambda s: s.fetched(world.plan_bytes()),
    "trained": lambda s: s.trained(None),
    "reported": lambda s: s.reported(Reported(counted=True, retry_after_s=0.0)),
    "certified": lambda s: s.certified(world.identity(), 0),
    "taken": lambda s: s.taken(Taken(step="ready")),
    "told": lambda s: s.told(Joined(group=0, index=0)),
    "abandoned": lambda s: s.abandoned(),
    "failed": lambda s: s.failed(error()),
    "stopped": lambda s: s.stopped(),
}
LEGAL = {
    SessionState.IDLE: {"start", "stopped"},
    SessionState.CHECKING_IN: {"answered", "failed", "stopped"},
    SessionState.FETCHING_PLAN: {"fetched", "failed", "stopped"},
    SessionState.FETCHING_CHECKPOINT: {"fetched", "failed", "stopped"},
    SessionState.TRAINING: {"trained", "failed", "stopped"},
    SessionState.CERTIFYING: {"certified", "failed", "stopped"},
    SessionState.REPORTING: {"reported", "failed", "stopped"},
    SessionState.SECURING: {"taken", "failed", "stopped"},  # and "reported" after the last step only
    SessionState.AWAITING: {"told", "failed", "stopped"},
    SessionState.ABANDONING: {"abandoned", "failed", "stopped"},
    SessionState.FINISHED: set(),
}


def test_under_an_active_plan_a_device_is_certified_before_it_says_that_it_is_ready():
    s = at(SessionState.CERTIFYING)
    assert s._effect == Certify()
    assert s.failed(error(TransportError)) == s.failed(error(RateLimitedError)) == Certify()  # the driver tries again
    effect = s.certified(world.identity(), 0)
    assert effect == SendStep("s1", "ready", b"")
    s.taken(Taken(step="ready"))
    effect = s.told(Joined(group=0, index=0))
    assert effect.step == "advertise" and len(effect.body) == 40 + 64 + 32 + 8 + 64 + 64
    assert s.failed(error(RoundClosedError)).outcome.error.code == "round_closed"


def test_where_the_authority_stays_away_the_server_is_told_so():
    refused(at(SessionState.CERTIFYING).stopped(error=error(TransportError)), "unreachable")


@pytest.mark.parametrize("kind", [AttestationError, EnrolmentError, UnauthorizedError])
def test_a_device_that_is_not_certified_gives_up_and_says_so(kind):
    refused(at(SessionState.CERTIFYING).failed(error(kind)), kind.code)


@pytest.mark.parametrize(
    ("plan", "policy", "text"),
    [
        ("active", {}, "a plan without one, because this device pins none"),
        ("active", {"authority": bytes(32)}, "expected the pinned authority, got another"),
        ("secure", {"authority": world.AUTHORITY.public_key}, "active, because this device pins an enrolment"),
        ("plain", {"authority": world.AUTHORITY.public_key}, "active, because this device pins an enrolment"),
    ],
)
def test_neither_less_nor_more_than_what_was_pinned(plan, policy, text):
    data = {"active": world.active_plan_bytes, "secure": world.secure_plan_bytes, "plain": world.plan_bytes}[plan]()
    mode = {} if plan == "plain" else {"mode": "secure", "public_seed": "5e" * 32}
    s = session(**policy)
    s.start()
    s.answered(world.assignment(data, **mode))
    refused(s.fetched(data), "plan_refused")
    assert text in str(s._outcome.error)


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        (lambda: world.identity(expires_at=1000), "secagg_enrolment"),
        (lambda: world.identity(authority=EnrolmentAuthority(generate_owner_key(), world.POPULATION)),
         "secagg_enrolment"),
        (lambda: world.identity(authority=EnrolmentAuthority(world.OWNER, "other")), "secagg_enrolment"),
    ],
    ids=["expired", "another authority", "another population"],
)  # fmt: skip
def test_an_identity_that_is_not_good_is_not_used(identity, code):
    s = at(SessionState.CERTIFYING)
    s.certified(identity(), 1000)
    s.taken(Taken(step="ready"))
    refused(s.told(Joined(group=0, index=0)), code)


def test_every_public_move_is_in_the_table():
    public = {n for n, f in inspect.getmembers(Session, inspect.isfunction) if not n.startswith("_")}
    assert public == set(MOVES)


@pytest.mark.parametrize("state", LEGAL)
def test_illegal_moves_are_refused_and_change_nothing(state):
    s = at(state)
    effect = s._effect
    for name in set(MOVES) - LEGAL[state]:
        with pytest.raises(StateError, match=f"got one in {state.value}"):
            MOVES[name](s)
        assert s.state is state and s._effect is effect


@pytest.mark.parametrize("state", [s for s in LEGAL if s is not SessionState.FINISHED])
def test_a_session_can_be_stopped_anywhere_and_then_ends(state):
    s = at(state)
    effect = s.stopped()
    if isinstance(effect, SendAbandon):
        assert effect.message.reason == "condition_lapsed"
        effect = s.abandoned()
    assert effect == Finished(GaveUp("condition_lapsed", None))


def test_nothing_to_do():
    s = at(SessionState.CHECKING_IN)
    assert s.answered(ComeBack(retry_after_s=3.0, reason="paused")) == Finished(Waiting("paused", 3.0))


@pytest.mark.parametrize("kind", [TransportError, BusyError])
@pytest.mark.parametrize(
    "state",
    [
        SessionState.CHECKING_IN,
        SessionState.FETCHING_PLAN,
        SessionState.FETCHING_CHECKPOINT,
        SessionState.REPORTING,
        SessionState.SECURING,
        SessionState.AWAITING,
    ],
)
def test_what_may_pass_is_tried_again_with_the_identical_effect(state, kind):
    s = at(state)
    effect = s._effect
    assert all(s.failed(error(kind)) is effect for _ in range(3))
    assert s.state is state
    last = error(kind)
    assert s.stopped(error=last) == Finished(Lost(last))


@pytest.mark.parametrize("kind", [SessionUnknownError, RoundClosedError, UnauthorizedError])
@pytest.mark.parametrize(
    "state",
    [
        SessionState.CHECKING_IN,
        SessionState.FETCHING_CHECKPOINT,
        SessionState.REPORTING,
        SessionState.SECURING,
        SessionState.AWAITING,
    ],
)
def test_a_restarted_server_or_a_closed_round_costs_this_session(state, kind):
    e = error(kind)
    assert at(state).failed(e) == Finished(Lost(e))


@pytest.mark.parametrize("state", [SessionState.REPORTING, SessionState.SECURING, SessionState.AWAITING])
def test_a_second_report_is_success(state):
    s = at(state)
    assert s.failed(error(AlreadyCountedError)) == Finished(Counted(1, 13, 8, None))


@pytest.mark.parametrize("kind", [NotFoundError, StorageFullError])
def test_a_blob_that_cannot_be_had_is_told_to_the_server(kind):
    s, e = at(SessionState.FETCHING_CHECKPOINT), error(kind)
    refused(s.failed(e), kind.code)
    assert s.failed(error()) == Finished(GaveUp(kind.code, e))


def test_an_error_of_training_is_told_to_the_server():
    s = at(SessionState.TRAINING)
    with pytest.raises(TooFewExamplesError) as caught:
        trained(s, count=2)
    refused(s.failed(caught.value), "too_few_examples")
    assert s.abandoned() == Finished(GaveUp("too_few_examples", caught.value))


def gives_up(effect_of, code, message):
    """Run a session whose next move is refused; check code and message."""
    s = at(SessionState.CHECKING_IN)
    refused(effect_of(s), code)
    e = s.abandoned().outcome.error
    assert message in str(e)


def test_a_foreign_signature():
    def answered(s):
        stranger = generate_owner_key()
        return s.answered(
            world.assignment(signature=sign_plan(stranger, world.POPULATION, sha256_hex(world.plan_bytes())).hex())
        )

    gives_up(answered, "plan_signature", "a signature by the pinned owner key")


def test_a_signature_for_another_population():
    signature = sign_plan(world.OWNER, "others", sha256_hex(world.plan_bytes())).hex()
    gives_up(lambda s: s.answered(world.assignment(signature=signature)), "plan_signature", "population 'tests'")


@pytest.mark.parametrize("signature", ["", "zz", "00"])
def test_no_signature(signature):
    gives_up(lambda s: s.answered(world.assignment(signature=signature)), "plan_signature", "signature")


def test_a_changed_byte_in_a_plan():
    data = bytearray(world.plan_bytes())
    data[len(data) // 2] ^= 1

    def run(s):
        s.answered(world.assignment())
        return s.fetched(bytes(data))

    gives_up(run, "plan_hash", "expected sha256")


def run_plan(s, data, **fields):
    s.answered(world.assignment(data, **fields))
    return s.fetched(data)


def test_a_newer_schema():
    newer = SCHEMA_VERSION + 1
    data = world.changed(world.plan(), schema=newer)
    message = f"manifest.json: schema: expected at most {SCHEMA_VERSION}, got {newer}"
    gives_up(lambda s: run_plan(s, data), "plan_schema", message)


def test_a_foreign_operator():
    import onnx

    model = onnx.load_model_from_string(world.plan().graphs["begin"])
    model.graph.node[0].op_type = "LoadFile"
    data = world.changed(world.plan(), {"begin": model.SerializeToString()})
    gives_up(lambda s: run_plan(s, data), "plan_op", "begin.onnx: node 0")


def with_terms(**fields):
    terms = world.plan().manifest.privacy
    return {"privacy": PrivacyTerms(**{**{f: getattr(terms, f) for f in terms.__struct_fields__}, **fields})}


SECURE = unpack_plan(world.secure_plan_bytes()).manifest


@pytest.mark.parametrize(
    ("manifest", "assigned", "message"),
    [
        (with_terms(min_cohort=1), {}, "privacy.min_cohort: expected at least 2, got 1"),
        ({"privacy": SECURE.privacy}, {}, "assignment: mode: expected secure, as the plan says, got plain"),
        ({"budget": Budget(memory_bytes=1 << 40)}, {}, "budget.memory_bytes: expected at most"),
        ({"budget": Budget(memory_bytes=10)}, {}, "budget.memory_bytes: expected at least the model's 32"),
        ({"budget": Budget(time_s=1e6)}, {}, "budget.time_s: expected at most 3600"),
        ({}, {"phase": 1}, "assignment: phase: expected one of the plan's 1, got 1"),
        ({}, {"phase": -1}, "assignment: phase"),
        ({}, {"hyper": {"lr": 1e6}}, "assignment: lr: expected between 0.0001 and 100"),
        ({}, {"hyper": {"clip": 1.0}}, "expected values for lr, got clip"),
        ({}, {"checkpoint": world.ref(b"short", "c")}, "assignment: checkpoint: expected 32 bytes, got 5"),
        ({}, {"shared": world.ref(b"x", "c")}, "assignment: shared: expected none, got a blob"),
    ],
)
def test_terms_that_the_owner_did_not_accept(manifest, assigned, message):
    data = world.changed(world.plan(), **manifest)
    gives_up(lambda s: run_plan(s, data, **assigned), "plan_refused", message)


def test_modes_that_this_version_cannot_keep():
    gives_up(lambda s: s.answered(world.assignment(mode="open")), "plan_refused", "assignment: mode")


@pytest.mark.parametrize("seed", ["", "5E" * 32, "5e" * 31, "zz" * 32])
def test_a_secure_sum_needs_a_seed_to_be_bound_to(seed):
    offer = world.assignment(world.secure_plan_bytes(), mode="secure", public_seed=seed)
    gives_up(lambda s: s.answered(offer), "plan_refused", "assignment: public_seed")


def test_terms_under_which_nobody_is_hidden_are_refused_before_training():
    data = world.secure_plan_bytes(6, 2)  # two devices would each learn the other's update from their sum
    gives_up(
        lambda s: run_plan(s, data, mode="secure", public_seed="5e" * 32), "secagg_parameters", "min_survivors of 3"
    )


@pytest.mark.parametrize("ring", [{"bound": 1}, {"ring_bits": 24}, {"num_values": 9}])
def test_a_ring_that_is_not_its_codecs_is_refused_before_training(ring):
    data = world.secure_plan_bytes(6, 3, "hd|ring:16:6:8", **ring)
    gives_up(lambda s: run_plan(s, data, mode="secure", public_seed="5e" * 32), "plan_format", "segment 'model': ring")


def test_a_codec_that_cannot_be_summed_under_masks_is_refused():
    base = unpack_plan(world.secure_plan_bytes())
    phase = base.manifest.phases[0]
    segment = msgspec.structs.replace(phase.segments[0], codec="hd|eden:2")
    data = world.changed(base, phases=(msgspec.structs.replace(phase, segments=(segment,)),))
    gives_up(lambda s: run_plan(s, data, mode="secure", public_seed="5e" * 32), "compression_spec", "can be summed")


def test_only_a_secure_plan_is_masked_and_no_plain_plan_passes_for_one():
    offer = {"mode": "secure", "public_seed": "5e" * 32}
    gives_up(lambda s: run_plan(s, world.plan_bytes(), **offer), "plan_refused", "expected plain, as the plan says")


def test_the_reports_of_the_two_modes_are_not_mixed_up():
    s = at(SessionState.SECURING)
    assert s._effect == SendStep("s1", "ready", b"")
    assert s.taken(Taken(step="ready")) == AwaitStep("s1", "ready")
    effect = s.told(Joined(group=0, index=2))
    assert (effect.step, effect.session) == ("advertise", "s1") and "bytes" in repr(effect)


@pytest.mark.parametrize("place", [Joined(group=0, index=6), Joined(group=-1, index=0)])
def test_an_impossible_place_ends_the_session(place):
    s = at(SessionState.AWAITING)
    refused(s.told(place), "secagg_parameters")
    assert s._secure is None


def test_a_message_that_fails_a_check_ends_the_session_and_its_secrets():
    s = at(SessionState.AWAITING)
    s.told(Joined(group=0, index=0))
    s.taken(Taken(step="advertise"))
    refused(s.told(b"not a roster"), "secagg_message")
    assert s._secure is None


def test_one_device_is_in_a_sum_once():
    used = set()
    for expected in ("advertise", None):
        s = at(SessionState.AWAITING)
        s._secure._used_sums = used
        effect = s.told(Joined(group=0, index=0))
        if expected is None:
            refused(effect, "secagg_session_reused")
        else:
            assert effect.step == expected


def test_the_plain_path_needs_the_owners_consent():
    s = Session(world.policy(accept_plain=False), seed=SEED)
    s.start()
    refused(s.answered(world.assignment()), "plan_refused")
    assert "expected secure aggregation, got plain" in str(s.abandoned().outcome.error)


def test_a_checkpoint_whose_hash_differs():
    def run(s):
        s.answered(world.assignment())
        s.fetched(world.plan_bytes())
        return s.fetched(bytes(len(world.checkpoint())))

    gives_up(run, "blob_hash", "checkpoint: expected sha256")


def test_an_unknown_codec_and_sums_that_could_overflow_are_found_before_training():
    base = world.plan()
    phase = base.manifest.phases[0]

    def with_segment(**fields):
        kept = {f: getattr(phase.segments[0], f) for f in phase.segments[0].__struct_fields__}
        other = {f: getattr(phase, f) for f in phase.__struct_fields__}
        segment = type(phase.segments[0])(**{**kept, **fields})
        return world.changed(base, phases=(type(phase)(**{**other, "segments": (segment,)}),))

    gives_up(lambda s: run_plan(s, with_segment(codec="zip")), "compression_spec", "expected stages among")
    gives_up(lambda s: run_plan(s, with_segment(max_delta=1e18)), "layout_invalid", "n_max * bound")


def test_a_plan_whose_codec_needs_a_missing_package_is_refused_before_training(monkeypatch):
    codec_named.cache_clear()
    monkeypatch.setitem(sys.modules, "constriction", None)  # importing it fails
    base = world.plan()
    phase = base.manifest.phases[0]
    segment = msgspec.structs.replace(phase.segments[0], codec="hd|uniform:1.25")
    plan = world.changed(base, phases=(msgspec.structs.replace(phase, segments=(segment,)),))
    gives_up(lambda s: run_plan(s, plan), "missing_extra", "constriction")


def test_what_was_verified_is_not_verified_again_and_never_more_than_asked_is_kept():
    known = Verified(max_plans=1, max_tensors=1)
    ref = world.assignment().plan
    plan = known.plan(ref, world.plan_bytes())
    assert known.plan(ref, b"") is plan
    other = world.changed(world.plan(), min_examples=4)
    known.plan(world.ref(other, "plans"), other)
    assert known.plan(ref, world.plan_bytes()) is not plan
    checkpoint = world.assignment().checkpoint
    params = known.tensors(checkpoint, plan.manifest.params, world.checkpoint(), "checkpoint")
    assert known.tensors(checkpoint, plan.manifest.params, b"", "checkpoint") is params
    assert unpack_plan(world.plan_bytes()).hash == plan.hash
