"""What a server that sees every message learns beyond the sum, by statistics and by recomputing every seed.

The statistical test cannot see a seed of 28 bits that is hashed before use, and a seed that two sides reuse cancels
like a fresh one; so beside it every seed that reaches AES is recomputed from the specification with other code. Mutants
of the masking, made by patching, must fail one of the two.
"""

import hashlib
from collections import Counter
from itertools import combinations
from statistics import NormalDist

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from covey.secagg import Step, masks
from covey.secagg.encoding import HEADER_BYTES
from covey.secagg.packing import chunks, packed_bytes, unpack, word_dtype
from covey.secagg.party import mask as step
from covey.types.segments import Segment
from secagg.sessions import Run, session

PARTIES, LENGTH, BITS = 6, 4096, 12
LAYOUT = (Segment("a", LENGTH, 100, PARTIES, ring_bits=BITS), Segment("b", LENGTH, 100, PARTIES, ring_bits=BITS))

# 256 bins of the high 8 bits of each residue; Wilson-Hilferty turns chi-square with 255 degrees of freedom into a
# normal z. The level is 1e-9 for a whole test: 2 input sets x (2 segments x (6 words + 15 sums + 15 differences) + 6
# differences across segments) = 156 statistics, two-sided.
Z_LIMIT = -NormalDist().inv_cdf(1e-9 / (2 * 156))
BINS, DEGREES = 256, 255


def z_score(residues: np.ndarray) -> float:
    observed = np.bincount(residues >> (BITS - 8), minlength=BINS)
    expected = len(residues) / BINS
    chi_square = float(((observed - expected) ** 2).sum() / expected)
    spread = 2 / (9 * DEGREES)
    return ((chi_square / DEGREES) ** (1 / 3) - (1 - spread)) / spread**0.5


def two_input_sets() -> list[dict[int, list[np.ndarray]]]:
    """The same sums: once all inputs are the same vector, once one party has everything (up to the bound)."""
    even = {i: [np.full(LENGTH, 10), np.full(LENGTH, -10)] for i in range(PARTIES)}
    one = {i: [np.full(LENGTH, 60 if i == 2 else 0), np.full(LENGTH, -60 if i == 2 else 0)] for i in range(PARTIES)}
    assert all(
        np.array_equal(sum(even[i][s] for i in range(PARTIES)), sum(one[i][s] for i in range(PARTIES))) for s in (0, 1)
    )
    return [even, one]


def masked_residues(run: Run) -> list[list[np.ndarray]]:
    """What the server sees: for each segment the residues of every party's masked input."""
    out = []
    start = HEADER_BYTES
    for segment in run.session.segments[:-1]:
        size, rows = packed_bytes(segment.length, segment.ring_bits), []
        for index in range(PARTIES):
            raw = np.frombuffer(run.sent[Step.MASK, index], np.uint8)[start : start + size]
            words = np.zeros(segment.length, word_dtype(segment.ring_bits))
            for coordinates, piece in chunks(segment.length, segment.ring_bits):
                unpack(raw[piece], segment.ring_bits, words[coordinates])
            rows.append(words.astype(np.int64))
        out.append(rows)
        start += size
    return out


def worst_z() -> float:
    scores = []
    for number, values in enumerate(two_input_sets()):
        run = Run(session(n_max=PARTIES, segments=LAYOUT), seed=("chi", number))
        run.inputs = values
        run.until(Step.MASK).collect()
        seen = masked_residues(run)
        for rows in seen:
            scores += [z_score(r) for r in rows]
            for a, b in combinations(rows, 2):
                scores += [z_score((a + b) % (1 << BITS)), z_score((a - b) % (1 << BITS))]
        # across segments: a mask that two segments share would show in their difference
        scores += [z_score((a - b) % (1 << BITS)) for a, b in zip(*seen, strict=True)]
    return max(map(abs, scores))


def expected_seeds(run: Run, secrets: dict[int, tuple[bytes, bytes]]) -> dict[int, Counter]:
    """Recompute from the specification, with the library's HKDF, every seed that each party has to expand."""
    root = hashlib.sha256(b"covey secagg 1 roster\0" + run.received[Step.SHARE, 0]).digest()
    bound = run.session.id + root
    publics = {
        i: X25519PrivateKey.from_private_bytes(mask).public_key().public_bytes_raw() for i, (mask, _) in secrets.items()
    }

    def seeds(material: bytes, info: bytes) -> list[bytes]:
        return [
            HKDF(hashes.SHA256(), 32, run.session.id, b"covey secagg 1 " + info + s.to_bytes(2, "little")).derive(
                material
            )
            for s in range(len(run.session.segments))
        ]

    out = {}
    for i, (mask_private, self_seed) in secrets.items():
        found = seeds(self_seed, b"self mask\0" + bound + i.to_bytes(2, "little") + publics[i])
        for j in secrets.keys() - {i}:
            low, high = sorted((i, j))
            shared = X25519PrivateKey.from_private_bytes(mask_private).exchange(
                X25519PublicKey.from_public_bytes(publics[j])
            )
            ends = low.to_bytes(2, "little") + high.to_bytes(2, "little") + publics[low] + publics[high]
            found += seeds(shared, b"pair mask\0" + bound + ends)
        out[i] = Counter(found)
    return out


