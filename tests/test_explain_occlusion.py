from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

from dlc_jax import models
from dlc_jax.data import Normalize
from dlc_jax.errors import InputError
from dlc_jax.explain import ImageClassifier, occlusion

IDENTITY = Normalize(np.zeros(1, np.float32), np.full(1, 255, np.float32))

occlude = jax.jit(
    occlusion.occlusion_sensitivity, static_argnames=("patch_size", "stride", "batch_size")
)


class Corner(models.Network):
    """Predicts class 1 if the 3x3 pixels in the upper left corner are bright."""

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        bright = x[:, :3, :3].mean((1, 2, 3))
        return OrderedDict(logits=jnp.stack([0 * bright, 10 * bright - 5], 1))


class Dense(models.Network):
    """A linear layer."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = nnx.Param(jnp.asarray(weights))

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        return OrderedDict(logits=x.reshape(len(x), -1) @ self.weights[...])


def test_only_the_corner_that_the_network_reads_matters() -> None:
    classifier = ImageClassifier.from_model(Corner(), IDENTITY)
    pixels = np.ones((2, 10, 12, 1), np.float32)
    result = occlude(classifier, pixels, np.array([1, 0]), patch_size=3, stride=1, fill_value=0.0)
    assert result.shape == (2, 10, 12)
    # Squares around row and column i reach from i - 1 to i + 1.
    overlap = [max(0, 3 - max(0, i - 1) - max(0, 1 - i)) for i in range(12)]
    hidden = np.outer(overlap[:10], overlap) / 9
    expected = 1 / (1 + np.exp(-(10 * (1 - hidden) - 5)))
    np.testing.assert_allclose(result[0], expected, rtol=1e-5)
    np.testing.assert_allclose(result[1], 1 - expected, rtol=1e-4)
    assert (expected < 0.99).sum() == 16


@pytest.mark.parametrize(("size", "stride", "fill"), [(5, 2, 0.5), (4, 3, 0.0), (7, 7, 1.0)])
def test_probabilities_match_a_loop_over_squares(
    size: int, stride: int, fill: float, rng: np.random.Generator
) -> None:
    shape = (24, 27, 1)
    weights = rng.normal(size=(24 * 27, 10), scale=0.1).astype(np.float32)
    classifier = ImageClassifier.from_model(Dense(weights), IDENTITY)
    pixels, labels = rng.uniform(size=(2, *shape)).astype(np.float32), np.array([7, 2])
    rows, columns = occlusion.patch_centers(shape, patch_size=size, stride=stride)
    occluded = []
    for image in pixels:
        for row in rows - size // 2:
            for column in columns - size // 2:
                occluded.append(image.copy())
                occluded[-1][max(0, row) : row + size, max(0, column) : column + size] = fill
    logits = np.stack(occluded).reshape(len(occluded), -1).astype(np.float64) @ weights
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = probabilities.reshape(2, len(rows), len(columns), 10)[[0, 1], :, :, labels]
    options: Any = {"patch_size": size, "stride": stride, "fill_value": fill}
    for batch_size in (16, 1000):
        result = occlude(classifier, pixels, labels, **options, batch_size=batch_size)
        np.testing.assert_allclose(result, expected, rtol=1e-4)
    plain = occlusion.occlusion_sensitivity(classifier, pixels, labels, **options)
    np.testing.assert_allclose(plain, result, rtol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_squares_cover_all_pixels(height: int, width: int, draw: st.DataObject) -> None:
    size = draw.draw(st.integers(1, min(height, width)))
    stride = draw.draw(st.integers(1, size))
    for length, centers in zip(
        (height, width),
        occlusion.patch_centers((height, width, 1), patch_size=size, stride=stride),
        strict=True,
    ):
        covered = np.concatenate([np.arange(size) + center - size // 2 for center in centers])
        assert set(range(length)) <= set(covered.tolist())
        assert 0 <= centers.min() <= centers.max() < length
        assert set(np.diff(centers).tolist()) <= {stride}


def test_stride_1_has_a_square_around_each_pixel() -> None:
    rows, columns = occlusion.patch_centers((5, 7, 3), patch_size=2, stride=1)
    np.testing.assert_array_equal(rows, np.arange(5))
    np.testing.assert_array_equal(columns, np.arange(7))


def test_invalid_arguments() -> None:
    classifier, pixels, labels = (
        ImageClassifier.from_model(Corner(), IDENTITY),
        np.ones((1, 9, 8, 1)),
        np.array([1]),
    )
    call = partial(occlusion.occlusion_sensitivity, classifier)
    with pytest.raises(InputError, match="patch_size is 9; choose from 1 to 8 for images of 9x8"):
        call(pixels, labels, patch_size=9, stride=1)
    with pytest.raises(InputError, match=r"stride is 4; choose from 1 to patch_size \(3\)"):
        call(pixels, labels, patch_size=3, stride=4)
    with pytest.raises(InputError, match="no class 2; choose from 0 to 1"):
        call(pixels, labels + 1, patch_size=3, stride=1)
    with pytest.raises(InputError, match="at least one image"):
        call(pixels[:0], labels[:0], patch_size=3, stride=1)
    with pytest.raises(InputError, match="batch_size is 0"):
        call(pixels, labels, patch_size=3, stride=1, batch_size=0)
