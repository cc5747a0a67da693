"""Where data sets are found: the folder that ``COVEY_DATA`` names, then the user's cache."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from covey.types.errors import DatasetMissingError

__all__ = ["cache_dir", "find", "load_arrays"]


def cache_dir() -> Path:
    """Return the folder for downloads and unpacked arrays; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "covey" / "data"


def find(dataset: str, *names: str) -> Path:
    """Return the first of ``names`` (paths below a data folder) that exists.

    Raises:
        DatasetMissingError: says where was looked and what to do.
    """
    folders = [Path(f) for f in (os.environ.get("COVEY_DATA"),) if f] + [cache_dir()]
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise DatasetMissingError(
        f"data set {dataset!r}",
        expected=f"{' or '.join(names)} under COVEY_DATA or {cache_dir()}",
        got="no such file",
        hint=f"run `covey data fetch {dataset}`, or set COVEY_DATA to a folder that has it",
    )


def load_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of an .npz file as memory maps.

    Unpacked once into the cache, so that many worker processes share the pages and none unpacks again. Where the cache
    cannot be written, the arrays are simply loaded.
    """
    stat = path.stat()
    folder = cache_dir() / "arrays" / f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}"
    if not folder.is_dir():
        with np.load(path) as archive:
            arrays = {k: archive[k] for k in archive.files}
        try:
            partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
            partial.mkdir(parents=True)
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array)
            partial.rename(folder)
        except OSError:
            return arrays  # no room or no right to write: slower, but right
    return {p.stem: np.load(p, mmap_mode="r") for p in sorted(folder.glob("*.npy"))}
