"""Differential privacy on the device: what it refuses, and that nothing leaves it unclipped, unnoised or beside."""

import msgspec
import numpy as np
import pytest

from covey.compression.codec import segment_seed
from covey.device.effects import SendAbandon, SendReport, Train
from covey.device.private import PrivacyFloor
from covey.device.session import Session
from covey.device.trainer import OnnxTrainer
from covey.plans.manifest import CLIP_COUNT, SecureTerms
from covey.plans.plan import unpack_plan
from covey.privacy.mechanism import COUNT_UNITS
from covey.privacy.randomness import AesCtr
from covey.privacy.spec import Setting, parse_spec
from covey.recipes.prepare import Prepared
from covey.recipes.private import with_privacy
from covey.server.aggregator import body_limits, segment_codecs
from covey.types.errors import (
    CompressionSpecError,
    LayoutError,
    PlanFormatError,
    PrivacyError,
    SeededNoiseError,
    TrainingError,
)
from covey.types.segments import HEADER
from covey.wire.framing import decode_update

from . import world

SEED = bytes(range(32))
SETTING = Setting(cohort=10, min_survivors=4, num_selected=13, rounds=5, population=100, dim=0)
SIMULATED = PrivacyFloor(simulated=True)


def private_plan(spec: str, codec: str = "float32", secure: SecureTerms | None = None, **noise) -> bytes:
    """Return the tiny plan with noise; ``noise`` replaces fields of its terms afterwards, as a forger would."""
    base = world.plan().manifest
    (phase,) = base.phases
    phase = msgspec.structs.replace(phase, segments=(msgspec.structs.replace(phase.segments[0], codec=codec),))
    terms = (
        msgspec.structs.replace(base.privacy, mode="secure", min_cohort=4, secure=secure) if secure else base.privacy
    )
    plan = world.changed(world.plan(), phases=(phase,), privacy=terms)
    prepared, _ = with_privacy(Prepared(plan, world.checkpoint(), True), parse_spec(spec), SETTING)
    if not noise:
        return prepared.plan_bytes
    terms = prepared.plan.manifest.privacy
    forged = msgspec.structs.replace(terms, noise=msgspec.structs.replace(terms.noise, **noise))
    return world.changed(prepared.plan, privacy=forged)


def source(private=True, label=0):
    return AesCtr(bytes([label]) + SEED[1:], private=private)


def report(plan: bytes, floor: PrivacyFloor = SIMULATED, label=0, **assignment):
    """Run a session to its report, or to what it does instead."""
    session = Session(world.policy(privacy=floor), seed=SEED, noise=source(label=label))
    session.start()
    effect = session.answered(world.assignment(plan, **assignment))
    for data in (plan, world.checkpoint()):
        if isinstance(effect, SendAbandon):
            return effect
        effect = session.fetched(data)
    assert isinstance(effect, Train), effect
    return session.trained(OnnxTrainer().run(effect.job, world.points(13)))


def parts_of(plan: bytes, effect: SendReport) -> dict[str, np.ndarray]:
    manifest = unpack_plan(plan).manifest
    raw = decode_update(effect.body, body_limits(manifest, 0))
    lengths = {s.name: s.length for s in manifest.layout(0)}
    codecs, told = segment_codecs(manifest, 0), world.assignment(plan)
    seeds = {
        k: segment_seed(c, round_seed=told.public_seed, session=told.session, segment=k) for k, c in codecs.items()
    }
    return {k: codecs[k].decode(v, lengths[k], seeds[k]) for k, v in raw.items()}


@pytest.mark.parametrize("spec", ["gaussian:clip=0.001,noise=1", "skellam:clip=0.001,noise=1"])
def test_nothing_but_the_public_counter_leaves_without_clip_or_noise(spec):
    plan = private_plan(spec)
    parts = parts_of(plan, report(plan))
    assert list(parts) == [HEADER, "model"]
    # Counter and weight are 1 for every device; examples, loss, weight and the task's metric are absent.
    assert parts[HEADER].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    model = parts["model"]
    assert (model == np.rint(model)).all()
    noise = unpack_plan(plan).manifest.privacy.noise
    assert np.abs(model).max() <= noise.coordinate_bound
    if spec.startswith("gaussian"):
        assert np.linalg.norm(model) == pytest.approx(noise.clip_units, rel=1e-3)  # a clip of 0.001 surely binds
    again = parts_of(plan, report(plan, label=1))["model"]
    assert (again != model).any()  # noise, or at least rounding, is drawn afresh


