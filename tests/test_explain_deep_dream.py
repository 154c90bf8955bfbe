from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import activations_of, normal
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from dlc_jax import data, models
from dlc_jax.errors import InputError
from dlc_jax.explain.classifier import ImageClassifier
from dlc_jax.explain.deep_dream import deep_dream, octave_shapes

KEY = jax.random.key(0)
NORMALIZE = data.Normalize(np.full(3, 100.0), np.full(3, 60.0))


class Convolved(models.Network):
    """A strided convolution and its averages, for images of any size."""

    def __init__(self) -> None:
        self.kernel = nnx.Param(normal(0, (3, 3, 3, 4)))

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        options: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        y = jax.lax.conv_general_dilated(x, self.kernel[...], (2, 2), "VALID", **options)
        return OrderedDict(conv=y, logits=y.mean((1, 2)))


@pytest.fixture
def pixels(rng: np.random.Generator) -> Array:
    return jnp.asarray(rng.uniform(0.2, 0.8, (2, 20, 24, 3)), jnp.float32)


@pytest.fixture
def classifier() -> ImageClassifier:
    return ImageClassifier.from_model(Convolved(), NORMALIZE)


def half_square(kernel: np.ndarray, image: np.ndarray) -> tuple[float, np.ndarray]:
    """Half the squared norm of the activations of `Convolved`, and its gradient."""
    x = (255 * image - 100) / 60
    height, width = ((size - 3) // 2 + 1 for size in x.shape[:2])
    objective, gradient = 0.0, np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            patch = np.s_[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            y = np.tensordot(x[patch], kernel, 3)
            objective += (y**2).sum() / 2
            gradient[patch] += kernel @ y
    return objective, gradient * 255 / 60


def torch_resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import torch

    x = torch.tensor(images).permute(0, 3, 1, 2)
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return torch.nn.functional.interpolate(x, size, **options).permute(0, 2, 3, 1).numpy()


def test_dream_matches_a_loop_over_octaves(classifier: ImageClassifier, pixels: Array) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    images, objectives = deep_dream(
        classifier, pixels, "conv", key=KEY, octaves=3, steps=2, learning_rate=0.03, jitter=0
    )
    original = np.asarray(pixels, np.float64)
    kernel = np.asarray(Convolved().kernel[...], np.float64)
    details = np.zeros((2, 1, 1, 3))
    expected = np.zeros((3, 2, 2))
    for octave, size in enumerate([(10, 12), (14, 17), (20, 24)]):
        base = torch_resize(original, size)
        dreamed = np.clip(base + torch_resize(details, size), 0, 1)
        for step in range(2):
            for index, image in enumerate(dreamed):
                expected[octave, step, index], gradient = half_square(kernel, image)
                dreamed[index] = np.clip(image + 0.03 * gradient / np.abs(gradient).mean(), 0, 1)
        details = dreamed - base
    np.testing.assert_allclose(images, dreamed, atol=1e-4)
    np.testing.assert_allclose(objectives, expected, rtol=1e-4)


def test_norm_grows_at_each_octave(classifier: ImageClassifier, pixels: Array) -> None:
    objectives = deep_dream(classifier, pixels, "conv", key=KEY, octaves=3, jitter=0).objectives
    assert (np.diff(objectives, axis=1) > 0).all()


@pytest.mark.slow
def test_norm_grows_for_digits(lecture: ImageClassifier) -> None:
    digits = np.asarray(data.load("mnist-5k").test.images[:5]) / np.float32(255)
    # A stage of feature maps, and one of single units.
    for stage in ("conv2", "logits"):
        images, _ = deep_dream(lecture, digits, stage, key=KEY, octaves=1)
        norms = [
            np.square(np.asarray(activations_of(lecture, some, stage)).reshape(5, -1)).sum(1)
            for some in (digits, images)
        ]
        assert (norms[1] > norms[0]).all()


@pytest.mark.parametrize("octaves", [1, 3])
def test_images_are_unchanged_with_a_learning_rate_of_zero(
    classifier: ImageClassifier, pixels: Array, octaves: int
) -> None:
    images = deep_dream(
        classifier, pixels, "conv", key=KEY, octaves=octaves, learning_rate=0.0, jitter=5
    ).images
    np.testing.assert_array_equal(images, pixels)


def test_octave_shapes() -> None:
    shapes = octave_shapes((224, 448, 3), 4, 1.4)
    assert shapes == [(82, 163, 3), (114, 229, 3), (160, 320, 3), (224, 448, 3)]
    assert octave_shapes((28, 28, 1), 1, 1.4) == [(28, 28, 1)]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rate=st.floats(0, 2), bright=st.floats(0, 1))
def test_pixels_stay_between_0_and_1(seed: int, rate: float, bright: float) -> None:
    classifier = ImageClassifier.from_model(Convolved(), NORMALIZE)
    noise = np.random.default_rng(seed).uniform(size=(1, 11, 13, 3)).astype(np.float32)
    images = np.asarray(
        deep_dream(
            classifier, (noise + bright).clip(0, 1), "conv", key=KEY, octaves=2, steps=2,
            learning_rate=rate,
        ).images
    )  # fmt: skip
    assert 0 <= images.min() <= images.max() <= 1


def test_images_depend_on_the_key_but_not_on_each_other(
    classifier: ImageClassifier, pixels: Array
) -> None:
    run = partial(deep_dream, classifier, stage="conv", octaves=2, learning_rate=0.05)
    first = np.asarray(run(pixels, key=KEY).images)
    np.testing.assert_array_equal(first, run(pixels, key=KEY).images)
    np.testing.assert_allclose(first[1:], run(pixels[1:], key=KEY).images, atol=1e-4)
    assert np.abs(first - run(pixels, key=jax.random.key(1)).images).max() > 0.01


def test_results_are_the_same_under_jit(classifier: ImageClassifier, pixels: Array) -> None:
    static = ("stage", "octaves", "octave_scale", "steps", "jitter")
    jitted = jax.jit(deep_dream, static_argnames=static)
    arguments: dict[str, Any] = {"stage": "conv", "key": KEY, "octaves": 2}
    result = jitted(classifier, pixels, **arguments)
    expected = deep_dream(classifier, pixels, **arguments)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4)


