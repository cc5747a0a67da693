"""The aggregator: what it folds is exact in any order and any number of shards; what it refuses leaves no trace."""

import struct
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from device import world
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.algorithms.algorithm import Aggregate, ServerState
from covey.algorithms.registry import server_half
from covey.compression.codec import codec_named, segment_seed
from covey.privacy.randomness import AesCtr
from covey.server.aggregator import Aggregator, body_limits
from covey.server.messages import (
    AbandonArrived,
    CloseShard,
    Counted,
    DiscardShard,
    EndSessions,
    Envelope,
    Lost,
    OpenShard,
    ReportArrived,
    ShardClosed,
    coordinator_address,
    device_address,
    public_seed,
)
from covey.types.errors import (
    AlreadyCountedError,
    CompressionSpecError,
    RoundClosedError,
    SessionUnknownError,
    UpdateError,
    UpdateFormatError,
    UpdateNotFiniteError,
    UpdateRangeError,
    VersionError,
)
from covey.types.segments import HEADER, to_fixed_point
from covey.types.tensors import unpack_tensors
from covey.wire.framing import encode_update
from covey.wire.messages import Abandoned, Reported

from . import parts

COORDINATOR = coordinator_address(parts.POPULATION)


def aggregator(sessions=("s1", "s2", "s3"), attempt="a"):
    role = Aggregator(parts.POPULATION, parts.manifest())
    assert role.receive(OpenShard(attempt, 0, tuple(sessions)), 0.0) == []
    return role


def report(role, session, data=None):
    """Return the device's answer and what the coordinator was told."""
    answer, *rest = role.receive(ReportArrived("ticket", session, parts.body() if data is None else data), 0.0)
    assert answer.to == device_address("ticket") and all(e.to == COORDINATOR for e in rest)
    return answer.message.message, [e.message for e in rest]


def close(role, attempt="a"):
    (envelope,) = role.receive(CloseShard(attempt), 0.0)
    assert envelope.to == COORDINATOR and envelope.message.attempt == attempt
    assert isinstance(envelope.message, ShardClosed)
    return envelope.message.total


def bits(total):
    return total.num_folded, *(total.integers(s.name).tobytes() for s in total.segments)


def test_a_report_is_counted():
    role, data = aggregator(), parts.body()
    answer, told = report(role, "s1", data)
    assert answer == Reported(counted=True, retry_after_s=0.0)
    assert told == [Counted("a", len(data))]
    assert close(role).num_folded == 1


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_may_lie_in_any_buffer(kind):
    role = aggregator()
    report(role, "s1", kind(parts.body()))
    assert close(role).num_folded == 1


def test_the_aggregator_keeps_no_body():
    buffer = bytearray(parts.body())
    role = aggregator()
    report(role, "s1", memoryview(buffer))
    before = bits(role._shards["a"].total)
    buffer[:] = bytes(len(buffer))
    assert bits(role._shards["a"].total) == before
    buffer.clear()  # a view that was kept would make this a BufferError


def test_the_fold_is_the_sum_of_fixed_point_integers_and_opens_as_the_weighted_mean():
    contributions = [parts.values(weight=w, seed=w) for w in (1, 7, 20)]
    role = aggregator()
    for session, values in zip(("s1", "s2", "s3"), contributions, strict=True):
        report(role, session, parts.body(values))
    total = close(role)
    for segment in total.segments:
        integers = sum(to_fixed_point(v[segment.name], segment).astype(object) for v in contributions)
        assert total.integers(segment.name).tolist() == integers.tolist()
    opened = Aggregate.opened(total, parts.manifest().phases[0], parts.manifest().metrics)
    assert (opened.num_devices, opened.weight) == (3, 28.0)
    assert opened.means() == {"loss": 14 / 28, "correct": 3 / 28}
    # The mean of the reals, in rational numbers. Each of the three roundings to 40 fraction bits is off by 2**-41 at
    # most, over the weight 28 that is 3 * 2**-41 / 28. The four float64 operations afterwards, on magnitudes below 2,
    # add less than 4 * 2**-53 < 2**-50, and the float32 result is off by half a unit in the last place.
    params = unpack_tensors(parts.manifest().params, world.checkpoint())
    moved = server_half("fedavg", {}).phases[0].apply(ServerState(params), opened).params
    delta = [sum(Fraction(float(v["model"][i])) for v in contributions) / 28 for i in range(parts.LENGTH)]
    flat = np.concatenate([moved[k].ravel() for k in sorted(moved)])
    old = np.concatenate([params[k].ravel() for k in sorted(params)])
    for got, before, step in zip(flat, old, delta, strict=True):
        wanted = Fraction(float(before)) + step
        allowed = Fraction(3, 28 << 41) + Fraction(float(np.spacing(np.abs(got)))) / 2 + Fraction(1, 1 << 50)
        assert abs(Fraction(float(got)) - wanted) <= allowed


