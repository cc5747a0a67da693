"""Too few parties, retries, repetitions, wrong order, returning and late parties."""

import numpy as np
import pytest

from covey.secagg import Server, Step
from covey.secagg.encoding import bitmap
from covey.secagg.keys import SEALED_BYTES
from covey.secagg.messages import Delivery, Roster, Survivors
from covey.secagg.party.share import Shared
from covey.types.errors import (
    AlreadyCountedError,
    ConsistencyError,
    RoundClosedError,
    SecAggMessageError,
    SessionReusedError,
    StateError,
    ThresholdError,
)
from secagg.sessions import ACTIVE, BOTH, Run, at, inputs, is_over, party, session


@BOTH
@pytest.mark.parametrize("step", [Step.ADVERTISE, Step.SHARE, Step.MASK, Step.UNMASK])
def test_too_few_at_any_step_opens_nothing(mode, step):
    run = Run(session(mode), gone=dict.fromkeys((0, 1, 2), step))  # 3 of 6 are left, t = 4
    with pytest.raises(ThresholdError):
        run.open()
    assert run.server.step is Step.CLOSED
    with pytest.raises(StateError):
        run.server.open()


def test_too_few_signatures_open_nothing():
    run = Run(session(ACTIVE), gone=dict.fromkeys((0, 1, 2), Step.CONSISTENCY))
    with pytest.raises(ThresholdError):
        run.open()


@pytest.mark.parametrize("step", [Step.SHARE, Step.MASK, Step.UNMASK])
def test_the_party_itself_counts_at_every_step(step):
    """The server passes its own check (it is patched); the party does not take its word."""
    run = at(step, threshold=2, min_survivors=5)
    group = run.server._sharing.group
    three = bitmap((0, 1, 2), group.size)
    match step:
        case Step.SHARE:
            message = Roster.of([group.entry(p) for p in range(3)]).encode(run.session)
        case Step.MASK:
            sealed = Delivery.decode(run.session, 0, run.told[0], group.size).sealed
            message = Delivery(0, three, sealed[: 2 * SEALED_BYTES]).encode(run.session)
        case _:
            message = Survivors(three).encode(run.session)
    with pytest.raises(ThresholdError, match="at least 5"):
        run.answer(0, message)
    assert is_over(run.parties[0])


def test_a_sparse_party_with_too_few_holders_does_not_mask():
    run = at(Step.MASK, n_max=9, num_neighbours=4, threshold=4, min_survivors=3)
    state = run.parties[0]._state
    assert isinstance(state, Shared)
    few = [p for p in range(9) if p not in state.neighbours[:2]]
    sealed = Delivery.decode(run.session, 0, run.told[0], 9).sealed[2 * SEALED_BYTES :]
    with pytest.raises(ThresholdError, match="4 holders"):
        run.answer(0, Delivery(0, bitmap(few, 9), sealed).encode(run.session))


@BOTH
def test_a_retry_is_the_same_bytes_and_changes_nothing(mode):
    run = Run(session(mode))
    while run.server.step < Step.OPEN:
        messages = {i: run.answer(i) for i in run.told}
        for i, message in messages.items():
            assert run.answer(i) == message
            run.server.accept(i, message)
        if run.server.step is Step.MASK:
            with pytest.raises(AlreadyCountedError):
                run.server.accept(0, messages[0])
        else:
            run.server.accept(0, messages[0])
        assert run.server.answered == run.server.expected
        run.told = run.server.close_step()
    sums = run.server.open().sums
    assert all(np.array_equal(a, b) for a, b in zip(sums, run.expected_sums(range(6)), strict=True))


def test_a_retry_of_masking_ignores_the_new_input():
    run = at(Step.MASK)
    first = run.answer(0)
    other = [v + 1 for v in inputs(run.session, 3)]
    assert run.parties[0].mask(run.told[0], other) == first


