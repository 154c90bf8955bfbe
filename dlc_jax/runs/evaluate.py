"""Evaluating the networks of runs on a test split."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from dlc_jax import training
from dlc_jax.data.spec import DataSpec, check_compatible
from dlc_jax.nn.losses import cross_entropy, log_mean_softmax, misclassified
from dlc_jax.runs.config import AnyDataset
from dlc_jax.runs.folder import Run
from dlc_jax.runs.setup import make_task, make_test_source
from dlc_jax.runs.summary import Logits, error_by_class, load_test_labels, percent


def evaluate(runs: Sequence[Run], dataset: AnyDataset) -> dict[str, Any]:
    """Computes loss and error on a test split, for one network or an ensemble of several.

    An ensemble averages the probabilities of its networks.

    Args:
      runs: One or more runs, with the same image shape and classes.
      dataset: The dataset.

    Raises:
      InputError: Image shapes or classes differ, or (`training.DivergedError`) a network's outputs
        are not finite.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from dlc_jax import data, runs
      >>> digits = data.load("mnist-5k").take(50)
      >>> config = runs.configure(digits, seed=0, epochs=1, batch_size=50)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     run = runs.train(config, digits, Path(folder), "first").run
      ...     result = runs.evaluate([run], digits)
      >>> result["test_images"], 0 <= result["test_error_percent"] <= 100
      (1000, True)
    """
    specs = [spec_of(run) for run in runs]
    for other in specs[1:]:
        check_compatible(specs[0], other)
    check_compatible(specs[0], DataSpec.from_source(f"the dataset {dataset.name}", dataset))
    each = [_test_logits(run, dataset) for run in runs]
    logits = each[0] if len(each) == 1 else log_mean_softmax(jnp.stack(each))
    labels = load_test_labels(dataset)
    folders = [str(run.folder) for run in runs]
    return {
        **({"run": folders[0]} if len(runs) == 1 else {"runs": folders}),
        "dataset": dataset.name,
        "test_images": dataset.num_test,
        "test_loss": float(cross_entropy(jnp.asarray(logits), labels).mean()),
        "test_error_percent": percent(misclassified(jnp.asarray(logits), labels).mean()),
        "error_percent_by_class": error_by_class(logits, labels, dataset.class_names),
    }


def spec_of(run: Run) -> DataSpec:
    """Returns the image shape and the classes of a run."""
    return DataSpec.from_source(f"the run in {str(run.folder)!r}", run.config)


def _test_logits(run: Run, dataset: AnyDataset) -> Logits:
    task = make_task(run.config, dataset.num_train)
    state = training.create_state(run.load_model(), optax.identity())
    logits: Logits = training.predict(task, state, make_test_source(dataset))
    check_finite(run, logits)
    return logits


def check_finite(run: Run, logits: Any) -> None:
    """Raises `DivergedError` if a network's outputs are not finite."""
    if not np.isfinite(np.asarray(logits)).all():
        raise training.DivergedError(
            f"the network in {str(run.folder)!r} has outputs that are not finite; train it again "
            "with a smaller learning rate"
        )
