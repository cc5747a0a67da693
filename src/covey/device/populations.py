"""The populations that a device takes part in, and on whose terms: ``HOME/populations.json``.

One agent serves all of them. A person writes the file with ``covey device join`` and ``covey device leave``.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from covey.device.authority import PinnedAuthority
from covey.device.files import file_lock, storage_errors, written_whole
from covey.device.policy import OwnerPolicy
from covey.device.private import PrivacyFloor
from covey.device.tokens import AttestationFile
from covey.types.errors import StorageError, UsageError

__all__ = ["Membership", "Populations"]


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """One population: where its server is, whose plans are executed, and what the device's owner accepts.

    Attributes:
        population: its name.
        server: ``https://host:port``.
        owner_key: the Ed25519 public key of whoever signs its plans, in hex.
        ca_file: PEM certificates of the authority to trust; empty: the system's.
        accept_plain, min_cohort, min_noise: see :class:`covey.device.policy.OwnerPolicy`.
        authority, authority_key, authority_ca: the enrolment authority's address, its Ed25519 public key in hex, and
            whom to trust for its HTTPS; empty: none is pinned.
        attestation, authority_attestation: files that the application keeps filled with proofs of being one of its
            devices, for the server and for the authority; empty: neither wants any.
    """

    population: str
    server: str
    owner_key: str
    ca_file: str = ""
    accept_plain: bool = False
    min_cohort: int = 100
    min_noise: float = 0.0
    authority: str = ""
    authority_key: str = ""
    authority_ca: str = ""
    attestation: str = ""
    authority_attestation: str = ""

    def policy(self) -> OwnerPolicy:
        """Return the owner's terms.

        Raises:
            UsageError: no key, or no cohort.
        """
        where = f"population {self.population!r}"
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.owner_key))
            authority = bytes.fromhex(self.authority_key)
        except ValueError as e:
            raise UsageError(where, expected="keys of 32 bytes in hex", got="something else") from e
        if bool(self.authority) != bool(authority):
            raise UsageError(
                f"{where}: authority",
                expected="an address with a key, both",
                got="one of them",
                hint="the key comes from the application by a trusted way, never from the server",
            )
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
            authority=authority,
        )

    def attestations(self) -> Callable[[], str]:
        """Return what gives the next proof for the server; share it between devices of one process.

        Raises:
            UsageError: a file without any.
        """
        return _tokens(self.attestation)

    def authorities(self, count: int) -> tuple[PinnedAuthority | None, ...]:
        """Return the pinned authority for so many devices, each with a connection of its own; None where none is.

        Raises:
            UsageError: a bad address, certificate file, or a file without proofs.
        """
        if not self.authority:
            return (None,) * count
        key, tokens = bytes.fromhex(self.authority_key), _tokens(self.authority_attestation)
        ca = Path(self.authority_ca) if self.authority_ca else None
        return tuple(
            PinnedAuthority(self.authority, key, self.population, ca_file=ca, attestation=tokens) for _ in range(count)
        )


def _tokens(name: str) -> Callable[[], str]:
    return AttestationFile(Path(name)) if name else lambda: ""


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
