"""A release: the checkpoint that devices serve to people, and why they may believe it.

The owner's key stays off the server. It signs a *delegation*, once: this release key may publish for this population
until then. The server holds the release key and signs each release with it. A device pins the owner's key alone, and
checks the chain.

A release carries the owner's own signature over its plan besides: whoever has the release key may choose a checkpoint,
but not what a device executes.

Versions only move forward, so that nobody can hand a device an old model again: going back to an earlier checkpoint is
a new version that names the old one. Both signatures cover a constant label and fields of constant or prefixed length,
so that no statement can be read as another. A release is not bound to one delegation: a renewed one for the same key
takes the place of one that expires, and nothing has to be signed anew.
"""

from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from covey.plans.signing import verify_plan
from covey.types.errors import ReleaseRefusedError

__all__ = [
    "Delegation",
    "Release",
    "decode_delegation",
    "decode_release",
    "delegate",
    "encode_release",
    "sign_release",
    "verify_delegation",
    "verify_release",
]

_DELEGATION_LABEL = b"covey delegation v1\x00"
_RELEASE_LABEL = b"covey release v1\x00"
_MAX_NAME_BYTES = 1024
_MAX_JSON_BYTES = 16 << 10
_MAX_INT = (1 << 63) - 1


T = TypeVar("T", bound=msgspec.Struct)


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's word that a key may publish releases.

    Attributes:
        population: for which; no other.
        release_key: the Ed25519 public key, 32 bytes in lower-case hex.
        expires_at: seconds since 1970; from then on nothing that rests on this delegation is accepted.
        signature: by the owner's key, 64 bytes in lower-case hex.
    """

    population: str
    release_key: str
    expires_at: int
    signature: str


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What a device may serve.

    Attributes:
        population: whose model it is.
        version: from 1; only moves forward.
        plan: SHA-256 of the plan whose ``predict`` graph serves it, lower-case hex.
        plan_signature: the owner's over that plan (:mod:`covey.plans.signing`), 64 bytes in lower-case hex. The release
            key does not sign it: it needs nobody's word but the owner's. Empty in what older servers stored; no device
            accepts that.
        checkpoint: SHA-256 of the packed parameters, lower-case hex.
        num_bytes: their size.
        created_at: seconds since 1970, by the server's clock; for people, no device relies on it.
        rollback_of: the earlier version whose checkpoint this is again; 0: none.
        delegation: who may sign, and until when.
        signature: by the delegated key, 64 bytes in lower-case hex.
    """

    population: str
    version: int
    plan: str
    checkpoint: str
    num_bytes: int
    created_at: int
    rollback_of: int = 0
    delegation: Delegation
    signature: str
    plan_signature: str = ""


def delegate(owner: Ed25519PrivateKey, population: str, release_key: Ed25519PublicKey, expires_at: int) -> Delegation:
    """Sign that ``release_key`` may publish for ``population`` until ``expires_at`` (seconds since 1970).

    Raises:
        ReleaseRefusedError: a name or a time that cannot be written.
    """
    made = Delegation(
        population=population, release_key=release_key.public_bytes_raw().hex(), expires_at=expires_at, signature=""
    )
    return msgspec.structs.replace(made, signature=owner.sign(_delegation_statement(made)).hex())


def sign_release(
    key: Ed25519PrivateKey,
    delegation: Delegation,
    *,
    version: int,
    plan: str,
    plan_signature: str,
    checkpoint: str,
    num_bytes: int,
    created_at: int,
    rollback_of: int = 0,
) -> Release:
    """Sign a release with the delegated key; see :class:`Release` for the arguments.

    Raises:
        ReleaseRefusedError: the key is not the one that the delegation names, or a field that cannot be.
    """
    if key.public_key().public_bytes_raw().hex() != delegation.release_key:
        raise ReleaseRefusedError(
            "release key", expected="the key that the delegation names", got="another", hint=_RENEW
        )
    made = Release(
        population=delegation.population,
        version=version,
        plan=plan,
        plan_signature=plan_signature,
        checkpoint=checkpoint,
        num_bytes=num_bytes,
        created_at=created_at,
        rollback_of=rollback_of,
        delegation=delegation,
        signature="",
    )
    return msgspec.structs.replace(made, signature=key.sign(_release_statement(made)).hex())


def verify_delegation(owner: Ed25519PublicKey, delegation: Delegation, *, population: str, now_s: float) -> None:
    """Check that the owner lets this key publish for ``population`` at ``now_s`` (seconds since 1970).

    Raises:
        ReleaseRefusedError: forged, for another population, or expired.
    """
    if delegation.population != population:
        raise _refused("delegation: population", "the pinned one", "another")
    _verify(owner, delegation.signature, _delegation_statement(delegation), "delegation")
    if not now_s < delegation.expires_at:
        raise _refused("delegation", "one that has not expired", "one that has", _RENEW)