def test_accepted_image_shapes() -> None:
    lecture = ImageClassifier.from_model(
        models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0)),
        data.Normalize(np.zeros(1), np.ones(1)),
    )
    airbench = ImageClassifier.from_model(
        models.create(
            "airbench", image_shape=(32, 32, 3), num_classes=10, rngs=nnx.Rngs(0), widths=(4, 4, 4)
        ),
        NORMALIZE,
    )
    sizes = [1, 4, 8, 20, 28, 40]
    assert [lecture.accepts((s, s, 1)) for s in sizes] == [s == 28 for s in sizes]
    assert [airbench.accepts((s, s, 3)) for s in sizes] == [s > 8 for s in sizes]
    assert not lecture.accepts((28, 28, 3))


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("no stage 'conv3'; choose from conv1, conv2, fc1, logits", {"stage": "conv3"}),
        ("accept images of 20x20, the size of one of 4 octaves; use octaves=1", {"octaves": 4}),
        ("does not accept images of 20x20x1", {"pixels": np.zeros((1, 20, 20, 1))}),
        ("(0, 28, 28, 1)", {"pixels": np.zeros((0, 28, 28, 1))}),
        ("[batch, height, width, channels]", {"pixels": np.zeros((28, 28, 1))}),
        ("octaves is 0; give at least 1", {"octaves": 0}),
        ("octave_scale is 0.5; give at least 1", {"octave_scale": 0.5}),
        ("steps is 0; give at least 1", {"steps": 0}),
        ("jitter is -1; give 0 or more", {"jitter": -1}),
    ],
)
def test_invalid_arguments(lecture: ImageClassifier, message: str, changed: dict[str, Any]) -> None:
    pixels = np.zeros((1, 28, 28, 1), np.float32)
    given: dict[str, Any] = {"pixels": pixels, "stage": "conv2", "key": KEY, "octaves": 1}
    with pytest.raises(InputError) as error:
        deep_dream(lecture, **given | changed)
    assert message in str(error.value)


def test_error_names_the_largest_number_of_octaves(
    classifier: ImageClassifier, pixels: Array
) -> None:
    with pytest.raises(
        InputError, match=r"accept images of 2x2, the size of one of 8 octaves; use octaves=7"
    ):
        deep_dream(classifier, pixels, "conv", key=KEY, octaves=8)
