"""The networks, one file each in the lecture's order of history, created by their names.

`create("lecture", ...)` builds one, `names()` lists them, and `CATALOGUE` tells where each
comes from.
"""

import difflib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dlc_jax.errors import InputError
from dlc_jax.models.catalogue import CATALOGUE, Entry
from dlc_jax.models.lecture import Lecture
from dlc_jax.models.network import Network

__all__ = ["CATALOGUE", "Entry", "Lecture", "Network", "abstract", "create", "find", "names"]


def names() -> list[str]:
    """The names that `create` knows, oldest first."""
    return list(CATALOGUE)


def find(name: str) -> Entry:
    """What is known of the network called `name`.

    Raises:
      InputError: no network has that name.
    """
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise InputError(f"there is no network called {name!r}; did you mean {', '.join(near)}?")
    return CATALOGUE[name]


def create(
    name: str,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    **options: Any,
) -> Network:
    """Builds the network called `name` with freshly drawn weights.

    Args:
      name: one of `names()`.
      image_shape: height, width and channels of its images; by default its paper's.
      num_classes: how many logits it returns for an image; by default as in its paper.
      rngs: where its initial weights come from, as `nnx.Rngs(0)`.
      dtype: what it computes in; its parameters are always float32.
      **options: what else that network can be told, as `shortcut="A"` to a ResNet; see its
        class.

    Returns:
      A module that maps float images of shape [batch, *image_shape] to logits of shape
      [batch, num_classes], and to its stages by name (`stages`).

    Raises:
      InputError: no network has that name, it knows no such option, or the images do not
        suit it.
    """
    entry = find(name)
    return entry.create(
        image_shape=entry.image_shape if image_shape is None else image_shape,
        num_classes=entry.num_classes if num_classes is None else num_classes,
        rngs=rngs,
        dtype=dtype,
        **options,
    )


class _OneKey(nnx.RngStream):
    """Gives the same key again and again: to count keys takes most of an abstract creation."""

    def __call__(self) -> jax.Array:
        key: jax.Array = self.key[...]
        return key


def abstract(name: str, **arguments: Any) -> Network:
    """The network called `name` with shapes and dtypes in place of arrays.

    It is to be described, or filled with weights; it has no random numbers of its own, such as
    dropout draws.

    Args:
      name: one of `names()`.
      **arguments: as for `create`, without `rngs`.

    Raises:
      InputError: as `create` does.
    """

    def created() -> Network:
        rngs = nnx.Rngs(0)
        rngs.default = _OneKey(jax.random.key(0), tag="default")  # type: ignore[attr-defined]
        return create(name, rngs=rngs, **arguments)

    network: Network = nnx.eval_shape(created)
    return network
