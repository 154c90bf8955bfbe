"""Convolutional networks and their predecessors, one module each.

`names()` lists the networks, `create(name)` builds one, and `CATALOG` has the source of each.
"""

import difflib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dlc_jax.errors import InputError
from dlc_jax.models.catalog import CATALOG, ModelInfo
from dlc_jax.models.lecture import Lecture
from dlc_jax.models.network import Network

__all__ = [
    "CATALOG",
    "Lecture",
    "ModelInfo",
    "Network",
    "create",
    "create_abstract",
    "find",
    "names",
]


def names() -> list[str]:
    """Returns the names of the networks, oldest first.

    Example:
      >>> names()[:3]
      ['threshold-logic-unit', 'perceptron', 'neocognitron']
    """
    return list(CATALOG)


def find(name: str) -> ModelInfo:
    """Returns the catalog entry of a network.

    Args:
      name: One of `names()`.

    Raises:
      InputError: There is no such network.

    Example:
      >>> find("resnet18").year
      2015
    """
    if name not in CATALOG:
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise InputError(f"there is no network {name!r}; did you mean {', '.join(near)}?")
    return CATALOG[name]


def create(
    name: str,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    **options: Any,
) -> Network:
    """Creates a network with initial weights.

    Args:
      name: One of `names()`.
      image_shape: Height, width and channels of the images; by default, those of the paper.
      num_classes: Number of logits; by default, that of the paper.
      rngs: Random number generators of the initial weights, such as `nnx.Rngs(0)`.
      dtype: Dtype of the computation; parameters are always float32.
      **options: Further arguments of the network, such as `shortcut="A"` of `ResNet`.

    Returns:
      A module that maps float images [batch, *image_shape] to logits [batch, num_classes]. Its
      method `stages` returns the activations of its layers by name.

    Raises:
      InputError: There is no such network or option, or the network does not support images of
        that shape.

    Example:
      >>> model = create("tc", image_shape=(5, 5, 1), rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((7, 5, 5, 1))).shape
      (7, 2)
    """
    entry = find(name)
    return entry.create(
        image_shape=entry.image_shape if image_shape is None else image_shape,
        num_classes=entry.num_classes if num_classes is None else num_classes,
        rngs=rngs,
        dtype=dtype,
        **options,
    )


class _ConstantKey(nnx.RngStream):
    """A stream that returns the same key every time, since counting keys is slow."""

    def __call__(self) -> jax.Array:
        key: jax.Array = self.key[...]
        return key


def create_abstract(name: str, **arguments: Any) -> Network:
    """Creates a network with `jax.ShapeDtypeStruct`s in place of arrays.

    It has no random number generators for training, such as those of dropout layers.

    Args:
      name: One of `names()`.
      **arguments: As for `create`, without `rngs`.

    Raises:
      InputError: As for `create`.

    Example:
      >>> create_abstract("resnet50").fc.kernel.shape
      (2048, 1000)
    """

    def init() -> Network:
        rngs = nnx.Rngs(0)
        rngs.default = _ConstantKey(  # type: ignore[attr-defined]
            jax.random.key(0), tag="default"
        )
        return create(name, rngs=rngs, **arguments)

    network: Network = nnx.eval_shape(init)
    return network
