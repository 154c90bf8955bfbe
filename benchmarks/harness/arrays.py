"""Training and test images in an `.npz` file."""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlc_jax.data.dataset import Examples
from dlc_jax.errors import InputError
from dlc_jax.utils.files import atomic_writer


def read_arrays(
    path: Path, image_shape: tuple[int, int, int] = (28, 28, 1)
) -> tuple[Examples, Examples]:
    """Reads the training and the test split from arrays x_train, y_train, x_test, y_test.

    Args:
      path: An `.npz` file.
      image_shape: Height, width and channels that the images must have.

    Raises:
      InputError: The file is missing, or does not contain such arrays.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            splits = [
                Examples(file[f"x_{name}"], file[f"y_{name}"].astype(np.int32))
                for name in ("train", "test")
            ]
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{str(path)!r} does not hold the arrays x_train, y_train, x_test, y_test ({error})"
        ) from error
    for images, labels in splits:
        if images.dtype != np.uint8 or images.shape[1:] != image_shape or len(images) < 100:
            height, width, channels = image_shape
            raise InputError(
                f"{str(path)!r} holds images of {images.dtype} {images.shape}; give at least 100 "
                f"of uint8, {height}x{width}x{channels}"
            )
        if labels.shape != images.shape[:1]:
            raise InputError(f"{str(path)!r} holds {len(images)} images, but {labels.shape} labels")
    return splits[0], splits[1]


@contextlib.contextmanager
def arrays_file(splits: tuple[Examples, Examples]) -> Iterator[Path]:
    """Creates a temporary file for `read_arrays`, which is removed when the context ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        with atomic_writer(path) as file:
            (x_train, y_train), (x_test, y_test) = splits
            np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
        yield path
