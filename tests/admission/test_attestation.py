"""Verifiers by name: the two that are here, and one that somebody installed."""

import importlib.metadata

import pytest

from covey.admission import attestation
from covey.admission.attestation import OpenVerifier, load_verifier
from covey.admission.tokens import TokenVerifier, issue_token
from covey.admission.verifier import AttestationSettings, Attested
from covey.plans.signing import generate_owner_key, public_key_pem
from covey.types.errors import UsageError


def settings(directory, **options):
    return AttestationSettings("server", directory, options)


def test_an_open_door_knows_nobody(tmp_path):
    verifier = load_verifier("open", settings(tmp_path))
    assert isinstance(verifier, OpenVerifier)
    assert verifier.verify("", "p", 0.0).name != verifier.verify("", "p", 0.0).name


def test_tokens_are_checked_with_the_key_in_the_directory(tmp_path):
    key = generate_owner_key()
    (tmp_path / "app.pub").write_bytes(public_key_pem(key.public_key()))
    verifier = load_verifier("token", settings(tmp_path, key="app.pub"))
    assert isinstance(verifier, TokenVerifier)
    assert verifier.verify(issue_token(key, audience="server", population="p", expires_at=9), "p", 0.0)


def test_without_a_key_there_are_no_tokens(tmp_path):
    with pytest.raises(UsageError, match="attestation: key: expected the file"):
        load_verifier("token", settings(tmp_path))
    with pytest.raises(UsageError, match="expected a readable file"):
        load_verifier("token", settings(tmp_path, key="app.pub"))
    (tmp_path / "app.pub").write_text("no key")
    with pytest.raises(UsageError, match="expected an Ed25519 public key in PEM"):
        load_verifier("token", settings(tmp_path, key="app.pub"))


class Platform:
    """A verifier that somebody wrote."""

    def __init__(self, settings):
        self.settings = settings

    def verify(self, attestation, population, now_s):
        return Attested(attestation.encode().ljust(32)[:32], now_s + 1)


def test_an_installed_verifier_is_found_by_its_name(tmp_path, monkeypatch):
    entry = importlib.metadata.EntryPoint("platform", f"{__name__}:Platform", attestation.ENTRY_POINTS)
    found = importlib.metadata.EntryPoints([entry])
    monkeypatch.setattr(attestation, "entry_points", lambda group: found.select(group=group))
    verifier = load_verifier("platform", settings(tmp_path, project="x"))
    assert verifier.settings.options == {"project": "x"} and verifier.verify("me", "p", 0.0).name.startswith(b"me")
    with pytest.raises(UsageError, match="enrolment: expected one of open, token, platform, got platfrom"):
        load_verifier("platfrom", settings(tmp_path))
