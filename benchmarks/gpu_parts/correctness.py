"""Accuracy of the numbers that a GPU computes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from harness import programs

from dlc_jax.data import Dataset, Examples, Normalize
from dlc_jax.nn.losses import cross_entropy
from gpu_parts.settings import Save, Settings

_STEPS = 600


def measure(settings: Settings, save: Save) -> None:
    """Compares gradients with float64, and an epoch's losses with those on the CPU."""
    dataset = settings.dataset("mnist")
    results = {"gradients": {name: _gradients(dataset, name) for name in ("default", "highest")}}
    save(results)
    results["losses"] = _losses(dataset, settings.size(_STEPS, 3))
    save(results)


def _gradients(dataset: Dataset, precision: str) -> dict[str, float]:
    """The relative error of the gradient of each parameter, ||g - g64|| / ||g64||."""
    images = Normalize.fit(dataset.train.images)(dataset.train.images[:100])
    labels = jnp.asarray(dataset.train.labels[:100])
    network = programs.lecture_network(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)  # type: ignore[misc]

    def loss(params: Any, images: Any) -> Any:
        logits = nnx.merge(graphdef, params, rest)(images)
        return cross_entropy(logits, labels).mean()

    with jax.default_matmul_precision(precision):
        gradients = jax.jit(jax.grad(loss))(params, images)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        network = programs.lecture_network(nnx.Rngs(0), jnp.float64)
        graphdef, _, rest = nnx.split(network, nnx.Param, ...)  # type: ignore[misc]
        exact = jax.jit(jax.grad(loss))(wide, jnp.asarray(np.asarray(images), jnp.float64))
        exact = jax.tree.map(np.asarray, exact)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(exact)]
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True)
    errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]
    return dict(zip(paths, errors, strict=True))


def _losses(dataset: Dataset, steps: int) -> dict[str, Any]:
    """Losses of the first steps on the CPU, and on the device with two precisions of products."""
    train = Examples(*(array[: 100 * steps] for array in dataset.train))
    task = programs.classification(programs.lecture_network, dataset.train.images)
    configurations = {
        "cpu": (jax.devices("cpu")[0], None),
        "default": (jax.devices()[0], None),
        "highest": (jax.devices()[0], "highest"),
    }
    losses = {}
    for name, (device, precision) in configurations.items():
        with jax.default_device(device), jax.default_matmul_precision(precision):
            epoch = programs.EpochProgram(task, jax.random.key(0), train)
            epoch.compile()
            epoch.train()
            losses[name] = epoch.losses()
    differences = {
        name: float(np.abs(values - losses["cpu"]).max())
        for name, values in losses.items()
        if name != "cpu"
    }
    last = {name: float(values[-100:].mean()) for name, values in losses.items()}
    return {"largest_difference": differences, "mean_of_last_100": last}