def test_a_second_report_is_refused_and_not_counted():
    role = aggregator()
    report(role, "s1")
    before = bits(role._shards["a"].total)
    answer, told = report(role, "s1", parts.body(parts.values(seed=9)))
    assert isinstance(answer, AlreadyCountedError) and told == []
    assert bits(close(role)) == before


def test_an_unknown_session_is_refused():
    answer, told = report(aggregator(), "nobody")
    assert isinstance(answer, SessionUnknownError) and told == []
    assert isinstance(report(Aggregator("p", parts.manifest()), "s1")[0], SessionUnknownError)


@pytest.mark.parametrize("end", [CloseShard, DiscardShard])
@pytest.mark.parametrize("session", ["s1", "s2", "s3"])
def test_a_late_report_learns_that_the_round_has_closed(end, session):
    role = aggregator()
    report(role, "s1")
    report(role, "s2", b"broken")
    role.receive(end("a"), 0.0)
    answer, told = report(role, session)
    assert isinstance(answer, RoundClosedError) and told == []


@pytest.mark.parametrize("spec", ["hd|subsample:0.5|quantize:4", "mask:0.5|quantize:8", "hd|eden:2"])
def test_a_stale_update_is_undone_with_the_seed_of_the_version_that_it_began_with(spec):
    role = Aggregator(parts.POPULATION, compressed(spec))
    role.receive(OpenShard("a", 0, (), number=1, max_staleness=3), 0.0)
    old = world.assignment(round=1, public_seed=public_seed("version 1"))
    new = world.assignment(round=4, public_seed=public_seed("version 4"))
    role.receive(OpenShard("a", 0, ("s1", "s2"), old), 0.0)
    for number in (2, 3, 4):
        role.receive(CloseShard("a", following=number), 0.0)
    role.receive(OpenShard("a", 0, ("s3",), new), 0.0)
    assert isinstance(report(role, "s1", compressed_body(spec, "s1", "version 4"))[0], UpdateFormatError)
    answer, told = report(role, "s2", body := compressed_body(spec, "s2", "version 1"))
    assert isinstance(answer, Reported) and told == [Counted("a", len(body), 4, 3)]
    once = role._shards["a"].total.reals("model")
    whole = Aggregator(parts.POPULATION, compressed(spec))
    whole.receive(OpenShard("a", 0, ("s2",), old), 0.0)
    report(whole, "s2", body)
    unit = 2.0 ** -role._shards["a"].total.segments[1].fraction_bits
    assert np.abs(once - 0.5 * whole._shards["a"].total.reals("model")).max() <= unit  # s(3) = 1/2, and two roundings
    assert isinstance(report(role, "s3", compressed_body(spec, "s3", "version 4"))[0], Reported)


def test_ended_sessions_of_a_sum_that_goes_on_are_forgotten_in_the_end():
    role = Aggregator(parts.POPULATION, parts.manifest())
    role.receive(OpenShard("a", 0, ("first",), number=1, max_staleness=5), 0.0)
    report(role, "first")
    role.receive(OpenShard("a", 0, tuple(f"s{i}" for i in range(10_000))), 0.0)
    role.receive(EndSessions("a", ("first", *(f"s{i}" for i in range(10_000)))), 0.0)
    assert isinstance(report(role, "first")[0], AlreadyCountedError)
    role.receive(CloseShard("a", following=2), 0.0)
    assert isinstance(report(role, "first")[0], SessionUnknownError) and len(role._shards["a"].ended) == 10_000
    assert isinstance(report(role, "s0")[0], RoundClosedError)


