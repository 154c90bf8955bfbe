"""The lecture's ten epochs, against PyTorch and against the slide's 7 seconds."""

from functools import partial
from typing import Any

import jax
import optax
from flax import nnx

from dlc_jax import models, training
from dlc_jax.benchmark import lecture
from dlc_jax.benchmark.gpu import profiling
from dlc_jax.benchmark.gpu.part import Keep, Settings
from dlc_jax.data import Dataset, Normalise
from dlc_jax.errors import InputError

EPOCHS = 10


def measure(settings: Settings, keep: Keep) -> None:
    """Ten epochs each, in turn; compiling apart."""
    dataset = settings.dataset("mnist")
    splits = dataset.train, dataset.test
    results: dict[str, Any] = {}
    # PyTorch's compiler may not work here; its rounds come last, so that nothing is lost.
    for rivals in (("torch",), ("torch-compile",)):
        if settings.rehearse and "torch-compile" in rivals:
            continue
        try:
            measured = lecture.run(
                splits, epochs=settings.size(EPOCHS, 2), rivals=lecture.installed(rivals)
            )
        except InputError as error:
            results[rivals[0].replace("-", "_") + "_failed"] = str(error)
            continue
        for name, value in measured.items():
            if isinstance(value, dict) and "epoch_s" in value:
                value["all_epochs_s"] = sum(value["epoch_s"])
                results.setdefault(name, value)
        keep(results)
    if settings.profile:
        results["kernels"] = profiling.kernels(_epoch(dataset), settings.profile)
        keep(results)


def _epoch(dataset: Dataset) -> Any:
    """Trains for an epoch when called."""
    model = models.create(
        "lecture", image_shape=dataset.image_shape, num_classes=10, rngs=nnx.Rngs(0)
    )
    state = training.create_state(model, optax.sgd(0.1))
    normalise = Normalise.fit(dataset.train.images)
    arguments = jax.device_put((state, dataset.train, normalise))
    return partial(training.train_epoch, *arguments, batch_size=100)
