import jax
import numpy as np
import pytest
from flax import nnx

from dlc_jax import models
from dlc_jax.data import Dataset, Normalise
from dlc_jax.errors import InputError
from dlc_jax.explain import View, filters


def view_of(name: str, shape: tuple[int, int, int]) -> tuple[models.Network, View]:
    model = models.create(name, image_shape=shape, num_classes=10, rngs=nnx.Rngs(0))
    channels = np.full(shape[2], 100, np.float32)
    return model, View.of(model, Normalise(channels, channels))


@pytest.mark.parametrize(
    ("name", "shape", "path"),
    [
        ("lecture", (28, 28, 1), ("conv1", "kernel")),
        ("lenet5", (28, 28, 1), ("c1", "kernel")),
        ("neocognitron", (28, 28, 1), ("s1", "a")),
        ("airbench", (32, 32, 3), ("whitening",)),
        ("resnet20", (32, 32, 3), ("conv1", "kernel")),
    ],
)
def test_the_first_filters_are_those_that_read_the_image(
    name: str, shape: tuple[int, int, int], path: tuple[str, ...]
) -> None:
    _, view = view_of(name, shape)
    variable = view.variables
    for part in path:
        variable = variable[part]
    expected = np.moveaxis(np.asarray(variable[...]), 3, 0)
    np.testing.assert_array_equal(filters.first_filters(view), expected)
    np.testing.assert_array_equal(jax.jit(filters.first_filters)(view), expected)
    assert expected.shape[3] == shape[2]


def test_a_network_without_convolutions_is_refused() -> None:
    _, view = view_of("perceptron", (28, 28, 1))
    with pytest.raises(InputError, match="no convolution that reads 1 channels"):
        filters.first_filters(view)


def test_feature_maps_are_the_stages_with_positions_in_order(few_digits: Dataset) -> None:
    _, view = view_of("lecture", (28, 28, 1))
    pixels = few_digits.test.images[:3].astype(np.float32) / 255
    maps = jax.jit(filters.feature_maps)(view, pixels)
    assert list(maps) == ["conv1", "conv2"]
    for name, of_stage in maps.items():
        expected = view.activations(pixels, name)
        np.testing.assert_allclose(of_stage, expected, rtol=1e-5, atol=1e-5)


def test_an_empty_batch_is_refused() -> None:
    _, view = view_of("lecture", (28, 28, 1))
    with pytest.raises(InputError, match="at least one image"):
        filters.feature_maps(view, np.ones((0, 28, 28, 1)))
