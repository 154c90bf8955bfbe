"""Whether a GPU computes what it should."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dlc_jax import models, training
from dlc_jax.benchmark.gpu.part import Keep, Settings
from dlc_jax.data import Dataset, Examples, Normalise
from dlc_jax.nn.losses import cross_entropy

_STEPS = 600


def measure(settings: Settings, keep: Keep) -> None:
    """Gradients against float64, and an epoch's losses against the CPU's."""
    dataset = settings.dataset("mnist")
    results = {"gradients": {name: _gradients(dataset, name) for name in ("default", "highest")}}
    keep(results)
    results["losses"] = _losses(dataset, settings.size(_STEPS, 3))
    keep(results)


def _model(dataset: Dataset) -> Any:
    return models.create(
        "lecture", image_shape=dataset.image_shape, num_classes=10, rngs=nnx.Rngs(0)
    )


def _gradients(dataset: Dataset, precision: str) -> dict[str, float]:
    """For each parameter the relative error of its gradient, ||g - g64|| / ||g64||."""
    images = Normalise.fit(dataset.train.images)(dataset.train.images[:100])
    labels = jnp.asarray(dataset.train.labels[:100])
    graphdef, params, rest = nnx.split(_model(dataset), nnx.Param, ...)  # type: ignore[misc]

    def loss(params: Any, images: Any) -> Any:
        logits = nnx.merge(graphdef, params, rest)(images)
        return cross_entropy(logits, labels)

    with jax.default_matmul_precision(precision):
        found = jax.jit(jax.grad(loss))(params, images)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        graphdef, _, rest = nnx.split(_double(dataset), nnx.Param, ...)  # type: ignore[misc]
        exact = jax.jit(jax.grad(loss))(wide, jnp.asarray(np.asarray(images), jnp.float64))
        exact = jax.tree.map(np.asarray, exact)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(exact)]
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]
    return dict(zip(paths, errors, strict=True))


def _double(dataset: Dataset) -> Any:
    return models.create(
        "lecture",
        image_shape=dataset.image_shape,
        num_classes=10,
        rngs=nnx.Rngs(0),
        dtype=jnp.float64,
    )


def _losses(dataset: Dataset, steps: int) -> dict[str, Any]:
    """Losses of the first steps on the device in float32, by default and exactly, and on a CPU."""
    train = Examples(*(array[: 100 * steps] for array in dataset.train))
    normalise = Normalise.fit(dataset.train.images)
    state = training.create_state(_model(dataset), optax.sgd(0.1))
    places = {
        "cpu": (jax.devices("cpu")[0], None),
        "default": (jax.devices()[0], None),
        "highest": (jax.devices()[0], "highest"),
    }
    losses = {}
    for name, (device, precision) in places.items():
        with jax.default_matmul_precision(precision):
            epoch = partial(training.train_epoch, batch_size=100)
            arguments = jax.device_put((state, train, normalise), device)
            losses[name] = np.asarray(epoch(*arguments)[1].loss)
    differences = {
        name: float(np.abs(values - losses["cpu"]).max())
        for name, values in losses.items()
        if name != "cpu"
    }
    last = {name: float(values[-100:].mean()) for name, values in losses.items()}
    return {"largest_difference": differences, "mean_of_last_100": last}
