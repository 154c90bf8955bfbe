"""Which networks there are, and where each comes from."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from dlc_jax.errors import InputError
from dlc_jax.models.lecture import Lecture
from dlc_jax.models.network import Network


@dataclass(frozen=True)
class Entry:
    """A network by name.

    Attributes:
      year: when it was published.
      source: authors, title or section.
      image_shape: height, width and channels of the images that it was published for.
      num_classes: how many classes it was published for.
      build: makes one.
    """

    year: int
    source: str
    image_shape: tuple[int, int, int]
    num_classes: int
    build: Callable[..., Network]

    def options(self) -> list[str]:
        """The names of what the network can be told."""
        network: Any = self.build.func if isinstance(self.build, partial) else self.build
        return [name for name in inspect.signature(network.__init__).parameters if name != "self"]

    def create(self, **arguments: Any) -> Network:
        """Builds the network; an InputError names an option that it does not know."""
        unknown = sorted(arguments.keys() - self.options())
        if unknown:
            raise InputError(
                f"this network has no option {unknown[0]!r}; it takes {', '.join(self.options())}"
            )
        return self.build(**arguments)


_MNIST, _CIFAR, _IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)

CATALOGUE: dict[str, Entry] = {
    "lecture": Entry(2018, "Fleuret, EE-559, lecture 1a", _MNIST, 10, Lecture),
}
