"""Messages, inputs and sessions that are not what they have to be."""

import numpy as np
import pytest

from covey.secagg import Session, Step
from covey.secagg.encoding import HEADER_BYTES, bitmap
from covey.secagg.keys import SEALED_BYTES
from covey.secagg.messages import Advertisement, Delivery
from covey.types.errors import (
    EnrolmentError,
    LayoutError,
    RoundClosedError,
    SecAggMessageError,
    SecAggParameterError,
    StateError,
    UpdateFormatError,
    UpdateRangeError,
)
from covey.types.segments import Segment
from secagg.sessions import ACTIVE, BOTH, HBC, SEGMENTS, Run, at, is_over, party, session


@BOTH
def test_no_message_can_be_cut_extended_or_relabelled(mode):
    run = Run(session(mode))
    while run.server.step < Step.OPEN:
        message = run.answer(0)
        bad = [message[:-1], message + b"\0", b"", message[:HEADER_BYTES], b"X" + message[1:]]
        for place in (4, 5, 6, 20):  # version, kind, index, session
            bad.append(message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :])
        for other in bad:
            with pytest.raises(SecAggMessageError):
                run.server.accept(0, other)
        with pytest.raises(SecAggMessageError):  # under another party's name
            run.server.accept(1, message)
        assert not run.server.answered
        run.collect()
        run.told = run.server.close_step()
    assert run.server.open().survivors == tuple(range(6))


@BOTH
def test_no_message_to_a_party_can_be_cut_or_extended(mode):
    for step in [x for x in Step if Step.SHARE <= x < Step.OPEN and (mode is ACTIVE or x is not Step.CONSISTENCY)]:
        for change in (lambda m: m[:-1], lambda m: m + b"\0", lambda m: b"", lambda m: m[:5] + b"\0" + m[6:]):
            run = at(step, mode)
            with pytest.raises(SecAggMessageError):
                run.answer(0, change(run.told[0]))
            assert is_over(run.parties[0])


@pytest.mark.parametrize("indices", [(0, 0, 1, 2), (1, 0, 2, 3), (0, 1, 2, 6)])
def test_rosters_that_are_not_sorted_repeat_or_exceed(indices):
    run = at(Step.SHARE)
    entries = [run.server._sharing.group.entry(min(i, 5)) for i in indices]
    listed = b"".join(i.to_bytes(2, "little") + e.entry() for i, e in zip(indices, entries, strict=True))
    message = run.told[0][:HEADER_BYTES] + len(indices).to_bytes(2, "little") + listed
    with pytest.raises(SecAggMessageError):
        run.answer(0, message)


def test_counts_beyond_the_limits_are_refused_before_anything_is_read():
    run = at(Step.SHARE)
    message = run.told[0][:HEADER_BYTES] + b"\xff\xff"
    with pytest.raises(SecAggMessageError, match="at most 6"):
        run.answer(0, message)


@BOTH
def test_the_declared_lengths_are_those_of_the_longest_messages(mode):
    run = Run(session(mode))
    while run.server.step < Step.OPEN:
        limit, step = run.server.max_message_bytes, run.server.step
        run.collect()
        assert {len(m) for (s, _), m in run.sent.items() if s is step} == {limit}
        assert max(map(len, run.told.values())) <= run.session.max_message_bytes
        assert limit <= run.session.max_message_bytes
        run.told = run.server.close_step()
    assert run.server.max_message_bytes == 0


def test_a_bitmap_with_a_party_that_does_not_exist_is_refused():
    run = at(Step.UNMASK)
    message = run.told[0][:-1] + bytes([run.told[0][-1] | 0x40])
    with pytest.raises(SecAggMessageError, match="zeros"):
        run.answer(0, message)


def test_a_delivery_whose_count_does_not_fit_its_bitmap_is_refused():
    run = at(Step.MASK)
    d = Delivery.decode(run.session, 0, run.told[0], 6)
    for sealed, members in (
        (d.sealed[:-SEALED_BYTES], range(6)),
        (d.sealed + bytes(SEALED_BYTES), range(6)),
        (d.sealed, range(1, 6)),
    ):
        fresh = at(Step.MASK)
        with pytest.raises(SecAggMessageError):
            fresh.answer(0, Delivery(0, bitmap(members, 6), sealed).encode(run.session))


def test_a_masked_input_with_another_packing_is_refused_and_the_sum_untouched():
    run = at(Step.MASK)
    message = bytearray(run.answer(0))
    message[HEADER_BYTES + 37 + 19 + 9] |= 0xC0  # 14 bits: bytes, nibbles (19 for 37), then pairs of bits (10)
    with pytest.raises(SecAggMessageError, match="padding"):
        run.server.accept(0, bytes(message))
    assert not any(t.any() for t in run.server._masking.totals)
    assert run.server.answered == frozenset()