def test_a_clip_that_adapts_is_within_its_bounds_and_tells_a_noised_count():
    plan = private_plan("gaussian:clip=adaptive,start=0.001,noise=1")
    low, high = (parts_of(plan, report(plan, hyper={"clip": c}))[CLIP_COUNT].tolist() for c in (0.001, 9.0))
    assert (low, high) == ([-COUNT_UNITS], [COUNT_UNITS])
    refused = report(plan, hyper={"clip": 11.0})
    assert isinstance(refused, SendAbandon) and refused.message.reason == "plan_refused"
    noised = private_plan("skellam:clip=adaptive,start=0.001,noise=1")
    counts = {parts_of(noised, report(noised, label=i))[CLIP_COUNT][0] for i in range(3)}
    assert len(counts) == 3


@pytest.mark.parametrize(
    "spec, floor, noise",
    [
        ("gaussian:clip=1,noise=1", PrivacyFloor(noise_multiplier=1.01), {}),
        ("gaussian:clip=1,noise=1", SIMULATED, {"coordinate_bound": 100}),
        ("skellam:clip=1,noise=1", SIMULATED, {"coordinate_bound": 20_000}),  # no room for the noise
        ("skellam:clip=1,noise=1", PrivacyFloor(), {}),  # without masks a share hides too little
        ("tree:clip=1,noise=1", PrivacyFloor(), {}),
    ],
)
def test_the_device_refuses_what_its_owner_did_not_accept(spec, floor, noise):
    effect = report(private_plan(spec, **noise), floor)
    assert isinstance(effect, SendAbandon) and effect.message.reason == "plan_refused"


@pytest.mark.parametrize(
    "noise, code",
    [
        ({"noise_multiplier": 1e-4}, "privacy_noise"),
        ({"delta": 0.5}, "privacy_delta"),
        ({"kind": "laplace"}, "privacy_invalid"),
        ({"colluders": 4}, "privacy_invalid"),
    ],
)
def test_terms_that_no_device_can_follow_are_refused(noise, code):
    effect = report(private_plan("skellam:clip=1,noise=1", **noise))
    assert isinstance(effect, SendAbandon) and effect.message.reason == code


def test_a_floor_refuses_plans_without_noise():
    effect = report(world.plan_bytes(), PrivacyFloor(noise_multiplier=0.1))
    assert isinstance(effect, SendAbandon) and effect.message.reason == "plan_refused"


def test_a_device_whose_ledger_keeps_participations_apart_accepts_trees():
    assert isinstance(report(private_plan("tree:clip=1,noise=1"), PrivacyFloor(spaced=True)), SendReport)


def test_a_floor_that_is_met_is_no_obstacle():
    plan = private_plan("gaussian:clip=1,noise=1")
    assert isinstance(report(plan, PrivacyFloor(noise_multiplier=1.0)), SendReport)


def test_injected_noise_is_refused_outside_simulation():
    with pytest.raises(SeededNoiseError, match="session"):
        Session(world.policy(), seed=SEED, noise=source(private=False))
    Session(world.policy(privacy=SIMULATED), seed=SEED, noise=source(private=False))


@pytest.mark.parametrize("spec, told", [("gaussian:clip=1,noise=1", "withheld"), (None, "training_not_finite")])
def test_why_training_failed_is_not_told_without_noise(spec, told):
    plan = world.plan_bytes() if spec is None else private_plan(spec)
    session = Session(world.policy(privacy=SIMULATED), seed=SEED, noise=source())
    session.start()
    session.answered(world.assignment(plan))
    session.fetched(plan)
    assert isinstance(session.fetched(world.checkpoint()), Train)
    effect = session.failed(TrainingError("loss", expected="finite values", got="a NaN"))
    assert isinstance(effect, SendAbandon) and effect.message.reason == told
    session.abandoned()
    assert session.outcome.reason == "training_not_finite"  # the device itself knows