def test_ended_sessions_are_forgotten_in_the_end():
    role = aggregator(("first",))
    close(role)
    assert isinstance(report(role, "first")[0], RoundClosedError)
    role.receive(OpenShard("b", 0, tuple(f"s{i}" for i in range(10_000))), 0.0)
    close(role, "b")
    assert isinstance(report(role, "first")[0], SessionUnknownError)
    assert isinstance(report(role, "s0")[0], RoundClosedError)
    assert not role._shards and not role._attempt_of


GOOD = parts.body()
HEADER_BYTES = 8 * 6


def with_header(**fields):
    values = parts.values()
    for index, value in fields.items():
        values[HEADER][int(index[1:])] = value
    return parts.body(values)


def with_model(value, index=3):
    values = parts.values()
    values["model"][index] = value
    return parts.body(values)


def reframed(*pairs):
    return encode_update(list(pairs))


HEAD, MODEL = parts.values()[HEADER].tobytes(), parts.values()["model"].tobytes()
BAD = {
    "empty": (b"", UpdateFormatError),
    "random": (bytes(range(200)), UpdateFormatError),
    "trailing byte": (GOOD + b"\x00", UpdateFormatError),
    "another version": (GOOD[:4] + struct.pack("<H", 1) + GOOD[6:], VersionError),
    "a flipped bit": (GOOD[:-30] + bytes([GOOD[-30] ^ 1]) + GOOD[-29:], UpdateFormatError),
    "one part": (reframed((HEADER, HEAD)), UpdateFormatError),
    "three parts": (reframed((HEADER, HEAD), ("model", MODEL), ("more", b"")), UpdateFormatError),
    "parts in another order": (reframed(("model", MODEL), (HEADER, HEAD)), UpdateFormatError),
    "another name": (reframed((HEADER, HEAD), ("other", MODEL)), UpdateFormatError),
    "long header": (reframed((HEADER, HEAD + bytes(8)), ("model", MODEL)), UpdateFormatError),
    "short header": (reframed((HEADER, HEAD[:-8]), ("model", MODEL)), UpdateFormatError),
    "empty header": (reframed((HEADER, b""), ("model", MODEL)), UpdateFormatError),
    "long model": (reframed((HEADER, HEAD), ("model", MODEL + bytes(4))), UpdateFormatError),
    "short model": (reframed((HEADER, HEAD), ("model", MODEL[:-4])), UpdateFormatError),
    "cut coordinate": (reframed((HEADER, HEAD), ("model", MODEL[:-1])), UpdateFormatError),
    "a length beyond the body": (GOOD.replace(struct.pack("<Q", len(MODEL)), b"\xff" * 8), UpdateFormatError),
    "counter 0": (with_header(_0=0.0), UpdateRangeError),
    "counter 2": (with_header(_0=2.0), UpdateRangeError),
    "counter NaN": (with_header(_0=np.nan), UpdateRangeError),
    "weight 0": (with_header(_1=0.0), UpdateRangeError),
    "weight below 0": (with_header(_1=-1.0), UpdateRangeError),
    "weight above its cap": (with_header(_1=20.5), UpdateRangeError),
    "weight NaN": (with_header(_1=np.nan), UpdateRangeError),
    "metric NaN": (with_header(_3=np.nan), UpdateNotFiniteError),
    "metric infinite": (with_header(_5=-np.inf), UpdateNotFiniteError),
    "metric out of range": (with_header(_3=2.0**40), UpdateRangeError),
    "coordinate NaN": (with_model(np.nan), UpdateNotFiniteError),
    "coordinate infinite": (with_model(np.inf), UpdateNotFiniteError),
    "coordinate minus infinite": (with_model(-np.inf, 7), UpdateNotFiniteError),
    "coordinate out of range": (with_model(1e30, 0), UpdateRangeError),
    "coordinate just out of range": (with_model(-16.0 * 20 - 1), UpdateRangeError),
}


