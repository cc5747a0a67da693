"""What we did not write: RFC 7748, RFC 5869, NIST AES-CTR and GCM, Wycheproof; provenance in ``vectors/README.md``."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from covey.secagg import keys
from covey.secagg.identity import verify
from covey.secagg.keys import Scope, agree, check_public_key, check_public_keys, expand, extract, hkdf
from covey.secagg.masks import SignedSeed, add_masks
from covey.types.errors import ConsistencyError, PublicKeyError, ShareError

FILES = Path(__file__).parents[2] / "vectors" / "primitives"
PRIME = 2**255 - 19


def cases(name: str) -> list[dict[str, bytes]]:
    text = re.sub(r"#.*", "", (FILES / name).read_text())
    blocks = re.split(r"COUNT *= *\d+", text)[1:]
    out = []
    for block in blocks:
        pairs = re.findall(r"^(\w+) *= *([0-9a-fA-F]*)[^\n]*$", block, re.MULTILINE)
        out.append({k.upper(): bytes.fromhex(v) for k, v in pairs if k not in ("Hash", "L")})
    assert out
    return out


def wycheproof(name: str) -> list[dict]:
    return json.loads((FILES / name).read_text())["tests"]


@pytest.mark.parametrize("case", cases("rfc7748-x25519.txt"))
def test_x25519_of_rfc_7748(case):
    private, point = X25519PrivateKey.from_private_bytes(case["INPUT_SCALAR"]), case["INPUT_U"]
    if int.from_bytes(point, "little") < PRIME:
        assert agree(private, point) == case["OUTPUT_U"]
    else:  # the RFC ignores the top bit; a party of ours does not take such a key
        with pytest.raises(PublicKeyError):
            agree(private, point)


@pytest.mark.parametrize("case", wycheproof("wycheproof-x25519.json"), ids=lambda c: c["tcId"])
def test_x25519_of_wycheproof(case):
    private, point = X25519PrivateKey.from_private_bytes(bytes.fromhex(case["private"])), bytes.fromhex(case["public"])
    if case["shared"] == "00" * 32:
        with pytest.raises(PublicKeyError):
            agree(private, point)
    else:
        assert agree(private, point).hex() == case["shared"]


@pytest.mark.parametrize("case", wycheproof("wycheproof-ed25519.json"), ids=lambda c: c["tcId"])
def test_ed25519_of_wycheproof(case):
    public, message, signature = (bytes.fromhex(case[k]) for k in ("public", "msg", "sig"))
    error = ConsistencyError("here", expected="a", got="b")
    if case["result"] == "valid":
        verify(public, signature, message, error)
    else:
        with pytest.raises(ConsistencyError):
            verify(public, signature, message, error)


@pytest.mark.parametrize("case", cases("rfc5869-hkdf-sha256.txt"))
def test_hkdf_of_rfc_5869(case):
    salt, ikm, info = case.get("SALT", b""), case["IKM"], case.get("INFO", b"")
    assert extract(salt, ikm) == case["PRK"]
    assert expand(case["PRK"], info) == case["OKM"][:32]
    assert hkdf(salt, ikm, info) == case["OKM"][:32]


@pytest.mark.parametrize("case", cases("nist-aes-128-ctr.txt"))
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
def test_masks_are_the_key_stream_of_nist_aes_ctr(case, dtype):
    words = np.zeros(len(case["PT"]) // np.dtype(dtype).itemsize, dtype)
    add_masks(words, [SignedSeed(case["KEY"] + case["IV"])])
    stream = bytes(a ^ b for a, b in zip(case["PT"], case["CT"], strict=True))
    assert words.tobytes() == stream


@pytest.mark.parametrize("case", cases("nist-aes-256-gcm.txt"))
def test_the_seal_is_nist_aes_gcm(case):
    pt, ct, aad = case["PT"], case["CT"], case["AAD"]
    assert AESGCM(case["KEY"]).encrypt(case["IV"], pt, aad) == ct + case["TAG"]
    assert AESGCM(case["KEY"]).decrypt(case["IV"], ct + case["TAG"], aad) == pt


def test_a_seal_is_gcm_with_a_zero_nonce_and_binds_everything():
    scope, key = Scope(b"s" * 32, b"r" * 32), b"k" * 32
    share = bytes(range(64))
    sealed = keys.seal_share(scope, key, 3, 5, share)
    aad = b"covey secagg 1 sealed share\0" + b"s" * 32 + b"r" * 32 + b"\x03\0\x05\0"
    assert sealed == AESGCM(key).encrypt(bytes(12), share, aad)
    assert keys.open_share(scope, key, 3, 5, sealed) == share
    others = [
        (scope, key, 5, 3),
        (scope, key, 3, 4),
        (scope, b"x" * 32, 3, 5),
        (Scope(b"t" * 32, b"r" * 32), key, 3, 5),
    ]
    others.append((Scope(b"s" * 32, b"q" * 32), key, 3, 5))
    for other in others:
        with pytest.raises(ShareError):
            keys.open_share(*other, sealed)


NOT_CANONICAL = [PRIME, PRIME + 1, PRIME + 18, 2**255, 2**255 + 9, 2**256 - 1]


@pytest.mark.parametrize("number", NOT_CANONICAL)
def test_encodings_that_are_not_canonical_are_refused(number):
    raw = number.to_bytes(32, "little")
    for check in (check_public_key, lambda k: check_public_keys(np.frombuffer(k, np.uint8).reshape(1, 32))):
        with pytest.raises(PublicKeyError):
            check(raw)
    with pytest.raises(PublicKeyError):
        check_public_key(raw[:31])


@pytest.mark.parametrize("raw", sorted(keys._LOW_ORDER), ids=lambda r: r.hex()[:8])
def test_every_listed_point_of_low_order_gives_zero_and_is_refused(raw):
    private = X25519PrivateKey.from_private_bytes(b"p" * 32)
    with pytest.raises(ValueError):  # the library's own check for an all-zero output
        private.exchange(X25519PublicKey.from_public_bytes(raw))
    for check in (check_public_key, lambda k: agree(private, k)):
        with pytest.raises(PublicKeyError):
            check(raw)
    with pytest.raises(PublicKeyError):
        check_public_keys(np.frombuffer(raw, np.uint8).reshape(1, 32))


def test_an_all_zero_secret_raises_even_if_the_list_of_points_missed_one(monkeypatch):
    monkeypatch.setattr(keys, "_LOW_ORDER", frozenset())
    with pytest.raises(PublicKeyError, match="low order"):
        agree(X25519PrivateKey.from_private_bytes(b"p" * 32), bytes(32))


def test_bulk_checks_accept_what_the_single_check_accepts():
    edge = [(PRIME - 2).to_bytes(32, "little"), (2**255 - 2**8).to_bytes(32, "little"), (9).to_bytes(32, "little")]
    check_public_keys(np.frombuffer(b"".join(edge), np.uint8).reshape(-1, 32))
    for raw in edge:
        check_public_key(raw)
    with pytest.raises(PublicKeyError, match="twice"):
        check_public_keys(np.frombuffer(edge[0] * 2, np.uint8).reshape(-1, 32))


def test_keys_differ_by_purpose_direction_party_segment_session_and_root():
    scope, shared, a, b = Scope(b"s" * 32, b"r" * 32), b"x" * 32, b"a" * 32, b"b" * 32
    pair = keys.pair_key(scope, shared, 1, 2, a, b)
    assert pair == keys.pair_key(scope, shared, 2, 1, b, a)
    found = {
        keys.segment_seed(pair, 0),
        keys.segment_seed(pair, 1),
        keys.segment_seed(keys.pair_key(scope, shared, 1, 3, a, b), 0),
        keys.segment_seed(keys.pair_key(scope, shared, 1, 2, b, a), 0),
        keys.segment_seed(keys.pair_key(Scope(b"t" * 32, b"r" * 32), shared, 1, 2, a, b), 0),
        keys.segment_seed(keys.pair_key(Scope(b"s" * 32, b"q" * 32), shared, 1, 2, a, b), 0),
        keys.segment_seed(keys.self_key(scope, shared, 1, a), 0),
        keys.seal_key(scope, shared, 1, 2, a, b),
        keys.seal_key(scope, shared, 2, 1, b, a),
        keys.commitment(scope, shared, 1),
        keys.commitment(scope, shared, 2),
    }
    assert len(found) == 11


def test_keys_that_only_begin_alike_are_different():
    keys_alike = b"".join(b"prefix 8" + bytes([i]) * 23 + b"\0" for i in range(1, 5))
    check_public_keys(np.frombuffer(keys_alike, np.uint8).reshape(-1, 32))
    beginning_like_low_order = bytes(8) + b"\1" * 23 + b"\0"
    check_public_keys(np.frombuffer(beginning_like_low_order, np.uint8).reshape(1, 32))
