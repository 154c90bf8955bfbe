import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from dlc_jax import ops
from dlc_jax.models.prelu_net import spatial_pyramid
from dlc_jax.nn import layers


@st.composite
def pools(draw: Any) -> tuple[Any, ...]:
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    height, width = (draw(st.integers(size, size + 6)) for size in window)
    padding = draw(st.sampled_from(["VALID", "SAME", ((1, 0), (0, 1))]))
    return (2, height, width, 3), window, strides, padding


@settings(max_examples=10, deadline=None)
@given(pools())
def test_avg_pool_and_its_gradient_equal_flax(case: tuple[Any, ...]) -> None:
    shape, window, strides, padding = case
    x = normal(0, shape)

    def ours(x: jax.Array) -> jax.Array:
        return ops.avg_pool(x, window, strides, padding)

    def flax_pool(x: jax.Array) -> jax.Array:
        return nnx.avg_pool(x, window, strides, padding)

    weights = normal(1, jax.eval_shape(flax_pool, x).shape)

    @jax.jit
    def both(x: jax.Array, weights: jax.Array) -> Any:
        each = [jax.vjp(function, x) for function in (ours, flax_pool)]
        return [(pooled, vjp(weights)) for pooled, vjp in each]

    for a, b in zip(*map(jax.tree.leaves, both(x, weights)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_avg_pool_raises_if_the_window_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"avg_pool.*\(5, 5\).*4x4"):
        ops.avg_pool(jnp.zeros((1, 4, 4, 1)), (5, 5))


def run_in_torch(function: Any, x: jax.Array) -> np.ndarray:
    """Applies a PyTorch function of NCHW arrays to an NHWC array."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    torch.set_num_threads(1)  # its threads would spin while JAX computes
    return function(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("shape", "count"),
    [((13, 13), (6, 6)), ((6, 9), (4, 4)), ((7, 7), (1, 1)), ((3, 4), (7, 3)), ((6, 6), (6, 6))],
)
def test_adaptive_avg_pool_equals_pytorch(shape: tuple[int, int], count: tuple[int, int]) -> None:
    x = normal(0, (2, *shape, 3))

    def torch_function(x: Any) -> Any:
        import torch

        return torch.nn.functional.adaptive_avg_pool2d(x, count)

    result = jax.jit(layers.adaptive_avg_pool, static_argnums=1)(x, count)
    np.testing.assert_allclose(result, run_in_torch(torch_function, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [4, 6, 7])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 3)])
def test_ceil_mode_padding_pools_like_pytorch(size: int, window: int, stride: int) -> None:
    x = normal(0, (1, size, size + 1, 2))
    square, strides = (window, window), (stride, stride)
    pads = layers.ceil_mode_padding(x.shape, square, strides)

    def torch_function(x: Any) -> Any:
        import torch

        return torch.nn.functional.max_pool2d(x, window, stride, ceil_mode=True)

    np.testing.assert_array_equal(
        ops.max_pool(x, square, strides, pads), run_in_torch(torch_function, x)
    )


def test_local_response_norm_equals_pytorch() -> None:
    x = 10 * normal(0, (2, 3, 3, 8))

    def torch_function(x: Any) -> Any:
        import torch

        # Its alpha is divided by the size.
        return torch.nn.functional.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)

    normalised = jax.jit(layers.local_response_norm)(x)
    np.testing.assert_allclose(normalised, run_in_torch(torch_function, x), rtol=1e-5)


def test_spatial_pyramid_equals_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(2, 14, 14, 3)).astype(np.float32)
    expected = []
    for count, size, stride in ((7, 2, 2), (3, 5, 4), (2, 7, 7), (1, 14, 14)):
        for i in range(count):
            for j in range(count):
                window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                expected.append(window.max((1, 2)))
    np.testing.assert_array_equal(jax.jit(spatial_pyramid)(x), np.concatenate(expected, 1))


def test_prelu_with_slopes_zero_and_one() -> None:
    x = normal(0, (4, 5, 5, 3))
    np.testing.assert_array_equal(layers.PReLU(3, slope=0)(x), np.maximum(x, 0))
    np.testing.assert_array_equal(layers.PReLU(3, slope=1)(x), x)


def brightening_images() -> jax.Array:
    """Images of increasing brightness, so each half has other statistics."""
    return jnp.arange(1.0, 65.0).reshape(-1, 1, 1, 1) * normal(0, (64, 3, 4, 2))


def shard_over_batch(function: Any, num_arrays: int, out_specs: Any) -> Any:
    """The function on two devices, each with half of the arrays."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec("batch")
    in_specs = (batch,) * num_arrays
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


def normalize_batch(x: jax.Array, weights: jax.Array | None = None) -> Any:
    """Output and running statistics of a new `BatchNorm` in training mode."""
    layer = layers.BatchNorm(2, rngs=nnx.Rngs(0))
    layers.set_example_weights(layer, weights)
    y = layer(x)
    return y, layer.mean[...], layer.var[...]


NORMALIZED = PartitionSpec("batch"), PartitionSpec(), PartitionSpec()


def assert_all_close(results: Any, expected: Any) -> None:
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.versions
def test_batch_norm_uses_statistics_over_all_devices() -> None:
    x = brightening_images()
    results = shard_over_batch(normalize_batch, 1, NORMALIZED)(x)
    assert_all_close(results, jax.jit(normalize_batch)(x))


@pytest.mark.versions
@pytest.mark.parametrize("sharded", [False, True])
def test_batch_norm_ignores_padding_in_statistics(sharded: bool) -> None:
    x = brightening_images()
    # Most of the second device's part is padding.
    real = np.r_[np.ones(33), np.zeros(31)].astype(bool)
    function = shard_over_batch(normalize_batch, 2, NORMALIZED) if sharded else normalize_batch
    y, mean, var = jax.jit(function)(x, jnp.asarray(real, jnp.float32))
    kept = np.asarray(x, np.float64)[real]
    expected = (kept - kept.mean((0, 1, 2))) / np.sqrt(kept.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y[real], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean, 0.1 * kept.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(var, 0.9 + 0.1 * kept.var((0, 1, 2), ddof=1), rtol=1e-4)


@pytest.mark.parametrize("sharded", [False, True])
def test_batch_norm_with_weights_of_one_equals_no_weights(sharded: bool) -> None:
    x = brightening_images()
    function = shard_over_batch(normalize_batch, 2, NORMALIZED) if sharded else normalize_batch
    assert_all_close(jax.jit(function)(x, jnp.ones(64)), jax.jit(normalize_batch)(x))


@pytest.mark.versions
def test_gradients_through_batch_norm_ignore_padding() -> None:
    x = brightening_images()
    weights = jnp.asarray(np.arange(64) < 33, jnp.float32)

    def loss(x: jax.Array, weights: jax.Array) -> jax.Array:
        y = normalize_batch(x, weights)[0]
        return jnp.vdot(weights, (y**3).sum((1, 2, 3)))

    gradients = jax.jit(jax.grad(loss))(x, weights)
    assert not gradients[33:].any()
    expected = jax.jit(jax.grad(lambda x: (normalize_batch(x)[0] ** 3).sum()))(x[:33])
    np.testing.assert_allclose(gradients[:33], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.versions
@pytest.mark.parametrize("jit", [False, True])
def test_example_weights_are_no_part_of_the_state(jit: bool) -> None:
    graphdef, state = nnx.split(nnx.Sequential(layers.BatchNorm(2, rngs=nnx.Rngs(0))))

    def variables(weights: jax.Array) -> Any:
        model = nnx.merge(graphdef, state, copy=True)
        layers.set_example_weights(model, weights)
        return nnx.state(model), nnx.split(model)[1]

    function = jax.jit(variables) if jit else variables
    for result in function(jnp.ones(4)):
        assert nnx.to_flat_state(result).paths == nnx.to_flat_state(state).paths


def test_running_statistics_converge_to_unbiased_estimates() -> None:
    layer = layers.BatchNorm(2, rngs=nnx.Rngs(0))
    x = jnp.array([3.0, -1.0]) + jnp.array([2.0, 0.5]) * normal(0, (64, 5, 5, 2))
    layer.train()
    for _ in range(200):
        y = layer(x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(layer.mean[...], np.asarray(x).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], np.asarray(x).var((0, 1, 2), ddof=1), rtol=1e-4)
    layer.eval()
    np.testing.assert_allclose(layer(x), y, rtol=1e-2, atol=1e-2)


def test_dropout_draws_a_new_mask_in_each_call() -> None:
    layer = layers.Dropout(0.5, rngs=nnx.Rngs(0))
    again = layers.Dropout(0.5, rngs=nnx.Rngs(0))
    x = jnp.ones((64, 10))
    first, second = layer(x), layer(x)
    np.testing.assert_array_equal(first, again(x))
    assert (first != second).any()
    assert set(np.unique(first)) == {0, 2}
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)


def test_dropout_over_devices_drops_the_same_activations() -> None:
    def drop(x: jax.Array) -> jax.Array:
        return layers.Dropout(0.5, rngs=nnx.Rngs(0))(x)

    x = normal(0, (64, 10))
    sharded = shard_over_batch(drop, 1, PartitionSpec("batch"))(x)
    np.testing.assert_array_equal(sharded, drop(x))


def test_initializers_draw_the_same_values_as_flax() -> None:
    key, shape = jax.random.key(3), (2, 3, 4)
    he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    np.testing.assert_array_equal(layers.he_normal(key, shape), he_normal(key, shape))
    lecun_normal = nnx.initializers.lecun_normal()
    ours = layers.matrix_initializer(lecun_normal, "fan_in")(key, shape)
    np.testing.assert_array_equal(ours, lecun_normal(key, shape))
    ours = layers.uniform(0.5)(key, shape)
    np.testing.assert_array_equal(ours, jax.random.uniform(key, shape, minval=-0.5, maxval=0.5))


@pytest.mark.versions
def test_gelu_and_its_derivatives_have_closed_forms_inside_shard_map() -> None:
    x = np.linspace(-4, 4, 64).astype(np.float32)
    density = np.exp(-(x.astype(float) ** 2) / 2) / math.sqrt(2 * math.pi)
    cumulative = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in x.tolist()])
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), x * cumulative, atol=1e-6)

    def slopes(x: Any) -> Any:
        first = jax.grad(lambda x: layers.gelu(x).sum())
        return first(x), jax.grad(lambda x: first(x).sum())(x)

    batch = PartitionSpec("batch")
    first, second = shard_over_batch(slopes, 1, (batch, batch))(jnp.asarray(x))
    np.testing.assert_allclose(first, cumulative + x * density, atol=1e-6)
    np.testing.assert_allclose(second, (2 - x**2) * density, atol=2e-6)
