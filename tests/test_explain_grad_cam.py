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
from dlc_jax.data import Normalise
from dlc_jax.errors import InputError
from dlc_jax.explain import View, deconvnet
from dlc_jax.explain.class_activation import grad_cam
from dlc_jax.nn import layers

UNCHANGED = Normalise(np.zeros(1, np.float32), np.full(1, 255, np.float32))

# A fixture of torchvision, where it is installed, and its networks with random weights.
torchvision, theirs_named = test_torchvision.torchvision, test_torchvision.theirs
ours_named = test_torchvision.ours

jitted = jax.jit(grad_cam, static_argnames="stage")


class Averaged(models.Network):
    """A convolution, its maps' averages, and a linear layer."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = layers.Conv(1, 8, (3, 3), strides=2, padding=1, rngs=rngs)
        self.fc = layers.Linear(8, 5, rngs=rngs)

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        maps = nnx.relu(self.conv(x))
        average = maps.mean((1, 2))
        return OrderedDict(conv=maps, average=average, logits=self.fc(average))


def enlarged(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """[batch, rows, columns] resized bilinearly, pixels counting as squares."""
    weights = []
    for count, size in zip(maps.shape[1:], (height, width), strict=True):
        places = ((np.arange(size) + 0.5) * count / size - 0.5).clip(0, count - 1)
        weights.append(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count))))
    return np.einsum("ij,bjk,lk->bil", weights[0], maps, weights[1])


def test_before_a_global_average_it_is_the_class_activation_map(rng: np.random.Generator) -> None:
    view = View.of(Averaged(), UNCHANGED)
    pixels = rng.uniform(size=(5, 12, 16, 1)).astype(np.float32)
    labels = np.arange(5)
    maps = np.asarray(activations_of(view, pixels, "conv"), np.float64)
    weights = np.asarray(view.variables["fc"]["kernel"][...])
    activation_map = np.einsum("bijm,mb->bij", maps, weights[:, labels]) / (6 * 8)
    assert (activation_map > 0).any()
    assert (activation_map < 0).any()
    expected = enlarged(activation_map.clip(0), 12, 16)
    for result in (grad_cam(view, pixels, labels, "conv"), jitted(view, pixels, labels, "conv")):
        assert result.shape == (5, 12, 16)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-7)


def test_inside_a_network_it_weighs_maps_by_what_changing_them_does(
    rng: np.random.Generator,
) -> None:
    model = models.Lecture(image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    view = View.of(model, Normalise(np.full(1, 100.0), np.full(1, 50.0)))
    pixels, label = rng.uniform(size=(1, 28, 28, 1)).astype(np.float32), 3
    maps = activations_of(view, pixels, "conv1")

    # What follows conv1, written down once more.
    def rest(maps: Array) -> Array:
        x = nnx.relu(model.conv2(maps))
        return model.fc2(nnx.relu(model.fc1(layers.flatten(x))))[0, label]

    weights = np.asarray(jax.jit(jax.grad(rest))(maps)).mean((0, 1, 2))
    expected = enlarged(np.maximum(0, np.asarray(maps) @ weights), 28, 28)
    assert expected.max() > 0
    result = jitted(view, pixels, np.array([label]), "conv1")
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_what_does_not_suit_is_named() -> None:
    view, pixels, labels = View.of(Averaged(), UNCHANGED), np.ones((1, 12, 16, 1)), np.zeros(1, int)
    with pytest.raises(InputError, match="'average' has no feature maps; choose from conv"):
        grad_cam(view, pixels, labels, "average")
    with pytest.raises(InputError, match="no stage 'conv9'; choose from conv, average, logits"):
        grad_cam(view, pixels, labels, "conv9")
    with pytest.raises(InputError, match="no class 5"):
        grad_cam(view, pixels, labels + 5, "conv")


# Grad-CAM's last maps, and a stage not too deep for all of its rectifiers to matter.
STAGES = {"googlenet": ("inception5b", "inception3a"), "resnet18": ("layer4", "layer1")}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_with_weights_from_pytorch_both_are_what_pytorch_computes(
    torchvision: Any, name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    theirs = theirs_named(torchvision, name).eval()
    view = View.of(ours_named(theirs, name), Normalise(np.full(3, 127.5), np.full(3, 63.75)))
    pixels = rng.uniform(size=(1, 224, 224, 3)).astype(np.float32)
    label, one, (last, early) = 207, 3, STAGES[name]
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
    result = jitted(view, pixels, np.array([label]), last)
    expected = enlarged(heat, 224, 224)
    np.testing.assert_allclose(result, expected, atol=1e-3 * expected.max())

    monkeypatch.setattr(torch.nn.functional, "relu", torchs_deconvnet_rectifier(torch))
    x.requires_grad_(True)
    theirs((x - 0.5) / 0.25)
    maps = kept[early]
    value = maps[0, one].max()
    alone = torch.zeros_like(maps)
    alone[0, one].view(-1)[maps[0, one].argmax()] = value.detach()
    (projected,) = torch.autograd.grad(maps, x, alone)
    expected = projected.permute(0, 2, 3, 1).numpy()
    project = jax.jit(deconvnet.project, static_argnames="stage")
    projection = project(view, pixels, early, np.array([one]))
    assert float(projection.value[0]) == pytest.approx(value.item(), rel=1e-3)
    np.testing.assert_allclose(projection.pixels, expected, atol=1e-3 * np.abs(expected).max())


def torchs_deconvnet_rectifier(torch: Any) -> Any:
    class Rectifier(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Any) -> Any:
            return x.clip(0)

        @staticmethod
        def backward(_: Any, grad: Any) -> Any:
            return grad.clip(0)

    return lambda x, inplace=False: Rectifier.apply(x)
