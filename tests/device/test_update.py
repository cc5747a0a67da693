import numpy as np
import pytest

from covey.compression.codec import codec_named, segment_seed
from covey.device.randomness import PrivateStream
from covey.device.trainer import LocalResult
from covey.device.update import encoded_update, trained_masks
from covey.types.errors import UpdateNotFiniteError
from covey.types.segments import HEADER
from covey.wire.framing import decode_update

from . import world


def result(value=1.0):
    model = np.linspace(-value, value, 8, dtype=np.float32)
    return LocalResult({HEADER: np.array([1.0, 4, 4, 2, 4, 1]), "model": model}, 4.0, {}, 4, 1)


def test_a_report_is_encoded_once_and_emptied():
    manifest, assignment = world.plan().manifest, world.assignment(public_seed="ab" * 32)
    first = result()
    body = encoded_update(manifest, assignment, first, bytes(32))
    assert first.segments == {}
    assert body == encoded_update(manifest, assignment, result(), bytes(32))
    parts = decode_update(body, {HEADER: 48, "model": 32})
    codec = codec_named("float32")
    seed = segment_seed(codec, round_seed="ab" * 32, session=assignment.session, segment="model")
    assert (codec.decode(parts["model"], 8, seed) == result().segments["model"]).all()


def test_what_is_not_finite_is_not_sent():
    bad = result()
    bad.segments["model"][3] = np.nan
    with pytest.raises(UpdateNotFiniteError):
        encoded_update(world.plan().manifest, world.assignment(), bad, bytes(32))


def test_a_plan_without_a_structured_update_has_no_masks():
    assert trained_masks(world.plan().manifest, world.assignment()) == {}


def test_private_streams_are_aes_ctr_and_differ_by_seed_and_label():
    """Against a second instance read in other pieces: the stream does not depend on how it is taken."""
    a, b = PrivateStream(bytes(32), "x"), PrivateStream(bytes(32), "x")
    assert a.take(5) + a.take(100) == b.take(105)
    others = [PrivateStream(bytes(32), "y"), PrivateStream(b"1" * 32, "x")]
    assert len({PrivateStream(bytes(32), "x").take(16), *(o.take(16) for o in others)}) == 3
    bits = np.unpackbits(np.frombuffer(PrivateStream(bytes(32), "x").take(125_000), np.uint8))
    assert abs(int(bits.sum()) - 500_000) < 6 * 500  # a fair million: deviation 500
