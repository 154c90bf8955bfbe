"""What is explained: a network, and images to explain it on."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.explain.classifier import View
from dlc_jax.utils.drawing import displayed

# What to call with the fraction that is done.
Tick: TypeAlias = Callable[[float], None]

# So many images stand side by side in a picture at most, and so many classes.
ABREAST = 10


@dataclass(frozen=True)
class Named:
    """Another network, by its name.

    Attributes:
      name: of its run.
      view: the network.
    """

    name: str
    view: View


@dataclass(frozen=True)
class Subject:
    """A network, and the images on which it is explained.

    Attributes:
      view: the network.
      dataset: what it was trained and is tested on.
      pixels: the images, from 0 to 1.
      names: what they are called.
      probabilities: the network's for them.
      key: of all that is random.
      other: a network to which adversarial images may carry over, or None.
    """

    view: View
    dataset: Dataset
    pixels: Float[np.ndarray, "images height width channels"]
    names: tuple[str, ...]
    probabilities: Float[np.ndarray, "images classes"]
    key: PRNGKeyArray
    other: Named | None = None

    @classmethod
    def of(
        cls,
        view: View,
        dataset: Dataset,
        pixels: Float[np.ndarray, "images height width channels"],
        names: tuple[str, ...],
        key: PRNGKeyArray,
        other: Named | None = None,
    ) -> "Subject":
        """The subject, with the network asked what it takes the images for."""
        ask = jax.jit(lambda view, pixels: jax.nn.softmax(view.logits(pixels)))
        return cls(view, dataset, pixels, names, np.asarray(ask(view, pixels)), key, other)

    @property
    def predictions(self) -> Int[np.ndarray, " images"]:
        """The class that the network takes each image for."""
        return self.probabilities.argmax(1)

    @property
    def titles(self) -> list[str]:
        """Each image's name, and what the network says of it."""
        return [
            f"{displayed(name, 20)}\n{answer}"
            for name, answer in zip(self.names, self.answers(self.probabilities), strict=True)
        ]

    def answers(self, probabilities: Any) -> list[str]:
        """For each image the most probable class, and its probability."""
        names = self.dataset.class_names
        rows = np.asarray(probabilities)
        return [_answer(names[row.argmax()], row.max()) for row in rows]

    def confidences(self, images: Any) -> list[str]:
        """For one image of each class its class, and the probability of that."""
        probabilities = np.asarray(jax.nn.softmax(self.view.logits(images)))
        names = self.dataset.class_names
        return [_answer(names[i], row[i]) for i, row in enumerate(probabilities)]

    @property
    def classes(self) -> list[str]:
        """The classes' names, the first of them where there are many."""
        return list(self.dataset.class_names[:ABREAST])

    @property
    def spatial_stages(self) -> list[str]:
        """The stages whose maps have more than one position.

        Raises:
          InputError: there are none.
        """
        shapes = self.view.stage_shapes(self.dataset.image_shape)
        stages = [name for name, s in shapes.items() if len(s) == 3 and s[0] * s[1] > 1]
        if not stages:
            raise InputError(
                f"the network has no feature maps, only {', '.join(shapes)}; choose another method"
            )
        return stages

    def test_examples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first test images, from 0 to 1, and their labels."""
        test = self.dataset.test
        pixels = np.asarray(test.images[:count], np.float32) / 255
        return pixels, np.asarray(test.labels[:count])

    def pages(self) -> Iterator[tuple[str, "Subject"]]:
        """The same with as many images as stand abreast; before it, what to add to names."""
        for start in range(0, len(self.pixels), ABREAST):
            part = slice(start, start + ABREAST)
            yield (
                f"-{start // ABREAST + 1}" if len(self.pixels) > ABREAST else "",
                dataclasses.replace(
                    self,
                    pixels=self.pixels[part],
                    names=self.names[part],
                    probabilities=self.probabilities[part],
                ),
            )


def first_of_each_class(dataset: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Test images to explain where none are given: the first of each class, ten at most."""
    labels = np.asarray(dataset.test.labels)
    classes = np.unique(labels)[:ABREAST]
    places = [int(np.flatnonzero(labels == label)[0]) for label in classes]
    pixels = np.asarray(dataset.test.images)[places].astype(np.float32) / 255
    return pixels, tuple(f"test image {place}" for place in places)


def spread(stages: list[str], count: int) -> list[str]:
    """Some of the stages, evenly from the first to the last."""
    if len(stages) <= count:
        return stages
    return [stages[round(place)] for place in np.linspace(0, len(stages) - 1, count)]


def part_of(tick: Tick, start: float, end: float) -> Tick:
    """Told how far a part is, tells how far the whole is of which it is that from start to end."""
    return lambda fraction: tick(start + fraction * (end - start))


def one_by_one(
    function: Callable[..., Any], tick: Callable[[float], None], *arrays: Any, at_once: int = 1
) -> Any:
    """A function of a batch, of a few rows at a time, so that it can be told how far it is.

    Args:
      function: of arrays, the first axis of which is the batch; likewise its result.
      tick: called with the fraction that is done.
      *arrays: its arguments.
      at_once: how many rows.
    """
    count, results = len(arrays[0]), []
    for start in range(0, count, at_once):
        part = function(*(array[start : start + at_once] for array in arrays))
        results.append(jax.tree.map(np.asarray, part))
        tick(min(start + at_once, count) / count)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _percent(probability: float) -> str:
    # 99.6 % is not all.
    shown = f"{100 * probability:.0f}" if probability < 0.99 else f"{100 * probability:.1f}"
    return f"{shown} %"


def _answer(name: str, probability: float) -> str:
    return f"{displayed(name, 14)}, {_percent(probability)}"
