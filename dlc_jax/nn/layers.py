"""Layers built on `dlc_jax.ops`, with the default initialization of PyTorch.

PyTorch draws weights and biases of `Conv2d` and `Linear` uniformly from ±1/sqrt(fan_in)
(`torch.nn.init.kaiming_uniform_` with a = sqrt(5)).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, PRNGKeyArray

from dlc_jax import ops
from dlc_jax.ops.windows import Pads, match_varying_axes, varying_axes

zeros = nnx.initializers.zeros_init()


def matrix_initializer(
    init: Callable[..., Array], fan: Literal["fan_in", "fan_out"]
) -> Callable[..., Array]:
    """Returns an initializer that draws a convolution's kernel as a matrix, with the same values.

    XLA takes up to 20 times longer to compile random arrays of four axes.

    Args:
      init: An initializer whose scale depends only on the given fan, such as
        `nnx.initializers.lecun_normal()`.
      fan: The fan that the shape of the matrix preserves.

    Example:
      >>> init = matrix_initializer(nnx.initializers.lecun_normal(), "fan_in")
      >>> init(jax.random.key(0), (3, 3, 1, 8)).shape
      (3, 3, 1, 8)
    """

    def initialize(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        rows = math.prod(shape[:-1]) if fan == "fan_in" else shape[-2]
        return init(key, (rows, math.prod(shape) // max(rows, 1)), dtype).reshape(shape)

    return initialize


# He et al. 2015 ("Delving deep into rectifiers"), section 2.2, by fan_out, as in torchvision.
he_normal = matrix_initializer(
    nnx.initializers.variance_scaling(2.0, "fan_out", "normal"), "fan_out"
)


def uniform(bound: float) -> Callable[..., Array]:
    """Returns an initializer that draws from the uniform distribution on [-bound, bound).

    Args:
      bound: The largest absolute value.

    Example:
      >>> bool(abs(uniform(0.1)(jax.random.key(0), (5, 5))).max() <= 0.1)
      True
    """

    def initialize(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        # One axis compiles much faster than four, and gives the same values.
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(shape)

    return initialize


class Conv(nnx.Conv):
    """`flax.nnx.Conv` with PyTorch's default initialization and fast gradients on CPUs.

    Args:
      in_features: Number of input channels.
      out_features: Number of output channels.
      kernel_size: Height and width of the kernel.
      rngs: Random number generators of the initial weights.
      **kwargs: Further arguments of `flax.nnx.Conv`.
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
    """A convolution followed by max-pooling and then the bias.

    The bias is constant over a feature map, so adding it before pooling gives the same result,
    but takes more additions.

    Args:
      in_features: Number of input channels.
      out_features: Number of output channels.
      kernel_size: Height and width of the kernel.
      pool: Height and width of the pooling windows, which do not overlap.
      rngs: Random number generators of the initial weights.
      **kwargs: Further arguments of `flax.nnx.Conv`.
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
        kwargs["conv_general_dilated"] = _convolve_and_pool(convolve, pool)
        super().__init__(in_features, out_features, kernel_size, rngs=rngs, **kwargs)


# Cached, since JAX recompiles for layers whose functions are different objects.
@lru_cache(maxsize=64)
def _convolve_and_pool(convolve: Callable[..., Array], pool: tuple[int, int]) -> Any:
    def convolve_and_pool(*args: Any, **options: Any) -> Array:
        return ops.max_pool(convolve(*args, **options), pool)

    return convolve_and_pool


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with PyTorch's default initialization.

    Args:
      in_features: Number of inputs.
      out_features: Number of outputs.
      rngs: Random number generators of the initial weights.
      **kwargs: Further arguments of `flax.nnx.Linear`.
    """

    def __init__(
        self, in_features: int, out_features: int, *, rngs: nnx.Rngs, **kwargs: Any
    ) -> None:
        init = uniform(in_features**-0.5)
        defaults = {"kernel_init": init, "bias_init": init}
        super().__init__(in_features, out_features, rngs=rngs, **defaults | kwargs)


class BatchNorm(nnx.BatchNorm):
    """Batch normalization with the statistics of PyTorch (Ioffe and Szegedy 2015).

    It differs from `flax.nnx.BatchNorm` in three ways: the running variance is the unbiased
    estimate; inside `jax.shard_map`, the statistics cover the batch of all devices; and padding
    examples can be excluded from the statistics (see `set_example_weights`).

    Args:
      num_features: Number of channels, which are the last axis.
      rngs: Required by Flax, not used.
      momentum: Decay rate of the running statistics.
      **kwargs: Further arguments of `flax.nnx.BatchNorm`.
    """

    example_weights: "_Static | None" = None

    def __init__(
        self, num_features: int, *, rngs: nnx.Rngs, momentum: float = 0.9, **kwargs: Any
    ) -> None:
        super().__init__(num_features, rngs=rngs, momentum=momentum, **kwargs)

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "batch *positions channels"], use_running_average: bool | None = None
    ) -> Float[Array, "batch *positions channels"]:
        """Normalizes a batch; in training mode, also updates the running statistics.

        Args:
          x: Activations.
          use_running_average: Whether to normalize by the running statistics; by default, the
            attribute of that name.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            weights = None if self.example_weights is None else self.example_weights.value
            mean, var, correction = _batch_statistics(wide, weights)
            self._update(mean, var * correction)
        scale = lax.rsqrt(var + self.epsilon)
        if self.scale is not None:
            scale = scale * self.scale[...]
        y = (wide - mean) * scale
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(self.dtype or x.dtype)

    def _update(self, mean: Array, var: Array) -> None:
        for running, new in ((self.mean, mean), (self.var, var)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * new


class _Static:
    """Holds a value that Flax treats as static: it is not part of a module's state."""

    def __init__(self, value: Any) -> None:
        self.value = value


