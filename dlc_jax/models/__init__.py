"""The networks, each created by its name: `create("lecture", ...)`."""

import difflib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dlc_jax.errors import InputError
from dlc_jax.models.lecture import Lecture

__all__ = ["Lecture", "create", "names"]

_MODELS: dict[str, Callable[..., nnx.Module]] = {"lecture": Lecture}


def names() -> list[str]:
    """The names that `create` knows."""
    return list(_MODELS)


def create(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
) -> nnx.Module:
    """Builds the network called `name` with freshly drawn weights.

    Args:
      name: one of `names()`.
      image_shape: height, width and channels of its images.
      num_classes: how many logits it returns for an image.
      rngs: where its initial weights come from, as `nnx.Rngs(0)`.
      dtype: what it computes in; its parameters are always float32.

    Returns:
      A module that maps float images of shape [batch, *image_shape] to logits of shape
      [batch, num_classes].

    Raises:
      InputError: no network has that name, or the images are too small for it.
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise InputError(f"there is no network called {name!r}; did you mean {', '.join(near)}?")
    return _MODELS[name](image_shape=image_shape, num_classes=num_classes, rngs=rngs, dtype=dtype)
