"""Step 5 of a party: give away one share of every neighbour, once.

Which kind is not asked for: the bitmap of U3 cuts the neighbours in U2 into survivors, whose self seed is opened, and
dropouts, whose mask key is. A request for both kinds of one party cannot be written down, and a second request is
refused.
"""

from covey.secagg.encoding import positions
from covey.secagg.messages import Opening
from covey.secagg.party.consistency import Signed, check_signatures, check_survivors
from covey.secagg.party.mask import Masked

__all__ = ["unmask"]


def unmask(state: Masked | Signed, message: bytes) -> bytes:
    """Return the shares: of the self seed for survivors (itself included), of the mask key for the others.

    Args:
        state: after step 3 where the server is honest, after step 4 where it may be active.
        message: ``Survivors`` in the former case, ``Signatures`` in the latter.

    Raises:
        SecAggMessageError, ConsistencyError, ThresholdError: the request fails a check; nothing is given away.
    """
    match state:
        case Masked():
            masked, bits = state, check_survivors(state, message)
        case Signed():
            check_signatures(state, message)
            masked, bits = state.masked, state.survivors
    survivors = positions(bits)
    shares = {p: held.self_seed if p in survivors else held.mask_key for p, held in masked.held.items()}
    shares[masked.position] = masked.own_share
    index = masked.group.indices[masked.position]
    return Opening(index, b"".join(shares[p] for p in sorted(shares))).encode(masked.group.session)
