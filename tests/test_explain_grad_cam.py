from collections import OrderedDict
from typing import Any

import jax
import numpy as np
import pytest
import test_torchvision
from conftest import activations_of
from flax import nnx
from jax import Array

from dlc_jax import models
from dlc_jax.data import Normalize
from dlc_jax.errors import InputError
from dlc_jax.explain import ImageClassifier, deconvnet
from dlc_jax.explain.grad_cam import grad_cam
from dlc_jax.nn import layers

IDENTITY = Normalize(np.zeros(1, np.float32), np.full(1, 255, np.float32))

# A fixture of torchvision, and its networks with random weights.
torchvision, theirs_named = test_torchvision.torchvision, test_torchvision.theirs
ours_named = test_torchvision.ours

jitted = jax.jit(grad_cam, static_argnames="stage")


class Averaged(models.Network):
    """A convolution, global average pooling, and a linear layer."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = layers.Conv(1, 8, (3, 3), strides=2, padding=1, rngs=rngs)
        self.fc = layers.Linear(8, 5, rngs=rngs)

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        maps = nnx.relu(self.conv(x))
        average = maps.mean((1, 2))
        return OrderedDict(conv=maps, average=average, logits=self.fc(average))


def resize(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [batch, rows, columns] bilinearly."""
    weights = []
    for count, size in zip(maps.shape[1:], (height, width), strict=True):
        positions = ((np.arange(size) + 0.5) * count / size - 0.5).clip(0, count - 1)
        weights.append(np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(count))))
    return np.einsum("ij,bjk,lk->bil", weights[0], maps, weights[1])


def test_grad_cam_before_global_average_pooling_is_the_class_activation_map(
    rng: np.random.Generator,
) -> None:
    classifier = ImageClassifier.from_model(Averaged(), IDENTITY)
    pixels = rng.uniform(size=(5, 12, 16, 1)).astype(np.float32)
    labels = np.arange(5)
    maps = np.asarray(activations_of(classifier, pixels, "conv"), np.float64)
    weights = np.asarray(classifier.variables["fc"]["kernel"][...])
    activation_map = np.einsum("bijm,mb->bij", maps, weights[:, labels]) / (6 * 8)
    assert (activation_map > 0).any()
    assert (activation_map < 0).any()
    expected = resize(activation_map.clip(0), 12, 16)
    for result in (
        grad_cam(classifier, pixels, labels, "conv"),
        jitted(classifier, pixels, labels, "conv"),
    ):
        assert result.shape == (5, 12, 16)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_of_an_inner_stage(
    rng: np.random.Generator,
) -> None:
    model = models.Lecture(image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    classifier = ImageClassifier.from_model(model, Normalize(np.full(1, 100.0), np.full(1, 50.0)))
    pixels, label = rng.uniform(size=(1, 28, 28, 1)).astype(np.float32), 3
    maps = activations_of(classifier, pixels, "conv1")

    # The layers after conv1.
    def rest(maps: Array) -> Array:
        x = nnx.relu(model.conv2(maps))
        return model.fc2(nnx.relu(model.fc1(layers.flatten(x))))[0, label]

    weights = np.asarray(jax.jit(jax.grad(rest))(maps)).mean((0, 1, 2))
    expected = resize(np.maximum(0, np.asarray(maps) @ weights), 28, 28)
    assert expected.max() > 0
    result = jitted(classifier, pixels, np.array([label]), "conv1")
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_invalid_arguments() -> None:
    classifier, pixels, labels = (
        ImageClassifier.from_model(Averaged(), IDENTITY),
        np.ones((1, 12, 16, 1)),
        np.zeros(1, int),
    )
    with pytest.raises(InputError, match="'average' has no feature maps; choose from conv"):
        grad_cam(classifier, pixels, labels, "average")
    with pytest.raises(InputError, match="no stage 'conv9'; choose from conv, average, logits"):
        grad_cam(classifier, pixels, labels, "conv9")
    with pytest.raises(InputError, match="no class 5"):
        grad_cam(classifier, pixels, labels + 5, "conv")


# Stages for Grad-CAM and for the deconvnet.
STAGES = {"googlenet": ("inception5b", "inception3a"), "resnet18": ("layer4", "layer1")}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_grad_cam_and_deconvnet_match_pytorch(
    torchvision: Any, name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    theirs = theirs_named(torchvision, name).eval()
    classifier = ImageClassifier.from_model(
        ours_named(theirs, name), Normalize(np.full(3, 127.5), np.full(3, 63.75))
    )
    pixels = rng.uniform(size=(1, 224, 224, 3)).astype(np.float32)
    label, index, (last, early) = 207, 3, STAGES[name]
    kept: dict[str, Any] = {}
    for stage in (last, early):
        module = getattr(theirs, stage)
        module.register_forward_hook(
            lambda _m, _i, output, stage=stage: kept.update({stage: output})
        )

    x = torch.tensor(pixels).permute(0, 3, 1, 2)
    logit = theirs((x - 0.5) / 0.25)[0, label]
    (gradient,) = torch.autograd.grad(logit, kept[last])
    heat = (gradient.mean((2, 3), keepdim=True) * kept[last]).sum(1).clip(0).detach().numpy()
    result = jitted(classifier, pixels, np.array([label]), last)
    expected = resize(heat, 224, 224)
    np.testing.assert_allclose(result, expected, atol=1e-3 * expected.max())

    monkeypatch.setattr(torch.nn.functional, "relu", torch_deconvnet_relu(torch))
    x.requires_grad_(True)
    theirs((x - 0.5) / 0.25)
    maps = kept[early]
    value = maps[0, index].max()
    cotangent = torch.zeros_like(maps)
    cotangent[0, index].view(-1)[maps[0, index].argmax()] = value.detach()
    (projected,) = torch.autograd.grad(maps, x, cotangent)
    expected = projected.permute(0, 2, 3, 1).numpy()
    project = jax.jit(deconvnet.project_activation, static_argnames="stage")
    projection = project(classifier, pixels, early, np.array([index]))
    assert float(projection.activation[0]) == pytest.approx(value.item(), rel=1e-3)
    np.testing.assert_allclose(projection.pixels, expected, atol=1e-3 * np.abs(expected).max())


def torch_deconvnet_relu(torch: Any) -> Any:
    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Any) -> Any:
            return x.clip(0)

        @staticmethod
        def backward(_: Any, grad: Any) -> Any:
            return grad.clip(0)

    return lambda x, inplace=False: Relu.apply(x)
