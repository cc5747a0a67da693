"""Step 4 of a party, active mode only: check who survived, and sign what it was told."""

from dataclasses import dataclass

from covey.secagg.encoding import positions
from covey.secagg.identity import Identity, verify
from covey.secagg.messages import Signature, Signatures, Survivors, transcript
from covey.secagg.party.mask import Masked
from covey.types.errors import ConsistencyError, ThresholdError

__all__ = ["Signed", "check_signatures", "check_survivors", "sign"]


@dataclass(frozen=True, slots=True, repr=False)
class Signed:
    """After step 4.

    Attributes:
        masked: the state after step 3.
        survivors: bitmap of U3, as signed.
    """

    masked: Masked
    survivors: bytes


def check_survivors(state: Masked, message: bytes) -> bytes:
    """Return the bitmap of U3.

    Raises:
        SecAggMessageError: malformed.
        ConsistencyError: U3 holds a party that did not share, or not this one.
        ThresholdError: fewer than ``t`` or ``min_survivors``.
    """
    group = state.group
    bits = Survivors.decode(group.session, message, group.size).survivors
    survivors = positions(bits)
    if not survivors <= positions(state.sharers) or state.position not in survivors:
        raise ConsistencyError("survivors", expected="a part of U2 with this party in it", got="another set")
    if len(survivors) < group.session.quorum:
        raise ThresholdError(
            "survivors", expected=f"at least {group.session.quorum} parties", got=str(len(survivors)),
            hint="the sum of fewer is not opened",
        )  # fmt: skip
    return bits


def sign(state: Masked, identity: Identity, message: bytes) -> tuple[Signed, bytes]:
    """Return the state after step 4 and the signature under session, U1, U2 and U3.

    Raises:
        SecAggMessageError, ConsistencyError, ThresholdError: see :func:`check_survivors`.
    """
    group = state.group
    bits = check_survivors(state, message)
    signature = identity.key.sign(transcript(group.session, group.scope.root, state.sharers, bits))
    index = group.indices[state.position]
    return Signed(state, bits), Signature(index, signature).encode(group.session)


def check_signatures(state: Signed, message: bytes) -> None:
    """Check that at least ``t`` survivors signed the very transcript that this party signed.

    Raises:
        SecAggMessageError: malformed.
        ConsistencyError: a signature by somebody else, or under something else.
        ThresholdError: fewer than ``t``.
    """
    masked, group = state.masked, state.masked.group
    statement = transcript(group.session, group.scope.root, masked.sharers, state.survivors)
    survivors = {group.indices[p]: group.entry(p) for p in positions(state.survivors)}
    signatures = Signatures.decode(group.session, message).signatures
    if len(signatures) < group.session.threshold:
        raise ThresholdError("signatures", expected=f"at least {group.session.threshold}", got=str(len(signatures)))
    error = ConsistencyError(
        "signatures", expected="signatures by survivors under the same session, U1, U2 and U3", got="another",
        hint="the server told parties different things, or a party is broken",
    )  # fmt: skip
    for index, signature in signatures:
        signer = survivors.get(index)
        if signer is None or signer.certificate is None:
            raise error
        verify(signer.certificate.identity_key, signature, statement, error)
