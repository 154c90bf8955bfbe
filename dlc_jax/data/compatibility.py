"""What a network's inputs and outputs mean, compared wherever two networks or a dataset meet."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from dlc_jax.errors import InputError


@dataclass(frozen=True)
class Meaning:
    """The images that a network or a dataset is about, and its classes.

    Attributes:
      whose: in words, as `the run in 'runs/first'`.
      image_shape: height, width and channels.
      class_names: in the order of the labels.
    """

    whose: str
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, whose: str, what: Any) -> "Meaning":
        """That of a dataset or a run's configuration."""
        return cls(whose, tuple(what.image_shape), tuple(what.class_names))


def check_same(one: Meaning, other: Meaning) -> None:
    """Sees that two have the same images and the same classes in the same order.

    Raises:
      InputError: they have not; it names the first difference.
    """
    if one.image_shape != other.image_shape:
        shapes = ("x".join(map(str, each.image_shape)) for each in (one, other))
        raise _difference(one, other, "images of {}", *shapes)
    names, others = one.class_names, other.class_names
    for label, (ours, theirs) in enumerate(zip_longest(names, others)):
        if ours is None or theirs is None:
            raise _difference(one, other, "{} classes", len(names), len(others))
        if ours != theirs:
            raise _difference(one, other, f"{{}} as class {label}", repr(ours), repr(theirs))


def _difference(one: Meaning, other: Meaning, what: str, ours: Any, theirs: Any) -> InputError:
    return InputError(
        f"{other.whose} has {what.format(theirs)}, while {one.whose} has {what.format(ours)}; "
        "give those that are about the same images and classes, in the same order"
    )
