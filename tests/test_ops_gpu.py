"""What the operations compute on a GPU, checked on a CPU against XLA's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from dlc_jax import ops
from dlc_jax.ops import columns, pooling

NHWC = ("NHWC", "HWIO", "NHWC")
sizes = st.integers(1, 3)


def lowered_for_a_gpu(function: Any, *arguments: Any) -> str:
    """The program that JAX would hand to XLA on a GPU."""
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@given(
    window=st.tuples(sizes, sizes),
    strides=st.tuples(sizes, sizes),
    pads=st.tuples(*[st.tuples(st.integers(-1, 2), st.integers(-1, 2))] * 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=6, deadline=None)
def test_products_over_patches_are_the_convolution_and_its_gradients(
    window: Any, strides: Any, pads: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 7, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(*window, 3, 4)).astype(np.float32)

    def xla(x: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)

    y, vjp = jax.vjp(xla, x, kernel)
    grad = rng.normal(size=y.shape).astype(np.float32)
    found = columns.gradients(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(grad), strides, pads)
    ours = columns.convolve(jnp.asarray(x), jnp.asarray(kernel), strides, pads)
    np.testing.assert_allclose(ours, y, rtol=1e-4, atol=1e-4)
    for one, other in zip(found, vjp(jnp.asarray(grad)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@given(window=st.tuples(sizes, sizes), seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None)
def test_among_equal_values_of_touching_windows_the_first_takes_the_gradient(
    dtype: str, window: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, (2, 7, 6, 3))
    height, width = 7 // window[0], 6 // window[1]
    grad = rng.integers(1, 9, (2, height, width, 3))
    expected = np.zeros(x.shape)
    for b, i, j, c in np.ndindex(grad.shape):
        rows, across = slice(i * window[0], (i + 1) * window[0]), j * window[1]
        part = x[b, rows, across : across + window[1], c]
        row, column = np.unravel_index(part.argmax(), part.shape)
        expected[b, i * window[0] + row, across + column, c] = grad[b, i, j, c]
    arrays = jnp.asarray(x, dtype), jnp.asarray(grad, dtype)
    maxima = ops.max_pool(arrays[0], window)
    found = pooling._to_own_tiles(arrays[0], maxima, arrays[1], window)
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


@pytest.mark.parametrize(("batch", "convolutions"), [(100, 0), (4096, 2)])
def test_a_gpu_convolves_small_batches_by_products_and_large_ones_by_convolutions(
    batch: int, convolutions: int
) -> None:
    x, kernel = jnp.zeros((batch, 28, 28, 1)), jnp.zeros((5, 5, 1, 32))
    gradient = jax.grad(lambda kernel, x: jnp.square(ops.conv2d(x, kernel)).sum())
    program = lowered_for_a_gpu(gradient, kernel, x)
    assert program.count("stablehlo.convolution") == convolutions


def test_a_gpu_runs_many_networks_at_once_without_grouped_convolutions() -> None:
    x, kernels = jnp.zeros((8, 100, 12, 12, 32)), jnp.zeros((8, 5, 5, 32, 64))
    each = jax.vmap(jax.grad(lambda kernel, x: jnp.square(ops.conv2d(x, kernel)).sum()))
    assert "stablehlo.convolution" not in lowered_for_a_gpu(each, kernels, x)


def test_a_gpu_pools_much_without_scattering_its_gradients() -> None:
    def pooled(x: Any) -> Any:
        return ops.max_pool(x, (2, 2)).sum()

    much, little = jnp.zeros((64, 64, 64, 32)), jnp.zeros((1, 8, 8, 4))
    assert "select_and_scatter" not in lowered_for_a_gpu(jax.grad(pooled), much)
    assert "select_and_scatter" in lowered_for_a_gpu(jax.grad(pooled), little)
