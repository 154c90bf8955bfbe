"""What the operations compute on a GPU, checked on a CPU against XLA's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc_jax import ops
from dlc_jax.ops import im2col, im2col_gpu, pooling

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
    shape = im2col.out_shape(x.shape, kernel.shape, strides, pads)
    grad = rng.normal(size=shape).astype(np.float32)

    @jax.jit
    def ours(x: Any, kernel: Any, grad: Any) -> Any:
        both = im2col_gpu.gradients(x, kernel, grad, strides, pads)
        return im2col_gpu.convolve(x, kernel, strides, pads), *both

    expected = oracle.convolved(x, kernel, strides, pads, grad)
    for one, other in zip(ours(x, kernel, grad), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@given(window=st.tuples(sizes, sizes), seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None)
def test_among_equal_values_of_touching_windows_the_first_takes_the_gradient(
    dtype: Any, window: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, (2, 7, 6, 3))
    grad = rng.integers(1, 9, (2, 7 // window[0], 6 // window[1], 3))
    maxima, expected = oracle.largest(x, window, window, "VALID", grad)
    gradient = jax.jit(pooling._gather_from_tiles, static_argnums=3)
    found = gradient(*(np.asarray(a, dtype) for a in (x, maxima, grad)), window)
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
