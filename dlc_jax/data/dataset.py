"""Datasets in memory: `Examples`, `Dataset` and `Normalize`."""

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt8

from dlc_jax.errors import InputError
from dlc_jax.typing import AnyArray
from dlc_jax.utils.arrays import owned_copy


class Examples(NamedTuple):
    """Images and labels: a split of a dataset, or a batch.

    Attributes:
      images: [examples, height, width, channels]; uint8 from 0 to 255, or float32 once
        normalized.
      labels: integers [examples], from 0 to the number of classes minus 1.
    """

    images: UInt8[AnyArray, "examples height width channels"]
    labels: Int[AnyArray, " examples"]


def check_num_examples(name: str, requested: int, available: int) -> None:
    """Checks that a dataset has as many training examples as requested.

    Raises:
      InputError: it has fewer.
    """
    if requested > available:
        raise InputError(
            f"{name} has {available:,} training examples, not {requested:,}; ask for fewer"
        )


@dataclass(frozen=True)
class Dataset:
    """An image classification dataset in memory.

    Args:
      copy: whether to check the labels and to copy NumPy arrays, so that later changes to them
        do not reach the dataset.

    Attributes:
      name: the dataset's name.
      version: its publisher's version.
      train: training split.
      test: test split.
      class_names: names of the classes, by label.
      provenance: description of where the arrays came from.

    Raises:
      InputError: a label has no class, or images and labels differ in number.

    Example:
      >>> split = Examples(np.zeros((3, 28, 28, 1), np.uint8), np.array([0, 1, 1]))
      >>> dataset = Dataset("tiny", "1.0", split, split, ("cat", "dog"), "made up")
      >>> dataset.num_train, dataset.image_shape
      (3, (28, 28, 1))
    """

    name: str
    version: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    provenance: str
    copy: InitVar[bool] = True

    def __post_init__(self, copy: bool) -> None:
        for split in ("train", "test") if copy else ():
            object.__setattr__(self, split, jax.tree.map(owned_copy, getattr(self, split)))
            self._check_labels(split)

    def _check_labels(self, split: str) -> None:
        images, labels = getattr(self, split)
        if len(images) != len(labels):
            raise InputError(
                f"{self.name} has {len(images):,} {split} images and {len(labels):,} labels; "
                "give one for each image"
            )
        classes = len(self.class_names)
        for label in (labels.min(), labels.max()) if len(labels) else ():
            if not 0 <= label < classes:
                raise InputError(
                    f"{self.name} has a {split} label {label}, and {classes} classes; number "
                    f"them from 0 to {classes - 1}"
                )

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train.labels)

    @property
    def num_test(self) -> int:
        """Number of test examples."""
        return len(self.test.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = np.shape(self.train.images)[1:]
        return height, width, channels

    def take(self, num_examples: int) -> "Dataset":
        """The dataset with only its first `num_examples` training examples; 0 keeps all.

        Raises:
          InputError: it has fewer.
        """
        check_num_examples(self.name, num_examples, self.num_train)
        if not num_examples:
            return self
        return replace(self, train=_first(self.train, num_examples), copy=False)

    def head(self, max_examples: int) -> "Dataset":
        """The first examples of each split, at most `max_examples` of each."""
        train, test = (_first(split, max_examples) for split in (self.train, self.test))
        return replace(self, train=train, test=test, copy=False)


def _first(split: Examples, num_examples: int) -> Examples:
    return Examples(split.images[:num_examples], split.labels[:num_examples])


@jax.tree_util.register_static
@dataclass(frozen=True)
class Normalize:
    """Normalizes images to (pixel - mean) / std, channel by channel.

    It is hashable and a pytree without leaves, so that it can be passed to transformed functions.

    Args:
      mean: any sequence or array, rounded to float32.
      std: any sequence or array, rounded to float32.

    Attributes:
      mean: mean of each channel, on the pixels' scale from 0 to 255.
      std: standard deviation of each channel, on the same scale.

    Example:
      >>> normalize = Normalize(mean=[100], std=[50])
      >>> normalize(np.array([[[0], [100], [150]]], np.uint8)).ravel()
      Array([-2.,  0.,  1.], dtype=float32)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        mean: Sequence[float] | Float[AnyArray, " channels"],
        std: Sequence[float] | Float[AnyArray, " channels"],
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            object.__setattr__(self, name, tuple(np.asarray(values, np.float32).tolist()))

    @classmethod
    def fit(cls, images: UInt8[AnyArray, "examples height width channels"]) -> "Normalize":
        """Mean and standard deviation over all pixels of the images.

        Example:
          >>> Normalize.fit(np.array([0, 2], np.uint8).reshape(2, 1, 1, 1))
          Normalize(mean=(1.0,), std=(1.0,))
        """
        # In batches that fit the processor's cache.
        images = np.asarray(images)
        return cls.from_batches(images[start : start + 256] for start in range(0, len(images), 256))

    @classmethod
    def from_batches(
        cls, batches: Iterable[UInt8[np.ndarray, "examples height width channels"]]
    ) -> "Normalize":
        """As `fit`, for images that come in batches."""
        total, squares, count = np.zeros(()), np.zeros(()), 0
        for batch in batches:
            pixels = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
            # Sums of integers are exact in float64.
            total = total + np.ones(len(pixels)) @ pixels
            squares = squares + np.einsum("pc,pc->c", pixels, pixels)
            count += len(pixels)
        mean = total / count
        variance = squares / count - mean**2
        # A constant channel becomes zero instead of being divided by zero.
        std = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1)
        return cls(mean, std)

    def __call__(
        self, images: UInt8[AnyArray, "*batch height width channels"]
    ) -> Float[Array, "*batch height width channels"]:
        """The normalized images, as float32."""
        if isinstance(images, np.ndarray):
            # JAX computes in the background, when the caller may already have changed them.
            images = np.array(images, np.float32)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (jnp.asarray(images, jnp.float32) - mean) / std
