"""Flax NNX layers built on `dlc_jax.ops`, initialised as PyTorch initialises its own.

PyTorch draws a `Conv2d`'s and a `Linear`'s weights and biases uniformly from
±1/sqrt(fan_in), where fan_in is the number of inputs that one output reads
(`torch.nn.init.kaiming_uniform_` with a = sqrt(5), and `reset_parameters` for the bias).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from dlc_jax import ops


def uniform(bound: float) -> Callable[..., Array]:
    """An initialiser that draws from the uniform distribution on [-bound, bound)."""

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nnx.Conv):
    """`flax.nnx.Conv` with PyTorch's default initialisation and gradients fast on a CPU.

    Args:
      in_features: input channels.
      out_features: feature maps.
      kernel_size: height and width in pixels.
      rngs: where the initial weights come from.
      **kwargs: further arguments of `flax.nnx.Conv`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        *,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        fan_in = in_features // kwargs.get("feature_group_count", 1) * math.prod(kernel_size)
        init = uniform(fan_in**-0.5)
        defaults = {
            "kernel_init": init,
            "bias_init": init,
            "conv_general_dilated": ops.conv_general_dilated,
        }
        super().__init__(in_features, out_features, kernel_size, rngs=rngs, **defaults | kwargs)


class PooledConv(Conv):
    """A `Conv` whose feature maps are max-pooled, and only then receive their biases.

    A bias is the same all over its map, so that the result is that of pooling afterwards,
    while the bias is added to (and its gradient summed over) fewer values.

    Args:
      in_features: input channels.
      out_features: feature maps.
      kernel_size: height and width in pixels.
      pool: height and width of a pooling window in pixels; windows do not overlap.
      rngs: where the initial weights come from.
      **kwargs: further arguments of `flax.nnx.Conv`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        pool: tuple[int, int],
        *,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        convolve = kwargs.pop("conv_general_dilated", ops.conv_general_dilated)
        both = _convolve_and_pool(convolve, pool)
        super().__init__(
            in_features, out_features, kernel_size, rngs=rngs, conv_general_dilated=both, **kwargs
        )


# One function for each pair, since layers are equal to JAX only if their functions are.
@lru_cache(maxsize=64)
def _convolve_and_pool(convolve: Callable[..., Array], pool: tuple[int, int]) -> Any:
    def convolve_and_pool(*args: Any, **options: Any) -> Array:
        return ops.max_pool(convolve(*args, **options), pool)

    return convolve_and_pool


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with PyTorch's default initialisation.

    Args:
      in_features: inputs.
      out_features: outputs.
      rngs: where the initial weights come from.
      **kwargs: further arguments of `flax.nnx.Linear`.
    """

    def __init__(
        self, in_features: int, out_features: int, *, rngs: nnx.Rngs, **kwargs: Any
    ) -> None:
        init = uniform(in_features**-0.5)
        defaults = {"kernel_init": init, "bias_init": init}
        super().__init__(in_features, out_features, rngs=rngs, **defaults | kwargs)


def flatten(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch channels*height*width"]:
    """Feature maps as vectors, channel after channel.

    It is the order in which PyTorch flattens its NCHW arrays, so that the weights of a
    layer that follows mean the same there and here.
    """
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)
