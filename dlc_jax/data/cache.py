"""Decoded datasets, kept as files that open in a fraction of a second.

A file holds one dataset as safetensors, with a hash of each array among its metadata that
is compared whenever the file is read. Of each dataset the sources used last are kept.
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
from dlc_jax.utils.files import atomic_writer, cache_folder, remove_abandoned

# A key: the dataset, where it came from (a version, and maybe a fingerprint of its files), and
# which part of how many.
_KEY = re.compile(
    r"(?P<name>.+?)-(?P<source>\d[\w.+]*(-[0-9a-f]{12})?)(-\d+(?P<parts>of\d+))?\.safetensors"
)
# Of each dataset.
_SOURCES_KEPT = 3


def path(key: str) -> Path:
    """The file that keeps the dataset of that key, once it has been loaded."""
    return cache_folder() / f"{key}.safetensors"


def is_kept(key: str) -> bool:
    """Whether there is a file for that key, as far as one may look."""
    try:
        return path(key).is_file()
    except OSError:
        return False


def through(key: str, load: Callable[[], Dataset]) -> Dataset:
    """The dataset kept under `key`, or, the first time, what `load` returns.

    Where the file can't be read or written for want of permission or space, it is what `load`
    returns every time.

    Args:
      key: changes whenever what `load` would return changes.
      load: takes the slow way to the same dataset.

    Raises:
      InputError: the file is damaged.
    """
    file = path(key)
    # Without a cache everything works, only more slowly.
    with suppress(OSError):
        if file.is_file():
            dataset = _read(file)
            with suppress(OSError):
                os.utime(file)  # says when it was last used
            return dataset
    dataset = load()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(file.parent)
        _write(file, dataset)
        _forget_others(file)
    return dataset


def _forget_others(file: Path) -> None:
    """Removes files of sources of the same dataset that were used before the last few.

    The files of a source that is prepared anew, or of a version that is there no longer, would
    otherwise stay for ever.
    """
    wanted = _KEY.fullmatch(file.name)
    if wanted is None:
        return
    by_source: dict[tuple[str, str | None], list[Path]] = {}
    for other in file.parent.iterdir():
        found = _KEY.fullmatch(other.name)
        if found and found["name"] == wanted["name"]:
            by_source.setdefault((found["source"], found["parts"]), []).append(other)
    last_used = sorted(by_source.values(), key=lambda files: max(f.stat().st_mtime for f in files))
    for other in (other for files in last_used[:-_SOURCES_KEPT] for other in files):
        other.unlink(missing_ok=True)


def _write(path: Path, dataset: Dataset) -> None:
    arrays = {
        f"{split}_{field}": np.asarray(array)
        for split in ("train", "test")
        for field, array in getattr(dataset, split)._asdict().items()
    }
    about = {key: getattr(dataset, key) for key in ("name", "version", "provenance")}
    about["class_names"] = strict_json.dumps(dataset.class_names)
    about |= {key: _hash(array) for key, array in arrays.items()}
    with atomic_writer(path) as file:
        file.write(safetensors.numpy.save(arrays, about))


def _hash(array: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data)


def _read(path: Path) -> Dataset:
    with path.open("rb"):
        pass  # whether it can be read at all, which safetensors does not tell from damage
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
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"the cache file {str(path)!r} is damaged; delete it and run again to make it anew"
        ) from error
