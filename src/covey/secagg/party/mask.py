"""Step 3 of a party: check who shared, take the shares, and mask the input."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from covey.secagg.encoding import positions
from covey.secagg.group import Group
from covey.secagg.keys import SEALED_BYTES, SHARE_BYTES, agree, open_share, pair_key, segment_seed, self_key
from covey.secagg.masks import SEED_BYTES, MaskStreams, SignedSeed, add_masks
from covey.secagg.messages import Delivery, MaskedInput
from covey.secagg.packing import CHUNK, Words, chunks, pack, packed_bytes, word_dtype
from covey.secagg.party.share import Shared
from covey.types.errors import SecAggMessageError, ThresholdError, UpdateFormatError, UpdateRangeError
from covey.types.segments import Segment

__all__ = ["Held", "Masked", "check_inputs", "mask", "mask_keys"]

Inputs = Sequence[NDArray[np.integer]]


@dataclass(frozen=True, slots=True, repr=False)
class Held:
    """One party's two shares that another holds. Only one of them will ever be given away.

    Attributes:
        mask_key: share of the mask key, for a party that dropped out.
        self_seed: share of the self seed, for a survivor.
    """

    mask_key: bytes
    self_seed: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Masked:
    """After step 3.

    Attributes:
        group: U1.
        position: the party's own.
        sharers: bitmap of U2.
        held: shares by position, of the neighbours in U2.
        own_share: the party's own share of its self seed.
    """

    group: Group
    position: int
    sharers: bytes
    held: dict[int, Held]
    own_share: bytes


def mask(state: Shared, message: bytes, inputs: Inputs) -> tuple[Masked, bytes]:
    """Return the state after step 3 and the message; ``inputs`` passed :func:`check_inputs`.

    Raises:
        SecAggMessageError, ThresholdError: the delivery is malformed, or U2 is too small.
        ShareError: a sealed share does not open.
    """
    group = state.group
    session, own = group.session, group.entry(state.position)
    delivery = Delivery.decode(session, own.index, message, group.size)
    sharers = positions(delivery.sharers)
    if len(sharers) < session.quorum:
        raise ThresholdError("delivery", expected=f"at least {session.quorum} parties", got=str(len(sharers)))
    present = [p for p in state.neighbours if p in sharers]
    if state.position not in sharers or len(present) * SEALED_BYTES != len(delivery.sealed):
        raise SecAggMessageError(
            "delivery",
            expected="this party in U2, and one sealed share from each of its neighbours there",
            got="others",
        )
    if len(present) + 1 < session.threshold:
        raise ThresholdError("delivery", expected=f"{session.threshold} holders", got=str(len(present) + 1))
    held = {}
    for i, p in enumerate(present):
        # opened before masking: if a neighbour dealt garbage, it is better to drop out now than after the input left
        sealed = delivery.sealed[i * SEALED_BYTES : (i + 1) * SEALED_BYTES]
        share = open_share(group.scope, state.keys[p], group.indices[p], own.index, sealed)
        held[p] = Held(share[:SHARE_BYTES], share[SHARE_BYTES:])
    message_out = _masked_message(state, present, inputs)
    return Masked(group, state.position, delivery.sharers, held, state.own_share), message_out


def mask_keys(state: Shared, present: Sequence[int]) -> list[tuple[tuple[bytes, bytes], bool]]:
    """Return what this party's mask seeds are expanded from, and which masks are subtracted: its own mask first.

    Of a pair, the lower index adds and the higher one subtracts.
    """
    group, own = state.group, state.group.entry(state.position)
    private = X25519PrivateKey.from_private_bytes(state.mask_private)
    keys = [(self_key(group.scope, state.self_seed, own.index, own.mask_key), False)]
    for p in present:
        peer = group.entry(p)
        shared = agree(private, peer.mask_key)
        key = pair_key(group.scope, shared, own.index, peer.index, own.mask_key, peer.mask_key)
        keys.append((key, own.index > peer.index))
    return keys


def check_inputs(segments: Sequence[Segment], inputs: Inputs) -> None:
    """Raise unless the inputs are one integer vector for each segment, of its length and within its bound.

    Raises:
        UpdateFormatError: wrong number, shape or dtype.
        UpdateRangeError: outside the bound that makes a wrap of the sum impossible.
    """
    if len(inputs) != len(segments):
        raise UpdateFormatError("inputs", expected=f"{len(segments)} vectors", got=str(len(inputs)))
    for s, x in zip(segments, inputs, strict=True):
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "iu" or x.shape != (s.length,):
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
            raise UpdateFormatError(f"segment {s.name!r}", expected=f"{s.length} integers in a NumPy array", got=got)
        low, high = int(x.min()), int(x.max())
        if high > s.bound or low < (-s.bound if s.signed else 0):
            raise UpdateRangeError(
                f"segment {s.name!r}", expected=f"{'magnitudes' if s.signed else 'values from 0'} up to {s.bound}",
                got="others", hint="clamp before masking: behind the mask nobody can",
            )  # fmt: skip


def _masked_message(state: Shared, present: Sequence[int], inputs: Inputs) -> bytes:
    session, own = state.group.session, state.group.entry(state.position)
    keys = mask_keys(state, present)
    message = MaskedInput.begin(session, own.index)
    counter = np.ones(1, np.uint8)
    for number, (segment, values) in enumerate(zip(session.segments, (*inputs, counter), strict=True)):
        seeds = [SignedSeed(segment_seed(key, number), negative) for key, negative in keys]
        _write_masked(segment, values, seeds, message)
    return message.getvalue()


def _write_masked(segment: Segment, values: NDArray[np.integer], seeds: list[SignedSeed], out: BytesIO) -> None:
    dtype = word_dtype(segment.ring_bits)
    is_short = segment.length * dtype.itemsize <= SEED_BYTES
    streams = MaskStreams([] if is_short else seeds, dtype)
    packed = np.zeros(packed_bytes(min(segment.length, CHUNK), segment.ring_bits), np.uint8)
    for coordinates, piece in chunks(segment.length, segment.ring_bits):
        words: Words = values[coordinates].astype(dtype)  # modulo 2**bits: two's complement, so a negative fits too
        if is_short:
            add_masks(words, seeds)
        else:
            streams.add_next(words)
        here = packed[: piece.stop - piece.start]
        pack(words, segment.ring_bits, here)
        out.write(here.data)
