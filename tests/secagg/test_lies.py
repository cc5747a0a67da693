"""Holders that lie about shares, and a server that tells parties different things."""

import pytest

from covey.secagg import Step
from covey.secagg.encoding import HEADER_BYTES, bitmap
from covey.secagg.keys import SEALED_BYTES, SHARE_BYTES
from covey.secagg.messages import Delivery, Opening, Signatures, Survivors
from covey.types.errors import (
    ConsistencyError,
    CounterError,
    SecAggMessageError,
    ShareError,
    ThresholdError,
)
from secagg.sessions import ACTIVE, BOTH, SEGMENTS, Run, at, is_over, party, pieces, session


@pytest.mark.parametrize("change", ["tampered", "for another party", "from another session", "reordered"])
def test_sealed_shares_that_are_not_what_was_sealed_for_this_party(change):
    run = at(Step.MASK)
    delivery = Delivery.decode(run.session, 0, run.told[0], 6)
    sealed = pieces(delivery.sealed, SEALED_BYTES)
    match change:
        case "tampered":
            sealed[2] = sealed[2][:-1] + bytes([sealed[2][-1] ^ 1])
        case "for another party":
            sealed[2] = pieces(Delivery.decode(run.session, 1, run.told[1], 6).sealed, SEALED_BYTES)[2]
        case "from another session":
            other = at(Step.MASK, round_id="2")
            sealed[2] = pieces(Delivery.decode(other.session, 0, other.told[0], 6).sealed, SEALED_BYTES)[2]
        case _:
            sealed[1], sealed[2] = sealed[2], sealed[1]
    with pytest.raises(ShareError):
        run.answer(0, Delivery(0, delivery.sharers, b"".join(sealed)).encode(run.session))
    assert is_over(run.parties[0])


@pytest.mark.parametrize("gone", [{}, {5: Step.MASK}])
def test_a_shareholder_that_lies_is_caught_after_combining(gone):
    """Its sealed share opens, its message is well formed; only the commitment, or the public key, tells."""

    def lie(step, index, message):
        if step is not Step.UNMASK or index != 1:
            return message
        count = (len(message) - HEADER_BYTES - 2) // 32
        place = HEADER_BYTES + 2 + 32 * (count - 1)  # its share of the last party's secret
        return message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]

    run = Run(session(), gone=gone, on_message=lie)
    with pytest.raises(ShareError, match="combine"):
        run.open()
    assert run.server.step is Step.CLOSED


def test_a_dealer_that_dealt_garbage_is_caught_after_combining(monkeypatch):
    from covey.secagg.party import share as step

    honest = step.split
    run = at(Step.SHARE)
    monkeypatch.setattr(step, "split", lambda *a: [b"\1" * 64 for _ in honest(*a)])
    message = run.answer(0)
    monkeypatch.undo()
    run.server.accept(0, message)
    run.told = {i: m for i, m in run.told.items() if i}
    run.collect()
    run.told = run.server.close_step()
    with pytest.raises(ShareError):
        run.open()


def test_a_party_that_masks_with_other_keys_is_caught_by_the_counter():
    run = at(Step.MASK)
    state = run.parties[2]._state
    object.__setattr__(state, "mask_private", b"q" * 32)
    with pytest.raises(CounterError):
        run.open()


def test_both_kinds_of_shares_of_one_party_cannot_be_asked_for():
    """One request is one bitmap; a second one that turns a survivor into a dropout is refused by everybody."""
    run = Run(session(), gone={5: Step.MASK}).until(Step.UNMASK)
    first = {i: run.answer(i) for i in run.told}
    other = Survivors(bitmap((0, 1, 2, 3), 6)).encode(run.session)
    for i in run.told:
        with pytest.raises(ConsistencyError):
            run.answer(i, other)
        assert is_over(run.parties[i])
    shares = {i: Opening.decode(run.session, i, m, 6).shares for i, m in first.items()}
    assert all(len(s) == 6 * SHARE_BYTES for s in shares.values())


