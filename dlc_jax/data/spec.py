"""Checks that networks and datasets have the same images and classes before they are combined."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

from dlc_jax.errors import InputError


class HasDataSpec(Protocol):
    """A dataset, or the configuration of a run."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        ...


@dataclass(frozen=True)
class DataSpec:
    """The images and classes of a network or a dataset.

    Attributes:
      label: Description of the network or dataset, such as "the run in 'runs/first'".
      image_shape: Height, width and channels.
      class_names: Names of the classes, by label.
    """

    label: str
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]

    @classmethod
    def from_source(cls, label: str, source: HasDataSpec) -> "DataSpec":
        """Makes the spec of a dataset or of a run's configuration."""
        return cls(label, tuple(source.image_shape), tuple(source.class_names))


def check_compatible(first: DataSpec, second: DataSpec) -> None:
    """Checks that two specs have the same image shape and the same classes in the same order.

    Raises:
      InputError: The specs differ; the message names the first difference.

    Example:
      >>> mnist = DataSpec("the dataset mnist", (28, 28, 1), tuple("0123456789"))
      >>> check_compatible(mnist, mnist)
    """
    if first.image_shape != second.image_shape:
        shapes = ("x".join(map(str, spec.image_shape)) for spec in (first, second))
        raise _difference(first, second, "images of {}", *shapes)
    names = first.class_names, second.class_names
    for label, (one, other) in enumerate(zip_longest(*names)):
        if one is None or other is None:
            raise _difference(first, second, "{} classes", *map(len, names))
        if one != other:
            raise _difference(first, second, f"{{}} as class {label}", repr(one), repr(other))


def _difference(
    first: DataSpec, second: DataSpec, template: str, one: object, other: object
) -> InputError:
    return InputError(
        f"{second.label} has {template.format(other)}, while {first.label} has "
        f"{template.format(one)}; use the same images and classes, in the same order"
    )
