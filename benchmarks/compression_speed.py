"""How long does encoding take on one core, and how many bytes come out, beside copying the same memory?

A part of benchmarks.compression, run in a process of its own: the linear algebra library must be told to use one thread
before it is loaded. Prints JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from covey.compression.codec import codec_named
from covey.compression.secure import SecurePath
from covey.privacy.randomness import AesCtr

__all__ = ["NUM_PARAMETERS", "SPECS", "main"]

NUM_PARAMETERS = 1_663_370
SPECS = [
    "float32",
    "hd|subsample:0.0625|quantize:2",
    "hd|eden:0.1",
    "hd|eden:1",
    "hd|eden:2",
    "hd|eden:4",
    "hd|uniform:1.2",
    "hd|uniform:4",
    "topk:0.01",
    "mask:0.1|hd|eden:1",
    "hd|ring:12:100:{norm}",
    "hd|subsample:0.125|ring:12:100:{norm}",
]


def median_ms(run: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    repeats = int(sys.argv[1])
    rng = np.random.default_rng(0)
    values = (0.01 * rng.standard_t(3, NUM_PARAMETERS)).astype(np.float32)
    norm = float(np.linalg.norm(values))
    target = np.empty_like(values)
    seed, private = bytes(32), AesCtr(bytes(32), private=False)
    rows = []
    for template in SPECS:
        spec = template.format(norm=f"{norm:.6g}")
        codec = codec_named(spec)
        payload = codec.encode(values, seed, private)
        decoded = codec.decode(payload, values.size, seed)
        error = float(np.sum((decoded.astype(np.float64) - values) ** 2) / np.sum(values.astype(np.float64) ** 2))
        # A copy is timed before and after, so that whatever slows the machine slows both.
        copy_ms = median_ms(lambda: np.copyto(target, values), repeats)
        encode_ms = median_ms(lambda codec=codec: codec.encode(values, seed, private), repeats)
        decode_ms = median_ms(
            lambda codec=codec, payload=payload: codec.decode(payload, values.size, seed), max(3, repeats // 3)
        )
        copy_ms = min(copy_ms, median_ms(lambda: np.copyto(target, values), repeats))
        rows.append(
            {
                "spec": codec.text,
                "bytes": len(payload),
                "bits": 8 * len(payload) / values.size,
                "error": error,
                "encode_ms": encode_ms,
                "decode_ms": decode_ms,
                "encode_gb_s": values.nbytes / encode_ms / 1e6,
                "copy_gb_s": values.nbytes / copy_ms / 1e6,
            }
        )
    path = SecurePath(values.size, 100, 12, norm)
    residues = path.encode(values, seed, private)
    pack_ms = median_ms(lambda: path.pack(residues), repeats)
    json.dump({"rows": rows, "pack_ms": pack_ms, "repeats": repeats}, sys.stdout)


if __name__ == "__main__":
    main()