def verify_release(
    owner: Ed25519PublicKey, release: Release, *, population: str, now_s: float, newest_seen: int
) -> None:
    """Check a release as a device must before it serves it. The parameters' bytes are checked against its hash.

    Args:
        owner: the pinned key.
        release: what was received.
        population: the pinned one.
        now_s: seconds since 1970.
        newest_seen: the newest version that this device ever accepted; 0: none. The same version is accepted again; a
            device keeps the whole release, and need not fetch it twice.

    Raises:
        ReleaseRefusedError: says which field is wrong.
        PlanSignatureError: the owner never signed its plan for this population.
    """
    if release.population != population:
        raise _refused("release: population", "the pinned one", "another")
    verify_delegation(owner, release.delegation, population=population, now_s=now_s)
    try:
        key = Ed25519PublicKey.from_public_bytes(_raw(release.delegation.release_key, 32, "delegation: release_key"))
    except ValueError as e:
        raise _refused("delegation: release_key", "an Ed25519 key", "other bytes") from e
    _verify(key, release.signature, _release_statement(release), "release")
    if release.version < newest_seen:
        raise _refused("release: version", f"at least {newest_seen}, seen before", str(release.version), _FORWARD)
    verify_plan(owner, population, release.plan, _raw(release.plan_signature, 64, "release: plan_signature"))


def encode_release(release: Release) -> bytes:
    """Encode as JSON with sorted keys."""
    return msgspec.json.encode(release, order="sorted")


def decode_release(data: bytes) -> Release:
    """Decode JSON; nothing of it is verified yet.

    Raises:
        ReleaseRefusedError: too long, or not a release.
    """
    return _decode(data, Release, "release")


def decode_delegation(data: bytes) -> Delegation:
    """Decode JSON; nothing of it is verified yet.

    Raises:
        ReleaseRefusedError: too long, or not a delegation.
    """
    return _decode(data, Delegation, "delegation")


def _decode(data: bytes, kind: type[T], what: str) -> T:
    if len(data) > _MAX_JSON_BYTES:
        raise _refused(what, f"at most {_MAX_JSON_BYTES} bytes", f"{len(data)} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as e:
        raise _refused(what, f"the JSON of a {what}", str(e)[:200]) from e


def _delegation_statement(d: Delegation) -> bytes:
    where = "delegation"
    key = _raw(d.release_key, 32, f"{where}: release_key")
    return _DELEGATION_LABEL + _name(d.population, where) + key + _int(d.expires_at, f"{where}: expires_at")


def _release_statement(r: Release) -> bytes:
    if r.version < 1:
        raise _refused("release: version", "at least 1", str(r.version))
    if not 0 <= r.rollback_of < r.version:
        raise _refused("release: rollback_of", "an earlier version, or 0", str(r.rollback_of))
    return b"".join(
        (
            _RELEASE_LABEL,
            _name(r.population, "release"),
            _int(r.version, "release: version"),
            _raw(r.plan, 32, "release: plan"),
            _raw(r.checkpoint, 32, "release: checkpoint"),
            _int(r.num_bytes, "release: num_bytes"),
            _int(r.created_at, "release: created_at"),
            _int(r.rollback_of, "release: rollback_of"),
            _raw(r.delegation.release_key, 32, "delegation: release_key"),
        )
    )


def _verify(key: Ed25519PublicKey, signature: str, statement: bytes, what: str) -> None:
    try:
        key.verify(_raw(signature, 64, f"{what}: signature"), statement)
    except InvalidSignature as e:
        by = "the pinned owner key" if what == "delegation" else "the delegated key"
        raise _refused(what, f"a signature by {by} over these fields", "another", _TRUST) from e


def _name(population: str, where: str) -> bytes:
    try:
        raw = population.encode()
    except UnicodeEncodeError as e:
        raise _refused(f"{where}: population", "text", "a lone surrogate") from e
    if not 0 < len(raw) <= _MAX_NAME_BYTES:
        raise _refused(f"{where}: population", f"1 to {_MAX_NAME_BYTES} bytes", f"{len(raw)} bytes")
    return len(raw).to_bytes(4, "big") + raw


def _int(value: int, where: str) -> bytes:
    if not 0 <= value <= _MAX_INT:
        raise _refused(where, "0 to 2**63 - 1", "a number outside")
    return value.to_bytes(8, "big")


def _raw(text: str, num_bytes: int, where: str) -> bytes:
    """Read hex in its one canonical form, so that no two texts are the same release."""
    if len(text) != 2 * num_bytes or not set(text) <= set("0123456789abcdef"):
        raise _refused(where, f"{num_bytes} bytes in lower-case hex", "something else")
    return bytes.fromhex(text)


def _refused(where: str, expected: str, got: str, hint: str = "") -> ReleaseRefusedError:
    return ReleaseRefusedError(where, expected=expected, got=got, hint=hint)


_RENEW = "the owner delegates anew with `covey release delegate`"
_FORWARD = "versions only move forward; going back to an earlier checkpoint is a new version"
_TRUST = "it is not used; the release before it goes on serving"