def test_different_survivors_for_two_halves_open_nothing_in_active_mode():
    """Whatever split it tries, no side reaches the quorum of signatures under one transcript."""
    for told_otherwise in range(1, 6):
        run = at(Step.CONSISTENCY, ACTIVE)
        without_0 = Survivors(bitmap((1, 2, 3, 4, 5), 6)).encode(run.session)
        signatures = {}
        for i in range(1, 6):
            signatures[i] = run.answer(i, without_0 if i <= told_otherwise else None)[HEADER_BYTES:]
        message = Signatures(tuple(sorted(signatures.items()))).encode(run.session)
        for i in range(1, 6):
            if told_otherwise < 5:
                with pytest.raises(ConsistencyError):
                    run.parties[i].unmask(message)
        honest = [i for i in signatures if i <= told_otherwise]
        for side in (honest, [i for i in signatures if i not in honest]):
            if len(side) < run.session.threshold:
                again = at(Step.CONSISTENCY, ACTIVE)
                again.answer(side[0] if side else 1)
                few = Signatures(tuple((i, signatures[i]) for i in side)).encode(run.session)
                with pytest.raises(ThresholdError):
                    again.parties[side[0] if side else 1].unmask(few)


@pytest.mark.parametrize("members", [(0, 1, 2), (1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)])
@BOTH
def test_survivor_lists_that_a_party_cannot_be_part_of(mode, members):
    run = Run(session(mode), gone={5: Step.SHARE}).until(Step.CONSISTENCY if mode is ACTIVE else Step.UNMASK)
    error = ThresholdError if len(members) == 3 else ConsistencyError  # shrunk; without me; with one that never shared
    with pytest.raises(error):
        run.answer(0, Survivors(bitmap(members, 6)).encode(run.session))
    assert is_over(run.parties[0])


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_hash": b"c" * 32},
        {"plan_hash": b"c" * 32},
        {"broadcast_hash": b"c" * 32},
        {"public_seed": b"c" * 32},
        {"threshold": 5},
        {"min_survivors": 5},
        {"round_id": "2"},
        {"group": 1},
        {"population": "others"},
        {"segments": SEGMENTS[::-1]},
        {"num_adversaries": 2, "min_survivors": 4},
    ],
    ids=lambda c: next(iter(c)),
)
def test_parties_that_were_told_different_things_cannot_be_summed(change):
    """The other party's messages do not even parse here; behind the header its keys and shares would not fit either."""
    here, there = session(), session(**change)
    assert here.id != there.id
    run = Run(here)
    with pytest.raises(SecAggMessageError, match="session"):
        run.server.accept(0, party(there, 0).advertise())
    run.until(Step.SHARE)
    stranger = party(there, 0, seed=0)
    stranger.advertise()
    with pytest.raises(SecAggMessageError, match="session"):
        stranger.share(run.told[0])
    relabelled = run.told[0][:8] + there.id + run.told[0][HEADER_BYTES:]  # a server that lies about the session
    other = party(there, 0, seed=0)
    other.advertise()
    answer = other.share(relabelled)
    run.server.accept(0, answer[:8] + here.id + answer[HEADER_BYTES:])
    run.told.pop(0)
    run.collect()
    run.told = run.server.close_step()
    with pytest.raises(ShareError):
        run.answer(1)


def test_a_signature_that_is_not_ones_own_is_refused_by_the_server():
    run = at(Step.CONSISTENCY, ACTIVE)
    message = run.answer(0)
    with pytest.raises(ConsistencyError):
        run.server.accept(0, message[:-1] + bytes([message[-1] ^ 1]))
    with pytest.raises(SecAggMessageError):
        run.server.accept(1, message)


def test_signatures_by_others_than_survivors_do_not_count():
    run = Run(session(ACTIVE), gone={5: Step.MASK}).until(Step.UNMASK)
    signatures = Signatures.decode(run.session, run.told[0]).signatures
    for bad in (((5, signatures[0][1]),), ((9, signatures[0][1]),)):
        fresh = Run(session(ACTIVE), gone={5: Step.MASK}).until(Step.UNMASK)
        with pytest.raises(ConsistencyError if bad[0][0] < 6 else (ConsistencyError, SecAggMessageError)):
            fresh.answer(0, Signatures((*signatures[:4], *bad)).encode(run.session))
