"""One encoding for each message: what a decoder accepts encodes to the same bytes; errors are of one family."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.secagg import Step
from covey.secagg.encoding import HEADER_BYTES, bitmap, positions
from covey.secagg.messages import (
    Advertisement,
    Delivery,
    MaskedInput,
    Opening,
    Roster,
    Shares,
    Signature,
    Signatures,
    Survivors,
)
from covey.types.errors import SecAggError, SecAggMessageError
from secagg.sessions import ACTIVE, BOTH, HBC, Run, session

STEPS = [Step.ADVERTISE, Step.SHARE, Step.MASK, Step.CONSISTENCY, Step.UNMASK]


def recorded(mode) -> tuple[Run, dict[str, bytes]]:
    run = Run(session(mode)).until(Step.OPEN)
    found = {f"to party {s.name}": m for (s, i), m in run.received.items() if i == 0 and m}
    return run, found | {f"from party {s.name}": m for (s, i), m in run.sent.items() if i == 0}


RECORDED = {mode: recorded(mode) for mode in (HBC, ACTIVE)}


def decoders(run: Run) -> dict[str, object]:
    s, n = run.session, 6
    survivors = lambda m: Survivors.decode(s, m, n)  # noqa: E731
    return {
        "from party ADVERTISE": lambda m: Advertisement.decode(s, 0, m),
        "to party SHARE": lambda m: Roster.decode(s, m),
        "from party SHARE": lambda m: Shares.decode(s, 0, m, n - 1),
        "to party MASK": lambda m: Delivery.decode(s, 0, m, n),
        "from party MASK": lambda m: MaskedInput.decode(s, 0, m),
        "to party CONSISTENCY": survivors,
        "from party CONSISTENCY": lambda m: Signature.decode(s, 0, m),
        "to party UNMASK": (lambda m: Signatures.decode(s, m)) if s.is_active else survivors,
        "from party UNMASK": lambda m: Opening.decode(s, 0, m, n),
    }


@BOTH
def test_every_message_encodes_to_what_it_was_decoded_from(mode):
    run, messages = RECORDED[mode]
    for name, message in messages.items():
        decoded = decoders(run)[name](message)
        if isinstance(decoded, MaskedInput):
            assert bytes(decoded.packed) == message[HEADER_BYTES:]
        else:
            assert decoded.encode(run.session) == message
    assert len(messages) == (9 if mode is ACTIVE else 7)


@given(st.sampled_from([HBC, ACTIVE]), st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_message_is_refused_or_has_this_one_encoding(mode, data):
    run, messages = RECORDED[mode]
    name = data.draw(st.sampled_from(sorted(messages)))
    message = bytearray(messages[name])
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 2, 32, 80]))
    changed = bytes(message[: len(message) - cut]) + data.draw(st.sampled_from([b"", b"", b"", b"\0", bytes(80)]))
    try:
        decoded = decoders(run)[name](changed)
    except SecAggMessageError:
        return
    if not isinstance(decoded, MaskedInput):
        assert decoded.encode(run.session) == changed


@given(st.sampled_from([HBC, ACTIVE]), st.sampled_from(STEPS), st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_arrives_only_this_familys_errors_come_out(mode, step, data):
    """Bytes changed behind the header, at the state machines themselves: they answer, or raise what is documented."""
    if step is Step.CONSISTENCY and mode is HBC:
        return
    run = Run(session(mode)).until(step)
    told = bytearray(run.told[0])
    answer = bytearray(run.answer(1))
    for message in (told, answer):
        if len(message) > HEADER_BYTES:
            message[data.draw(st.integers(HEADER_BYTES, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    for call in (lambda: run.answer(0, bytes(told)), lambda: run.server.accept(1, bytes(answer))):
        try:
            call()
        except SecAggError as e:
            assert e.code.startswith("secagg_")


@given(st.integers(1, 40), st.data())
def test_bitmaps_go_there_and_back(n, data):
    members = data.draw(st.sets(st.integers(0, n - 1)))
    raw = bitmap(members, n)
    assert positions(raw) == members and len(raw) == -(-n // 8)


def test_a_message_for_somebody_else_is_refused():
    run, messages = RECORDED[HBC]
    with pytest.raises(SecAggMessageError):
        Delivery.decode(run.session, 1, messages["to party MASK"], 6)
