import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import normal
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc_jax import ops, sharding, training
from dlc_jax.data import Examples
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
def test_average_pooling_and_its_gradient_are_flaxs(case: tuple[Any, ...]) -> None:
    shape, window, strides, padding = case
    x = normal(0, shape)

    def ours(x: jax.Array) -> jax.Array:
        return ops.avg_pool(x, window, strides, padding)

    def flaxs(x: jax.Array) -> jax.Array:
        return nnx.avg_pool(x, window, strides, padding)

    weights = normal(1, jax.eval_shape(flaxs, x).shape)

    @jax.jit
    def both(x: jax.Array, weights: jax.Array) -> Any:
        each = [jax.vjp(function, x) for function in (ours, flaxs)]
        return [(pooled, vjp(weights)) for pooled, vjp in each]

    for a, b in zip(*map(jax.tree.leaves, both(x, weights)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_average_pooling_names_a_window_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"avg_pool.*\(5, 5\).*4x4"):
        ops.avg_pool(jnp.zeros((1, 4, 4, 1)), (5, 5))


def in_torch(function: Any, x: jax.Array) -> np.ndarray:
    """What a PyTorch function of NCHW arrays makes of an NHWC array."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    torch.set_num_threads(1)  # its threads would spin while JAX computes
    return function(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("shape", "count"),
    [((13, 13), (6, 6)), ((6, 9), (4, 4)), ((7, 7), (1, 1)), ((3, 4), (7, 3)), ((6, 6), (6, 6))],
)
def test_adaptive_average_pooling_is_pytorchs(
    shape: tuple[int, int], count: tuple[int, int]
) -> None:
    x = normal(0, (2, *shape, 3))

    def pytorchs(x: Any) -> Any:
        import torch

        return torch.nn.functional.adaptive_avg_pool2d(x, count)

    result = jax.jit(layers.adaptive_avg_pool, static_argnums=1)(x, count)
    np.testing.assert_allclose(result, in_torch(pytorchs, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [4, 6, 7])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 3)])
def test_windows_that_reach_beyond_the_image_are_those_of_pytorchs_ceil_mode(
    size: int, window: int, stride: int
) -> None:
    x = normal(0, (1, size, size + 1, 2))
    square, strides = (window, window), (stride, stride)
    pads = layers.reaching_beyond(x.shape, square, strides)

    def pytorchs(x: Any) -> Any:
        import torch

        return torch.nn.functional.max_pool2d(x, window, stride, ceil_mode=True)

    np.testing.assert_array_equal(ops.max_pool(x, square, strides, pads), in_torch(pytorchs, x))


def test_responses_are_normalised_over_channels_as_in_the_paper() -> None:
    x = 10 * normal(0, (2, 3, 3, 8))

    def pytorchs(x: Any) -> Any:
        import torch

        # Its alpha is divided by the size.
        return torch.nn.functional.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)

    normalised = jax.jit(layers.local_response_norm)(x)
    np.testing.assert_allclose(normalised, in_torch(pytorchs, x), rtol=1e-5)


def test_a_pyramid_holds_the_maxima_of_windows_that_cover_the_maps() -> None:
    x = np.random.default_rng(0).normal(size=(2, 14, 14, 3)).astype(np.float32)
    expected = []
    for count, size, stride in ((7, 2, 2), (3, 5, 4), (2, 7, 7), (1, 14, 14)):
        for i in range(count):
            for j in range(count):
                window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                expected.append(window.max((1, 2)))
    np.testing.assert_array_equal(jax.jit(spatial_pyramid)(x), np.concatenate(expected, 1))


def test_a_slope_of_zero_rectifies_and_a_slope_of_one_changes_nothing() -> None:
    x = normal(0, (4, 5, 5, 3))
    np.testing.assert_array_equal(layers.PReLU(3, slope=0)(x), np.maximum(x, 0))
    np.testing.assert_array_equal(layers.PReLU(3, slope=1)(x), x)


class Small(nnx.Module):
    """A network with batch normalisation and, where wanted, dropout."""

    def __init__(self, rngs: nnx.Rngs, dropout: float = 0.0) -> None:
        self.conv = layers.Conv(1, 8, (3, 3), rngs=rngs)
        self.bn = layers.BatchNorm(8, rngs=rngs)
        self.fc = layers.Linear(8, 10, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn(self.conv(x)))
        return self.fc(self.dropout(x.mean((1, 2))))


def batch() -> Examples:
    # Brighter and brighter, so that each half of the batch has statistics of its own.
    brightness = jnp.arange(64).reshape(-1, 1, 1, 1)
    images = brightness * normal(0, (64, 8, 8, 1))
    return Examples(images, jnp.arange(64) % 10)


def test_a_batch_spread_over_devices_is_normalised_by_the_statistics_of_the_whole() -> None:
    mesh = sharding.cpu_mesh(64)
    assert mesh is not None
    assert mesh.size == 2
    state = training.create_state(Small(nnx.Rngs(0)), optax.sgd(0.1))
    expected, metrics = training.train_step(state, batch())
    step = sharding.spread(training.train_step, mesh, in_axes=(None, 0), out_axes=None)
    result, spread_metrics = jax.jit(step)(state, batch())
    np.testing.assert_allclose(spread_metrics.loss, metrics.loss, rtol=1e-5)
    for ours, theirs in zip(
        *(jax.tree.leaves((s.params, s.stats)) for s in (result, expected)), strict=True
    ):
        if not jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_running_statistics_approach_those_of_the_population() -> None:
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


def test_dropout_differs_from_step_to_step_and_is_the_same_for_the_same_state() -> None:
    state = training.create_state(Small(nnx.Rngs(0), dropout=0.5), optax.sgd(0.0))
    later, first = training.train_step(state, batch())
    _, second = training.train_step(later, batch())
    _, again = training.train_step(state, batch())
    assert first.loss == again.loss
    assert first.loss != second.loss
    logits = [training.eval_step(s, batch())[0] for s in (state, state)]
    np.testing.assert_array_equal(*logits)


def test_initial_weights_are_those_of_the_initialisers_for_kernels() -> None:
    key, shape = jax.random.key(3), (2, 3, 4)
    he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    np.testing.assert_array_equal(layers.he_normal(key, shape), he_normal(key, shape))
    lecun_normal = nnx.initializers.lecun_normal()
    ours = layers.as_matrix(lecun_normal, "fan_in")(key, shape)
    np.testing.assert_array_equal(ours, lecun_normal(key, shape))
    ours = layers.uniform(0.5)(key, shape)
    np.testing.assert_array_equal(ours, jax.random.uniform(key, shape, minval=-0.5, maxval=0.5))


@pytest.mark.versions
def test_gelu_and_its_derivatives_have_their_closed_forms_also_over_devices() -> None:
    x = np.linspace(-4, 4, 64).astype(np.float32)
    density = np.exp(-(x.astype(float) ** 2) / 2) / math.sqrt(2 * math.pi)
    cumulative = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in x.tolist()])
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), x * cumulative, atol=1e-6)
    mesh = sharding.device_mesh(len(x), jax.devices()[:2])

    def slopes(x: Any, *, axis_name: str | None) -> Any:
        del axis_name
        first = jax.grad(lambda x: layers.gelu(x).sum())
        return first(x), jax.grad(lambda x: first(x).sum())(x)

    first, second = sharding.spread(slopes, mesh, in_axes=(0,), out_axes=(0, 0))(jnp.asarray(x))
    np.testing.assert_allclose(first, cumulative + x * density, atol=1e-6)
    np.testing.assert_allclose(second, (2 - x**2) * density, atol=2e-6)
