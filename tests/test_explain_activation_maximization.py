import math
from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import activations_of, logits_of
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from dlc_jax import data, models
from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.explain import gradient_ascent
from dlc_jax.explain.activation_maximization import MaximizationResult, maximize_activation
from dlc_jax.explain.classifier import ImageClassifier

KEY = jax.random.key(0)
DIGIT = (28, 28, 1)
SMALL = (8, 8, 1)
PLAIN: dict[str, Any] = {"decay": 0.0, "total_variation": 0.0, "jitter": 0, "blur": 0.0}
IDENTITY = data.Normalize(np.zeros(1, np.float32), np.full(1, 255, np.float32))


class Weighted(models.Network):
    """Weighted sums of all pixels."""

    def __init__(self, weights: Any) -> None:
        self.weights = nnx.Param(jnp.asarray(weights, jnp.float32))

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        return OrderedDict(logits=jnp.einsum("bhwc,hwck->bk", x, self.weights[...]))


class Small(models.Network):
    """A hidden layer, which is faster to compile than the lecture's network."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 100, rngs=rngs)
        self.output = nnx.Linear(100, 10, rngs=rngs)

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        stages = OrderedDict(hidden=jax.nn.relu(self.hidden(x.reshape(len(x), -1))))
        stages["logits"] = self.output(stages["hidden"])
        return stages


@pytest.fixture(scope="module")
def small() -> ImageClassifier:
    return ImageClassifier.from_model(Small(nnx.Rngs(0)), IDENTITY)


@pytest.fixture(scope="module")
def digit_images(lecture: ImageClassifier) -> MaximizationResult:
    """Images of the ten digits."""
    return maximize_activation(lecture, "logits", np.arange(10), key=KEY, image_shape=DIGIT)


def test_image_of_a_linear_unit_is_white_at_positive_weights_and_black_elsewhere(
    rng: np.random.Generator,
) -> None:
    weights = rng.uniform(0.5, 1.5, (5, 6, 3, 4)) * rng.choice([-1, 1], (5, 6, 3, 4))
    classifier = ImageClassifier.from_model(
        Weighted(weights), data.Normalize(np.full(3, 99.0), np.array([20, 60, 90.0]))
    )
    units = np.array([2, 0])
    images, activations = maximize_activation(
        classifier, "logits", units, key=KEY, image_shape=(5, 6, 3), steps=200, **PLAIN
    )
    expected = (weights > 0).transpose(3, 0, 1, 2)[units]
    np.testing.assert_array_equal(images, expected)
    normalised = (255 * expected - 99) / np.array([20, 60, 90])
    best = np.einsum("bhwc,hwcb->b", normalised, weights[..., units])
    np.testing.assert_allclose(activations[-1], best, rtol=1e-5)
    assert (np.diff(activations, axis=0) >= -1e-4 * best).all()


def test_images_of_digits_have_larger_logits_than_all_test_images(
    lecture: ImageClassifier, digit_images: MaximizationResult, digits: Dataset
) -> None:
    logits = np.asarray(logits_of(lecture, digit_images.images))
    real = np.asarray(logits_of(lecture, digits.test.images / np.float32(255)))
    assert real.shape == (1000, 10)
    assert (logits.diagonal() > digit_images.activations[0]).all()
    assert (logits.diagonal() > real.max(0)).all()
    np.testing.assert_array_equal(logits.argmax(1), np.arange(10))


def test_mean_activation_of_feature_maps_grows(lecture: ImageClassifier) -> None:
    units = np.arange(6)
    _, activations = maximize_activation(
        lecture, "conv2", units, key=KEY, image_shape=DIGIT, steps=50
    )
    first, last = np.asarray(activations)[[0, -1]]
    assert (first == 0).sum() <= 1
    assert (last[first > 0] > 2 * first[first > 0]).all()


def test_few_rectified_units_are_zero_for_the_initial_images(lecture: ImageClassifier) -> None:
    units = np.arange(200)
    activations = maximize_activation(
        lecture, "fc1", units, key=KEY, image_shape=DIGIT, steps=1
    ).activations
    image = np.random.default_rng(0).uniform(size=(1, *DIGIT)).astype(np.float32)
    on_one_image = activations_of(lecture, image, "fc1")
    assert (activations == 0).sum() < 0.5 * (on_one_image == 0).sum()


def test_activations_are_those_before_each_step(small: ImageClassifier) -> None:
    initial = np.random.default_rng(0).uniform(size=(2, *SMALL)).astype(np.float32)
    activations = maximize_activation(
        small, "hidden", np.array([3, 8]), key=KEY, image_shape=SMALL, initial_images=initial,
        steps=1, **PLAIN,
    ).activations  # fmt: skip
    expected = np.asarray(activations_of(small, initial, "hidden"))[np.arange(2), [3, 8]]
    assert (expected > 0).any()
    np.testing.assert_allclose(activations[0], expected, rtol=1e-5)


def test_larger_weight_reduces_the_total_variation(small: ImageClassifier) -> None:
    variations = []
    for weight in (0.0, 0.3, 1.0):
        images = maximize_activation(
            small, "logits", np.arange(10), key=KEY, image_shape=SMALL, steps=100,
            total_variation=weight,
        ).images  # fmt: skip
        variations.append(np.asarray(gradient_ascent.total_variation(images)))
    assert (variations[0] > variations[1]).all()
    assert (variations[1] > variations[2]).all()


def test_total_variation_matches_a_loop(rng: np.random.Generator) -> None:
    images = rng.uniform(size=(2, 4, 5, 3)).astype(np.float32)
    images[1, 1:3, 1:3] = 0.5  # flat
    expected = np.zeros(2)
    for image, row, column, channel in np.ndindex(images.shape):
        here = images[image, row, column, channel]
        down = images[image, row + 1, column, channel] - here if row < 3 else 0
        right = images[image, row, column + 1, channel] - here if column < 4 else 0
        expected[image] += math.hypot(down, right)
    np.testing.assert_allclose(gradient_ascent.total_variation(images), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: gradient_ascent.total_variation(x).sum())(jnp.asarray(images))
    assert np.isfinite(gradient).all()


def test_gaussian_blur_matches_pytorch(
    rng: np.random.Generator,
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    images = rng.uniform(size=(2, 9, 7, 3))
    row = np.exp(-(np.arange(-9, 10) ** 2) / (2 * 1.3**2))
    kernel = torch.tensor(np.outer(row, row))[None, None].expand(3, 1, 19, 19)

    def convolved(x: Any) -> Any:
        return torch.nn.functional.conv2d(x, kernel, padding=9, groups=3)

    x = torch.tensor(images).permute(0, 3, 1, 2)
    expected = (convolved(x) / convolved(torch.ones_like(x))).permute(0, 2, 3, 1)
    np.testing.assert_allclose(gradient_ascent.gaussian_blur(images, 1.3), expected, rtol=1e-5)
    np.testing.assert_array_equal(
        gradient_ascent.gaussian_blur(images, 0.0), images.astype(np.float32)
    )


def test_decay_and_blur_without_a_gradient() -> None:
    classifier = ImageClassifier.from_model(
        Weighted(np.zeros((8, 8, 1, 1))), data.Normalize(np.array([51.0]), np.ones(1))
    )
    initial = jax.random.uniform(KEY, (1, 8, 8, 1))
    silent: dict[str, Any] = {
        "key": KEY,
        "image_shape": (8, 8, 1),
        "initial_images": initial,
        "steps": 2,
    }
    decayed = maximize_activation(
        classifier, "logits", np.array([0]), **silent, **PLAIN | {"decay": 0.1}
    )
    np.testing.assert_allclose(decayed.images - 0.2, 0.9 * 0.95 * (initial - 0.2), atol=1e-6)
    blurred = maximize_activation(
        classifier, "logits", np.array([0]), **silent, **PLAIN | {"blur": 1.0}
    )
    expected = gradient_ascent.gaussian_blur(gradient_ascent.gaussian_blur(initial, 1.0), 0.5)
    np.testing.assert_allclose(blurred.images, expected, atol=1e-6)


def test_gradient_is_rolled_back_after_jitter() -> None:
    weights = jnp.arange(12.0).reshape(3, 4, 1, 1)
    classifier = ImageClassifier.from_model(Weighted(weights), IDENTITY)
    gradient_of = jax.jit(
        partial(
            gradient_ascent.normalized_gradient,
            lambda pixels: classifier.logits(pixels)[:, 0],
            jitter=2,
        )
    )
    objectives, gradient = gradient_of(jnp.ones((1, 3, 4, 1)), jax.random.key(3))
    offsets = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    plain = np.asarray(weights[..., 0])
    moved = [np.roll(plain, offset, (0, 1)) / plain.mean() for offset in offsets]
    assert objectives.shape == (1,)
    assert any(np.allclose(gradient[0], candidate) for candidate in moved)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(0, 3),
    weights=st.tuples(st.floats(0, 1), st.floats(0, 2), st.floats(0, 3)),
)
def test_pixels_stay_between_0_and_1(
    small: ImageClassifier, seed: int, rate: float, weights: tuple[float, float, float]
) -> None:
    decay, variation, blur = weights
    images, activations = maximize_activation(
        small, "logits", np.array([1, 7]), key=jax.random.key(seed), image_shape=SMALL, steps=3,
        learning_rate=rate, decay=decay, total_variation=variation, blur=blur,
    )  # fmt: skip
    assert 0 <= images.min() <= images.max() <= 1
    assert np.isfinite(activations).all()


def test_images_depend_on_the_key_but_not_on_other_units(
    small: ImageClassifier,
) -> None:
    run = partial(maximize_activation, small, "logits", image_shape=SMALL, steps=5)
    first = run(np.array([3, 5]), key=KEY)
    again = run(np.array([3, 5]), key=KEY)
    alone = run(np.array([5]), key=KEY)
    other = run(np.array([3, 5]), key=jax.random.key(1))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_allclose(first.images[1:], alone.images, atol=1e-4)
    assert np.abs(first.images - other.images).max() > 0.01


def test_results_are_the_same_under_jit(small: ImageClassifier) -> None:
    static = ("stage", "image_shape", "steps", "jitter")
    jitted = jax.jit(maximize_activation, static_argnames=static)
    arguments: dict[str, Any] = {"key": KEY, "image_shape": SMALL, "steps": 5, "blur": 0.4}
    result = jitted(small, "logits", jnp.array([4, 9]), **arguments)
    expected = maximize_activation(small, "logits", np.array([4, 9]), **arguments)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("no stage 'conv3'; choose from conv1, conv2, fc1, logits", {"stage": "conv3"}),
        ("no unit 10; choose from 0 to 9", {"units": [4, 10]}),
        ("no unit -1", {"units": [-1]}),
        ("units is empty", {"units": []}),
        ("does not accept images of 20x20x1", {"image_shape": (20, 20, 1)}),
        (
            "has shape (2, 28, 28, 1); give (1, 28, 28, 1)",
            {"initial_images": np.zeros((2, 28, 28, 1))},
        ),
        ("steps is 0; give at least 1", {"steps": 0}),
        ("jitter is -1; give 0 or more", {"jitter": -1}),
    ],
)
def test_invalid_arguments(lecture: ImageClassifier, message: str, changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {"stage": "logits", "units": [0], "key": KEY, "image_shape": DIGIT}
    with pytest.raises(InputError) as error:
        maximize_activation(lecture, **given | changed)
    assert message in str(error.value)
