import dataclasses
import io
import zipfile

import msgspec
import pytest
from device import world

from covey.plans.manifest import SCHEMA_VERSION, decode_manifest, encode_manifest
from covey.plans.plan import MAX_PLAN_BYTES, pack_plan, unpack_plan
from covey.types.errors import PlanError, PlanFormatError, PlanHashError, PlanSchemaError


@pytest.fixture(scope="module")
def data():
    return world.plan_bytes()


def test_a_plan_is_what_was_packed(data):
    plan = unpack_plan(data)
    assert plan.num_bytes == len(data)
    assert {"begin", "train", "finish", "eval", "predict"} == set(plan.graphs)
    assert pack_plan(plan.manifest, plan.graphs) == data


def test_the_hash_is_checked(data):
    assert unpack_plan(data, expected_hash=unpack_plan(data).hash)
    with pytest.raises(PlanHashError):
        unpack_plan(data, expected_hash="0" * 64)


def test_every_changed_byte_is_found(data):
    """An archive that is not what pack_plan writes is refused: also in places that a zip reader never looks at."""
    for place in range(0, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 0x40
        with pytest.raises(PlanError):
            unpack_plan(bytes(changed))


def test_truncated_extended_and_foreign_archives_are_refused(data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", "{}")
    for wrong in (b"", data[:-1], data + b"\0", data[1:], out.getvalue(), b"PK\x05\x06" + bytes(18)):
        with pytest.raises(PlanFormatError):
            unpack_plan(wrong)


def test_a_plan_has_a_largest_size(data):
    plan = unpack_plan(data)
    with pytest.raises(PlanFormatError, match=str(MAX_PLAN_BYTES)):
        pack_plan(plan.manifest, {**plan.graphs, "predict": bytes(MAX_PLAN_BYTES)})
    with pytest.raises(PlanFormatError):
        unpack_plan(bytes(MAX_PLAN_BYTES + 1))


def changed(manifest, **fields):
    return msgspec.structs.replace(manifest, **fields)


def test_a_manifest_for_a_newer_covey_is_refused_and_unknown_fields_are_ignored(data):
    manifest = unpack_plan(data).manifest
    with pytest.raises(PlanSchemaError, match="at most"):
        decode_manifest(encode_manifest(changed(manifest, schema=SCHEMA_VERSION + 1)))
    raw = encode_manifest(manifest)
    assert decode_manifest(raw[:-1].rstrip() + b', "from_the_future": 1}') == manifest


@pytest.mark.parametrize(
    "wrong",
    [
        {"phases": ()},
        {"min_examples": 0},
        {"min_examples": 20_000},
        {"eval_batch_size": 0},
        {"metrics": ("loss",)},
        {"metrics": ("examples", "loss", "weight", "a", "a")},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(data, wrong):
    manifest = unpack_plan(data).manifest
    with pytest.raises(PlanFormatError):
        decode_manifest(encode_manifest(changed(manifest, **wrong)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"graph": "python"},
        {"batch_size": 0},
        {"chunk_steps": 0},
        {"segments": ()},
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(data, wrong):
    manifest = unpack_plan(data).manifest
    phase = changed(manifest.phases[0], **wrong)
    with pytest.raises(PlanFormatError):
        decode_manifest(encode_manifest(changed(manifest, phases=(phase,))))


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"{}", b'{"schema": "one"}', b"null"])
def test_what_is_no_manifest_is_refused(raw):
    with pytest.raises(PlanFormatError):
        decode_manifest(raw)


def test_a_graph_that_is_not_its_entrys_is_refused(data):
    plan = unpack_plan(data)
    swapped = {**plan.graphs, "eval": plan.graphs["begin"]}
    packed = pack_plan(plan.manifest, swapped)
    other = unpack_plan(packed)
    # The right entries with the wrong graph: the archive is canonical, its content is not what it says.
    lying = dataclasses.replace(other, manifest=plan.manifest)
    raw = _packed_as_it_is(lying.manifest, swapped)
    with pytest.raises(PlanError):
        unpack_plan(raw)


def _packed_as_it_is(manifest, graphs):
    from covey.plans.plan import _zip

    return _zip({"manifest.json": encode_manifest(manifest), **{f"{k}.onnx": v for k, v in graphs.items()}})
