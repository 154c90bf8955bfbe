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
from dlc_jax.explain import ascent
from dlc_jax.explain import dream as dreaming
from dlc_jax.explain.classifier import View

KEY = jax.random.key(0)
NORMALISE = data.Normalise(np.full(3, 100.0), np.full(3, 60.0))


class Convolved(models.Network):
    """A layer of strided convolution, for images of any size, and its averages."""

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
def view() -> View:
    return View.of(Convolved(), NORMALISE)


def half_square(kernel: np.ndarray, image: np.ndarray) -> tuple[float, np.ndarray]:
    """Half the squared norm of what `Convolved` makes of an image, and its gradient."""
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


def shrunk_or_enlarged(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import torch

    x = torch.tensor(images).permute(0, 3, 1, 2)
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return torch.nn.functional.interpolate(x, size, **options).permute(0, 2, 3, 1).numpy()


def test_dreaming_is_the_published_programs_ascent_over_octaves(view: View, pixels: Array) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    images, objectives = dreaming.dream(
        view, pixels, "conv", key=KEY, octaves=3, steps=2, learning_rate=0.03, jitter=0
    )
    original = np.asarray(pixels, np.float64)
    kernel = np.asarray(Convolved().kernel[...], np.float64)
    details = np.zeros((2, 1, 1, 3))
    expected = np.zeros((3, 2, 2))
    for octave, size in enumerate([(10, 12), (14, 17), (20, 24)]):
        base = shrunk_or_enlarged(original, size)
        dreamt = np.clip(base + shrunk_or_enlarged(details, size), 0, 1)
        for step in range(2):
            for place, image in enumerate(dreamt):
                expected[octave, step, place], gradient = half_square(kernel, image)
                dreamt[place] = np.clip(image + 0.03 * gradient / np.abs(gradient).mean(), 0, 1)
        details = dreamt - base
    np.testing.assert_allclose(images, dreamt, atol=1e-4)
    np.testing.assert_allclose(objectives, expected, rtol=1e-4)


def test_the_layers_norm_grows_at_each_octave(view: View, pixels: Array) -> None:
    objectives = dreaming.dream(view, pixels, "conv", key=KEY, octaves=3, jitter=0).objectives
    assert (np.diff(objectives, axis=1) > 0).all()


@pytest.mark.slow
def test_the_layers_norm_grows_on_digits(lecture: View) -> None:
    digits = np.asarray(data.load("mnist-5k").test.images[:5]) / np.float32(255)
    # A stage of feature maps, and one of single units.
    for stage in ("conv2", "logits"):
        images, _ = dreaming.dream(lecture, digits, stage, key=KEY, octaves=1)
        norms = [
            np.square(np.asarray(activations_of(lecture, some, stage)).reshape(5, -1)).sum(1)
            for some in (digits, images)
        ]
        assert (norms[1] > norms[0]).all()


@pytest.mark.parametrize("octaves", [1, 3])
def test_jitter_and_octaves_alone_leave_images_as_they_are(
    view: View, pixels: Array, octaves: int
) -> None:
    images = dreaming.dream(
        view, pixels, "conv", key=KEY, octaves=octaves, learning_rate=0.0, jitter=5
    ).images
    np.testing.assert_array_equal(images, pixels)


def test_octaves_grow_by_the_scale_to_the_images_own_size() -> None:
    shapes = dreaming.octave_shapes((224, 448, 3), 4, 1.4)
    assert shapes == [(82, 163, 3), (114, 229, 3), (160, 320, 3), (224, 448, 3)]
    assert dreaming.octave_shapes((28, 28, 1), 1, 1.4) == [(28, 28, 1)]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rate=st.floats(0, 2), bright=st.floats(0, 1))
def test_pixels_stay_from_0_to_1(seed: int, rate: float, bright: float) -> None:
    view = View.of(Convolved(), NORMALISE)
    noise = np.random.default_rng(seed).uniform(size=(1, 11, 13, 3)).astype(np.float32)
    images = np.asarray(
        dreaming.dream(
            view, (noise + bright).clip(0, 1), "conv", key=KEY, octaves=2, steps=2,
            learning_rate=rate,
        ).images
    )  # fmt: skip
    assert 0 <= images.min() <= images.max() <= 1


def test_the_key_decides_and_an_image_does_not_depend_on_the_others(
    view: View, pixels: Array
) -> None:
    run = partial(dreaming.dream, view, stage="conv", octaves=2, learning_rate=0.05)
    first = np.asarray(run(pixels, key=KEY).images)
    np.testing.assert_array_equal(first, run(pixels, key=KEY).images)
    np.testing.assert_allclose(first[1:], run(pixels[1:], key=KEY).images, atol=1e-4)
    assert np.abs(first - run(pixels, key=jax.random.key(1)).images).max() > 0.01


def test_under_jit_the_images_are_the_same(view: View, pixels: Array) -> None:
    static = ("stage", "octaves", "octave_scale", "steps", "jitter")
    jitted = jax.jit(dreaming.dream, static_argnames=static)
    arguments: dict[str, Any] = {"stage": "conv", "key": KEY, "octaves": 2}
    result = jitted(view, pixels, **arguments)
    expected = dreaming.dream(view, pixels, **arguments)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_network_of_one_size_accepts_that_alone_and_others_what_their_windows_fit() -> None:
    lecture = View.of(
        models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0)),
        data.Normalise(np.zeros(1), np.ones(1)),
    )
    airbench = View.of(
        models.create(
            "airbench", image_shape=(32, 32, 3), num_classes=10, rngs=nnx.Rngs(0), widths=(4, 4, 4)
        ),
        NORMALISE,
    )
    sizes = [1, 4, 8, 20, 28, 40]
    assert [ascent.accepts(lecture, (s, s, 1)) for s in sizes] == [s == 28 for s in sizes]
    assert [ascent.accepts(airbench, (s, s, 3)) for s in sizes] == [s > 8 for s in sizes]
    assert not ascent.accepts(lecture, (28, 28, 3))


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("no stage 'conv3'; choose from conv1, conv2, fc1, logits", {"stage": "conv3"}),
        ("no images of 20x20, as one of 4 octaves has them; use octaves=1", {"octaves": 4}),
        ("no images of 20x20x1", {"pixels": np.zeros((1, 20, 20, 1))}),
        ("(0, 28, 28, 1)", {"pixels": np.zeros((0, 28, 28, 1))}),
        ("[batch, height, width, channels]", {"pixels": np.zeros((28, 28, 1))}),
        ("at least one octave, not 0", {"octaves": 0}),
        ("at least 1, not 0.5", {"octave_scale": 0.5}),
        ("at least one step, not 0", {"steps": 0}),
        ("moved by -1 pixels", {"jitter": -1}),
    ],
)
def test_what_does_not_fit_is_named(lecture: View, message: str, changed: dict[str, Any]) -> None:
    pixels = np.zeros((1, 28, 28, 1), np.float32)
    given: dict[str, Any] = {"pixels": pixels, "stage": "conv2", "key": KEY, "octaves": 1}
    with pytest.raises(InputError) as error:
        dreaming.dream(lecture, **given | changed)
    assert message in str(error.value)


def test_too_many_octaves_are_answered_with_as_many_as_fit(view: View, pixels: Array) -> None:
    with pytest.raises(InputError, match=r"no images of 2x2, as one of 8 octaves.*octaves=7"):
        dreaming.dream(view, pixels, "conv", key=KEY, octaves=8)