def set_example_weights(model: nnx.Module, weights: Float[Array, " batch"] | None) -> None:
    """Sets the weights of the examples in the batch statistics of each `BatchNorm` of a model.

    The weights are not part of the model's state. Inside a jitted function, set them on a copy
    made there, for example by `nnx.merge(..., copy=True)`.

    Args:
      model: The model, which is changed in place.
      weights: 1 for each example that counts and 0 for padding, or None to count all. Inside
        `jax.shard_map`, the weights of the device's own part of the batch.

    Example:
      >>> layer = BatchNorm(1, rngs=nnx.Rngs(0))
      >>> set_example_weights(layer, jnp.array([1.0, 1.0, 0.0]))
      >>> layer(jnp.array([[1.0], [3.0], [100.0]]))[:2].round(2)
      Array([[-1.],
             [ 1.]], dtype=float32)
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.example_weights = None if weights is None else _Static(weights)


def _batch_statistics(
    x: Float[Array, "batch *positions channels"], weights: Float[Array, " batch"] | None
) -> tuple[Float[Array, " channels"], Float[Array, " channels"], Float[Array, ""] | float]:
    """Mean and variance over all devices, and the factor that makes the variance unbiased."""
    if weights is None:
        mean = _mean_over_devices(x)
        size = x.size // x.shape[-1] * _num_devices(x)
        return mean, _mean_over_devices(jnp.square(x - mean)), size / max(size - 1, 1)
    x, weights = match_varying_axes(x, weights.astype(x.dtype))
    axes, reduced = tuple(varying_axes(x)), tuple(range(x.ndim - 1))
    weights = weights.reshape(-1, *[1] * (x.ndim - 1))

    def total(values: Array) -> Array:
        partial_sum = values.sum(reduced)
        return lax.psum(partial_sum, axes) if axes else partial_sum

    count = total(weights)[0] * math.prod(x.shape[1:-1])
    # Keeps the statistics finite if the whole batch is padding.
    divisor = jnp.maximum(count, 1)
    mean = total(weights * x) / divisor
    var = total(weights * jnp.square(x - mean)) / divisor
    return mean, var, count / jnp.maximum(count - 1, 1)


def _mean_over_devices(x: Float[Array, "batch *positions channels"]) -> Float[Array, " channels"]:
    mean = x.mean(tuple(range(x.ndim - 1)))
    axes = tuple(varying_axes(x))
    return lax.pmean(mean, axes) if axes else mean


def _num_devices(x: Array) -> int:
    return math.prod(lax.axis_size(axis) for axis in varying_axes(x))


class Dropout(nnx.Dropout):
    """`flax.nnx.Dropout` with one mask for the batch of all devices (Srivastava et al. 2014).

    Inside `jax.shard_map`, the same activations are dropped as on a single device; in x64 mode,
    the same as in float32.

    Args:
      rate: Probability that an activation is set to zero.
      **kwargs: Further arguments of `flax.nnx.Dropout`, such as `rngs`.
    """

    def __call__(
        self,
        inputs: Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | Array | None = None,
    ) -> Array:
        """Drops activations in training mode, and scales the others by 1 / (1 - rate).

        Args:
          inputs: Activations.
          deterministic: Whether to drop none; by default, the attribute of that name.
          rngs: Random number generators or a key; by default, those of the layer.
        """
        if deterministic is None:
            deterministic = self.deterministic
        source = self.rngs if rngs is None else rngs
        if deterministic or self.rate in (0.0, 1.0) or source is None:
            # Flax draws nothing here, or raises an error.
            return super().__call__(inputs, deterministic=deterministic, rngs=rngs)
        if isinstance(source, nnx.Rngs):
            source = source[self.rng_collection]
        key = source() if isinstance(source, nnx.RngStream) else source
        keep_rate, devices = 1.0 - self.rate, _num_devices(inputs)
        shape = [devices * len(inputs), *inputs.shape[1:]]
        for axis in self.broadcast_dims:
            shape[axis] = 1
        # Flax draws in float64 in x64 mode, which gives other masks.
        mask = jax.random.bernoulli(key, jnp.float32(keep_rate), shape)
        if devices > 1 and shape[0] > 1:
            start = lax.axis_index(tuple(varying_axes(inputs))) * len(inputs)
            mask = lax.dynamic_slice_in_dim(mask, start, len(inputs))
        return jnp.where(mask, inputs / keep_rate, jnp.zeros_like(inputs))


@jax.custom_jvp
def _erfc(x: Array) -> Array:
    return lax.erfc(x)


@_erfc.defjvp
def _erfc_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # JAX 0.12 can't trace its own rule inside `jax.shard_map`.
    (x,), (tangent,) = primals, tangents
    slope = jnp.asarray(-2 / math.sqrt(math.pi), x.dtype) * jnp.exp(-jnp.square(x))
    return _erfc(x), slope * tangent


@jax.jit
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes the Gaussian error linear unit (Hendrycks and Gimpel 2016, section 2).

    Same as `jax.nn.gelu(x, approximate=False)`, which JAX 0.12 can't differentiate inside
    `jax.shard_map`.

    Args:
      x: Activations.

    Example:
      >>> print(f"{gelu(jnp.array(1.0)):.3f}")
      0.841
    """
    return 0.5 * x * _erfc(-x * jnp.asarray(math.sqrt(0.5), x.dtype))


