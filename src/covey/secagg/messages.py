"""Every message of a secure sum: a typed value with one canonical binary encoding.

All begin with 40 bytes: ``b"CVSA"``, version, kind, the party's index (uint16; 0xFFFF where all parties get the same
bytes), then the first 32 bytes of content, the session id. Numbers are little-endian, lists carry their count and are
sorted by index, bitmaps hold position ``i`` of U1 in bit ``i % 8`` of byte ``i // 8``. A decoder takes these bytes and
no others: nothing may follow, nothing may be left out, and whatever it accepts encodes to the same bytes again.

====  =============  ===================  ====================================================================
kind  name           from -> to           body after the 40 bytes
====  =============  ===================  ====================================================================
1     Advertisement  party -> server      cipher key 32, mask key 32; [active: identity 32, expiry 8,
                                          certificate 64, signature 64]
2     Roster         server -> all of U1  count 2; for each party index 2 and what it advertised
3     Shares         party -> server      commitment 32, count 2, for each neighbour a sealed share of 80
4     Delivery       server -> one of U2  bitmap of U2, count 2, for each neighbour in U2 a sealed share of 80
5     MaskedInput    party -> server      the packed segments, one after the other
6     Survivors      server -> all of U3  bitmap of U3
7     Signature      party -> server      active mode: Ed25519 over the transcript, 64
8     Signatures     server -> all of U3  active mode: count 2, for each signer index 2 and signature 64
9     Opening        party -> server      count 2, for each of its neighbours in U2 and itself a share of 32
====  =============  ===================  ====================================================================
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from covey.secagg.encoding import EVERYBODY, Reader, body, header
from covey.secagg.identity import Certificate, verify, verify_certificate
from covey.secagg.keys import KEY_BYTES, SEALED_BYTES, SHARE_BYTES
from covey.secagg.session import Session
from covey.types.errors import EnrolmentError, PublicKeyError, SecAggMessageError

__all__ = [
    "Advertisement",
    "Delivery",
    "MaskedInput",
    "Opening",
    "Roster",
    "Shares",
    "Signature",
    "Signatures",
    "Survivors",
    "transcript",
]

_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A party's public keys for this session, in active mode with its identity.

    Attributes:
        index: of the party.
        cipher_key: X25519, for sealing shares.
        mask_key: X25519, for masks.
        certificate: of its identity key.
        signature: by the identity key over :meth:`statement`.
    """

    kind: ClassVar[int] = 1
    index: int
    cipher_key: bytes
    mask_key: bytes
    certificate: Certificate | None = None
    signature: bytes = b""

    def statement(self, session: Session) -> bytes:
        """Return what the identity key signs."""
        identity = self.certificate.identity_key if self.certificate else b""
        index = self.index.to_bytes(2, "little")
        return b"covey secagg 1 advertise\0" + session.id + index + self.cipher_key + self.mask_key + identity

    def verify(self, session: Session, now_s: int) -> None:
        """Check, in active mode, that a party with a valid certificate signed these keys for this session.

        Raises:
            EnrolmentError: no certificate by the pinned authority for this population, or an expired one.
            PublicKeyError: the party signed something else.
        """
        if self.certificate is None:
            raise EnrolmentError("advertisement", expected="a certificate", got="none")
        verify_certificate(self.certificate, session.authority, session.population, now_s)
        error = PublicKeyError("advertisement", expected="keys signed by their party for this session", got="others")
        verify(self.certificate.identity_key, self.signature, self.statement(session), error)

    def entry(self) -> bytes:
        """Return the body, which is also the party's entry in the roster."""
        if self.certificate is None:
            return self.cipher_key + self.mask_key
        c = self.certificate
        identity = c.identity_key + c.expires_at.to_bytes(8, "little") + c.signature + self.signature
        return self.cipher_key + self.mask_key + identity

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        return header(session, self.kind, self.index) + self.entry()

    @classmethod
    def decode(cls, session: Session, index: int, message: bytes) -> Self:
        """Read a message that this party must have sent."""
        reader = Reader("advertisement", body(session, cls.kind, index, message))
        out = cls.read(reader, session, index)
        reader.end()
        return out

    @classmethod
    def read(cls, reader: Reader, session: Session, index: int) -> Self:
        """Read an entry."""
        cipher_key, mask_key = reader.take(KEY_BYTES), reader.take(KEY_BYTES)
        if not session.is_active:
            return cls(index, cipher_key, mask_key)
        certificate = Certificate(reader.take(KEY_BYTES), reader.number(8), reader.take(_SIGNATURE_BYTES))
        return cls(index, cipher_key, mask_key, certificate, reader.take(_SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Roster:
    """U1: who advertised, sorted by index. Entries are decoded when they are needed: a party needs its neighbours'.

    Attributes:
        indices: of the parties, ascending.
        listed: for each party its index and its entry, as they travel.
    """

    kind: ClassVar[int] = 2
    indices: tuple[int, ...]
    listed: bytes

    @classmethod
    def of(cls, entries: Sequence[Advertisement]) -> Self:
        """Return the roster of these entries, which ascend by index."""
        listed = b"".join(e.index.to_bytes(2, "little") + e.entry() for e in entries)
        return cls(tuple(e.index for e in entries), listed)

    def encode(self, session: Session) -> bytes:
        """Return the message; all of U1 get the same bytes."""
        return header(session, self.kind) + len(self.indices).to_bytes(2, "little") + self.listed

    @classmethod
    def decode(cls, session: Session, message: bytes) -> Self:
        """Read it; indices ascend and are below ``n_max``."""
        reader = Reader("roster", body(session, cls.kind, EVERYBODY, message))
        count = reader.count(session.n_max)
        listed = reader.take(count * (2 + session.entry_bytes))
        reader.end()
        records = np.frombuffer(listed, np.uint8).reshape(count, 2 + session.entry_bytes)
        indices = records[:, :2].copy().view("<u2")[:, 0].astype(np.int64)
        if np.any(indices[1:] <= indices[:-1]) or np.any(indices[-1:] >= session.n_max):
            raise reader.malformed(f"ascending indices below {session.n_max}", "others")
        return cls(tuple(indices.tolist()), listed)

    def entry(self, session: Session, position: int) -> Advertisement:
        """Return the entry at a position."""
        size = 2 + session.entry_bytes
        entry = memoryview(self.listed)[position * size + 2 : (position + 1) * size]
        return Advertisement.read(Reader("roster", entry), session, self.indices[position])

    def public_keys(self, session: Session) -> NDArray[np.uint8]:
        """Return uint8[2 * parties, 32]: everybody's cipher and mask keys."""
        records = np.frombuffer(self.listed, np.uint8).reshape(len(self.indices), 2 + session.entry_bytes)
        return records[:, 2 : 2 + 2 * KEY_BYTES].reshape(-1, KEY_BYTES)

    def root(self, session: Session) -> bytes:
        """Return the hash of all entries, to which every later key and signature is bound."""
        digest = hashlib.sha256(b"covey secagg 1 roster\0")
        digest.update(self.encode(session))
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Shares:
    """A party's sealed shares for its neighbours, one after the other in their order, and its commitment."""

    kind: ClassVar[int] = 3
    index: int
    commitment: bytes
    sealed: bytes

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        count = (len(self.sealed) // SEALED_BYTES).to_bytes(2, "little")
        return b"".join((header(session, self.kind, self.index), self.commitment, count, self.sealed))

    @classmethod
    def decode(cls, session: Session, index: int, message: bytes, num_neighbours: int) -> Self:
        """Read a message that this party must have sent: exactly one share for each neighbour."""
        reader = Reader("shares", body(session, cls.kind, index, message))
        committed = reader.take(32)
        sealed = reader.pieces(num_neighbours, SEALED_BYTES)
        return cls(index, committed, sealed)


@dataclass(frozen=True, slots=True)
class Delivery:
    """U2, and the shares that a party's neighbours in U2 sealed for it, one after the other in their order."""

    kind: ClassVar[int] = 4
    index: int
    sharers: bytes
    sealed: bytes

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        count = (len(self.sealed) // SEALED_BYTES).to_bytes(2, "little")
        return b"".join((header(session, self.kind, self.index), self.sharers, count, self.sealed))

    @classmethod
    def decode(cls, session: Session, index: int, message: bytes, num_parties: int) -> Self:
        """Read a message for this party; whether the count fits the bitmap is the party's to check."""
        reader = Reader("delivery", body(session, cls.kind, index, message))
        sharers = reader.bits(num_parties)
        return cls(index, sharers, reader.pieces(None, SEALED_BYTES))


@dataclass(frozen=True, slots=True)
class MaskedInput:
    """A party's masked and packed segments; ``packed`` may be a view, so that nothing is copied."""

    kind: ClassVar[int] = 5
    index: int
    packed: memoryview

    @classmethod
    def decode(cls, session: Session, index: int, message: bytes) -> Self:
        """Check header and length; every content of that length but for its padding is a masked input."""
        packed = body(session, cls.kind, index, message)
        if len(packed) != session.packed_bytes:
            raise SecAggMessageError("masked input", expected=f"{session.packed_bytes} bytes", got=f"{len(packed)}")
        return cls(index, packed)

    @classmethod
    def begin(cls, session: Session, index: int) -> BytesIO:
        """Return the message without its body, which is to be written behind it."""
        message = BytesIO()
        message.write(header(session, cls.kind, index))
        return message


@dataclass(frozen=True, slots=True)
class Survivors:
    """U3: whose masked inputs are in the sum."""

    kind: ClassVar[int] = 6
    survivors: bytes

    def encode(self, session: Session) -> bytes:
        """Return the message; all of U3 get the same bytes."""
        return header(session, self.kind) + self.survivors

    @classmethod
    def decode(cls, session: Session, message: bytes, num_parties: int) -> Self:
        """Read it."""
        reader = Reader("survivors", body(session, cls.kind, EVERYBODY, message))
        bits = reader.bits(num_parties)
        reader.end()
        return cls(bits)


def transcript(session: Session, root: bytes, sharers: bytes, survivors: bytes) -> bytes:
    """Return what every party signs before it unmasks: session, root of U1, bitmaps of U2 and U3."""
    digest = hashlib.sha256(b"covey secagg 1 transcript\0" + session.id + root + sharers + survivors)
    return b"covey secagg 1 consistency\0" + digest.digest()


@dataclass(frozen=True, slots=True)
class Signature:
    """A party's signature under the transcript."""

    kind: ClassVar[int] = 7
    index: int
    signature: bytes

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        return header(session, self.kind, self.index) + self.signature

    @classmethod
    def decode(cls, session: Session, index: int, message: bytes) -> Self:
        """Read a message that this party must have sent."""
        reader = Reader("signature", body(session, cls.kind, index, message))
        signature = reader.take(_SIGNATURE_BYTES)
        reader.end()
        return cls(index, signature)


@dataclass(frozen=True, slots=True)
class Signatures:
    """The signatures of U4, by index."""

    kind: ClassVar[int] = 8
    signatures: tuple[tuple[int, bytes], ...]

    def encode(self, session: Session) -> bytes:
        """Return the message; all of U3 get the same bytes."""
        listed = b"".join(i.to_bytes(2, "little") + s for i, s in self.signatures)
        return header(session, self.kind) + len(self.signatures).to_bytes(2, "little") + listed

    @classmethod
    def decode(cls, session: Session, message: bytes) -> Self:
        """Read it; indices ascend, so nobody counts twice."""
        reader = Reader("signatures", body(session, cls.kind, EVERYBODY, message))
        out: list[tuple[int, bytes]] = []
        for _ in range(reader.count(session.n_max)):
            index = reader.number(2)
            if out and index <= out[-1][0]:
                raise reader.malformed("ascending indices", "others")
            out.append((index, reader.take(_SIGNATURE_BYTES)))
        reader.end()
        return cls(tuple(out))


@dataclass(frozen=True, slots=True, repr=False)
class Opening:
    """A party's shares of one secret each of its neighbours in U2 and of itself, one after the other by index."""

    kind: ClassVar[int] = 9
    index: int
    shares: bytes

    def encode(self, session: Session) -> bytes:
        """Return the message."""
        count = (len(self.shares) // SHARE_BYTES).to_bytes(2, "little")
        return header(session, self.kind, self.index) + count + self.shares

    @classmethod
    def decode(cls, session: Session, index: int, message: bytes, num_shares: int) -> Self:
        """Read a message that this party must have sent: exactly ``num_shares`` shares."""
        reader = Reader("opening", body(session, cls.kind, index, message))
        return cls(index, reader.pieces(num_shares, SHARE_BYTES))
