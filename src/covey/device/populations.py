"""The populations that a device takes part in, and on whose terms: ``HOME/populations.json``.

One agent serves all of them. A person writes the file with ``covey device join`` and ``covey device leave``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from covey.device.files import file_lock, storage_errors, written_whole
from covey.device.policy import OwnerPolicy
from covey.device.private import PrivacyFloor
from covey.device.tokens import AttestationFile, no_tokens
from covey.types.errors import StorageError, UsageError

if TYPE_CHECKING:
    from covey.device.authority import PinnedAuthority

__all__ = ["Membership", "Populations"]


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """One population: where its server is, whose plans are executed, and what the device's owner accepts.

    Attributes:
        population: its name.
        server: ``https://host:port``.
        owner_key: the Ed25519 public key of whoever signs its plans, in hex.
        ca_file: PEM certificates of the authority to trust; empty: the system's.
        accept_plain, min_cohort, min_noise: see :class:`covey.device.policy.OwnerPolicy`.
        attestation: a file with tokens of the application's backend for the server; empty: none is asked for.
        authority: the enrolment authority, ``https://host:port``; empty: the server is trusted to follow the protocol.
        authority_key: its Ed25519 public key, in hex; stands with ``authority``.
        authority_ca: PEM certificates for its HTTPS; empty: the system's.
        authority_attestation: tokens for the authority.
    """

    population: str
    server: str
    owner_key: str
    ca_file: str = ""
    accept_plain: bool = False
    min_cohort: int = 100
    min_noise: float = 0.0
    attestation: str = ""
    authority: str = ""
    authority_key: str = ""
    authority_ca: str = ""
    authority_attestation: str = ""

    def policy(self) -> OwnerPolicy:
        """Return the owner's terms.

        Raises:
            UsageError: no key, or no cohort.
        """
        where = f"population {self.population!r}"
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.owner_key))
        except ValueError as e:
            raise UsageError(where, expected="an owner's key of 32 bytes in hex", got="something else") from e
        if len(self.authority_key) not in (0, 64) or not set(self.authority_key) <= set("0123456789abcdef"):
            raise UsageError(f"{where}: authority_key", expected="32 bytes in lower-case hex", got="something else")
        if bool(self.authority) != bool(self.authority_key):
            raise UsageError(f"{where}: authority", expected="an address and a key, or neither", got="one of them")
        if self.min_cohort < 1:
            raise UsageError(f"{where}: min_cohort", expected="at least 1", got=str(self.min_cohort))
        if not 0 <= self.min_noise < float("inf"):
            raise UsageError(f"{where}: min_noise", expected="a multiplier of at least 0", got=f"{self.min_noise:g}")
        return OwnerPolicy(
            key,
            self.population,
            accept_plain=self.accept_plain,
            min_cohort=self.min_cohort,
            privacy=PrivacyFloor(noise_multiplier=self.min_noise, spaced=True),
            authority=bytes.fromhex(self.authority_key),
        )

    def tokens(self) -> Callable[[], str]:
        """Return what gives the next attestation for the server. Raises UsageError."""
        return _tokens(self.attestation)

    def authority_tokens(self) -> Callable[[], str]:
        """Return what gives the next attestation for the authority. Raises UsageError."""
        return _tokens(self.authority_attestation)

    def pinned_authority(self, tokens: Callable[[], str]) -> "PinnedAuthority | None":
        """Return the enrolment authority for one device, or None where none is pinned. Raises UsageError."""
        if not self.authority:
            return None
        from covey.device.authority import PinnedAuthority

        return PinnedAuthority(
            self.authority,
            bytes.fromhex(self.authority_key),
            self.population,
            ca_file=Path(self.authority_ca) if self.authority_ca else None,
            attestation=tokens,
        )


def _tokens(file: str) -> Callable[[], str]:
    return AttestationFile(Path(file)) if file else no_tokens


class Populations:
    """The file. Several processes may use it; an agent that runs reads it when it starts."""

    def __init__(self, home: Path) -> None:
        """Name the file of a state directory; it is made by the first :meth:`join`."""
        self.path = home / "populations.json"

    def read(self) -> tuple[Membership, ...]:
        """Return all of them, in the order in which they were joined.

        Raises:
            StorageError: the file cannot be read, or holds something else.
        """
        where = f"populations {self.path.name}"
        with storage_errors(where):
            try:
                return msgspec.json.decode(self.path.read_bytes(), type=tuple[Membership, ...])
            except FileNotFoundError:
                return ()
            except (msgspec.MsgspecError, UnicodeDecodeError) as e:
                raise StorageError(
                    where, expected="what `covey device join` writes", got=str(e)[:100], hint="correct it, or delete it"
                ) from e

    def join(self, membership: Membership) -> None:
        """Add a population, or change the terms of one.

        Raises:
            UsageError: terms that mean nothing.
            StorageError, StorageFullError: nothing was changed.
        """
        membership.policy()
        self._write(membership.population, (membership,))

    def leave(self, population: str) -> None:
        """Take part in a population no more.

        Raises:
            UsageError: the device does not take part in it.
            StorageError, StorageFullError: nothing was changed.
        """
        known = [m.population for m in self.read()]
        if population not in known:
            raise UsageError("population", expected=f"one of {', '.join(known) or 'none'}", got=population[:40])
        self._write(population, ())

    def _write(self, population: str, instead: tuple[Membership, ...]) -> None:
        with storage_errors(f"state directory {self.path.parent}"):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file_lock(self.path.with_name(f"{self.path.name}.lock")):
            kept = tuple(m for m in self.read() if m.population != population)
            with storage_errors(f"populations {self.path.name}"), written_whole(self.path) as file:
                file.write(msgspec.json.format(msgspec.json.encode(kept + instead), indent=1))
