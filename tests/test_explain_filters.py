import jax
import numpy as np
import pytest
from flax import nnx

from dlc_jax import models
from dlc_jax.data import Dataset, Normalize
from dlc_jax.errors import InputError
from dlc_jax.explain import ImageClassifier, filters


def make_classifier(
    name: str, shape: tuple[int, int, int]
) -> tuple[models.Network, ImageClassifier]:
    model = models.create(name, image_shape=shape, num_classes=10, rngs=nnx.Rngs(0))
    channels = np.full(shape[2], 100, np.float32)
    return model, ImageClassifier.from_model(model, Normalize(channels, channels))


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
def test_first_layer_filters_read_the_image(
    name: str, shape: tuple[int, int, int], path: tuple[str, ...]
) -> None:
    _, classifier = make_classifier(name, shape)
    variable = classifier.variables
    for part in path:
        variable = variable[part]
    expected = np.moveaxis(np.asarray(variable[...]), 3, 0)
    np.testing.assert_array_equal(filters.first_layer_filters(classifier), expected)
    np.testing.assert_array_equal(jax.jit(filters.first_layer_filters)(classifier), expected)
    assert expected.shape[3] == shape[2]


def test_network_without_convolutions() -> None:
    _, classifier = make_classifier("perceptron", (28, 28, 1))
    with pytest.raises(InputError, match="no convolution that reads 1 channels"):
        filters.first_layer_filters(classifier)


def test_feature_maps_are_in_order(few_digits: Dataset) -> None:
    _, classifier = make_classifier("lecture", (28, 28, 1))
    pixels = few_digits.test.images[:3].astype(np.float32) / 255
    maps = jax.jit(filters.feature_maps)(classifier, pixels)
    assert list(maps) == ["conv1", "conv2"]
    for name, stage in maps.items():
        expected = classifier.activations(pixels, name)
        np.testing.assert_allclose(stage, expected, rtol=1e-5, atol=1e-5)


def test_empty_batch() -> None:
    _, classifier = make_classifier("lecture", (28, 28, 1))
    with pytest.raises(InputError, match="at least one image"):
        filters.feature_maps(classifier, np.ones((0, 28, 28, 1)))
