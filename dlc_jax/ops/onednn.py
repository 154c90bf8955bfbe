"""Convolutions and matrix products by oneDNN, the library of CPU kernels that PyTorch uses too.

JAX's packages for x86 processors contain oneDNN, but XLA calls it only if a flag asks for that.
Here its convolution and its product are called directly, in float32. They are not part of JAX's
public interface, so each process tries once whether they work; if not, they are not used.

oneDNN's gradients cannot be called, so both are forward convolutions here.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dlc_jax.ops import phases
from dlc_jax.ops.windows import Pads, map_chunks, out_shape, slices

_CONVOLUTION, _MATMUL = "__onednn$convolution", "__onednn$matmul"
_LAYOUT = {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}
_NO_PADS: Pads = ((0, 0), (0, 0))
# Size of the arrays of a chunk of the kernel's gradient, which stay in the cache.
_CHUNK_BYTES = 4 * 2**20


class _Window(NamedTuple):
    """What a convolution does, besides its operands."""

    strides: tuple[int, int]
    pads: Pads
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def out_shape(self, x: Any, kernel: Any) -> tuple[int, ...]:
        """The shape of the result."""
        height, width = (1 + (kernel.shape[i] - 1) * self.dilation[i] for i in (0, 1))
        return out_shape(x.shape, (height, width, *kernel.shape[2:]), self.strides, self.pads)


@cache
def is_available() -> bool:
    """Whether oneDNN can be called, and computes what is expected of it."""
    rng = np.random.default_rng(0)
    x, kernel, matrix = (
        rng.integers(-4, 5, shape).astype(np.float32)
        for shape in ((2, 6, 7, 4), (3, 2, 2, 6), (6, 5))
    )
    window = _Window((2, 1), ((1, 0), (0, 2)), (1, 2), groups=2)

    def results(x: Any, kernel: Any, matrix: Any) -> Any:
        return _convolve(window, x, kernel), _matmul(True, False, matrix, x[0, :, :, 0])

    try:
        cpu = jax.local_devices(backend="cpu")[0]
        with jax.ensure_compile_time_eval(), jax.default_device(cpu):
            y, product = map(np.asarray, jax.jit(results)(x, kernel, matrix))
    except Exception:  # the type depends on the release of JAX, and on what it lacks
        return False
    same = np.array_equal(product, matrix.T @ x[0, :, :, 0])
    return same and np.array_equal(y, _reference(window, x, kernel))


def _reference(window: _Window, x: Any, kernel: Any) -> Any:
    """The convolution, by NumPy."""
    y = np.zeros(window.out_shape(x, kernel), x.dtype)
    padded = np.pad(x, ((0, 0), *window.pads, (0, 0)))
    for position in np.ndindex(y.shape[1:3]):
        rows, columns = (
            position[i] * window.strides[i] + window.dilation[i] * np.arange(kernel.shape[i])
            for i in (0, 1)
        )
        patch = padded[:, rows][:, :, columns]
        groups = zip(*(np.split(part, window.groups, 3) for part in (patch, kernel)), strict=True)
        y[:, *position] = np.concatenate([np.tensordot(a, b, 3) for a, b in groups], 1)
    return y


def supports(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether oneDNN can be called."""
    del x_shape, kernel_shape, strides, pads
    return is_available()


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads, groups: int = 1) -> Array:
    """The convolution, computed in float32."""
    window = _Window((strides[0], strides[1]), pads, groups=groups)
    return _float32(_batched_convolve(window), x, kernel)


def input_gradient(
    kernel: Array,
    grad: Array,
    x_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    groups: int = 1,
) -> Array:
    """The gradient with respect to the images, computed in float32."""
    return phases.input_gradient(kernel, grad, x_shape, strides, pads, convolve, groups)


