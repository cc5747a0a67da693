import numpy as np
import pytest

from covey.compression.checkpoint import decode_checkpoint, encode_checkpoint
from covey.types.errors import LayoutError, UpdateFormatError, UpdateNotFiniteError

from .vectors import SEED, Rounding, drawn, error, seed


def test_a_quantized_checkpoint_is_four_times_smaller_and_close():
    params = drawn("normal", 2**14)
    payload = encode_checkpoint(params, "hd|quantize:8", SEED, Rounding())
    assert len(payload) <= params.nbytes / 4 * 1.01
    # Two-level rounding costs at most interval^2 / 4; Gaussian values span about 8 deviations in 255 intervals.
    assert error(decode_checkpoint(payload, params.size, "hd|quantize:8", SEED), params) <= (9 / 255) ** 2 / 4


def test_differences_do_not_add_up_their_errors():
    params = drawn("normal", 4096)
    spec = "hd|eden:2"
    held = decode_checkpoint(encode_checkpoint(params, "float32", SEED, Rounding()), 4096, "float32", SEED)
    for i in range(20):
        params = params + np.float32(0.01) * drawn("normal", 4096, i + 1)
        payload = encode_checkpoint(params, spec, seed(i), Rounding(), base=held)
        assert len(payload) < params.nbytes / 14
        held = decode_checkpoint(payload, 4096, spec, seed(i), base=held)
        # Each step's own error is 0.133 of a difference of 0.01 and what was left over: 0.133 / (1 - 0.133) of 1e-4.
        assert error(held, params) <= 1.5 * 0.154e-4


def test_another_base_and_damage_are_refused():
    params, base = drawn("normal", 100), drawn("normal", 100, 1)
    payload = encode_checkpoint(params, "quantize:8", SEED, Rounding(), base=base)
    for other in (None, params, base[:50]):
        with pytest.raises(UpdateFormatError, match="base"):
            decode_checkpoint(payload, 100, "quantize:8", SEED, base=other)
    for bad in (b"", b"\2" + payload[1:], payload[:-1], payload[:-1] + b"!"):
        with pytest.raises(UpdateFormatError):
            decode_checkpoint(bad, 100, "quantize:8", SEED, base=base)
    with pytest.raises(LayoutError):
        encode_checkpoint(params, "quantize:8", SEED, Rounding(), base=base[:50])
    with pytest.raises(UpdateNotFiniteError):
        encode_checkpoint(np.full(3, np.nan, np.float32), "quantize:8", SEED, Rounding())
