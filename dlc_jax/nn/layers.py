"""Layers built on `dlc_jax.ops`, and initialised as PyTorch initialises its own.

PyTorch draws a `Conv2d`'s and a `Linear`'s weights and biases uniformly from
±1/sqrt(fan_in), where fan_in is the number of inputs that one output reads
(`torch.nn.init.kaiming_uniform_` with a = sqrt(5), and `reset_parameters` for the bias).
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
from dlc_jax.ops.windows import Pads, varying_axes

zeros = nnx.initializers.zeros_init()


def as_matrix(
    init: Callable[..., Array], fan: Literal["fan_in", "fan_out"]
) -> Callable[..., Array]:
    """An initialiser with the same values, which draws a convolution's kernel as a matrix.

    XLA takes up to 20 times as long to compile random numbers of four axes.

    Args:
      init: one whose scale depends at most on the given fan, such as
        `nnx.initializers.lecun_normal()`.
      fan: which of the two the matrix keeps.
    """

    def initialise(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        rows = math.prod(shape[:-1]) if fan == "fan_in" else shape[-2]
        return init(key, (rows, math.prod(shape) // max(rows, 1)), dtype).reshape(shape)

    return initialise


# He et al. 2015 ("Delving deep into rectifiers"), section 2.2, by the number of outputs; what
# torchvision's networks start from.
he_normal = as_matrix(nnx.initializers.variance_scaling(2.0, "fan_out", "normal"), "fan_out")


def uniform(bound: float) -> Callable[..., Array]:
    """An initialiser that draws from the uniform distribution on [-bound, bound)."""

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        # One axis is compiled much faster than four, and has the same values.
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(shape)

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


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation with PyTorch's statistics (Ioffe and Szegedy 2015).

    It differs from `flax.nnx.BatchNorm` in that the running variance is that of the
    population, estimated from the batch with one degree of freedom less, and in that a batch
    spread over devices by `jax.shard_map` is normalised by the statistics of the whole.

    Args:
      num_features: channels, which come last.
      rngs: required by Flax, not used.
      momentum: the weight of the past in the running statistics.
      **kwargs: further arguments of `flax.nnx.BatchNorm`.
    """

    def __init__(
        self, num_features: int, *, rngs: nnx.Rngs, momentum: float = 0.9, **kwargs: Any
    ) -> None:
        super().__init__(num_features, rngs=rngs, momentum=momentum, **kwargs)

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "batch *positions channels"], use_running_average: bool | None = None
    ) -> Float[Array, "batch *positions channels"]:
        """The normalised activations; in training mode also updates the statistics."""
        chosen = self.use_running_average if use_running_average is None else use_running_average
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if chosen:
            mean, var = self.mean[...], self.var[...]
        else:
            mean = _mean_over_devices(wide)
            var = _mean_over_devices(jnp.square(wide - mean))
            count = x.size // x.shape[-1] * _devices(x)
            self._remember(mean, var * (count / max(count - 1, 1)))
        scale = lax.rsqrt(var + self.epsilon)
        if self.scale is not None:
            scale = scale * self.scale[...]
        y = (wide - mean) * scale
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(self.dtype or x.dtype)

    def _remember(self, mean: Array, var: Array) -> None:
        for running, new in ((self.mean, mean), (self.var, var)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * new


def _mean_over_devices(x: Float[Array, "batch *positions channels"]) -> Float[Array, " channels"]:
    mean = x.mean(tuple(range(x.ndim - 1)))
    axes = tuple(varying_axes(x))
    return lax.pmean(mean, axes) if axes else mean


def _devices(x: Array) -> int:
    return math.prod(lax.axis_size(axis) for axis in varying_axes(x))


class Dropout(nnx.Dropout):
    """`flax.nnx.Dropout` (Srivastava et al. 2014), which draws for the whole of a batch.

    A batch spread over devices by `jax.shard_map` so loses the same activations as on one. In
    x64 mode, too, they are the same.

    Args:
      rate: the probability with which an activation becomes zero.
      **kwargs: further arguments of `flax.nnx.Dropout`, `rngs` among them.
    """

    def __call__(
        self,
        inputs: Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | Array | None = None,
    ) -> Array:
        """The activations, in training mode with some of them zero."""
        quiet = self.deterministic if deterministic is None else deterministic
        source = self.rngs if rngs is None else rngs
        if quiet or self.rate in (0.0, 1.0) or source is None:
            # Nothing is drawn, or Flax says what is missing.
            return super().__call__(inputs, deterministic=deterministic, rngs=rngs)
        if isinstance(source, nnx.Rngs):
            source = source[self.rng_collection]
        key = source() if isinstance(source, nnx.RngStream) else source
        keep, devices = 1.0 - self.rate, _devices(inputs)
        shape = [devices * len(inputs), *inputs.shape[1:]]
        for axis in self.broadcast_dims:
            shape[axis] = 1
        # Flax draws in float64 in x64 mode, and so other activations.
        kept = jax.random.bernoulli(key, jnp.float32(keep), shape)
        if devices > 1 and shape[0] > 1:
            place = lax.axis_index(tuple(varying_axes(inputs))) * len(inputs)
            kept = lax.dynamic_slice_in_dim(kept, place, len(inputs))
        return jnp.where(kept, inputs / keep, jnp.zeros_like(inputs))


@jax.custom_jvp
def _erfc(x: Array) -> Array:
    return lax.erfc(x)


@_erfc.defjvp
def _erfc_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # JAX 0.12's own rule can't be traced inside `jax.shard_map`.
    (x,), (tangent,) = primals, tangents
    slope = jnp.asarray(-2 / math.sqrt(math.pi), x.dtype) * jnp.exp(-jnp.square(x))
    return _erfc(x), slope * tangent


@jax.jit
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The Gaussian error linear unit, x times the normal distribution's function of x.

    (Hendrycks and Gimpel 2016, section 2.) It is `jax.nn.gelu(x, approximate=False)`, which JAX
    0.12 can't differentiate inside `jax.shard_map`.
    """
    return 0.5 * x * _erfc(-x * jnp.asarray(math.sqrt(0.5), x.dtype))


class PReLU(nnx.Module):
    """max(0, x) + slope * min(0, x), with a trainable slope for each channel (He et al. 2015).

    Args:
      num_features: channels, which come last.
      slope: the initial slope.
    """

    def __init__(self, num_features: int, *, slope: float = 0.25) -> None:
        self.slope = nnx.Param(jnp.full((num_features,), slope, jnp.float32))

    def __call__(
        self, x: Float[Array, "batch *positions channels"]
    ) -> Float[Array, "batch *positions channels"]:
        """The activations."""
        return jnp.where(x > 0, x, self.slope[...].astype(x.dtype) * x)


def local_response_norm(
    x: Float[Array, "batch height width channels"],
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
) -> Float[Array, "batch height width channels"]:
    """Divides by (k + alpha * s)^beta, s the sum of squares over `size` neighbouring channels.

    (Krizhevsky et al. 2012, section 3.3, whose constants are the defaults. PyTorch's function
    of that name divides alpha by `size`.)
    """
    squares = lax.reduce_window(jnp.square(x), 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME")
    return x * (k + alpha * squares) ** -beta


def reaching_beyond(
    shape: tuple[int, ...], window: tuple[int, int], strides: tuple[int, int]
) -> Pads:
    """Padding with which the last windows begin in the image, and may reach beyond it.

    Caffe pools so, and PyTorch where it is told `ceil_mode=True`.

    Args:
      shape: of the feature maps, [batch, height, width, channels].
      window: height and width of a window in pixels.
      strides: steps between windows.
    """
    beyond = [
        max(0, -(-(size - w) // s) * s + w - size)
        for size, w, s in zip(shape[1:3], window, strides, strict=True)
    ]
    return (0, beyond[0]), (0, beyond[1])


def adaptive_avg_pool(
    x: Float[Array, "batch height width channels"], shape: tuple[int, int]
) -> Float[Array, "batch out_height out_width channels"]:
    """Means over as many windows as the result has pixels, spread evenly over the image.

    They are PyTorch's: output i of n reads the pixels from floor(i*size/n) to
    ceil((i+1)*size/n), so that windows overlap where n does not divide the size.
    """
    if x.shape[1:3] == shape:
        return x
    rows, columns = (
        _averaging(size, count) for size, count in zip(x.shape[1:3], shape, strict=True)
    )
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows.astype(x.dtype), columns.astype(x.dtype))


def _averaging(size: int, count: int) -> np.ndarray:
    matrix = np.zeros((count, size))
    for i in range(count):
        first, last = i * size // count, -(-(i + 1) * size // count)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def flatten(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch channels*height*width"]:
    """Feature maps as vectors, channel after channel.

    It is the order in which PyTorch flattens its NCHW arrays, so that the weights of a
    layer that follows mean the same there and here.
    """
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)