def assert_refused(data, kind):
    """Send ``data`` between two good reports; check that it changed no bit, ended its session, and was told."""
    role = aggregator()
    report(role, "s1")
    before = bits(role._shards["a"].total)
    answer, told = report(role, "s2", data)
    assert isinstance(answer, kind) and told == [Lost("a", answer.code)]
    assert bits(role._shards["a"].total) == before
    again, told = report(role, "s2")  # the device's word was heard: a good body afterwards comes too late
    assert isinstance(again, RoundClosedError) and told == []
    report(role, "s3", parts.body(parts.values(seed=3)))
    good = aggregator()
    report(good, "s1")
    report(good, "s3", parts.body(parts.values(seed=3)))
    assert bits(close(role)) == bits(close(good))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_changes_no_bit_of_the_sum(name):
    assert_refused(*BAD[name])


def test_the_bound_of_this_file_is_the_plans():
    (segment,) = parts.manifest().phases[0].segments
    assert (segment.max_delta, parts.manifest().privacy.max_weight) == (16.0, 20)
    report(role := aggregator(), "s1", with_model(-16.0 * 20))
    assert close(role).num_folded == 1


@pytest.mark.parametrize("length", range(0, len(GOOD), 7))
def test_a_truncated_body_changes_no_bit_of_the_sum(length):
    assert_refused(GOOD[:length], UpdateFormatError)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_body_is_folded_whole_or_not_at_all(data):
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    role = aggregator()
    report(role, "s1")
    before = bits(role._shards["a"].total)
    answer, told = report(role, "s2", bytes(damaged))
    after = bits(role._shards["a"].total)
    if isinstance(answer, Reported):
        assert told == [Counted("a", len(GOOD))] and after[0] == 2
        counter = role._shards["a"].total.reals(HEADER)
        assert counter[0] == 2.0 and 4.0 < counter[1] <= 24.0
    else:
        assert isinstance(answer, UpdateError | VersionError) and told == [Lost("a", answer.code)] and after == before


def test_a_body_never_exceeds_what_the_server_reads():
    assert Aggregator("p", parts.manifest()).max_body_bytes == len(GOOD)
    assert list(body_limits(parts.manifest(), 0)) == [HEADER, "model"]


def test_an_abandoned_session_ends():
    role = aggregator()
    for session, told in (("s1", [Envelope(COORDINATOR, Lost("a", "condition_lapsed"))]), ("nobody", [])):
        answer, *rest = role.receive(AbandonArrived("ticket", session, "condition_lapsed"), 0.0)
        assert answer.to == device_address("ticket") and answer.message.message == Abandoned(retry_after_s=0.0)
        assert rest == told
    assert len(role.receive(AbandonArrived("ticket", "s1", "again"), 0.0)) == 1  # told once
    assert isinstance(report(role, "s1")[0], RoundClosedError)
    report(role, "s2")
    assert len(role.receive(AbandonArrived("ticket", "s2", "too late"), 0.0)) == 1  # it is counted and stays so
    assert close(role).num_folded == 1


def test_a_discarded_sum_is_overwritten():
    role = aggregator()
    report(role, "s1")
    total = role._shards["a"].total
    assert any(total.integers("model"))
    assert role.receive(DiscardShard("a"), 0.0) == []
    assert total.num_folded == 0 and not any(total.integers("model")) and not any(total.integers(HEADER))
    assert role.receive(DiscardShard("a"), 0.0) == [] and role.receive(CloseShard("a"), 0.0) == []


def test_two_attempts_have_sums_of_their_own():
    role = aggregator(("s1",), "a")
    role.receive(OpenShard("b", 0, ("s2",)), 0.0)
    report(role, "s1")
    assert isinstance(report(role, "s2")[1][0], Counted)
    assert close(role, "a").num_folded == 1 and close(role, "b").num_folded == 1


def test_messages_print_no_update_and_no_session():
    assert repr(ReportArrived("ticket", "secret", b"update")) == "ReportArrived(6 bytes)"


def test_a_message_of_another_role_is_a_bug():
    with pytest.raises(AssertionError, match="does not take Counted"):
        aggregator().receive(Counted("a", 1), 0.0)


def test_the_aggregator_keeps_no_time():
    assert aggregator().next_deadline_s() is None and aggregator().tick(1e9) == []