def kernel_gradient(
    x: Array,
    grad: Array,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    groups: int = 1,
) -> Array:
    """The gradient with respect to the kernel, computed in float32.

    It is a convolution of other images: their rows are those of the padded images, their columns
    are the channels, and their channels are the columns and images of a chunk of the batch. The
    gradient of the result is the kernel, dilated by the strides. A batch of such images, shifted by
    one column each, gives the columns of the gradient.
    """
    _, width, channels, features = kernel_shape
    rows, columns = grad.shape[1:3]
    # Rows and columns of the padded images that are read.
    size = [(grad.shape[1 + i] - 1) * strides[i] + kernel_shape[i] for i in (0, 1)]
    config = [(pads[i][0], size[i] - pads[i][0] - x.shape[1 + i], 0) for i in (0, 1)]
    window = _Window((1, 1), _NO_PADS, dilation=(strides[0], 1), groups=groups)

    def on_chunk(x: Array, grad: Array) -> tuple[None, Array]:
        padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
        split = padded.reshape(*padded.shape[:3], groups, channels)
        exchanged = lax.optimization_barrier(split.transpose(1, 4, 3, 2, 0))
        shifted = jnp.stack(slices(exchanged, 3, width, columns, strides[1]))
        shifted = lax.optimization_barrier(shifted).reshape(width, size[0], channels, -1)
        weights = lax.optimization_barrier(grad.transpose(1, 2, 0, 3))
        weights = weights.reshape(rows, 1, -1, features)
        return None, _float32(_batched_convolve(window), shifted, weights)

    bytes_per_image = 4 * columns * (size[0] * width * x.shape[3] + rows * features)
    _, y = map_chunks(on_chunk, _CHUNK_BYTES // bytes_per_image, x, grad)
    return y.transpose(1, 0, 2, 3).astype(x.dtype)


def matmul(a: Array, b: Array, *, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    """The product of matrices or of batches of matrices; by XLA where oneDNN can't be called.

    Args:
      a: [..., rows, terms], or [..., terms, rows] if `transpose_a`.
      b: [..., terms, columns], or [..., columns, terms] if `transpose_b`.
      transpose_a: Whether `a` is transposed.
      transpose_b: Whether `b` is transposed.
    """
    if a.dtype == b.dtype == jnp.float32 and is_available():
        return _batched_matmul(transpose_a, transpose_b)(a, b)
    return jnp.matmul(a.mT if transpose_a else a, b.mT if transpose_b else b)


def _float32(function: Callable[..., Array], *operands: Array) -> Array:
    """Computes in float32."""
    return function(*(x.astype(jnp.float32) for x in operands)).astype(operands[0].dtype)


@cache
def _batched_convolve(window: _Window) -> Callable[[Array, Array], Array]:
    """A convolution that `jax.vmap` accepts."""

    @jax.custom_batching.custom_vmap
    def function(x: Array, kernel: Array) -> Array:
        return _convolve(window, x, kernel)

    @function.def_vmap
    def rule(size: int, mapped: Any, x: Array, kernel: Array) -> tuple[Array, bool]:
        del size
        if all(mapped):
            return lax.map(lambda pair: function(*pair), (x, kernel)), True
        if mapped[1]:
            return lax.map(lambda kernel: function(x, kernel), kernel), True
        y = function(x.reshape(-1, *x.shape[2:]), kernel)
        return y.reshape(*x.shape[:2], *y.shape[1:]), True

    return function


@cache
def _batched_matmul(transpose_a: bool, transpose_b: bool) -> Callable[[Array, Array], Array]:
    """A product that `jax.vmap` accepts."""

    @jax.custom_batching.custom_vmap
    def function(a: Array, b: Array) -> Array:
        return _matmul(transpose_a, transpose_b, a, b)

    @function.def_vmap
    def rule(size: int, mapped: Any, a: Array, b: Array) -> tuple[Array, bool]:
        both = zip((a, b), mapped, strict=True)
        a, b = (x if flag else jnp.broadcast_to(x, (size, *x.shape)) for x, flag in both)
        return function(a, b), True

    return function


def _convolve(window: _Window, x: Any, kernel: Any) -> Array:
    height, width = window.pads
    config = {
        "dims": "4",
        "feature_groups": str(window.groups),
        "input": {"dims": "0", "data": _LAYOUT},
        "kernel": {
            "dims": "0",
            "filter": {
                "input_feature_dim": "2",
                "output_feature_dim": "3",
                "shape": _strings(kernel.shape),
                "spatial_dims": ["0", "1"],
            },
        },
        "output": {"dims": "0", "data": _LAYOUT},
        "window": {
            "size": [],
            "pad_left": _strings((height[0], width[0])),
            "pad_right": _strings((height[1], width[1])),
            "strides": _strings(window.strides),
            "window_dilations": _strings(window.dilation),
        },
    }
    return _call(_CONVOLUTION, "onednn_conv_config", config, window.out_shape(x, kernel), x, kernel)


def _matmul(transpose_a: bool, transpose_b: bool, a: Any, b: Any) -> Array:
    config = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    rows, columns = a.shape[-1 if transpose_a else -2], b.shape[-2 if transpose_b else -1]
    return _call(_MATMUL, "onednn_matmul_config", config, (*a.shape[:-2], rows, columns), a, b)


def _call(
    target: str, name: str, config: dict[str, Any], shape: Sequence[int], *operands: Any
) -> Array:
    """Calls oneDNN with a configuration in the JSON form of XLA's protocol buffer."""
    options = config | {"optimization_config": {"user_scratchpad": False}}
    call = jax.ffi.ffi_call(
        target,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({name: options}),
    )
    result: Array = call(*operands)
    return result


def _strings(numbers: Sequence[int]) -> list[str]:
    """Numbers as they are in the JSON form of a protocol buffer."""
    return [str(number) for number in numbers]
