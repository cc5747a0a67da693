"""A plan whose checkpoints are encoded: what a device checks before it downloads, and what it trains from."""

import functools

import numpy as np
import pytest

from covey.compression.checkpoint import decode_download, download_num_bytes
from covey.device.effects import FetchBlob, GaveUp, SendAbandon, Train
from covey.device.session import Session
from covey.device.verified import Verified
from covey.plans import manifest as manifests
from covey.plans.manifest import DOWNLOAD_SCHEMA, decode_manifest, encode_manifest
from covey.plans.plan import unpack_plan
from covey.server.download import encoded_checkpoint
from covey.types.errors import PlanFormatError, PlanSchemaError

from . import world

SPEC = "quantize:8"


@functools.cache
def plan_bytes(spec: str = SPEC) -> bytes:
    return world.changed(world.plan(), schema=DOWNLOAD_SCHEMA, download=spec)


@functools.cache
def encoded(spec: str = SPEC) -> bytes:
    return encoded_checkpoint(world.checkpoint(), unpack_plan(plan_bytes(spec)).manifest)


def before_the_checkpoint(data: bytes, spec: str = SPEC, **assigned):
    """Return a session that has its plan, and what it does next, where the server offers ``data``."""
    session = Session(world.policy(), seed=bytes(32))
    session.start()
    session.answered(world.assignment(plan_bytes(spec), data, **assigned))
    return session, session.fetched(plan_bytes(spec))


def refusal(session, effect):
    """Check that the server is told; return code and text of the error."""
    assert isinstance(effect, SendAbandon)
    outcome = session.abandoned().outcome
    assert isinstance(outcome, GaveUp) and outcome.reason == effect.message.reason == outcome.error.code
    return outcome.reason, str(outcome.error)


def test_a_device_trains_from_what_it_decodes():
    session, effect = before_the_checkpoint(encoded())
    assert effect == FetchBlob(world.ref(encoded(), "checkpoints"), "checkpoint")
    effect = session.fetched(encoded())
    assert isinstance(effect, Train)
    expected = decode_download(encoded(), world.plan().manifest.params, SPEC)
    assert effect.job.params.keys() == expected.keys()
    assert all(np.array_equal(effect.job.params[k], v) for k, v in expected.items())


def test_a_size_that_the_plan_does_not_tell_is_refused_before_anything_is_downloaded():
    needed = download_num_bytes(SPEC, world.plan().manifest.params)
    assert needed == len(encoded())
    for data in (encoded()[:-1], encoded() + b"\0", world.checkpoint()):
        code, text = refusal(*before_the_checkpoint(data))
        assert code == "plan_refused" and f"checkpoint: expected {needed} bytes, got {len(data)}" in text


def test_bytes_other_than_those_that_were_named_are_not_decoded():
    flipped = encoded()[:-1] + bytes([encoded()[-1] ^ 1])
    for data in (flipped, encoded()[:-1], encoded() + b"\0", b""):
        session, _ = before_the_checkpoint(encoded())
        assert refusal(session, session.fetched(data))[0] == "blob_hash"


def test_what_a_lying_server_named_and_cannot_be_decoded_is_told_apart():
    other = encoded_checkpoint(world.checkpoint(), unpack_plan(plan_bytes("quantize:7")).manifest)
    size = len(encoded())
    bad = bytearray(encoded())
    bad[20] ^= 1
    for data in (bytes(bad), bytes(size), b"\1" + encoded()[1:], (other + bytes(size))[:size]):
        session, _ = before_the_checkpoint(data)
        code, text = refusal(session, session.fetched(data))
        assert code == "checkpoint_format" and "tensor 'b'" in text


def test_one_blob_under_two_plans_is_decoded_as_each_of_them_says():
    """A simulation keeps what was decoded by name: the name alone does not say how."""
    verified, specs = Verified(max_tensors=4), unpack_plan(plan_bytes()).manifest.params
    ref = world.ref(encoded(), "checkpoints")
    first = verified.tensors(ref, specs, encoded(), "checkpoint", download=SPEC)
    assert verified.tensors(ref, specs, b"", "checkpoint", download=SPEC) is first
    with pytest.raises(Exception, match="packed tensors"):
        verified.tensors(ref, specs, encoded(), "checkpoint")


def test_a_spec_that_is_no_download_is_refused_with_its_plan():
    session = Session(world.policy(), seed=bytes(32))
    session.start()
    data = world.changed(world.plan(), schema=DOWNLOAD_SCHEMA, download="hd|quantize:8")
    session.answered(world.assignment(data))
    assert refusal(session, session.fetched(data))[0] == "compression_spec"


def test_an_older_device_refuses_the_plan(monkeypatch):
    manifest = unpack_plan(plan_bytes()).manifest
    with pytest.raises(PlanFormatError, match="schema"):
        decode_manifest(encode_manifest(type(manifest)(**{**fields(manifest), "schema": DOWNLOAD_SCHEMA - 1})))
    monkeypatch.setattr(manifests, "SCHEMA_VERSION", DOWNLOAD_SCHEMA - 1)
    with pytest.raises(PlanSchemaError, match="expected at most 3, got 4"):
        decode_manifest(encode_manifest(manifest))


def fields(manifest):
    return {name: getattr(manifest, name) for name in manifest.__struct_fields__}