def check_seeds(monkeypatch) -> None:
    """Raise unless every party expands exactly the seeds that the specification gives, each once."""
    run = Run(session(n_max=PARTIES, segments=LAYOUT), seed="white box").until(Step.MASK)
    secrets = {i: (p._state.mask_private, p._state.self_seed) for i, p in run.parties.items()}
    used: dict[int, Counter] = {}
    now = [0]
    honest, honest_short = masks._encryptor, masks._add_short

    def note(seeds):
        used.setdefault(now[0], Counter()).update(seeds)

    monkeypatch.setattr(masks, "_encryptor", lambda seed: (note([seed]), honest(seed))[1])
    monkeypatch.setattr(
        masks, "_add_short", lambda total, seeds: (note([s.seed for s in seeds]), honest_short(total, seeds))[1]
    )
    for i in range(PARTIES):
        now[0] = i
        run.received[Step.MASK, i] = run.told[i]
        run.answer(i)
    assert used == expected_seeds(run, secrets)
    everywhere = sum(used.values(), Counter())
    own, pairs = PARTIES * len(run.session.segments), PARTIES * (PARTIES - 1) // 2 * len(run.session.segments)
    assert sorted(everywhere.values()) == [1] * own + [2] * pairs


def test_masked_words_and_pairwise_sums_and_differences_are_uniform():
    assert worst_z() <= Z_LIMIT


def test_every_seed_is_the_specified_one_and_used_once(monkeypatch):
    check_seeds(monkeypatch)


def keys_without(drop):
    honest = step.mask_keys
    return lambda state, present: [k for n, k in enumerate(honest(state, present)) if not drop(state, n, k)]


def no_self_mask(monkeypatch):
    monkeypatch.setattr(step, "mask_keys", keys_without(lambda state, n, k: n == 0))


def one_pairwise_mask_dropped(monkeypatch):
    def drop(state, n, k):  # by both sides, so that the sum is still right
        peers = [state.position, *state.neighbours]
        return n > 0 and {state.position, peers[n]} == {0, 1}

    monkeypatch.setattr(step, "mask_keys", keys_without(drop))


def a_seed_reused(monkeypatch):
    honest = step.mask_keys

    def same(state, present):
        keys = honest(state, present)
        return [keys[0], keys[1], (keys[1][0], keys[2][1]), *keys[3:]]

    monkeypatch.setattr(step, "mask_keys", same)


def a_28_bit_seed(monkeypatch):
    def short(key, segment):
        folded = int.from_bytes(HONEST_SEED(key, segment), "little") % (1 << 28)
        return hashlib.sha256(folded.to_bytes(4, "little")).digest()

    monkeypatch.setattr(step, "segment_seed", short)


def masks_shared_between_segments(monkeypatch):
    monkeypatch.setattr(step, "segment_seed", lambda key, segment: HONEST_SEED(key, 0))


def no_mask_at_all(monkeypatch):
    monkeypatch.setattr(step, "mask_keys", lambda state, present: [])


HONEST_SEED = step.segment_seed
MUTANTS = [
    no_self_mask,
    one_pairwise_mask_dropped,
    a_seed_reused,
    a_28_bit_seed,
    masks_shared_between_segments,
    no_mask_at_all,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_mutants_expand_other_seeds(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_seeds(monkeypatch)


@pytest.mark.parametrize("mutant", [masks_shared_between_segments, no_mask_at_all], ids=lambda m: m.__name__)
def test_mutants_that_a_server_can_see_fail_the_chi_square(mutant, monkeypatch):
    mutant(monkeypatch)
    assert worst_z() > Z_LIMIT


def test_masks_that_cancel_in_a_sum_of_two_fail_the_chi_square(monkeypatch):
    """Without self masks two parties alone would cancel: with the others' masks dropped the pair's sum is bare."""
    honest = step.mask_keys

    def only_each_other(state, present):
        pairs = {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4}
        peers = [state.position, *present]
        return [k for n, k in enumerate(honest(state, present)) if n and peers[n] == pairs[state.position]]

    monkeypatch.setattr(step, "mask_keys", only_each_other)
    assert worst_z() > Z_LIMIT


def test_the_test_itself_sees_a_slight_bias():
    """Power: one residue in sixteen forced to zero is far outside the limit."""
    rng = np.random.default_rng(0)
    fair = rng.integers(0, 1 << BITS, LENGTH)
    assert abs(z_score(fair)) <= Z_LIMIT
    assert z_score(np.where(np.arange(LENGTH) % 16 == 0, 0, fair)) > Z_LIMIT