def test_the_agent_draws_its_noise_from_the_operating_system():
    from pathlib import Path

    import covey.device.driver

    text = Path(covey.device.driver.__file__).read_text()
    assert "AesCtr(os.urandom(32), private=True)" in text and "private=False" not in text


def test_a_plan_with_noise_is_consistent_in_itself():
    plan = unpack_plan(private_plan("gaussian:clip=1,noise=1"))
    m = plan.manifest
    assert all(s.weighting == "none" for p in m.phases for s in p.segments)
    weighted = tuple(
        msgspec.structs.replace(p, segments=tuple(msgspec.structs.replace(s, weighting="examples") for s in p.segments))
        for p in m.phases
    )
    # Without the higher schema, a device that has never heard of noise would train the plan without a clip.
    for fields in ({"phases": weighted}, {"hyper": m.hyper[:-1]}, {"schema": 1}):
        with pytest.raises(PlanFormatError):
            unpack_plan(world.changed(plan, **fields))
    wide = msgspec.structs.replace(m.privacy.noise, ring_bits=16)
    with pytest.raises(LayoutError, match="n_max"):
        msgspec.structs.replace(m, privacy=msgspec.structs.replace(m.privacy, noise=wide)).layout(0)


RING = "hd|ring:24:13:clip:20"  # 20 deviations: nothing of 8 coordinates is ever clamped


