"""The Plan: a reproducible, content-addressed archive that a population's owner signs.

The archive is a zip with stored (uncompressed) members in sorted order and zero timestamps, so that the same task
gives the same bytes and therefore the same hash anywhere. Reading is strict: an archive that is not byte for byte
what :func:`pack_plan` would write is refused, which leaves no room for anything hidden between the members.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from covey.plans.manifest import GraphEntry, Manifest, decode_manifest, encode_manifest
from covey.types.errors import PlanFormatError, PlanHashError
from covey.types.tensors import sha256_hex

__all__ = ["MAX_PLAN_BYTES", "Plan", "pack_plan", "unpack_plan"]

MAX_PLAN_BYTES = 16 << 20
"""Graphs hold no parameters, so a plan is small: the char LSTM's takes about 40 kB."""

_MANIFEST = "manifest.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan in memory: its manifest, its graphs by name (without ``.onnx``) and its hash."""

    manifest: Manifest
    graphs: Mapping[str, bytes]
    hash: str
    num_bytes: int


def pack_plan(manifest: Manifest, graphs: Mapping[str, bytes]) -> bytes:
    """Write the archive. ``manifest.graphs`` is filled in from ``graphs``.

    Raises:
        PlanFormatError: above :data:`MAX_PLAN_BYTES`.
    """
    entries = {k: GraphEntry(sha256=sha256_hex(v), num_bytes=len(v)) for k, v in sorted(graphs.items())}
    fields = {f: getattr(manifest, f) for f in manifest.__struct_fields__}
    members = {f"{k}.onnx": v for k, v in graphs.items()}
    members[_MANIFEST] = encode_manifest(Manifest(**{**fields, "graphs": entries}))
    data = _zip(members)
    if len(data) > MAX_PLAN_BYTES:
        raise PlanFormatError("plan", expected=f"at most {MAX_PLAN_BYTES} bytes", got=f"{len(data)} bytes")
    return data


def unpack_plan(data: bytes, *, expected_hash: str | None = None) -> Plan:
    """Read and verify an archive.

    Raises:
        PlanHashError: not the bytes that ``expected_hash`` names, or a graph that differs from its entry.
        PlanFormatError: not canonical, too large, or a bad manifest.
        PlanSchemaError: written for a newer Covey.
    """
    digest = sha256_hex(data)
    if expected_hash is not None and digest != expected_hash:
        raise PlanHashError(
            "plan", expected=f"sha256 {expected_hash[:12]}…", got=f"{digest[:12]}…", hint="fetch the plan again"
        )
    if len(data) > MAX_PLAN_BYTES:
        raise PlanFormatError("plan", expected=f"at most {MAX_PLAN_BYTES} bytes", got=f"{len(data)} bytes")
    members = _unzip(data)
    manifest = decode_manifest(members.pop(_MANIFEST, b""))
    graphs = {name.removesuffix(".onnx"): content for name, content in members.items()}
    if {f"{k}.onnx" for k in manifest.graphs} != set(members):
        raise PlanFormatError("plan", expected="exactly the graphs of the manifest", got=", ".join(sorted(members)))
    for name, entry in manifest.graphs.items():
        if sha256_hex(graphs[name]) != entry.sha256 or len(graphs[name]) != entry.num_bytes:
            raise PlanHashError(f"plan: {name}.onnx", expected="the graph that the manifest names", got="other bytes")
    return Plan(manifest, graphs, digest, len(data))


def _zip(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, date_time=_EPOCH)
            info.create_system = 3  # fixed, or the bytes would differ between Windows and the rest
            archive.writestr(info, members[name])
    return buffer.getvalue()


def _unzip(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            # Stored members cannot unpack to more than the archive holds: a compressed one could be a bomb.
            if any(i.compress_type != zipfile.ZIP_STORED for i in infos) or sum(i.file_size for i in infos) > len(data):
                raise PlanFormatError("plan", expected="stored members only", got="a compressed member")
            members = {i.filename: archive.read(i) for i in infos}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as e:
        raise PlanFormatError("plan", expected="a plan archive", got=f"{type(e).__name__}: {e}"[:200]) from e
    if _zip(members) != data:
        raise PlanFormatError(
            "plan", expected="the canonical archive", got="other bytes around the same members", hint="build it again"
        )
    return members
