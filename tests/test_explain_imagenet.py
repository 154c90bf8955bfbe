"""DeepDream of ImageNet networks with weights from PyTorch."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from dlc_jax import data, models
from dlc_jax.explain.classifier import ImageClassifier
from dlc_jax.explain.deep_dream import deep_dream
from dlc_jax.models import interop

KEY = jax.random.key(0)
# PyTorch's names of parameters.
_TORCH_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def with_torch_weights(name: str) -> ImageClassifier:
    """A classifier with random weights, loaded from a PyTorch state dict."""
    model = models.create(name, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state_dict = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))):
        *parts, kind = map(str, path)
        layer = ".".join(parts)
        for prefix, torch_prefix in model.torch_names().items():
            layer = layer.replace(f"{prefix}.", f"{torch_prefix}.")
        shape = variable.shape
        if kind in ("kernel",):
            values = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
            values = values.transpose((3, 2, 0, 1) if values.ndim == 4 else (1, 0))
        else:
            low, high = (0.5, 1.5) if kind in ("scale", "var") else (-0.1, 0.1)
            values = rng.uniform(low, high, shape)
        state_dict[f"{layer}.{_TORCH_NAMES.get(kind, kind)}"] = values.astype(np.float32)
    normalize = data.Normalize(
        255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])
    )
    return ImageClassifier.from_model(interop.load_torch(model, state_dict), normalize)


@pytest.mark.slow
def test_deep_dream_of_an_imagenet_network_with_weights_from_pytorch() -> None:
    pixels = np.random.default_rng(0).uniform(size=(1, 224, 224, 3)).astype(np.float32)
    images, objectives = deep_dream(
        with_torch_weights("resnet18"), pixels, "layer3", key=KEY, octaves=2, steps=2, jitter=0
    )
    assert images.shape == pixels.shape
    assert (objectives[:, 1] > objectives[:, 0]).all()
