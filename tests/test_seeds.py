"""What a seed draws does not depend on JAX's x64 mode."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlc_jax import models
from dlc_jax.data import augmentation
from dlc_jax.data.shuffling import order
from dlc_jax.explain import adversarial, fooling
from dlc_jax.explain.ascent import slope
from dlc_jax.models import lenet5, perceptron
from dlc_jax.nn import layers

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)


def numbers(tree: Any) -> list[np.ndarray]:
    """The leaves as arrays of NumPy, of random keys their data."""
    return [
        np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        for leaf in jax.tree.leaves(tree)
    ]


# One of each class of networks.
NETWORKS = (
    "threshold-logic-unit perceptron neocognitron tc lenet5 lenet5-modern alexnet vgg11 googlenet "
    "bn-inception prelu-net resnet18 resnet20 lecture airbench"
)


LARGE = ("vgg11", "googlenet", "bn-inception", "prelu-net", "resnet18")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in NETWORKS.split()
    ],
)
def test_x64_mode_changes_no_type_of_a_networks_variables(name: str) -> None:
    usual = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(models.abstract(name)))]
    with jax.enable_x64(True):
        wide = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(models.abstract(name)))]
    assert wide == usual


def dropout(key: jax.Array) -> jax.Array:
    return layers.Dropout(0.3, rngs=nnx.Rngs(key))(jnp.ones((4, 50), jnp.float32))


def moved(key: jax.Array) -> jax.Array:
    pixels = jnp.arange(64, dtype=jnp.float32).reshape(1, 8, 8, 1)
    return slope(lambda pixels: (pixels**2).sum((1, 2, 3)), pixels, key, jitter=3)[1]


every = augmentation.Augmentation(flip="alternating", translate=2, cutout=3)
DRAWS: dict[str, Callable[[jax.Array], Any]] = {
    "a layer": lambda key: nnx.state(layers.Conv(2, 3, (3, 3), rngs=nnx.Rngs(key))),
    "an A-unit": lambda key: perceptron._connections(key, 5, 3),
    "codes": lambda key: lenet5._codes(14, nnx.Rngs(key)),
    "order": lambda key: order(key, 3, 100),
    "flip": lambda key: augmentation.flip(key, IMAGES),
    "random_crop": lambda key: augmentation.random_crop(key, IMAGES, (5, 5)),
    "translate": lambda key: augmentation.translate(key, IMAGES, 2),
    "cutout": lambda key: augmentation.cutout(key, IMAGES, 3),
    "random flips": lambda key: augmentation.Augmentation(flip="random").draw(key, 1, IMAGES.shape),
    "alternating flips": lambda key: every.draw(key, 1, IMAGES.shape),
    "dropout": dropout,
    "an ascent's offset": moved,
    "mutation": lambda key: fooling.polynomial_mutation(key, IMAGES / np.float32(255), rate=0.3),
    "a pattern": lambda key: fooling._draw_network(key, (8, 8, 1)),
    "a pattern's child": lambda key: fooling._mutate_network(
        key, fooling._draw_network(key, (8, 8, 1)), jnp.int32(0)
    ),
    "a start in a cube": lambda key: adversarial._draw_inf(key, (3, 4, 4, 1)),
    "a start in a ball": lambda key: adversarial._draw_2(key, (3, 4, 4, 1)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_x64_mode_draws_the_same(name: str) -> None:
    # Compiled as a whole, rather than operation by operation.
    draw = jax.jit(DRAWS[name])
    usual = numbers(draw(jax.random.key(5)))
    with jax.enable_x64(True):
        wide = numbers(draw(jax.random.key(5)))
    for array, expected in zip(wide, usual, strict=True):
        # What is computed from the draws may be rounded less.
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


def test_dropout_draws_what_flaxs_does() -> None:
    inputs = jnp.ones((6, 40), jnp.float32)
    expected = nnx.Dropout(0.4, rngs=nnx.Rngs(3))(inputs)
    np.testing.assert_array_equal(layers.Dropout(0.4, rngs=nnx.Rngs(3))(inputs), expected)
    rows = layers.Dropout(0.4, broadcast_dims=(0,), rngs=nnx.Rngs(3))(inputs)
    assert (rows == rows[0]).all()
    assert (rows[0] == 0).any()
