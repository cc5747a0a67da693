"""Credentials: only what this server issued, for a while, and it need not remember anybody for that."""

import base64
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.server.credentials import Credentials, load_or_make_key
from covey.types.errors import UnauthorizedError, UsageError

KEY = bytes(range(32))
ISSUER = Credentials(KEY, lifetime_s=100.0)


def test_a_credential_admits_to_its_population_until_it_expires():
    token = ISSUER.issue("p", 1000.0)
    assert ISSUER.population(token, 1000.0) == "p"
    assert ISSUER.population(token, 1100.0) == "p"
    with pytest.raises(UnauthorizedError):
        ISSUER.population(token, 1100.1)


def test_another_process_with_the_same_key_admits_it():
    assert Credentials(KEY).population(ISSUER.issue("p", 0.0), 0.0) == "p"


def test_another_key_does_not():
    with pytest.raises(UnauthorizedError):
        Credentials(bytes(32)).population(ISSUER.issue("p", 0.0), 0.0)


def test_credentials_differ_and_name_no_device():
    tokens = {ISSUER.issue("p", 0.0) for _ in range(100)}
    assert len(tokens) == 100
    assert all(t.isascii() and t.isprintable() and " " not in t for t in tokens)


def test_claims_cannot_be_changed():
    head, _, tail = ISSUER.issue("p", 0.0).partition(".")
    claims = base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
    for changed in (claims.replace(b'"p"', b'"q"'), claims.replace(b"100", b"999"), claims + b" "):
        forged = base64.urlsafe_b64encode(changed).rstrip(b"=").decode() + "." + tail
        with pytest.raises(UnauthorizedError):
            ISSUER.population(forged, 0.0)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b", "e30.", "é.é", "\x00", "=.=", "A" * 10_000, "null.null"])
def test_what_is_no_credential_is_refused_without_saying_why(token):
    with pytest.raises(UnauthorizedError, match="expected a valid credential, got none, or one that is not valid"):
        ISSUER.population(token, 0.0)


@given(st.text(max_size=60))
def test_no_text_is_a_credential_by_chance(token):
    with pytest.raises(UnauthorizedError):
        ISSUER.population(token, 0.0)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_credential_with_one_byte_changed_is_refused(index, change):
    head, _, tail = ISSUER.issue("p", 0.0).partition(".")
    raw = bytearray(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    tag = bytearray(base64.urlsafe_b64decode(tail + "=" * (-len(tail) % 4)))
    target, i = (raw, index % (len(raw) + len(tag))) if index % (len(raw) + len(tag)) < len(raw) else (tag, index)
    target[i % len(target)] ^= change
    forged = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (raw, tag))
    with pytest.raises(UnauthorizedError):
        ISSUER.population(forged, 0.0)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length):
    with pytest.raises(UsageError, match="expected 32 bytes"):
        Credentials(bytes(length))


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "credential.key"
    key = load_or_make_key(path)
    assert len(key) == 32 and key != load_or_make_key(tmp_path / "other.key")
    assert load_or_make_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
