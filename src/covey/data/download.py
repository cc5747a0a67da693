"""Fetch public data sets, on request only, each file checked against its published checksum."""

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from covey.data.locate import cache_dir
from covey.types.errors import BlobHashError, NotFoundError, TransportError

__all__ = ["DOWNLOADS", "RemoteFile", "fetch"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file: where it is, its published MD5, and where it goes below the data folder.

    MD5 is what the authors of these sets publish; it guards against a broken download, not against malice. The data
    are training examples, never code.
    """

    url: str
    md5: str
    path: str


def _mnist(name: str, md5: str) -> RemoteFile:
    return RemoteFile(f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz", md5, f"mnist/{name}.gz")


DOWNLOADS: Mapping[str, tuple[RemoteFile, ...]] = {
    "mnist": (
        _mnist("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _mnist("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
        _mnist("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
        _mnist("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "cifar10": (
        RemoteFile(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar10/cifar-10-binary.tar.gz",
        ),
    ),
}


def fetch(
    dataset: str,
    *,
    files: tuple[RemoteFile, ...] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Path]:
    """Download a data set into the cache; files that are there already are not fetched again.

    Args:
        dataset: one of :data:`DOWNLOADS`.
        files: others than its own.
        on_progress: called with a file's name, the bytes so far, and all bytes (0 where the server does not say).

    Raises:
        NotFoundError: there is no download for it.
        TransportError: no answer.
        BlobHashError: other bytes than published; nothing is kept.
    """
    if files is None and dataset not in DOWNLOADS:
        raise NotFoundError("download", expected=f"one of {', '.join(DOWNLOADS)}", got=dataset)
    out = []
    for file in files or DOWNLOADS[dataset]:
        path = cache_dir() / file.path
        if not path.exists():
            _fetch_file(file, path, on_progress)
        out.append(path)
    return out


def _fetch_file(file: RemoteFile, path: Path, on_progress: Callable[[str, int, int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, done = hashlib.md5(usedforsecurity=False), 0
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(file.url, timeout=60) as answer:
            total = int(answer.headers.get("content-length") or 0)
            while chunk := answer.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
                done += len(chunk)
                on_progress(path.name, done, total)
        if digest.hexdigest() != file.md5:
            raise BlobHashError(
                path.name, expected=f"md5 {file.md5}", got=digest.hexdigest(), hint="nothing was kept; try again later"
            )
        Path(temporary).replace(path)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as e:
        raise TransportError(
            file.url, expected="an answer", got=str(e)[:200], hint="check the network, or set COVEY_DATA"
        ) from e
    finally:
        Path(temporary).unlink(missing_ok=True)
