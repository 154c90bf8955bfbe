"""Convolutions and matrix products by oneDNN, the library of CPU kernels that PyTorch uses too.

JAX's packages for x86 processors contain oneDNN, but XLA calls it only if a compiler option asks
for that. The option is one of whole programs. So an operation is first compiled by itself with the
option, and the call that XLA makes of it is then part of programs that are compiled without.
Where XLA makes no such call, the operation is XLA's own. Numbers are float32.

oneDNN's gradients cannot be called, so both are forward convolutions here.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import SingleDeviceSharding

from dlc_jax.ops import phases, xla
from dlc_jax.ops.windows import Pads, map_chunks, slices

_OPTIONS: dict[str, Any] = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_custom_call": True,
    # Otherwise another library of XLA's takes the operations first.
    "xla_cpu_experimental_ynn_fusion_type": "",
}
# A call in a compiled program: size of the memory it works in, target, configuration.
_CALL = re.compile(
    r'= \(f32\S*, u8\[(\d+)\]\S*\) custom-call\(.*custom_call_target="(__onednn\$\w+)".*?'
    r"backend_config=(\{.*\})"
)
_NO_PADS: Pads = ((0, 0), (0, 0))
# Size of the arrays of a chunk of the kernel's gradient, which stay in the cache.
_CHUNK_BYTES = 4 * 2**20


class _Window(NamedTuple):
    """What a convolution does, besides its operands."""

    strides: tuple[int, int]
    pads: Pads
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class _Call(NamedTuple):
    """A call of oneDNN, as XLA makes it."""

    target: str
    config: str
    scratch_bytes: int


@cache
def is_available() -> bool:
    """Whether XLA can call oneDNN here."""
    return (
        _call(_xla_convolution(_Window((1, 1), _NO_PADS)), (8, 8, 8, 16), (3, 3, 16, 16))
        is not None
    )


@cache
def _call(function: Callable[..., Array], *shapes: tuple[int, ...]) -> _Call | None:
    """The call that XLA makes of a function of float32 arrays; None if it makes none."""
    cpu = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=cpu) for shape in shapes]
    try:
        compiled = jax.jit(function).lower(*arrays).compile(compiler_options=_OPTIONS)
    except (ValueError, jax.errors.JaxRuntimeError):  # a release of JAX without these options
        return None
    found = _CALL.search(str(compiled.as_text()))
    return _Call(found[2], found[3], int(found[1])) if found else None


def _apply(function: Callable[..., Array], *operands: Array) -> Array:
    """Applies a function of float32 arrays, by oneDNN if XLA would with the compiler option."""
    call = _call(function, *(x.shape for x in operands))
    if call is None:
        return function(*operands)
    results = (
        jax.eval_shape(function, *operands),
        jax.ShapeDtypeStruct((call.scratch_bytes,), "uint8"),
    )
    custom = jax.ffi.ffi_call(
        call.target, results, custom_call_api_version=2, legacy_backend_config=call.config
    )
    result: Array = custom(*operands)[0]
    return result


def supports(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether oneDNN can be called, and is safe for all parts of the convolution.

    With a single channel, the images of `kernel_gradient` are one pixel wide. For such images,
    oneDNN 3.12 may read beyond the end of its memory, and the process ends.
    """
    del x_shape, strides, pads
    return kernel_shape[2] > 1 and is_available()


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
def _xla_convolution(window: _Window) -> Callable[[Array, Array], Array]:
    return partial(
        lax.conv_general_dilated,
        window_strides=window.strides,
        padding=window.pads,
        rhs_dilation=window.dilation,
        dimension_numbers=xla.NHWC,
        feature_group_count=window.groups,
    )


@cache
def _xla_matmul(transpose_a: bool, transpose_b: bool) -> Callable[[Array, Array], Array]:
    def function(a: Array, b: Array) -> Array:
        batch = tuple(range(a.ndim - 2))
        terms = (a.ndim - 1 - transpose_a,), (b.ndim - 2 + transpose_b,)
        return lax.dot_general(a, b, (terms, (batch, batch)))

    return function


@cache
def _batched_convolve(window: _Window) -> Callable[[Array, Array], Array]:
    """A convolution that `jax.vmap` accepts."""

    @jax.custom_batching.custom_vmap
    def function(x: Array, kernel: Array) -> Array:
        return _apply(_xla_convolution(window), x, kernel)

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
        return _apply(_xla_matmul(transpose_a, transpose_b), a, b)

    @function.def_vmap
    def rule(size: int, mapped: Any, a: Array, b: Array) -> tuple[Array, bool]:
        both = zip((a, b), mapped, strict=True)
        a, b = (x if flag else jnp.broadcast_to(x, (size, *x.shape)) for x, flag in both)
        return function(a, b), True

    return function
