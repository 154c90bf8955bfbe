"""Datasets in memory: `Examples` and `Dataset`."""

from dataclasses import InitVar, dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8

from dlc_jax.errors import InputError
from dlc_jax.typing import AnyArray
from dlc_jax.utils.arrays import owned_copy


class Examples(NamedTuple):
    """Images and labels: a split of a dataset, or a batch.

    Attributes:
      images: Array [examples, height, width, channels]; uint8 from 0 to 255, or float32 once
        normalized.
      labels: Integers [examples], from 0 to the number of classes minus 1.
    """

    images: UInt8[AnyArray, "examples height width channels"]
    labels: Int[AnyArray, " examples"]


def check_num_examples(name: str, requested: int, available: int) -> None:
    """Checks that a dataset has as many training examples as requested.

    Raises:
      InputError: The dataset has fewer.
    """
    if requested > available:
        raise InputError(
            f"{name} has {available:,} training examples, not {requested:,}; use fewer"
        )


@dataclass(frozen=True)
class Dataset:
    """An image classification dataset in memory.

    Args:
      copy: Whether to check the labels, and to copy NumPy arrays so that later changes to them do
        not affect the dataset.

    Attributes:
      name: Name of the dataset.
      version: The publisher's version.
      train: Training split.
      test: Test split.
      class_names: Names of the classes, by label.
      provenance: Description of where the arrays came from.

    Raises:
      InputError: A label has no class, or images and labels differ in number.

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
                "give one label per image"
            )
        classes = len(self.class_names)
        for label in (labels.min(), labels.max()) if len(labels) else ():
            if not 0 <= label < classes:
                raise InputError(
                    f"{self.name} has the {split} label {label}, but {classes} classes; use labels "
                    f"from 0 to {classes - 1}"
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
        """Returns the dataset with its first `num_examples` training examples; 0 keeps all.

        Raises:
          InputError: The dataset has fewer.
        """
        check_num_examples(self.name, num_examples, self.num_train)
        if not num_examples:
            return self
        return replace(self, train=_first(self.train, num_examples), copy=False)

    def head(self, max_examples: int) -> "Dataset":
        """Returns the first examples of each split, at most `max_examples` of each."""
        train, test = (_first(split, max_examples) for split in (self.train, self.test))
        return replace(self, train=train, test=test, copy=False)


def _first(split: Examples, num_examples: int) -> Examples:
    return Examples(split.images[:num_examples], split.labels[:num_examples])
