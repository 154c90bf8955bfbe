"""Networks for ImageNet, with weights by PyTorch's names dream at their own size."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from dlc_jax import data, models
from dlc_jax.explain import dream as dreaming
from dlc_jax.explain.classifier import View
from dlc_jax.models import interop

KEY = jax.random.key(0)
# How PyTorch calls and lays out what ours has, written down once more.
_THEIRS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def with_torch_weights(name: str) -> View:
    """A view of an ImageNet network, with random weights that come in by PyTorch's names."""
    model = models.create(name, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state_dict = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))):
        *parts, kind = map(str, path)
        layer = ".".join(parts)
        for ours, theirs in model.torch_names().items():
            layer = layer.replace(f"{ours}.", f"{theirs}.")
        shape = variable.shape
        if kind in ("kernel",):
            values = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
            values = values.transpose((3, 2, 0, 1) if values.ndim == 4 else (1, 0))
        else:
            low, high = (0.5, 1.5) if kind in ("scale", "var") else (-0.1, 0.1)
            values = rng.uniform(low, high, shape)
        state_dict[f"{layer}.{_THEIRS.get(kind, kind)}"] = values.astype(np.float32)
    normalise = data.Normalise(
        255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])
    )
    return View.of(interop.load_torch(model, state_dict), normalise)


@pytest.mark.slow
def test_an_imagenet_network_with_weights_from_pytorch_dreams_over_octaves() -> None:
    pixels = np.random.default_rng(0).uniform(size=(1, 224, 224, 3)).astype(np.float32)
    images, objectives = dreaming.dream(
        with_torch_weights("resnet18"), pixels, "layer3", key=KEY, octaves=2, steps=2, jitter=0
    )
    assert images.shape == pixels.shape
    assert (objectives[:, 1] > objectives[:, 0]).all()
