"""How a device proves that it is one of the application's: a verifier that can be replaced.

``open`` asks for nothing, ``token`` (the usual one) for a token that the application's backend signed. Any other name
is an entry point of the group ``covey.attestation``: a function that takes
:class:`~covey.admission.verifier.AttestationSettings` and returns a :class:`~covey.admission.verifier.Verifier`, for
example one that asks a platform's own attestation service.
"""

import secrets
from importlib.metadata import entry_points

from covey.admission.tokens import TokenVerifier
from covey.admission.verifier import AttestationSettings, Attested, Verifier
from covey.plans.signing import load_public_key
from covey.types.errors import UsageError

__all__ = ["ENTRY_POINTS", "OpenVerifier", "load_verifier"]

ENTRY_POINTS = "covey.attestation"
"""The group of the entry points that name verifiers."""


class OpenVerifier:
    """Lets everybody in, every time as somebody else. For a trusted network or a trial only."""

    def verify(self, attestation: str, population: str, now_s: float) -> Attested:
        """See :class:`Verifier`."""
        return Attested(secrets.token_bytes(32), now_s)


def load_verifier(kind: str, settings: AttestationSettings) -> Verifier:
    """Return the verifier that a configuration names.

    Raises:
        UsageError: no such verifier, or settings that it cannot work with.
    """
    if kind == "open":
        return OpenVerifier()
    if kind == "token":
        return TokenVerifier(_token_key(settings), settings.audience)
    found = entry_points(group=ENTRY_POINTS)
    if kind not in found.names:
        names = ["open", "token", *sorted(found.names)]
        raise UsageError("enrolment", expected=f"one of {', '.join(names)}", got=kind[:100])
    made: Verifier = found[kind].load()(settings)
    return made


def _token_key(settings: AttestationSettings) -> bytes:
    name = settings.options.get("key", "")
    if not name:
        raise UsageError(
            "attestation: key",
            expected="the file with the public key of the application's backend",
            got="none",
            hint="`covey attest key FILE` makes a key; the program needs FILE.pub only",
        )
    path = settings.directory / name
    try:
        pem = path.read_bytes()
    except OSError as e:
        raise UsageError(f"attestation: key {path}", expected="a readable file", got=e.strerror or "an error") from e
    return load_public_key(pem, f"attestation: key {path}").public_bytes_raw()
