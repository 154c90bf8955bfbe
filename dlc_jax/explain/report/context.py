"""The classifier and the images that a report explains."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.explain.classifier import ImageClassifier
from dlc_jax.utils.drawing import drawable

# Called with the fraction of the work that is done.
ProgressFn: TypeAlias = Callable[[float], None]

# Largest number of images in a row of a picture, and of classes that are shown.
MAX_COLUMNS = 10


@dataclass(frozen=True)
class NamedClassifier:
    """A classifier and its name.

    Attributes:
      name: Name of its run.
      classifier: The classifier.
    """

    name: str
    classifier: ImageClassifier


@dataclass(frozen=True)
class ExplainContext:
    """A classifier and the images on which it is explained.

    Attributes:
      classifier: The classifier.
      dataset: Dataset that it was trained on.
      pixels: Images, with pixels from 0 to 1.
      names: Names of the images.
      probabilities: Probabilities of all classes for the images.
      key: PRNG key of all methods.
      transfer: Classifier to test adversarial examples on, or None.
    """

    classifier: ImageClassifier
    dataset: Dataset
    pixels: Float[np.ndarray, "images height width channels"]
    names: tuple[str, ...]
    probabilities: Float[np.ndarray, "images classes"]
    key: PRNGKeyArray
    transfer: NamedClassifier | None = None

    @classmethod
    def create(
        cls,
        classifier: ImageClassifier,
        dataset: Dataset,
        pixels: Float[np.ndarray, "images height width channels"],
        names: tuple[str, ...],
        key: PRNGKeyArray,
        transfer: NamedClassifier | None = None,
    ) -> "ExplainContext":
        """Creates a context, and computes the classifier's probabilities."""
        probabilities = np.asarray(classifier.probabilities(pixels))
        return cls(classifier, dataset, pixels, names, probabilities, key, transfer)

    @property
    def predictions(self) -> Int[np.ndarray, " images"]:
        """Predicted class of each image."""
        return self.probabilities.argmax(1)

    @property
    def titles(self) -> list[str]:
        """Name, predicted class and probability of each image."""
        return [
            f"{drawable(name, 20)}\n{prediction}"
            for name, prediction in zip(
                self.names, self.prediction_titles(self.probabilities), strict=True
            )
        ]

    def prediction_titles(self, probabilities: Any) -> list[str]:
        """Returns the predicted class and its probability, for each row of probabilities."""
        names = self.dataset.class_names
        rows = np.asarray(probabilities)
        return [_class_title(names[row.argmax()], row.max()) for row in rows]

    def class_titles(self, images: Any) -> list[str]:
        """Returns each class and its probability, for images of class 0, class 1, and so on."""
        probabilities = np.asarray(self.classifier.probabilities(images))
        names = self.dataset.class_names
        return [_class_title(names[i], row[i]) for i, row in enumerate(probabilities)]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, at most `MAX_COLUMNS`."""
        return list(self.dataset.class_names[:MAX_COLUMNS])

    @property
    def spatial_stages(self) -> list[str]:
        """Stages whose feature maps have more than one position.

        Raises:
          InputError: There are none.
        """
        shapes = self.classifier.stage_shapes(self.dataset.image_shape)
        stages = [name for name, s in shapes.items() if len(s) == 3 and s[0] * s[1] > 1]
        if not stages:
            raise InputError(
                f"the network has no feature maps, only {', '.join(shapes)}; choose another method"
            )
        return stages

    def test_examples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first test images, with pixels from 0 to 1, and their labels."""
        test = self.dataset.test
        pixels = np.asarray(test.images[:count], np.float32) / 255
        return pixels, np.asarray(test.labels[:count])

    def pages(self) -> Iterator[tuple[str, "ExplainContext"]]:
        """Yields contexts with at most `MAX_COLUMNS` images, each with a suffix for file names."""
        for start in range(0, len(self.pixels), MAX_COLUMNS):
            page = slice(start, start + MAX_COLUMNS)
            yield (
                f"-{start // MAX_COLUMNS + 1}" if len(self.pixels) > MAX_COLUMNS else "",
                dataclasses.replace(
                    self,
                    pixels=self.pixels[page],
                    names=self.names[page],
                    probabilities=self.probabilities[page],
                ),
            )


def first_image_of_each_class(dataset: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the first test image of each class, for at most `MAX_COLUMNS` classes.

    Args:
      dataset: The dataset.

    Returns:
      Pixels from 0 to 1, and names of the images.
    """
    labels = np.asarray(dataset.test.labels)
    classes = np.unique(labels)[:MAX_COLUMNS]
    indices = [int(np.flatnonzero(labels == label)[0]) for label in classes]
    pixels = np.asarray(dataset.test.images)[indices].astype(np.float32) / 255
    return pixels, tuple(f"test image {index}" for index in indices)


def evenly_spaced(items: list[str], count: int) -> list[str]:
    """Returns at most `count` of the items, evenly spaced from the first to the last.

    Example:
      >>> evenly_spaced(["a", "b", "c", "d", "e"], 3)
      ['a', 'c', 'e']
    """
    if len(items) <= count:
        return items
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, count)]


def subprogress(progress: ProgressFn, start: float, end: float) -> ProgressFn:
    """Returns a function for the progress of a part of the work, from `start` to `end`."""
    return lambda fraction: progress(start + fraction * (end - start))


def map_batches(
    function: Callable[..., Any], *arrays: Any, batch_size: int, progress: ProgressFn | None = None
) -> Any:
    """Applies a function to batches of arrays, and concatenates the results.

    Args:
      function: Function of arrays, with a batch axis first, to a pytree of such arrays.
      *arrays: Its arguments.
      batch_size: Batch size.
      progress: Called after each batch.
    """
    count, results = len(arrays[0]), []
    for start in range(0, count, batch_size):
        result = function(*(array[start : start + batch_size] for array in arrays))
        results.append(jax.tree.map(np.asarray, result))
        if progress is not None:
            progress(min(start + batch_size, count) / count)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _class_title(name: str, probability: float) -> str:
    # One decimal above 99 %, so that 99.6 % is not rounded to 100 %.
    digits = 0 if probability < 0.99 else 1
    return f"{drawable(name, 14)}, {100 * probability:.{digits}f} %"
