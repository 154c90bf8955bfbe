"""MNIST and CIFAR-10 from exported files, for machines without a network or TFDS.

A dataset consists of files `NAME-00.npz`, `NAME-01.npz` and so on. Each contains the arrays `blob`
(uint8) of PNG images, one after the other, where image i is `blob[offset[i]:offset[i + 1]]`;
`offset`; `label` (int32); and `test` (bool).
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from dlc_jax import data
from dlc_jax.data import Dataset, Examples
from dlc_jax.errors import InputError

_SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def read(name: str, folder: Path | None) -> Dataset:
    """Reads a dataset from exported files, or with TFDS if no folder is given.

    Raises:
      InputError: The folder contains no files of the dataset, or they are damaged.
    """
    if folder is None:
        dataset = data.load(name)
        assert isinstance(dataset, Dataset)
        return dataset
    paths = sorted(folder.glob(f"{name}-*.npz"))
    if not paths:
        raise InputError(f"{str(folder)!r} holds no files {name}-*.npz; export {name} into it")
    try:
        parts = [_read_part(path) for path in paths]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{str(folder)!r}: {name} can't be read ({error})") from error
    images, labels, test = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if test.all() or not test.any():
        raise InputError(
            f"{str(folder)!r}: there are only {'test' if test.all() else 'training'} images in "
            f"{name}-*.npz; a part is missing"
        )
    images = images.reshape(-1, *_SHAPES[name])
    splits = [Examples(images[split], labels[split]) for split in (~test, test)]
    return _dataset(name, splits[0], splits[1], f"exported files in {folder}")


def random_dataset(name: str, examples: int) -> Dataset:
    """Returns random images whose brightness increases with the class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 2 * examples, np.int32)
    images = rng.integers(0, 156, (2 * examples, *_SHAPES[name]), np.uint8)
    images += (10 * labels).astype(np.uint8)[:, None, None, None]
    train, test = (
        Examples(images[split], labels[split]) for split in (slice(examples), slice(examples, None))
    )
    return _dataset(name, train, test, "random images")


def _dataset(name: str, train: Examples, test: Examples, provenance: str) -> Dataset:
    classes = tuple(str(label) for label in range(10))
    return Dataset(name, "", train, test, classes, provenance, copy=False)


def _read_part(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as part:
        blob, offset = part["blob"].tobytes(), part["offset"]
        label, test = part["label"].astype(np.int32), part["test"].astype(bool)

    def pixels(i: int) -> np.ndarray:
        with Image.open(io.BytesIO(blob[offset[i] : offset[i + 1]]), formats=["PNG"]) as image:
            return np.asarray(image)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(pixels, range(len(label)), chunksize=500))), label, test