@pytest.mark.parametrize("codec", [RING, "hd|subsample:0.5|ring:24:13:clip:20", "hd|ring:24:13:clip:0.5"])
def test_in_a_ring_what_is_sent_is_rotated_clipped_and_bounded(codec):
    """A clip of 0.001 surely binds: before noise the length is clip_units, but for rounding and the clamp."""
    plan = private_plan("gaussian:clip=0.001,noise=1", codec)
    manifest = unpack_plan(plan).manifest
    parts = parts_of(plan, report(plan))
    model, noise = parts["model"], manifest.privacy.noise
    assert parts[HEADER].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert len(model) == manifest.num_opened == (4 if "subsample" in codec else 8) and (model == np.rint(model)).all()
    if codec.endswith(":0.5"):  # a clamp at half a deviation
        limit = -(-noise.clip_units // (2 * 8**0.5))
        assert noise.coordinate_bound == limit == np.abs(model).max()
    else:
        assert np.linalg.norm(model) == pytest.approx(noise.clip_units, rel=1e-3)
    noised = private_plan("skellam:clip=0.001,noise=1", codec)
    drawn = [parts_of(noised, report(noised, label=i))["model"] for i in range(2)]
    assert (drawn[0] != drawn[1]).any()
    assert max(np.abs(d).max() for d in drawn) <= unpack_plan(noised).manifest.privacy.noise.coordinate_bound


def forged_ring(plan: bytes, **fields) -> bytes:
    base = unpack_plan(plan)
    (phase,) = base.manifest.phases
    (segment,) = phase.segments
    ring = msgspec.structs.replace(segment.ring, **fields)
    segment = msgspec.structs.replace(segment, ring=ring)
    return world.changed(base, phases=(msgspec.structs.replace(phase, segments=(segment,)),))


@pytest.mark.parametrize(
    "spec, fields, code",
    [
        ("skellam:clip=1,noise=1", {"num_values": 7}, "plan_format"),
        ("skellam:clip=1,noise=1", {"n_max": 14}, "plan_format"),
        ("skellam:clip=1,noise=1,units=1024", {}, None),
    ],
)
def test_the_device_refuses_ring_terms_that_its_codec_does_not_make(spec, fields, code):
    effect = report(forged_ring(private_plan(spec, RING), **fields))
    assert isinstance(effect, SendReport) if code is None else effect.message.reason == code


@pytest.mark.parametrize("fields", [{"bound": 100}, {"ring_bits": 30}, {"n_max": 12}])
def test_a_plan_whose_ring_and_noise_disagree_is_none(fields):
    with pytest.raises(PlanFormatError, match="ring"):
        unpack_plan(forged_ring(private_plan("skellam:clip=1,noise=1", RING), **fields))


def test_a_bound_that_leaves_out_the_noise_is_refused_in_a_ring_too():
    plan = private_plan("skellam:clip=1,noise=1", RING)
    base = unpack_plan(plan).manifest.privacy
    lower = base.noise.coordinate_bound - 1
    terms = msgspec.structs.replace(base, noise=msgspec.structs.replace(base.noise, coordinate_bound=lower))
    (phase,) = unpack_plan(plan).manifest.phases
    (segment,) = phase.segments
    segment = msgspec.structs.replace(segment, ring=msgspec.structs.replace(segment.ring, bound=lower + 1))
    phases = (msgspec.structs.replace(phase, segments=(segment,)),)
    effect = report(world.changed(unpack_plan(plan), privacy=terms, phases=phases))
    assert isinstance(effect, SendAbandon) and effect.message.reason == "plan_refused"


@pytest.mark.parametrize("codec", ["hd|eden:2", "hd|uniform:2", "quantize:4", "hd|ring:24:13:5"])
def test_other_codecs_are_refused_under_noise_by_who_builds_and_by_who_executes(codec):
    with pytest.raises(CompressionSpecError, match="leaves rounding to the noise"):
        private_plan("skellam:clip=1,noise=1", codec)
    plan = unpack_plan(private_plan("skellam:clip=1,noise=1", RING))
    (phase,) = plan.manifest.phases
    segment = msgspec.structs.replace(phase.segments[0], codec=codec)
    effect = report(world.changed(plan, phases=(msgspec.structs.replace(phase, segments=(segment,)),)))
    assert isinstance(effect, SendAbandon) and effect.message.reason == "compression_spec"


def test_a_tree_and_a_rotation_of_each_round_do_not_mix():
    with pytest.raises(PrivacyError, match="no ring"):
        private_plan("tree:clip=1,noise=1", RING)
    plan = unpack_plan(private_plan("gaussian:clip=1,noise=1", RING))
    terms = plan.manifest.privacy
    forged = msgspec.structs.replace(
        terms, noise=msgspec.structs.replace(terms.noise, kind="tree", max_participation=1)
    )
    with pytest.raises(PlanFormatError, match="spans rounds"):
        unpack_plan(world.changed(plan, privacy=forged))


def test_a_floor_holds_in_a_ring():
    plan = private_plan("gaussian:clip=1,noise=1", RING)
    effect = report(plan, PrivacyFloor(noise_multiplier=1.01))
    assert isinstance(effect, SendAbandon) and effect.message.reason == "plan_refused"
    assert isinstance(report(plan, PrivacyFloor(noise_multiplier=1.0)), SendReport)
    shares = report(private_plan("skellam:clip=1,noise=1", RING), PrivacyFloor())
    assert isinstance(shares, SendAbandon) and shares.message.reason == "plan_refused"  # without masks


def test_under_noise_all_segments_have_one_codec():
    """They are clipped and clamped together; another codec beside a ring would be another measure."""
    plan = unpack_plan(private_plan("skellam:clip=1,noise=1", RING))
    (phase,) = plan.manifest.phases
    second = msgspec.structs.replace(phase.segments[0], name="other", codec="float32", ring=None)
    two = (msgspec.structs.replace(phase, segments=(*phase.segments, second)),)
    with pytest.raises(PlanFormatError, match="one for all segments"):
        unpack_plan(world.changed(plan, phases=two))
    plain = world.plan()
    segment = plain.manifest.phases[0].segments[0]
    segments = segment, msgspec.structs.replace(segment, name="other", codec=RING)
    phases = (msgspec.structs.replace(plain.manifest.phases[0], segments=segments),)
    with pytest.raises(PrivacyError, match="one codec for all segments"):
        with_privacy(
            Prepared(world.changed(plain, phases=phases), world.checkpoint(), True),
            parse_spec("skellam:clip=1,noise=1"),
            SETTING,
        )
