"""Tokens: only what the pinned backend signed, for this audience and population, until it expires."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.admission.tokens import TokenVerifier, issue_token
from covey.plans.signing import generate_owner_key
from covey.types.errors import AttestationError, UsageError

KEY = generate_owner_key()
SERVER = TokenVerifier(KEY.public_key().public_bytes_raw(), "server")


def token(**changes):
    return issue_token(KEY, **{"audience": "server", "population": "p", "expires_at": 100, **changes})


def test_a_token_admits_until_it_expires_and_always_as_the_same():
    one, other = token(), token()
    first = SERVER.verify(one, "p", 99.9)
    assert first == SERVER.verify(one, "p", 0.0) and len(first.name) == 32 and first.expires_at_s == 100.0
    assert SERVER.verify(other, "p", 0.0).name != first.name
    with pytest.raises(AttestationError):
        SERVER.verify(one, "p", 100.0)


def test_a_token_says_nothing_but_a_nonce():
    payload = base64.urlsafe_b64decode(token(nonce="n").partition(".")[0] + "==")
    assert payload == b'["server","p",100,"n"]'


@pytest.mark.parametrize("change", [{"audience": "authority"}, {"population": "q"}])
def test_a_token_for_others_is_refused(change):
    with pytest.raises(AttestationError):
        SERVER.verify(token(**change), "p", 0.0)


def test_a_token_of_another_backend_is_refused():
    forged = issue_token(generate_owner_key(), audience="server", population="p", expires_at=100)
    with pytest.raises(AttestationError):
        SERVER.verify(forged, "p", 0.0)


def test_the_same_token_in_another_spelling_is_no_second_token():
    one = token()
    head, _, tail = one.partition(".")
    for spelled in (f"{head}=.{tail}", f"{head}.{tail}=", f" {one}", f"{one}\n", f"{head}==.{tail}=="):
        try:
            name = SERVER.verify(spelled, "p", 0.0).name
        except AttestationError:
            continue
        assert name == SERVER.verify(one, "p", 0.0).name


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_token_with_one_byte_changed_is_refused(index, change):
    head, _, tail = token(nonce="n").partition(".")
    raw = [bytearray(base64.urlsafe_b64decode(part + "==")) for part in (head, tail)]
    at = raw[index % 2]
    at[index // 2 % len(at)] ^= change
    changed = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in raw)
    with pytest.raises(AttestationError):
        SERVER.verify(changed, "p", 0.0)


@given(st.text(max_size=80))
def test_no_text_is_a_token_by_chance(text):
    with pytest.raises(AttestationError, match="expected a valid token of the application's backend"):
        SERVER.verify(text, "p", 0.0)


@pytest.mark.parametrize("text", ["", ".", "a.b", "é.é", "\x00", "A" * 5000, "null.null"])
def test_what_is_no_token_is_refused_without_saying_why(text):
    with pytest.raises(AttestationError, match="got none, or one that is not valid here and now"):
        SERVER.verify(text, "p", 0.0)


def test_another_audience_is_refused_when_it_is_made():
    with pytest.raises(UsageError, match="audience: expected server or authority"):
        token(audience="everybody")
