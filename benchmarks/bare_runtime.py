"""Train a plan's graphs with NumPy and onnxruntime and nothing else: what a device's process is measured against.

``python -m benchmarks.bare_runtime FOLDER tuned|default`` takes ``train.onnx``, ``begin.onnx``, ``constants.npz`` and
``examples.npz`` (``batch.*`` [steps, B, ...] and ``mask`` [steps, B]), trains one pass in chunks as ``chunk.txt`` says,
and prints its peak resident memory in bytes and the seconds that it trained, loading the graphs included.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


def peak_bytes() -> int:
    """Return this process's peak resident memory (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status: expected a VmHWM line: this benchmark needs Linux")


def session(path: Path, tuned: bool) -> ort.InferenceSession:
    """Load a graph; ``tuned`` sets the memory options that Covey's device sets."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = not tuned
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def train(folder: Path, tuned: bool) -> float:
    """Train one pass over the examples; return the seconds from the graphs' bytes to the last step."""
    constants = dict(np.load(folder / "constants.npz"))
    examples = dict(np.load(folder / "examples.npz"))
    chunk = int((folder / "chunk.txt").read_text())
    started = time.perf_counter()
    begin, loop = session(folder / "begin.onnx", tuned), session(folder / "train.onnx", tuned)
    names = {i.name for i in begin.get_inputs()}
    outputs = [o.name for o in begin.get_outputs()]
    carry = dict(zip(outputs, begin.run(outputs, {k: v for k, v in constants.items() if k in names}), strict=True))
    wanted = {i.name for i in loop.get_inputs()}
    carry |= {k: np.zeros((), np.float32) for k in wanted if k.startswith("metrics.")}
    carry["step"] = np.zeros((), np.uint32)
    outputs = [o.name for o in loop.get_outputs()]
    for start in range(0, len(examples["mask"]), chunk):
        batch = {k: v[start : start + chunk] for k, v in examples.items()}
        feeds = {k: v for k, v in {**constants, **batch, **carry}.items() if k in wanted}
        after = loop.run(outputs, feeds)
        carry |= {k.removeprefix("next."): np.asarray(v) for k, v in zip(outputs, after, strict=True)}
    return time.perf_counter() - started


def main() -> None:
    seconds = train(Path(sys.argv[1]), sys.argv[2] == "tuned")
    print(peak_bytes(), seconds)


if __name__ == "__main__":
    main()
