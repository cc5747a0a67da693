import inspect

import msgspec
import numpy as np
import pytest

from covey.compression.codec import codec_named, segment_seed
from covey.device.agent import DeviceAgent
from covey.device.driver import Driver
from covey.device.trainer import LocalResult
from covey.device.update import drawn_structure, encoded_update
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
    body = encoded_update(manifest, assignment, first.segments, bytes(32))
    assert first.segments == {}
    assert body == encoded_update(manifest, assignment, result().segments, bytes(32))
    parts = decode_update(body, {HEADER: 48, "model": 32})
    codec = codec_named("float32")
    seed = segment_seed(codec, round_seed="ab" * 32, session=assignment.session, segment="model")
    assert (codec.decode(parts["model"], 8, seed) == result().segments["model"]).all()


def test_what_is_not_finite_is_not_sent():
    bad = result()
    bad.segments["model"][3] = np.nan
    with pytest.raises(UpdateNotFiniteError):
        encoded_update(world.plan().manifest, world.assignment(), bad.segments, bytes(32))


def test_a_plan_without_a_structured_update_has_no_masks():
    assert drawn_structure(world.plan().manifest, world.assignment()) == {}


def test_rounding_is_drawn_from_the_sessions_own_seed_and_public_choices_are_not():
    """Two devices with one assignment and one update: other roundings, the same signs and positions."""
    base = world.plan()
    phase = base.manifest.phases[0]
    segment = msgspec.structs.replace(phase.segments[0], codec="hd|quantize:1")
    manifest = msgspec.structs.replace(base.manifest, phases=(msgspec.structs.replace(phase, segments=(segment,)),))
    assignment = world.assignment(public_seed="ab" * 32)

    def body(seed):
        model = np.arange(8, dtype=np.float32)
        result = LocalResult({HEADER: np.ones(6), "model": model}, 1.0, {}, 1, 1)
        return encoded_update(manifest, assignment, result.segments, seed)

    bodies = {body(bytes([i]) * 32) for i in range(20)}
    assert len(bodies) > 1 and body(bytes(32)) == body(bytes(32))
    codec = codec_named("hd|quantize:1")
    seed = segment_seed(codec, round_seed="ab" * 32, session=assignment.session, segment="model")
    for b in bodies:  # the tag of each is that of the one public seed, or this would raise
        payload = decode_update(b, {HEADER: 48, "model": codec.max_bytes(8)})["model"]
        codec.decode(payload, 8, seed)


def test_an_agent_cannot_be_given_randomness():
    """Outside a simulation the seed of a session is the operating system's: there is no way to pass another."""
    names = set(inspect.signature(DeviceAgent.__init__).parameters)
    assert not {n for n in names if "seed" in n or "random" in n or "rng" in n}, names
    assert "os.urandom(32)" in inspect.getsource(Driver)
