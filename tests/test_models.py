import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal
from flax import nnx

from dlc_jax import models, ops
from dlc_jax.errors import InputError
from dlc_jax.nn import layers


def lecture(shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10) -> nnx.Module:
    return models.create("lecture", image_shape=shape, num_classes=classes, rngs=nnx.Rngs(0))


def test_lecture_has_the_layers_of_the_slides() -> None:
    shapes = {
        ".".join(map(str, path)): variable.shape
        for path, variable in nnx.to_flat_state(nnx.state(lecture(), nnx.Param))
    }
    assert shapes == {
        "conv1.kernel": (5, 5, 1, 32),
        "conv1.bias": (32,),
        "conv2.kernel": (5, 5, 32, 64),
        "conv2.bias": (64,),
        "fc1.kernel": (256, 200),
        "fc1.bias": (200,),
        "fc2.kernel": (200, 10),
        "fc2.bias": (10,),
    }


def test_initial_weights_are_uniform_by_fan_in() -> None:
    fan_in = {"conv1": 25, "conv2": 800, "fc1": 256, "fc2": 200}
    for path, variable in nnx.to_flat_state(nnx.state(lecture(), nnx.Param)):
        bound = fan_in[str(path[0])] ** -0.5
        values = np.asarray(variable[...])
        assert np.abs(values).max() <= bound
        # Of n uniform draws the mean's standard error is bound/sqrt(3n), and the largest
        # magnitude is below 1 - 10/n of the bound with probability e^-10.
        assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
        assert np.abs(values).max() > (1 - 10 / values.size) * bound


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (22, 40, 2)])
def test_shape_of_logits(shape: tuple[int, int, int]) -> None:
    logits = jax.eval_shape(lambda: lecture(shape, 7)(jnp.ones((3, *shape))))
    assert logits.shape == (3, 7)


def test_bfloat16_computation_keeps_float32_parameters() -> None:
    model = models.create_abstract("lecture", dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    logits = jax.eval_shape(lambda model, x: model(x), model, images)
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


def test_flatten_is_channel_first() -> None:
    x = np.arange(24).reshape(1, 2, 3, 4)
    expected = [x[0, i, j, c] for c in range(4) for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(layers.flatten(jnp.asarray(x))[0], expected)


def test_unknown_name_raises_with_suggestions() -> None:
    with pytest.raises(InputError, match=r"'lectur'.*lecture"):
        models.create("lectur", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))


def test_small_images_raise() -> None:
    with pytest.raises(InputError, match="22x22, not 21x28"):
        lecture((21, 28, 1))


def test_pooled_conv_equals_conv_and_max_pool() -> None:
    pooled = layers.PooledConv(1, 8, (3, 3), (2, 2), rngs=nnx.Rngs(0))
    plain = layers.Conv(1, 8, (3, 3), rngs=nnx.Rngs(0))
    x = normal(0, (4, 8, 8, 1))

    def after(layer: layers.Conv) -> jax.Array:
        return (layer(x) ** 2).mean()

    def before(layer: layers.Conv) -> jax.Array:
        return (ops.max_pool(layer(x), (2, 2)) ** 2).mean()

    np.testing.assert_array_equal(pooled(x), ops.max_pool(plain(x), (2, 2)))
    result, expected = nnx.grad(after)(pooled), nnx.grad(before)(plain)
    for ours, theirs in zip(*map(jax.tree.leaves, (result, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_equal_networks_share_compiled_programs() -> None:
    first, second = (
        nnx.graphdef(
            models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(seed))
        )
        for seed in (0, 1)
    )
    assert first == second
    assert hash(first) == hash(second)
