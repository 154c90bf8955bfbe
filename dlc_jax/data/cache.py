"""Decoded datasets, kept as files that open in a fraction of a second.

A file holds one dataset as safetensors, with a hash of each array among its metadata that
is compared whenever the file is read.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from dlc_jax.data.examples import Dataset, Examples
from dlc_jax.errors import InputError
from dlc_jax.files import atomic_writer, cache_folder


def path(key: str) -> Path:
    """The file that keeps the dataset of that key, once it has been loaded."""
    return cache_folder() / f"{key}.safetensors"


def through(key: str, load: Callable[[], Dataset]) -> Dataset:
    """The dataset kept under `key`, or, the first time, what `load` returns.

    Args:
      key: changes whenever what `load` would return changes.
      load: takes the slow way to the same dataset.

    Raises:
      InputError: the file is damaged.
    """
    file = path(key)
    if file.exists():
        return _read(file)
    dataset = load()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, dataset)
    except OSError:
        # Without a cache everything works, only more slowly.
        pass
    return dataset


def _write(path: Path, dataset: Dataset) -> None:
    arrays = {
        f"{split}_{field}": np.asarray(array)
        for split in ("train", "test")
        for field, array in getattr(dataset, split)._asdict().items()
    }
    about = {key: getattr(dataset, key) for key in ("name", "version", "provenance")}
    about["class_names"] = json.dumps(dataset.class_names)
    about |= {key: _hash(array) for key, array in arrays.items()}
    with atomic_writer(path) as file:
        file.write(safetensors.numpy.save(arrays, about))


def _hash(array: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data)


def _read(path: Path) -> Dataset:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata()
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if any(_hash(array) != about[key] for key, array in arrays.items()):
            raise ValueError("the arrays are not those that were written")
        splits = {
            split: Examples(arrays[f"{split}_images"], arrays[f"{split}_labels"])
            for split in ("train", "test")
        }
        names = tuple(json.loads(about["class_names"]))
        return Dataset(
            about["name"],
            about["version"],
            **splits,
            class_names=names,
            provenance=about["provenance"],
            copy=False,
        )
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"the cache file {str(path)!r} is damaged; delete it and run again to make it anew"
        ) from error
