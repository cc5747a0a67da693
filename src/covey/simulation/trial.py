"""What a compression spec does to real updates: bytes, error and time, before anyone ships it.

Devices of a recipe train for one session from the first checkpoint, with the runtime that a phone has; each update is
encoded by the device's own code and decoded by the server's.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey.compression.codec import Codec, codec_named, segment_seed
from covey.data.dataset import FederatedDataset
from covey.device.trainer import LocalResult, OnnxTrainer, TrainingJob
from covey.device.update import drawn_structure, encoded_update
from covey.plans.manifest import Manifest, PrivacyTerms
from covey.recipes.prepare import Prepared, prepare
from covey.recipes.recipe import Recipe, Settings
from covey.server.aggregator import body_limits, segment_codecs
from covey.types.errors import UsageError
from covey.types.rng import derive_seed
from covey.wire.framing import decode_update
from covey.wire.messages import Assignment, BlobRef

__all__ = ["Trial", "TrialResult", "update_norms"]

_ROUND = "0" * 64


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one spec did.

    Attributes:
        spec: in canonical form.
        unbiased: whether every stage is.
        composes_with_secagg: whether its payloads can be summed under masks.
        devices: how many trained.
        body_bytes: a whole report, header included; the mean over the devices.
        float32_bytes: the same report without compression.
        error: squared error of one device's update relative to its squared norm; the median.
        mean_error: the same of the mean over all devices: what the model sees.
        encode_ms: median over the devices, single calls.
        decode_ms: the same.
        norm: L2 norm of a device's weighted update; the median.
    """

    spec: str
    unbiased: bool
    composes_with_secagg: bool
    devices: int
    body_bytes: float
    float32_bytes: int
    error: float
    mean_error: float
    encode_ms: float
    decode_ms: float
    norm: float


