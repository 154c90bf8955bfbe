from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import activations_of, logits_of
from flax import nnx
from jax import Array, lax

from dlc_jax import models, ops
from dlc_jax.data import Dataset, Normalize
from dlc_jax.errors import InputError
from dlc_jax.explain import ImageClassifier, deconvnet
from dlc_jax.nn import layers

IDENTITY = Normalize(np.zeros(1, np.float32), np.full(1, 255, np.float32))

project = jax.jit(deconvnet.project_activation, static_argnames=("stage", "rule"))


class Linear(models.Network):
    """A convolution with stride 2."""

    def __init__(self) -> None:
        self.conv = layers.Conv(
            2, 5, (3, 3), strides=2, padding=1, use_bias=False, rngs=nnx.Rngs(0)
        )

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        y = self.conv(x)
        return OrderedDict(conv=y, logits=y.mean((1, 2)))


def keep_strongest(activations: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations that are zero except for each map's largest one, and its position."""
    kept, positions = np.zeros_like(activations), []
    for i, index in enumerate(maps):
        values = activations[i, ..., index]
        position = np.unravel_index(values.argmax(), values.shape)
        kept[(i, *position, index)] = values[position]
        positions.append(position)
    return kept, np.array(positions)


def test_projection_of_a_linear_layer_is_a_transposed_convolution(rng: np.random.Generator) -> None:
    classifier = ImageClassifier.from_model(
        Linear(), Normalize(np.zeros(2, np.float32), np.full(2, 255, np.float32))
    )
    kernel = np.asarray(classifier.variables["conv"]["kernel"][...])
    pixels = rng.uniform(size=(4, 11, 15, 2)).astype(np.float32)
    maps = np.array([0, 4, 2, 2])
    kept, positions = keep_strongest(np.asarray(activations_of(classifier, pixels, "conv")), maps)
    options: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    expected = lax.conv_transpose(
        jnp.asarray(kept),
        jnp.asarray(kernel),
        (2, 2),
        ((1, 1), (1, 1)),
        transpose_kernel=True,
        **options,
    )
    result = project(classifier, pixels, "conv", maps)
    np.testing.assert_array_equal(result.position, positions)
    np.testing.assert_allclose(result.activation, kept.max((1, 2, 3)) + kept.min((1, 2, 3)))
    np.testing.assert_allclose(result.pixels, expected, rtol=1e-5, atol=1e-6)


def test_projection_of_a_linear_layer_matches_pytorchs_transposed_convolution(
    rng: np.random.Generator,
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    classifier = ImageClassifier.from_model(
        Linear(), Normalize(np.zeros(2, np.float32), np.full(2, 255, np.float32))
    )
    pixels = rng.uniform(size=(3, 11, 15, 2)).astype(np.float32)
    maps = np.array([3, 1, 0])
    kept, _ = keep_strongest(np.asarray(activations_of(classifier, pixels, "conv")), maps)
    kernel = np.asarray(classifier.variables["conv"]["kernel"][...]).transpose(3, 2, 0, 1)
    expected = torch.nn.functional.conv_transpose2d(
        torch.tensor(kept.transpose(0, 3, 1, 2)), torch.tensor(kernel), stride=2, padding=1
    )
    result = project(classifier, pixels, "conv", maps).pixels
    np.testing.assert_allclose(result, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


class Rectified(models.Network):
    """Two convolutions with biases, each pooled and rectified, and a linear layer."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(1)
        self.conv1 = layers.Conv(1, 6, (3, 3), padding="VALID", rngs=rngs)
        self.conv2 = layers.Conv(6, 4, (3, 3), padding="VALID", rngs=rngs)
        self.fc = layers.Linear(36, 3, rngs=rngs)

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        stages = OrderedDict()
        x = stages["conv1"] = nnx.relu(ops.max_pool(self.conv1(x), (2, 2)))
        x = stages["conv2"] = nnx.relu(ops.max_pool(self.conv2(x), (2, 2)))
        stages["logits"] = self.fc(layers.flatten(x))
        return stages


def test_projection_through_two_layers_matches_a_deconvnet_in_pytorch(
    rng: np.random.Generator,
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    functional = torch.nn.functional
    classifier = ImageClassifier.from_model(Rectified(), IDENTITY)
    pixels = rng.uniform(size=(4, 18, 18, 1)).astype(np.float32)
    maps = np.array([0, 1, 2, 3])

    def weights(name: str) -> tuple[Any, Any]:
        layer = classifier.variables[name]
        kernel = np.asarray(layer["kernel"][...]).transpose(3, 2, 0, 1)
        return torch.tensor(kernel), torch.tensor(np.asarray(layer["bias"][...]))

    x, switches = torch.tensor(pixels.transpose(0, 3, 1, 2)), []
    for name in ("conv1", "conv2"):
        size = functional.conv2d(x, *weights(name)).shape
        x, indices = functional.max_pool2d(
            functional.conv2d(x, *weights(name)), 2, return_indices=True
        )
        switches.append((name, indices, size))
        x = functional.relu(x)
    kept, _ = keep_strongest(x.permute(0, 2, 3, 1).numpy(), maps)
    expected = torch.tensor(kept.transpose(0, 3, 1, 2))
    assert (expected > 0).sum() > 1
    for name, indices, size in reversed(switches):
        expected = functional.relu(expected)
        expected = functional.max_unpool2d(expected, indices, 2, output_size=size[2:])
        expected = functional.conv_transpose2d(expected, weights(name)[0])
    result = project(classifier, pixels, "conv2", maps).pixels
    np.testing.assert_allclose(result, expected.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-6)


def test_vectors_have_one_position(rng: np.random.Generator) -> None:
    classifier = ImageClassifier.from_model(Rectified(), IDENTITY)
    pixels = rng.uniform(size=(3, 18, 18, 1)).astype(np.float32)
    result = project(classifier, pixels, "logits", np.array([0, 1, 2]), rule="gradient")
    logits = np.asarray(logits_of(classifier, pixels))[np.arange(3), np.arange(3)]
    gradient = jax.jit(jax.grad(lambda pixels: jnp.trace(classifier.logits(pixels))))(pixels)
    np.testing.assert_array_equal(result.position, np.zeros((3, 2)))
    np.testing.assert_allclose(result.activation, logits, rtol=1e-5)
    expected = logits[:, None, None, None] * gradient
    np.testing.assert_allclose(result.pixels, expected, rtol=1e-4, atol=1e-7)


def test_results_are_the_same_under_jit(rng: np.random.Generator) -> None:
    classifier = ImageClassifier.from_model(Rectified(), IDENTITY)
    pixels, maps = rng.uniform(size=(3, 18, 18, 1)).astype(np.float32), np.array([1, 0, 3])
    for ours, jitted in zip(
        deconvnet.project_activation(classifier, pixels, "conv2", maps),
        project(classifier, pixels, "conv2", maps),
        strict=True,
    ):
        np.testing.assert_allclose(ours, jitted, rtol=1e-5, atol=1e-7)
    strongest = partial(deconvnet.top_activating_images, classifier, pixels, "conv2", count=2)
    for ours, jitted in zip(strongest(), jax.jit(strongest)(), strict=True):
        np.testing.assert_allclose(ours, jitted, rtol=1e-5)


@pytest.mark.parametrize("stage", ["conv1", "logits"])
@pytest.mark.parametrize("batch_size", [7, 100])
def test_top_activating_images_match_sorting(digits: Dataset, stage: str, batch_size: int) -> None:
    model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    classifier = ImageClassifier.from_model(model, Normalize.fit(digits.train.images))
    pixels = digits.test.images[:50].astype(np.float32) / 255
    indices, values = deconvnet.top_activating_images(
        classifier, pixels, stage, count=6, batch_size=batch_size
    )
    activations = np.asarray(activations_of(classifier, pixels, stage))
    largest = activations.reshape(50, -1, activations.shape[-1]).max(1)
    expected = -np.sort(-largest, axis=0)[:6].T
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    at_indices = np.take_along_axis(largest, np.asarray(indices).T, 0).T
    np.testing.assert_allclose(at_indices, expected, rtol=1e-4, atol=1e-5)
    assert all(len(set(row)) == 6 for row in np.asarray(indices).tolist())


def windows(first: int, stride: int, size: int, count: int) -> Callable[[int, int], Any]:
    """Rows in the receptive field of position i, which start at first + stride * i."""

    def rows(i: int, length: int) -> tuple[int, int]:
        assert i < count
        return max(0, first + stride * i), min(length, first + stride * i + size)

    return rows


@pytest.mark.parametrize(
    ("name", "shape", "stage", "rows"),
    [
        # 5x5, then 3x3 pooled: 7 pixels; then 5x5 and 2x2 pooled: 7 + 3 * 5 pixels.
        ("lecture", (28, 34, 1), "conv1", windows(0, 3, 7, 10)),
        ("lecture", (28, 34, 1), "conv2", windows(0, 6, 22, 4)),
        ("lecture", (28, 34, 1), "fc1", windows(-100, 1, 1000, 1)),
        # 7x7 by 2, padded by 3; pooled 3x3 by 2, padded by 1: 7 + 2 * 2 pixels; four 3x3 more.
        pytest.param(
            "resnet18", (64, 96, 3), "conv1", windows(-3, 2, 7, 48), marks=pytest.mark.slow
        ),
        pytest.param(
            "resnet18", (64, 96, 3), "pool1", windows(-5, 4, 11, 24), marks=pytest.mark.slow
        ),
        pytest.param(
            "resnet18",
            (64, 96, 3),
            "layer1",
            windows(-5 - 16, 4, 11 + 32, 24),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_receptive_fields(name: str, shape: tuple[int, int, int], stage: str, rows: Any) -> None:
    model = models.create(name, image_shape=shape, num_classes=10, rngs=nnx.Rngs(0))
    channels = np.full(shape[2], 100, np.float32)
    classifier = ImageClassifier.from_model(model, Normalize(channels, channels))
    positions = classifier.stage_shapes(shape)[stage][:-1] or (1, 1)
    for row, column in {(0, 0), (positions[0] // 2, positions[1] - 1), (positions[0] - 1, 0)}:
        box = deconvnet.receptive_field(classifier, shape, stage, row, column)
        assert box == (*rows(row, shape[0]), *rows(column, shape[1]))


def test_invalid_arguments(rng: np.random.Generator) -> None:
    classifier, shape = ImageClassifier.from_model(Rectified(), IDENTITY), (18, 18, 1)
    pixels, maps = rng.uniform(size=(2, *shape)).astype(np.float32), np.array([0, 1])
    with pytest.raises(InputError, match=r"'conv3'; choose from conv1, conv2"):
        deconvnet.project_activation(classifier, pixels, "conv3", maps)
    with pytest.raises(InputError, match="no map 4; choose from 0 to 3"):
        deconvnet.project_activation(classifier, pixels, "conv2", maps + 3)
    with pytest.raises(InputError, match="at least one image"):
        deconvnet.project_activation(classifier, pixels[:0], "conv2", maps[:0])
    with pytest.raises(InputError, match="count is 3; choose from 1 to 2"):
        deconvnet.top_activating_images(classifier, pixels, "conv2", count=3)
    with pytest.raises(InputError, match=r"no position \(3, 0\); stage 'conv2' has 3x3"):
        deconvnet.receptive_field(classifier, shape, "conv2", 3, 0)