@BOTH
def test_another_request_for_an_answered_step_ends_the_session(mode):
    for step in [x for x in Step if Step.SHARE <= x < Step.OPEN and (mode is ACTIVE or x is not Step.CONSISTENCY)]:
        run = at(step, mode)
        run.answer(0)
        with pytest.raises(ConsistencyError, match="same request"):
            run.answer(0, run.told[0] + b"\0")
        assert is_over(run.parties[0])
        with pytest.raises(StateError):
            run.answer(0)


@BOTH
def test_steps_out_of_order_are_refused_and_harm_nothing(mode):
    run = Run(session(mode))
    calls = {
        Step.ADVERTISE: lambda who: who.advertise(),
        Step.SHARE: lambda who: who.share(b""),
        Step.MASK: lambda who: who.mask(b"", inputs(run.session, 0)),
        Step.CONSISTENCY: lambda who: who.sign(b""),
        Step.UNMASK: lambda who: who.unmask(b""),
    }
    last = None
    while run.server.step < Step.OPEN:
        for step in calls.keys() - {run.server.step, last}:  # the last step again would be a retry
            with pytest.raises(StateError):
                calls[step](run.parties[0])
        last = run.server.step
        run.collect()
        run.told = run.server.close_step()
    assert run.server.open().survivors == tuple(range(6))


def test_a_message_for_another_step_is_refused():
    run = at(Step.SHARE)
    with pytest.raises(SecAggMessageError):
        run.server.accept(0, run.sent[Step.ADVERTISE, 0])
    run.until(Step.UNMASK)
    with pytest.raises(SecAggMessageError):
        run.server.accept(0, run.sent[Step.MASK, 0])


def test_a_party_that_returns_is_gone():
    run = Run(session(), gone={2: Step.SHARE}).until(Step.SHARE)
    roster = run.told[2]
    run.until(Step.MASK)
    with pytest.raises(RoundClosedError):
        run.server.accept(2, run.parties[2].share(roster))
    with pytest.raises(SessionReusedError):  # nor can it begin again
        party(run.session, 2, used_sessions={run.session.id})
    assert run.open().survivors == (0, 1, 3, 4, 5)


def test_a_late_masked_input_is_discarded_unread():
    run = Run(session(), gone={2: Step.MASK}).until(Step.MASK)
    late = run.parties[2].mask(run.told[2], run.inputs[2])
    run.until(Step.UNMASK)
    before = [t.copy() for t in run.server._masking.totals]
    for message in (late, b"not even a message"):
        with pytest.raises(RoundClosedError):
            run.server.accept(2, message)
    assert all(np.array_equal(a, b) for a, b in zip(before, run.server._masking.totals, strict=True))
    assert run.open().survivors == (0, 1, 3, 4, 5)


def test_other_bytes_for_an_answered_step_are_refused_by_the_server():
    run = at(Step.SHARE)
    message = run.answer(0)
    run.server.accept(0, message)
    changed = message[:-1] + bytes([message[-1] ^ 1])
    with pytest.raises(ConsistencyError):
        run.server.accept(0, changed)


@pytest.mark.parametrize(
    "join", [lambda s, used: party(s, 0, used_sessions=used), lambda s, used: Server(s, used_sessions=used)]
)
def test_a_session_is_used_once(join):
    used = set()
    join(session(), used)
    with pytest.raises(SessionReusedError):
        join(session(), used)
    join(session(round_id="2"), used)


def test_a_sparse_group_whose_holders_vanish_before_masking_is_discarded_by_the_server():
    run = Run(session(n_max=9, num_neighbours=4, threshold=5, min_survivors=3), gone={2: Step.SHARE})
    with pytest.raises(ThresholdError, match="5 holders"):  # the neighbours of 2 have four left, themselves included
        run.open()
    assert run.server.step is Step.CLOSED


def test_a_sparse_group_whose_holders_vanish_before_unmasking_is_discarded_by_the_server():
    run = Run(session(n_max=9, num_neighbours=4, threshold=5, min_survivors=3), gone={2: Step.UNMASK})
    with pytest.raises(ThresholdError, match="5 shares"):
        run.open()
    assert run.server.step is Step.CLOSED
