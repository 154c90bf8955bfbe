"""What a dataset is once it is loaded: arrays, and the names that go with them."""

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt8

from dlc_jax.errors import InputError

# What jitted functions take without ado.
AnyArray: TypeAlias = Array | np.ndarray


def unshared(leaf: Any) -> Any:
    """A copy of an array of NumPy, which a caller may change; anything else as it is."""
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


class Examples(NamedTuple):
    """Images and their labels, as arrays of NumPy or JAX: a split of a dataset, or a batch.

    It is a plain tuple, which holds the arrays themselves.

    Attributes:
      images: [examples, height, width, channels]; uint8 as stored, from 0 to 255, or
        float32 once normalised.
      labels: int32 [examples], from 0 to the number of classes less one.
    """

    images: UInt8[AnyArray, "examples height width channels"]
    labels: Int[AnyArray, " examples"]


def check_count(name: str, examples: int, count: int) -> None:
    """Refuses to take more training examples of a dataset than it has.

    Raises:
      InputError: `examples` is more than `count`.
    """
    if examples > count:
        raise InputError(f"{name} has {count:,} training examples, not {examples:,}; ask for fewer")


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory.

    Args:
      copy: whether to check the labels, and to copy arrays of NumPy, so that the dataset stays the
        same when these are changed. False saves both where nobody changes them.

    Attributes:
      name: what it is called here.
      version: its publisher's version.
      train: what to learn from.
      test: what to measure the error on.
      class_names: what each label means.
      provenance: where these arrays came from, in words.

    Raises:
      InputError: there is a label for which there is no class, or not one for each image.
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
            object.__setattr__(self, split, jax.tree.map(unshared, getattr(self, split)))
            self._check_labels(split)

    def _check_labels(self, split: str) -> None:
        images, labels = getattr(self, split)
        if len(images) != len(labels):
            raise InputError(
                f"{self.name} has {len(images):,} {split} images and {len(labels):,} labels; "
                "give one for each image"
            )
        classes = len(self.class_names)
        for extreme in (labels.min(), labels.max()) if len(labels) else ():
            if not 0 <= extreme < classes:
                raise InputError(
                    f"{self.name} has a {split} label {extreme}, and {classes} classes; number "
                    f"them from 0 to {classes - 1}"
                )

    def first(self, examples: int) -> "Dataset":
        """The dataset with the first so many training examples only; all of them for 0.

        Raises:
          InputError: it has fewer.
        """
        check_count(self.name, examples, len(self.train.labels))
        if not examples:
            return self
        images, labels = self.train
        return replace(self, train=Examples(images[:examples], labels[:examples]), copy=False)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many training and how many test examples there are."""
        return len(self.train.labels), len(self.test.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = np.shape(self.train.images)[1:]
        return height, width, channels

    def sample(self, most: int) -> "Dataset":
        """The first examples of each split, so many at most, in memory."""
        train, test = (
            Examples(*(array[:most] for array in split)) for split in (self.train, self.test)
        )
        return replace(self, train=train, test=test, copy=False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalise:
    """Maps pixels to (pixel - mean) / std, channel by channel.

    It is a pytree and a function at once, so that it can be handed to a jitted function.

    Attributes:
      mean: float32 [channels], on the pixels' own scale from 0 to 255.
      std: float32 [channels], likewise.
    """

    mean: Float[AnyArray, " channels"]
    std: Float[AnyArray, " channels"]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, unshared(getattr(self, name)))

    @classmethod
    def fit(cls, images: UInt8[AnyArray, "examples height width channels"]) -> "Normalise":
        """The mean and standard deviation of all pixels of the given images."""
        # In pieces that stay in the processor's cache.
        images = np.asarray(images)
        return cls.over(images[start : start + 256] for start in range(0, len(images), 256))

    @classmethod
    def over(
        cls, pieces: Iterable[UInt8[np.ndarray, "examples height width channels"]]
    ) -> "Normalise":
        """The same of images that come a few at a time."""
        total, squares, count = np.zeros(()), np.zeros(()), 0
        for piece in pieces:
            pixels = piece.reshape(-1, piece.shape[-1]).astype(np.float64)
            # Sums of integers are exact in float64.
            total = total + np.ones(len(pixels)) @ pixels
            squares = squares + np.einsum("pc,pc->c", pixels, pixels)
            count += len(pixels)
        mean = total / count
        variance = squares / count - mean**2
        # A channel that never varies is left at zero instead of dividing by it.
        std = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1)
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def __call__(
        self, images: UInt8[AnyArray, "*batch height width channels"]
    ) -> Float[Array, "*batch height width channels"]:
        """The images as float32, of mean 0 and standard deviation 1 where it was fitted."""
        if isinstance(images, np.ndarray):
            # JAX computes in the background, and would read what the caller may change by then.
            images = np.array(images, np.float32)
        return (jnp.asarray(images, jnp.float32) - self.mean) / self.std