BAD_INPUTS = [
    ([np.zeros(37, np.int64)], UpdateFormatError),
    ([np.zeros(36, np.int64), np.zeros(3, np.int64)], UpdateFormatError),
    ([np.zeros((37, 1), np.int64), np.zeros(3, np.int64)], UpdateFormatError),
    ([np.zeros(37), np.zeros(3, np.int64)], UpdateFormatError),
    ([np.zeros(37, bool), np.zeros(3, np.int64)], UpdateFormatError),
    ([[0] * 37, np.zeros(3, np.int64)], UpdateFormatError),
    ([np.full(37, 101), np.zeros(3, np.int64)], UpdateRangeError),
    ([np.full(37, -101), np.zeros(3, np.int64)], UpdateRangeError),
    ([np.zeros(37, np.int64), np.full(3, (1 << 64) - 1, np.uint64)], UpdateRangeError),
]


@pytest.mark.parametrize("vectors, error", BAD_INPUTS)
def test_a_wrong_input_is_refused_before_anything_happens(vectors, error):
    run = at(Step.MASK)
    with pytest.raises(error):
        run.parties[0].mask(run.told[0], vectors)
    assert run.open().survivors == tuple(range(6))  # corrected, it goes on


def test_a_negative_input_in_an_unsigned_segment_is_refused():
    s = session(segments=(Segment("x", 2, 5, 6, ring_bits=8, signed=False),))
    run = Run(s).until(Step.MASK)
    with pytest.raises(UpdateRangeError, match="values from 0"):
        run.parties[0].mask(run.told[0], [np.array([-1, 0])])


UNSAFE = {
    "t of 1": {"threshold": 1},
    "t above the holders": {"threshold": 7},
    "t within the adversary": {"num_adversaries": 4, "threshold": 4, "min_survivors": 6},
    "no adversary": {"num_adversaries": 0},
    "everybody an adversary": {"num_adversaries": 6},
    "odd degree": {"num_neighbours": 3},
    "degree of everybody": {"num_neighbours": 6},
    "survivors without anonymity": {"min_survivors": 2},
    "more survivors than parties": {"min_survivors": 7},
    "two parties": {"n_max": 2},
    "too many parties": {"n_max": 16_385},
    "short seed": {"public_seed": b"x"},
    "an authority that is not used": {"authority": bytes(32)},
    "negative group": {"group": -1},
}


@pytest.mark.parametrize("changes", UNSAFE.values(), ids=UNSAFE)
def test_unsafe_sessions_cannot_be_built(changes):
    with pytest.raises(SecAggParameterError):
        session(**changes)


@pytest.mark.parametrize("changes", [{"num_neighbours": 4}, {"threshold": 3}, {"n_max": 513}])
def test_unsafe_active_sessions_cannot_be_built(changes):
    with pytest.raises(SecAggParameterError):
        session(ACTIVE, **changes)


@pytest.mark.parametrize(
    "segments",
    [
        (),
        (SEGMENTS[0], SEGMENTS[0]),
        (Segment("secagg/counter", 1, 1, 60),),
        (Segment("x", 1, 1, 5),),
        (Segment("x", 1 << 29, 1, 60),),
        tuple(Segment(str(i), 1, 1, 60) for i in range(65)),
    ],
)
def test_layouts_that_cannot_be_summed(segments):
    with pytest.raises(LayoutError):
        session(segments=segments)


@pytest.mark.parametrize("changes", [{"bound": 1 << 13}, {"ring_bits": 33}, {"ring_bits": 7}, {"length": 0}])
def test_overflow_is_impossible_by_construction(changes):
    values = {"name": "x", "length": 3, "bound": 100, "n_max": 60, "ring_bits": 14, **changes}
    with pytest.raises(LayoutError):
        Segment(**values)


def test_indices_and_randomness_out_of_range():
    with pytest.raises(SecAggParameterError):
        party(session(), 6)
    with pytest.raises(SecAggParameterError, match="32 bytes"):
        party(session(), 0, randomness=lambda n: b"short").advertise()


def test_opening_into_no_tasks_is_refused():
    with pytest.raises(SecAggParameterError):
        Run(session()).until(Step.OPEN).server.open(None, 0)


def test_opening_twice_is_refused():
    server = Run(session()).until(Step.OPEN).server
    server.open()
    for call in (server.open, server.close_step):
        with pytest.raises(StateError):
            call()
    with pytest.raises(RoundClosedError):
        server.accept(0, b"")


@pytest.mark.parametrize("mode, n", [(ACTIVE, 513), (HBC, 16_385)])
def test_a_cohort_that_is_too_large_for_one_group_is_told_to_split(mode, n):
    segments = [Segment("x", 1, 1, n)]
    with pytest.raises(SecAggParameterError) as caught:
        Session.plan(
            mode, segments, n_max=n, min_survivors=100, adversary=0.05, dropout=0.1, population="p", round_id="r"
        )
    assert "2 groups" in caught.value.hint


def test_an_advertisement_without_a_certificate_does_not_pass_for_an_identity():
    entry = Advertisement(0, b"a" * 32, b"b" * 32)
    with pytest.raises(EnrolmentError):
        entry.verify(session(ACTIVE), 0)