class Trial:
    """Trains devices once for all specs; specs with a mask need a training of their own.

    Args:
        recipe: what is trained.
        source: the name or path that it was loaded by.
        settings: how; its compression is replaced.
        devices: how many devices, the first ones of the data set.
        seed: of the first checkpoint and the devices' shuffling.

    Raises:
        UsageError: no devices, or more than there are.
    """

    def __init__(self, recipe: Recipe, source: str, settings: Settings, *, devices: int, seed: int = 0) -> None:
        self._recipe, self._source, self._settings, self._seed = recipe, source, settings, seed
        self._dataset: FederatedDataset = recipe.data(settings, seed)
        there = len(self._dataset.client_ids)
        if not 1 <= devices <= there:
            raise UsageError("--devices", expected=f"1 to {there}, the devices of the data set", got=str(devices))
        self._clients = self._dataset.client_ids[:devices]
        self._trainer = OnnxTrainer()
        self._plain: list[LocalResult] | None = None

    def run(self, spec: str) -> TrialResult:
        """Encode and decode every device's update by a spec.

        Raises:
            CompressionSpecError, MissingExtraError: a spec that cannot be used.
            UpdateNotFiniteError, UpdateRangeError: what a device, or the server, refuses.
        """
        codec = codec_named(spec)
        prepared = self._prepared(codec)
        manifest = prepared.plan.manifest
        results = self._train(prepared) if codec.structure is not None else self._trained_plainly(prepared)
        rows = [self._one(manifest, codec, i, result) for i, result in enumerate(results)]
        float32_bytes = sum(32 // 8 * s.length for s in manifest.phases[0].segments)
        header_bytes = rows[0].body_bytes - rows[0].payload_bytes
        decoded = np.mean([r.decoded for r in rows], axis=0, dtype=np.float64)
        truth = np.mean([r.values for r in rows], axis=0, dtype=np.float64)
        return TrialResult(
            spec=codec.text,
            unbiased=codec.unbiased,
            composes_with_secagg=codec.composes_with_secagg,
            devices=len(rows),
            body_bytes=statistics.mean(r.body_bytes for r in rows),
            float32_bytes=float32_bytes + header_bytes,
            error=statistics.median(_relative_error(r.decoded, r.values) for r in rows),
            mean_error=_relative_error(decoded, truth),
            encode_ms=statistics.median(r.encode_ms for r in rows),
            decode_ms=statistics.median(r.decode_ms for r in rows),
            norm=statistics.median(float(np.linalg.norm(r.values.astype(np.float64))) for r in rows),
        )

    def norms(self) -> list[float]:
        """Return the L2 norm of each device's weighted update."""
        results = self._trained_plainly(self._prepared(codec_named("float32")))
        return [float(np.linalg.norm(_flat(r).astype(np.float64))) for r in results]

    @property
    def num_parameters(self) -> int:
        """Number of coordinates of the update."""
        return sum(s.length for s in self._prepared(codec_named("float32")).plan.manifest.phases[0].segments)

    def _prepared(self, codec: Codec) -> Prepared:
        settings = dataclasses.replace(self._settings, compression=codec.text)
        terms = PrivacyTerms(min_cohort=1)
        return prepare(self._recipe, self._source, settings, terms, self._dataset, seed=self._seed)

    def _trained_plainly(self, prepared: Prepared) -> list[LocalResult]:
        if self._plain is None:
            self._plain = self._train(prepared)
        return self._plain

    def _train(self, prepared: Prepared) -> list[LocalResult]:
        out = []
        for i, client in enumerate(self._clients):
            masks = drawn_structure(prepared.plan.manifest, _assignment(i))
            seed = derive_seed(self._seed, "trial", i)
            job = TrainingJob(prepared.plan, 0, prepared.params, masks, {}, seed)
            out.append(self._trainer.run(job, self._dataset.train(client)))
        return out

    def _one(self, manifest: Manifest, codec: Codec, index: int, result: LocalResult) -> "_Row":
        assignment = _assignment(index)
        copy = dataclasses.replace(result, segments=dict(result.segments))
        start_s = time.perf_counter()
        body = encoded_update(manifest, assignment, copy.segments, derive_seed(self._seed, "rounding", index))
        encoded_s = time.perf_counter()
        parts = decode_update(body, body_limits(manifest, 0))
        decoded, payload_bytes = [], 0
        for s in manifest.phases[0].segments:
            seed = segment_seed(codec, round_seed=_ROUND, session=assignment.session, segment=s.name)
            decoded.append(segment_codecs(manifest, 0)[s.name].decode(parts[s.name], s.length, seed))
            payload_bytes += len(parts[s.name])
        return _Row(
            body_bytes=len(body),
            payload_bytes=payload_bytes,
            values=_flat(result),
            decoded=np.concatenate(decoded),
            encode_ms=1e3 * (encoded_s - start_s),
            decode_ms=1e3 * (time.perf_counter() - encoded_s),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    body_bytes: int
    payload_bytes: int
    values: NDArray[np.floating]
    decoded: NDArray[np.floating]
    encode_ms: float
    decode_ms: float


def _assignment(index: int) -> Assignment:
    none = BlobRef(sha256=_ROUND, num_bytes=1, path="/")
    return Assignment(
        session=f"trial-{index}",
        round=1,
        phase=0,
        plan=none,
        signature="",
        checkpoint=none,
        public_seed=_ROUND,
        report_within_s=1.0,
    )


def _flat(result: LocalResult) -> NDArray[np.floating]:
    _, *names = result.segments
    return np.concatenate([result.segments[n] for n in names])


def _relative_error(decoded: Any, values: Any) -> float:
    difference = decoded.astype(np.float64) - values
    square = float(np.vdot(values.astype(np.float64), values.astype(np.float64)))
    return float(np.vdot(difference, difference)) / square if square else 0.0


def update_norms(norms: Sequence[float]) -> float:
    """Return what to size a ring for: a tenth above the largest norm that was seen."""
    return 1.1 * max(norms)
