"""Random numbers do not depend on JAX's x64 mode."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlc_jax import models
from dlc_jax.data import augmentation
from dlc_jax.data.shuffling import epoch_permutation
from dlc_jax.explain import adversarial, fooling
from dlc_jax.explain.gradient_ascent import normalized_gradient
from dlc_jax.models import lenet5, perceptron
from dlc_jax.nn import layers

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)


def as_numpy(tree: Any) -> list[np.ndarray]:
    """The leaves as NumPy arrays, random keys as their data."""
    return [
        np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        for leaf in jax.tree.leaves(tree)
    ]


# One network of each class.
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
def test_x64_mode_changes_no_dtype_of_a_networks_variables(name: str) -> None:
    expected = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(models.create_abstract(name)))]
    with jax.enable_x64(True):
        x64 = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(models.create_abstract(name)))]
    assert x64 == expected


def dropout(key: jax.Array) -> jax.Array:
    return layers.Dropout(0.3, rngs=nnx.Rngs(key))(jnp.ones((4, 50), jnp.float32))


def jittered_gradient(key: jax.Array) -> jax.Array:
    pixels = jnp.arange(64, dtype=jnp.float32).reshape(1, 8, 8, 1)

    def objective(pixels: jax.Array) -> jax.Array:
        return (pixels**2).sum((1, 2, 3))

    return normalized_gradient(objective, pixels, key, jitter=3)[1]


def augment(flip: augmentation.Flip) -> Callable[[jax.Array], Any]:
    augment = augmentation.Augmentation(flip=flip, translate=2, cutout=3)
    return lambda key: augment(key, jnp.float32(IMAGES), jnp.arange(6, dtype=jnp.int32), epoch=1)


DRAWS: dict[str, Callable[[jax.Array], Any]] = {
    "initial weights": lambda key: nnx.state(layers.Conv(2, 3, (3, 3), rngs=nnx.Rngs(key))),
    "connections of an A-unit": lambda key: perceptron._connections(key, 5, 3),
    "codes": lambda key: lenet5._codes(14, nnx.Rngs(key)),
    "permutation": lambda key: epoch_permutation(key, 3, 100),
    "random_flip": lambda key: augmentation.random_flip(key, IMAGES),
    "random_crop": lambda key: augmentation.random_crop(key, IMAGES, (5, 5)),
    "random_translate": lambda key: augmentation.random_translate(key, IMAGES, 2),
    "cutout": lambda key: augmentation.cutout(key, IMAGES, 3),
    "augmentation with random flips": augment("random"),
    "augmentation with alternating flips": augment("alternating"),
    "dropout": dropout,
    "jitter": jittered_gradient,
    "mutation": lambda key: fooling.polynomial_mutation(key, IMAGES / np.float32(255), rate=0.3),
    "CPPN": lambda key: fooling._draw_cppn(key, (8, 8, 1)),
    "mutated CPPN": lambda key: fooling._mutate_cppn(
        key, fooling._draw_cppn(key, (8, 8, 1)), jnp.int32(0)
    ),
    "start in an L-infinity ball": lambda key: adversarial._sample_linf(key, (3, 4, 4, 1)),
    "start in an L2 ball": lambda key: adversarial._sample_l2(key, (3, 4, 4, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_x64_mode_draws_the_same(name: str) -> None:
    # Faster than one operation at a time.
    draw = jax.jit(DRAWS[name])
    expected = as_numpy(draw(jax.random.key(5)))
    with jax.enable_x64(True):
        x64 = as_numpy(draw(jax.random.key(5)))
    for array, expected_array in zip(x64, expected, strict=True):
        # Computations with the random numbers may be rounded differently.
        np.testing.assert_allclose(array, expected_array, rtol=1e-5, atol=1e-6)


def test_dropout_matches_flax() -> None:
    inputs = jnp.ones((6, 40), jnp.float32)
    expected = nnx.Dropout(0.4, rngs=nnx.Rngs(3))(inputs)
    np.testing.assert_array_equal(layers.Dropout(0.4, rngs=nnx.Rngs(3))(inputs), expected)
    rows = layers.Dropout(0.4, broadcast_dims=(0,), rngs=nnx.Rngs(3))(inputs)
    assert (rows == rows[0]).all()
    assert (rows[0] == 0).any()
