"""Plans and checkpoints that passed their checks, so that they are checked once in a process."""

import threading
from collections import OrderedDict
from typing import TypeVar

from covey.compression.checkpoint import decode_download, download_num_bytes
from covey.compression.codec import codec_for
from covey.plans.lint import lint_plan
from covey.plans.plan import Plan, unpack_plan
from covey.types.errors import BlobHashError
from covey.types.tensors import Tensors, TensorSpec, sha256_hex
from covey.wire.messages import BlobRef

__all__ = ["Verified"]

T = TypeVar("T")


class Verified:
    """Plans and tensors that passed their checks in this process, by hash, so that they are checked once.

    Safe to share between threads.

    Args:
        max_tensors: how many unpacked checkpoints to keep; 0 on a device, where each serves one session and memory is
            dear; a simulation shares one checkpoint among a cohort.
    """

    def __init__(self, *, max_plans: int = 4, max_tensors: int = 0) -> None:
        self._lock = threading.Lock()
        self._max_plans = max_plans
        self._max_tensors = max_tensors
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._tensors: OrderedDict[str, Tensors] = OrderedDict()

    def plan(self, ref: BlobRef, data: bytes) -> Plan:
        """Return the plan that ``ref`` names: the one already known by that hash, else ``data``, verified and linted.

        Raises:
            PlanError: wrong hash, not canonical, a newer schema, or an operator outside the list.
            CompressionSpecError: an unknown codec, one that secure aggregation cannot sum, or that no download has.
            MissingExtraError: a codec that needs a package which this device does not have.
            LayoutError: sums that could overflow.
        """
        with self._lock:
            known = self._plans.get(ref.sha256)
        if known is not None:
            return known
        plan = unpack_plan(data, expected_hash=ref.sha256)
        lint_plan(plan)
        download_num_bytes(plan.manifest.download, plan.manifest.params)
        terms = plan.manifest.privacy
        for index, phase in enumerate(plan.manifest.phases):
            plan.manifest.layout(index)
            for s in phase.segments:
                codec_for(s.codec, terms.mode, terms.most_in_sum, noised=terms.noise is not None)
        with self._lock:
            _keep(self._plans, ref.sha256, plan, self._max_plans)
        return plan

    def tensors(
        self, ref: BlobRef, specs: tuple[TensorSpec, ...], data: bytes, where: str, *, download: str = ""
    ) -> Tensors:
        """Return the tensors that ``ref`` names: views into ``data`` where they are not already known, nor encoded.

        Args:
            ref: the blob.
            specs: what it holds.
            data: its bytes, as they came.
            where: for errors.
            download: how they are encoded, as the plan says; empty: packed float32.

        Raises:
            BlobHashError: ``data`` is not what its name says.
            LayoutError: not as many bytes as the specs need.
            CheckpointFormatError: it is, and cannot be decoded.
        """
        name = f"{ref.sha256} {download}"
        with self._lock:
            known = self._tensors.get(name)
        if known is not None:
            return known
        digest = sha256_hex(data)
        if digest != ref.sha256:
            raise BlobHashError(where, expected=f"sha256 {ref.sha256[:12]}…", got=f"{digest[:12]}…", hint=_AGAIN)
        tensors = decode_download(data, specs, download)
        with self._lock:
            _keep(self._tensors, name, tensors, self._max_tensors)
        return tensors


_AGAIN = "nothing was kept; it will be fetched again"


def _keep(known: "OrderedDict[str, T]", name: str, value: T, at_most: int) -> None:
    known[name] = value
    while len(known) > at_most:
        known.popitem(last=False)
