import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from covey.privacy.randomness import AesCtr, refuse_seeded
from covey.types.errors import SeededNoiseError

SEED = bytes(range(32))


@pytest.mark.parametrize("count", [1, 7, 8192, 8193, 50_000])
def test_bytes_are_aes_in_counter_mode(count):
    out = np.empty(count, np.uint64)
    AesCtr(SEED, private=False).fill(out)
    stream = Cipher(algorithms.AES(SEED[:16]), modes.CTR(SEED[16:])).encryptor()
    assert out.tobytes() == stream.update(bytes(8 * count))


def test_a_stream_goes_on_where_it_stopped():
    whole, parts = np.empty(100, np.uint32), np.empty(100, np.uint32)
    AesCtr(SEED, private=False).fill(whole)
    source = AesCtr(SEED, private=False)
    source.fill(parts[:33])
    source.fill(parts[33:])
    assert (whole == parts).all()


def test_a_seed_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        AesCtr(SEED[:31], private=True)


def test_injected_randomness_is_refused_outside_simulation():
    refuse_seeded(AesCtr(SEED, private=True), "here")
    with pytest.raises(SeededNoiseError, match="injected seed"):
        refuse_seeded(AesCtr(SEED, private=False), "here")


def test_a_stream_does_not_depend_on_how_it_is_taken():
    a, b = AesCtr(SEED, private=False), AesCtr(SEED, private=False)
    filled = np.empty(3, np.uint64)
    a.fill(filled)
    assert filled.tobytes() + a.take(5) + a.take(100) == b.take(129)
    bits = np.unpackbits(np.frombuffer(b.take(125_000), np.uint8))
    assert abs(int(bits.sum()) - 500_000) < 6 * 500  # a fair million: deviation 500