@settings(deadline=None, max_examples=60)
@given(st.permutations(range(6)), st.lists(st.integers(0, 2), min_size=6, max_size=6), st.permutations(range(3)))
def test_any_order_and_any_shards_give_the_same_bits(order, shard_of, merge_order):
    names = [f"s{i}" for i in range(6)]
    contributions = [parts.values(weight=1 + 3 * i, seed=i) for i in range(6)]
    whole = aggregator(names)
    for i in range(6):
        report(whole, names[i], parts.body(contributions[i]))
    shards = [aggregator([names[i] for i in range(6) if shard_of[i] == k]) for k in range(3)]
    for i in order:
        report(shards[shard_of[i]], names[i], parts.body(contributions[i]))
    first, *others = [close(shards[k]) for k in merge_order]
    for other in others:
        first.merge(other)
    assert bits(first) == bits(close(whole))


SPECS = ["hd|eden:2", "hd|subsample:0.5|quantize:4", "topk:0.5", "mask:0.5|quantize:8", "hd|ring:16:100:50"]


def compressed(spec):
    """Return the tiny plan's manifest with another codec."""
    phase = parts.manifest().phases[0]
    segment = msgspec.structs.replace(phase.segments[0], codec=spec)
    return msgspec.structs.replace(parts.manifest(), phases=(msgspec.structs.replace(phase, segments=(segment,)),))


def compressed_body(spec, session, attempt="a", contribution=None):
    """Encode a contribution as a device does: with the public seed of its session."""
    codec, values = codec_named(spec), contribution or parts.values()
    seed = segment_seed(codec, round_seed=public_seed(attempt), session=session, segment="model")
    model = codec.encode(values["model"], seed, AesCtr(bytes(32), private=False))
    return encode_update([(HEADER, values[HEADER].tobytes()), ("model", model)])


@pytest.mark.parametrize("spec", SPECS)
def test_a_compressed_update_is_undone_with_its_sessions_seed(spec):
    role = Aggregator(parts.POPULATION, compressed(spec))
    role.receive(OpenShard("a", 0, ("s1", "s2", "s3")), 0.0)
    body = compressed_body(spec, "s1")
    assert len(body) <= role.max_body_bytes
    assert isinstance(report(role, "s1", body)[0], Reported)
    before = bits(role._shards["a"].total)
    refused = [
        compressed_body(spec, "s2")[:-1],
        compressed_body(spec, "s2") + b"\0",
        compressed_body(spec, "s2", attempt="b"),
    ]
    if "ring" not in spec:
        refused.append(compressed_body(spec, "s3"))  # of another session: its signs and positions are others
    for damaged in refused:
        answer = role.receive(ReportArrived("t", "s2", damaged), 0.0)[0].message.message
        assert isinstance(answer, UpdateFormatError)
        assert bits(role._shards["a"].total) == before
        del role._shards["a"].ended["s2"]  # the next damage gets a hearing of its own
        role.receive(OpenShard("a", 0, ("s2",)), 0.0)
    codec = codec_named(spec)
    seed = segment_seed(codec, round_seed=public_seed("a"), session="s1", segment="model")
    decoded = codec.decode(codec.encode(parts.values()["model"], seed, AesCtr(bytes(32), private=False)), 8, seed)
    segment = parts.manifest().layout(0)[1]
    assert close(role).integers("model").tolist() == to_fixed_point(decoded, segment).tolist()


def test_a_codec_that_cannot_be_summed_does_not_go_with_secure_aggregation():
    terms = msgspec.structs.replace(parts.manifest().privacy, mode="secure")
    for spec in ("hd|eden:2", "topk:0.1", "quantize:2"):
        with pytest.raises(CompressionSpecError, match="can be summed"):
            _ = Aggregator("p", msgspec.structs.replace(compressed(spec), privacy=terms)).max_body_bytes
    with pytest.raises(CompressionSpecError, match="a ring for the 100 devices"):
        _ = Aggregator("p", msgspec.structs.replace(compressed("hd|ring:16:99:50"), privacy=terms)).max_body_bytes
    for spec in ("hd|ring:16:100:50", "float32"):
        assert Aggregator("p", msgspec.structs.replace(compressed(spec), privacy=terms)).max_body_bytes
