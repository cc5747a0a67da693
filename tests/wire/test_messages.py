import pytest

from covey.types.errors import AlreadyCountedError, BusyError, VersionError, WireError
from covey.wire import messages as m

REF = m.BlobRef(sha256="0" * 64, num_bytes=3, path="/v1/plans/x")
EXAMPLES = [
    m.Enroll(population="p"),
    m.Enrolled(credential="c", expires_in_s=3.5),
    m.CheckIn(population="p"),
    m.Assignment(session="s", round=1, phase=0, plan=REF, signature="00", checkpoint=REF, report_within_s=5.0),
    m.Assignment(
        session="s", round=1, phase=0, plan=REF, signature="00", checkpoint=REF, report_within_s=5.0, task="t",
        kind="evaluate",
    ),
    m.ComeBack(retry_after_s=1.0, reason="not_selected"),
    m.Reported(counted=True, retry_after_s=0.0),
    m.Abandon(reason="condition_lapsed"),
    m.Abandoned(retry_after_s=0.0),
    m.RoundSummary(
        round=1, status="committed", selected=3, reported=2, lost=1, seconds=0.5, bytes_down=9, bytes_up=8,
        metrics={"loss": 0.25},
    ),
]  # fmt: skip


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda x: type(x).__name__)
def test_decoding_is_the_inverse_of_encoding(message):
    assert m.decode_message(m.encode_message(message), type(message)) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda x: type(x).__name__)
def test_unknown_fields_are_ignored(message):
    data = m.encode_message(message)
    assert m.decode_message(data[:-1] + b',"from_the_future":[1]}', type(message)) == message


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b'{"population":3}', b"\xff\xfe", b"{}"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(WireError):
        m.decode_message(data, m.CheckIn)


def test_a_message_that_is_too_long_is_not_parsed():
    with pytest.raises(WireError, match="at most"):
        m.decode_message(b'{"population":"' + b"a" * m.MAX_MESSAGE_BYTES + b'"}', m.Enroll)


def test_another_protocol_is_refused():
    with pytest.raises(VersionError):
        m.decode_message(m.encode_message(m.CheckIn(population="p", protocol=2)), m.CheckIn)


def test_an_error_comes_back_as_what_was_raised():
    body = m.encode_message(m.ErrorBody(code="already_counted", message="it is in", hint="go on", retry_after_s=2.0))
    error = m.error_from_body(409, body, "server")
    assert type(error) is AlreadyCountedError
    assert (error.got, error.hint, error.retry_after_s) == ("it is in", "go on", 2.0)
    assert type(m.error_from_body(503, b'{"code":"busy","message":"x"}', "server")) is BusyError
    assert type(m.error_from_body(502, b"<html>", "server")) is WireError