class PReLU(nnx.Module):
    """Parametric ReLU, max(0, x) + slope * min(0, x), with a slope per channel (He et al. 2015).

    Args:
      num_features: Number of channels, which are the last axis.
      slope: Initial slope.
    """

    def __init__(self, num_features: int, *, slope: float = 0.25) -> None:
        self.slope = nnx.Param(jnp.full((num_features,), slope, jnp.float32))

    def __call__(
        self, x: Float[Array, "batch *positions channels"]
    ) -> Float[Array, "batch *positions channels"]:
        """Applies the activation function."""
        return jnp.where(x > 0, x, self.slope[...].astype(x.dtype) * x)


def local_response_norm(
    x: Float[Array, "batch height width channels"],
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
) -> Float[Array, "batch height width channels"]:
    """Applies local response normalization (Krizhevsky et al. 2012, section 3.3).

    Divides by (k + alpha * s)^beta, where s is the sum of squares over `size` neighboring
    channels. (In PyTorch's function of that name, alpha is divided by `size`.)

    Args:
      x: Feature maps.
      size: Number of channels that are summed.
      alpha: Factor of the sum of squares.
      beta: Exponent.
      k: Constant term.

    Example:
      >>> local_response_norm(jnp.ones((1, 1, 1, 3)), k=1.0).round(3)
      Array([[[[1., 1., 1.]]]], dtype=float32)
    """
    squares = lax.reduce_window(jnp.square(x), 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME")
    return x * (k + alpha * squares) ** -beta


def ceil_mode_padding(
    shape: tuple[int, ...], window: tuple[int, int], strides: tuple[int, int]
) -> Pads:
    """Returns the bottom and right padding that corresponds to PyTorch's `ceil_mode=True`.

    The last windows start inside the image and may extend beyond it, as in Caffe.

    Args:
      shape: Shape of the feature maps, [batch, height, width, channels].
      window: Height and width of a window.
      strides: Steps between windows.

    Returns:
      ((top, bottom), (left, right)) in pixels.

    Example:
      >>> ceil_mode_padding((1, 6, 7, 1), (3, 3), (2, 2))
      ((0, 1), (0, 0))
    """
    padding = [
        max(0, -(-(size - w) // s) * s + w - size)
        for size, w, s in zip(shape[1:3], window, strides, strict=True)
    ]
    return (0, padding[0]), (0, padding[1])


def adaptive_avg_pool(
    x: Float[Array, "batch height width channels"], shape: tuple[int, int]
) -> Float[Array, "batch out_height out_width channels"]:
    """Pools by averaging to the given height and width, as PyTorch does.

    Output i of n averages the pixels from floor(i*size/n) to ceil((i+1)*size/n), so windows
    overlap where n does not divide the size.

    Args:
      x: Feature maps.
      shape: Height and width of the output.

    Example:
      >>> adaptive_avg_pool(jnp.arange(3.0).reshape(1, 1, 3, 1), (1, 2)).ravel()
      Array([0.5, 1.5], dtype=float32)
    """
    if x.shape[1:3] == shape:
        return x
    rows, columns = (
        _averaging_matrix(size, count) for size, count in zip(x.shape[1:3], shape, strict=True)
    )
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows.astype(x.dtype), columns.astype(x.dtype))


def _averaging_matrix(size: int, count: int) -> np.ndarray:
    matrix = np.zeros((count, size))
    for i in range(count):
        first, last = i * size // count, -(-(i + 1) * size // count)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def flatten(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch channels*height*width"]:
    """Flattens feature maps in the order of PyTorch, channel after channel.

    The weights of a linear layer that follows can then be taken from PyTorch.

    Args:
      x: Feature maps.

    Example:
      >>> flatten(jnp.arange(4).reshape(1, 1, 2, 2))
      Array([[0, 2, 1, 3]], dtype=int32)
    """
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)
