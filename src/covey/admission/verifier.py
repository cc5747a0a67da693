"""What an attestation verifier is, for whoever writes one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["AttestationSettings", "Attested", "Verifier"]


@dataclass(frozen=True, slots=True)
class Attested:
    """What a verifier found.

    Attributes:
        name: a pseudonym of what was presented, 32 bytes: the same for the same token, and nothing else about the
            device. It is kept in memory only.
        expires_at_s: until when the proof could be presented again, in seconds since 1970.
    """

    name: bytes
    expires_at_s: float


class Verifier(Protocol):
    """Decides whether somebody is a device of the application."""

    def verify(self, attestation: str, population: str, now_s: float) -> Attested:
        """Check a proof. Called in a thread of its own, from several at once; it may take its time.

        Args:
            attestation: what the device sent, at most a few kilobytes; empty where it sent none.
            population: whom it wants to join.
            now_s: seconds since 1970.

        Raises:
            AttestationError: refused. Say nothing that helps to forge a better one.
        """
        ...


@dataclass(frozen=True, slots=True)
class AttestationSettings:
    """What a verifier is made from.

    Attributes:
        audience: who asks: ``server`` or ``authority``. A proof for one must not be good for the other: the server
            could present it to the authority and get identities of its own.
        directory: of the program; relative paths are relative to it.
        options: the ``[attestation]`` table of its configuration.
    """

    audience: str
    directory: Path
    options: Mapping[str, str] = field(default_factory=dict)
