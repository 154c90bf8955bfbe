"""Cache of decoded datasets, as safetensors files.

The metadata has a hash of each array, which is checked on reading. The three most recently used
versions of each dataset are kept; other source files or numbers of shards count as versions.
"""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from dlc_jax.data.dataset import Dataset, Examples
from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json
from dlc_jax.utils.files import atomic_writer, cache_folder, remove_partial_files

# A key consists of the dataset, its source (a version and, for TFDS, a fingerprint of the files)
# and, for part of a dataset, the shard.
_KEY = re.compile(
    r"(?P<name>.+?)-(?P<source>\d[\w.+]*(-[0-9a-f]{12})?)(-\d+(?P<num_shards>of\d+))?\.safetensors"
)
_SOURCES_PER_DATASET = 3


def path(key: str) -> Path:
    """Returns the cache file of a key, whether or not it exists."""
    return cache_folder() / f"{key}.safetensors"


def contains(key: str) -> bool:
    """Returns whether the cache has a dataset; False if its folder can't be read."""
    try:
        return path(key).is_file()
    except OSError:
        return False


def get_or_load(key: str, load: Callable[[], Dataset]) -> Dataset:
    """Returns the cached dataset of a key; if there is none, loads and caches it.

    If the cache can't be read or written, for lack of permission or space, `load` is called each
    time.

    Args:
      key: Key of the dataset that `load` returns.
      load: Function that loads the dataset.

    Raises:
      InputError: The cache file is damaged.
    """
    file = path(key)
    # Without the cache, loading is only slower.
    with suppress(OSError):
        if file.is_file():
            dataset = _read(file)
            with suppress(OSError):
                os.utime(file)  # marks it as used
            return dataset
    dataset = load()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_partial_files(file.parent)
        _write(file, dataset)
        _evict_others(file)
    return dataset


def _evict_others(file: Path) -> None:
    """Removes the files of all but the most recently used sources of the same dataset."""
    key = _KEY.fullmatch(file.name)
    if key is None:
        return
    by_source: dict[tuple[str, str | None], list[Path]] = {}
    for other in file.parent.iterdir():
        found = _KEY.fullmatch(other.name)
        if found and found["name"] == key["name"]:
            by_source.setdefault((found["source"], found["num_shards"]), []).append(other)
    by_use = sorted(by_source.values(), key=lambda files: max(f.stat().st_mtime for f in files))
    for other in (other for files in by_use[:-_SOURCES_PER_DATASET] for other in files):
        other.unlink(missing_ok=True)


def _write(path: Path, dataset: Dataset) -> None:
    arrays = {
        f"{split}_{field}": np.asarray(array)
        for split in ("train", "test")
        for field, array in getattr(dataset, split)._asdict().items()
    }
    metadata = {key: getattr(dataset, key) for key in ("name", "version", "provenance")}
    metadata["class_names"] = strict_json.dumps(dataset.class_names)
    metadata |= {key: _hash(array) for key, array in arrays.items()}
    with atomic_writer(path) as file:
        file.write(safetensors.numpy.save(arrays, metadata))


def _hash(array: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data)


def _read(path: Path) -> Dataset:
    with path.open("rb"):
        pass  # safetensors reports missing permissions as damage
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata()
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if any(_hash(array) != metadata[key] for key, array in arrays.items()):
            raise ValueError("an array does not match its hash")
        splits = {
            split: Examples(arrays[f"{split}_images"], arrays[f"{split}_labels"])
            for split in ("train", "test")
        }
        names = tuple(json.loads(metadata["class_names"]))
        return Dataset(
            metadata["name"],
            metadata["version"],
            **splits,
            class_names=names,
            provenance=metadata["provenance"],
            copy=False,
        )
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"the cache file {str(path)!r} is damaged; delete it and run again to recreate it"
        ) from error
