"""What a session asks of a simulated device: steps, and bytes down and up.

When a device reports must be known before it trains: who comes too late is not computed. So must the size of its
report. Nearly every codec has one size, which follows from the plan; where positions or symbols are coded (``topk``,
``uniform``) the size depends on the values, and :class:`covey.simulation.fleet.Fleet` takes the mean of the reports
that came before. Of none it is what a Gaussian update would have.
"""

from dataclasses import dataclass

import numpy as np

from covey.compression.checkpoint import download_num_bytes
from covey.compression.codec import Codec
from covey.plans.manifest import Manifest, Phase
from covey.privacy.randomness import AesCtr
from covey.server.aggregator import segment_codecs
from covey.types.rng import derive_seed, generator
from covey.types.tensors import packed_num_bytes
from covey.wire.framing import max_update_bytes

__all__ = ["Load", "loads_of"]


@dataclass(frozen=True, slots=True)
class Load:
    """A session of one phase.

    Attributes:
        phase: says how many steps a device takes.
        down_bytes: the checkpoint, as the plan encodes it, and what else is broadcast; the plan excepted.
        up_bytes: the report.
    """

    phase: Phase
    down_bytes: int
    up_bytes: int


def loads_of(manifest: Manifest) -> tuple[Load, ...]:
    """Return what a session of each phase asks of a device.

    Raises:
        CompressionSpecError, MissingExtraError: codecs that cannot be.
    """
    checkpoint_bytes = download_num_bytes(manifest.download, manifest.params)
    return tuple(
        Load(phase, checkpoint_bytes + packed_num_bytes(phase.shared), _report_bytes(manifest, i))
        for i, phase in enumerate(manifest.phases)
    )


def _report_bytes(manifest: Manifest, phase: int) -> int:
    codecs = segment_codecs(manifest, phase)
    return max_update_bytes({s.name: _payload_bytes(codecs[s.name], s.length) for s in manifest.layout(phase)})


def _payload_bytes(codec: Codec, length: int) -> int:
    if codec.has_fixed_size:
        return codec.max_bytes(length)
    seed = derive_seed(0, "report size", codec.text, length)
    values = generator(seed, "values").standard_normal(length, np.float32)
    return len(codec.encode(values, seed, AesCtr(seed, private=False)))
