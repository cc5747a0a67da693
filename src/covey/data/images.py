"""MNIST and CIFAR-10, dealt out to clients.

Pixels are float32 in [0, 1] (the byte over 255), flat for MNIST [784] and [32, 32, 3] for CIFAR-10; labels are int32.
Images stay bytes until a client asks for them.
"""

import gzip
import io
import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey.data.dataset import Examples, FederatedDataset, PartitionedDataset
from covey.data.locate import find, load_arrays
from covey.data.partition import Partition, by_writer, dirichlet, iid, two_class
from covey.data.resampled import ResampledDataset
from covey.types.errors import DatasetMissingError, UsageError
from covey.types.rng import generator

__all__ = ["cifar10", "mnist"]

Bytes = NDArray[np.uint8]
Pool = dict[str, Any]

_MNIST_IDX = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}


def mnist(partition: Partition, num_clients: int, seed: int) -> FederatedDataset:
    """Return MNIST: 60,000 training and 10,000 test images.

    Raises:
        DatasetMissingError: says what to do.
        UsageError: a partition that it does not have.
    """
    path = find("mnist", "mnist/mnist.npz", "mnist/train-images-idx3-ubyte.gz")
    pool = load_arrays(path) if path.suffix == ".npz" else _read_idx(path.parent)

    def writers() -> Any:
        return load_arrays(find("mnist", "mnist/mnist_writers.npz"))["writer_train"]

    return _dealt("mnist", pool, partition, num_clients, seed, flat=True, writers=writers)


def cifar10(partition: Partition, num_clients: int, seed: int, *, small: bool = False) -> FederatedDataset:
    """Return CIFAR-10; ``small``: only 3,000 training and 1,000 test images, already decoded.

    The lossless archive is preferred; a JPEG edition needs Pillow (the extra ``images``) and gives slightly other
    figures: the data set's name says which it is.

    Raises:
        DatasetMissingError: says what to do.
        UsageError: a partition that it does not have, or Pillow is missing.
    """
    if small:
        pool = load_arrays(find("cifar10", "cifar10_jpeg/cifar10_small_rgb.npz"))
        return _dealt("cifar10-small", pool, partition, num_clients, seed)
    path = find("cifar10", "cifar10/cifar-10-binary.tar.gz", "cifar10_jpeg/cifar10_jpeg.npz")
    if path.suffix == ".npz":
        return _dealt("cifar10-jpeg", _read_jpeg(path), partition, num_clients, seed)
    return _dealt("cifar10", _read_binary(path), partition, num_clients, seed)


def _dealt(
    name: str,
    pool: Pool,
    partition: Partition,
    num_clients: int,
    seed: int,
    *,
    flat: bool = False,
    writers: Callable[[], Any] | None = None,
) -> FederatedDataset:
    labels = np.asarray(pool["y_train"])

    def rows(index: NDArray[np.int64]) -> Examples:
        return _examples(pool["x_train"][index], labels[index], flat)

    def test() -> Examples:
        return _examples(pool["x_test"][:], pool["y_test"][:], flat)

    if partition.kind == "resample":
        return ResampledDataset(name, num_clients, partition.num_examples, len(labels), rows, test, seed)
    rng = generator(seed, "partition", name, partition.kind)
    match partition.kind:
        case "iid":
            parts = iid(len(labels), num_clients, rng)
        case "two-class":
            parts = two_class(labels, num_clients, rng)
        case "dirichlet":
            parts = dirichlet(labels, num_clients, partition.alpha, rng)
        case "writer" if writers is not None:
            parts = list(by_writer(writers()).values())
        case _:
            kinds = "iid, two-class, dirichlet:ALPHA, resample:N" + (" or writer" if writers else "")
            raise UsageError("--partition", expected=f"{kinds} for {name}", got=partition.kind)
    named = {f"{partition.kind}-{i:04d}": part for i, part in enumerate(parts)}
    return PartitionedDataset(name, named, rows, test)


def _examples(images: Bytes, labels: Bytes, flat: bool) -> Examples:
    pixels = np.asarray(images, np.float32) / np.float32(255)
    return {"x": pixels.reshape(len(pixels), -1) if flat else pixels, "y": np.asarray(labels, np.int32)}


def _read_idx(folder: Path) -> Pool:
    """Read the four files of the original distribution: a big-endian header, then bytes."""
    pool: Pool = {}
    for name, file in _MNIST_IDX.items():
        if not (folder / file).is_file():
            raise DatasetMissingError(
                "data set 'mnist'", expected=file, got="no such file", hint="run `covey data fetch mnist`"
            )
        raw = gzip.decompress((folder / file).read_bytes())
        num_dims = raw[3]
        shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(num_dims))
        pool[name] = np.frombuffer(raw, np.uint8, offset=4 + 4 * num_dims).reshape(shape)
    return pool


def _read_binary(path: Path) -> Pool:
    """Read the binary archive: records of one label byte and 3 x 32 x 32 pixels, channels first."""
    parts: dict[str, list[Bytes]] = {"train": [], "test": []}
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if member.name.endswith(".bin"):
                file = archive.extractfile(member)
                assert file is not None
                records = np.frombuffer(file.read(), np.uint8).reshape(-1, 3073)
                parts["test" if "test_batch" in member.name else "train"].append(records)
    pool: Pool = {}
    for split, found in parts.items():
        whole = np.concatenate(found)
        pool[f"y_{split}"] = whole[:, 0]
        pool[f"x_{split}"] = whole[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return pool


def _read_jpeg(path: Path) -> Pool:
    try:
        from PIL import Image
    except ImportError as e:
        raise UsageError(
            "data set 'cifar10'", expected="Pillow", got="no such package", hint="pip install 'covey[images]'"
        ) from e
    with np.load(path) as z:
        header = z["header"].tobytes()
        pool: Pool = {"y_train": z["y_train"], "y_test": z["y_test"]}
        for split in ("train", "test"):
            scan, offsets = z[f"scan_{split}"].tobytes(), z[f"off_{split}"]
            out = np.empty((len(offsets) - 1, 32, 32, 3), np.uint8)
            for i, (a, b) in enumerate(itertools.pairwise(offsets)):
                out[i] = np.asarray(Image.open(io.BytesIO(header + scan[a:b])).convert("RGB"))
            pool[f"x_{split}"] = out
    return pool
