"""The registrar: one certificate for an attestation, the same again for the same key, and a bounded memory."""

import pytest

from covey.admission.attestation import OpenVerifier
from covey.admission.tokens import TokenVerifier, issue_token
from covey.authority.registrar import Registrar
from covey.plans.signing import generate_owner_key
from covey.secagg import Certificate, EnrolmentAuthority
from covey.secagg.identity import verify_certificate
from covey.types.errors import AttestationError, BusyError, NotFoundError, WireError
from covey.wire.messages import Certify

BACKEND, AUTHORITY = generate_owner_key(), EnrolmentAuthority(generate_owner_key(), "p")
KEY, OTHER = "ab" * 32, "cd" * 32


class Made:
    def __init__(self, verifier=None, **fields):
        self.now_s = 1_000_000.0
        verifier = verifier or TokenVerifier(BACKEND.public_key().public_bytes_raw(), "authority")
        self.registrar = Registrar(AUTHORITY, "p", verifier, now_s=lambda: self.now_s, **fields)

    def token(self, expires_in_s=7200):
        return issue_token(BACKEND, audience="authority", population="p", expires_at=int(self.now_s) + expires_in_s)

    def certify(self, token, key=KEY, population="p"):
        return self.registrar.certify(Certify(population=population, identity_key=key, attestation=token))


def test_a_certificate_is_good_for_its_key_and_lifetime_and_names_nobody():
    made = Made()
    got = made.certify(made.token())
    certificate = Certificate(bytes.fromhex(KEY), got.expires_at, bytes.fromhex(got.signature))
    verify_certificate(certificate, AUTHORITY.public_key, "p", int(made.now_s))
    assert made.now_s + 3600 <= got.expires_at < made.now_s + 3600 + 600
    made.now_s += 1
    assert made.certify(made.token(), OTHER).expires_at == got.expires_at  # the hour tells devices not apart


def test_an_attestation_is_one_key_and_asking_again_costs_nothing():
    made = Made()
    token = made.token()
    first = made.certify(token)
    made.now_s += 1800
    assert made.certify(token) == first
    with pytest.raises(AttestationError, match="one that is used up"):
        made.certify(token, OTHER)
    made.now_s += 2400  # the certificate has expired, the token has not
    for key in (KEY, OTHER):
        with pytest.raises(AttestationError, match="one that is used up"):
            made.certify(token, key)
    assert made.certify(made.token(), OTHER).expires_at > made.now_s


def test_it_refuses_rather_than_forgets():
    made = Made(max_remembered=3)
    tokens = [made.token() for _ in range(3)]
    for token in tokens:
        made.certify(token)
    with pytest.raises(BusyError) as refused:
        made.certify(made.token())
    assert refused.value.retry_after_s == pytest.approx(7200)
    assert made.certify(tokens[0]) and len(made.registrar) == 3
    made.now_s += 7200
    assert made.certify(made.token()) and len(made.registrar) == 1


def test_an_open_door_remembers_nobody():
    made = Made(OpenVerifier(), max_remembered=1)
    for key in (KEY, OTHER, KEY):
        assert made.certify("", key)
    assert len(made.registrar) == 0


def test_other_populations_and_what_is_no_key():
    made = Made()
    with pytest.raises(NotFoundError):
        made.certify(made.token(), population="q")
    for key in ("", "ab", "no hex", "é" * 64):
        with pytest.raises(WireError):
            made.certify(made.token(), key)
    assert len(made.registrar) == 0
