import numpy as np
import pytest

from covey.compression.codec import codec_named
from covey.types.errors import PlanFormatError, UpdateFormatError


@pytest.mark.parametrize(("name", "dtype", "width"), [("float32", np.float32, 4), ("float64", np.float64, 8)])
def test_plain_codecs_keep_every_bit_and_their_size_is_exact(name, dtype, width):
    codec = codec_named(name)
    values = np.array([0.0, -0.0, 1.5, np.finfo(dtype).tiny, np.nan], dtype)
    payload = codec.encode(values)
    assert len(payload) == codec.max_bytes(5) == 5 * width
    assert np.asarray(codec.decode(payload, 5)).tobytes() == values.tobytes()
    with pytest.raises(UpdateFormatError):
        codec.decode(payload[:-1], 5)


def test_an_unknown_codec_is_refused():
    with pytest.raises(PlanFormatError, match="float32"):
        codec_named("zip")
