"""Normalization of images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from dlc_jax.typing import AnyArray


@jax.tree_util.register_static
@dataclass(frozen=True)
class Normalize:
    """Normalizes images to (pixel - mean) / std, channel by channel.

    It is hashable and a pytree without leaves, so that it can be passed to transformed functions.

    Args:
      mean: Any sequence or array, rounded to float32.
      std: Any sequence or array, rounded to float32.

    Attributes:
      mean: Mean of each channel, on the pixels' scale from 0 to 255.
      std: Standard deviation of each channel, on the same scale.

    Example:
      >>> normalize = Normalize(mean=[100], std=[50])
      >>> normalize(np.array([[[0], [100], [150]]], np.uint8)).ravel()
      Array([-2.,  0.,  1.], dtype=float32)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        mean: Sequence[float] | Float[AnyArray, " channels"],
        std: Sequence[float] | Float[AnyArray, " channels"],
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            object.__setattr__(self, name, tuple(np.asarray(values, np.float32).tolist()))

    @classmethod
    def fit(cls, images: UInt8[AnyArray, "examples height width channels"]) -> "Normalize":
        """Computes the mean and standard deviation over all pixels of the images.

        Example:
          >>> Normalize.fit(np.array([0, 2], np.uint8).reshape(2, 1, 1, 1))
          Normalize(mean=(1.0,), std=(1.0,))
        """
        # Batches of this size fit into the processor's cache.
        images = np.asarray(images)
        return cls.from_batches(images[start : start + 256] for start in range(0, len(images), 256))

    @classmethod
    def from_batches(
        cls, batches: Iterable[UInt8[np.ndarray, "examples height width channels"]]
    ) -> "Normalize":
        """Computes the same as `fit`, for images that come in batches."""
        total, squares, count = np.zeros(()), np.zeros(()), 0
        for batch in batches:
            pixels = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
            # Sums of integers are exact in float64.
            total = total + np.ones(len(pixels)) @ pixels
            squares = squares + np.einsum("pc,pc->c", pixels, pixels)
            count += len(pixels)
        mean = total / count
        variance = squares / count - mean**2
        # A constant channel becomes zero instead of being divided by zero.
        std = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1)
        return cls(mean, std)

    def __call__(
        self, images: UInt8[AnyArray, "*batch height width channels"]
    ) -> Float[Array, "*batch height width channels"]:
        """Normalizes images, to float32."""
        if isinstance(images, np.ndarray):
            # JAX computes in the background, when the caller may already have changed them.
            images = np.array(images, np.float32)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (jnp.asarray(images, jnp.float32) - mean) / std
