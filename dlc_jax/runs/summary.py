"""Summaries and pictures of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from dlc_jax.data import Records
from dlc_jax.models import parameters
from dlc_jax.runs.config import AnyDataset, RunConfig
from dlc_jax.runs.folder import Run
from dlc_jax.training import EpochRecord
from dlc_jax.utils.text import unique_class_names

Logits = Float[np.ndarray, "examples classes"]


def summarize(
    run: Run, dataset: AnyDataset, history: Sequence[EpochRecord], logits: Logits | None
) -> dict[str, Any]:
    """Returns the content of `summary.json`; unknown values are None.

    Args:
      run: The run, with the network that was evaluated last.
      dataset: The dataset.
      history: Records of its epochs.
      logits: Logits of that network on the test split, if known.
    """
    config = run.config
    epochs = [record for record in history if record.epoch]
    seconds = sum(record.train_seconds for record in epochs)
    images = len(epochs) * dataset.num_train
    last = history[-1] if history else None
    by_class = None
    if logits is not None:
        by_class = error_by_class(logits, load_test_labels(dataset), dataset.class_names)
    return {
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "model": config.model,
        "seed": config.seed,
        "epochs": epochs[-1].epoch if epochs else 0,
        "train_loss": float(epochs[-1].train["loss"]) if epochs else None,
        "test_loss": float(last.test["loss"]) if last else None,
        "test_error_percent": percent(last.test["error"]) if last else None,
        "error_percent_by_class": by_class,
        "train_seconds": round(seconds, 4),
        "compile_seconds": round(last.compile_seconds, 4) if last else None,
        "images_per_second": round(images / seconds, 1) if epochs else None,
        "device": config.device,
        "run": str(run.folder),
        "parameters_sha256": _fingerprint(run) if last else None,
    }


def _fingerprint(run: Run) -> str | None:
    """Returns the SHA-256 of the parameters in the run's folder."""
    if not run.has_model:
        return None
    return parameters.fingerprint(nnx.state(run.load_model(), nnx.Param))


def seed_statistics(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Computes statistics of runs that differ only in their seeds.

    Args:
      summaries: Summaries of at least two runs.

    Returns:
      Mean, standard deviation (with Bessel's correction) and standard error of the mean of test
      error and training time, and the summaries under "runs".

    Example:
      >>> summary = {"dataset": "mnist", "model": "lecture", "train_seconds": 1.0}
      >>> errors = {0: 1.0, 1: 1.2}
      >>> statistics = seed_statistics(
      ...     [summary | {"seed": seed, "test_error_percent": e} for seed, e in errors.items()]
      ... )
      >>> statistics["test_error_percent"]
      {'mean': 1.1, 'standard_deviation': 0.1414, 'standard_error': 0.1}
    """
    return {
        "dataset": summaries[0]["dataset"],
        "model": summaries[0]["model"],
        "seeds": [summary["seed"] for summary in summaries],
        "test_error_percent": _statistics([s["test_error_percent"] for s in summaries]),
        "train_seconds": _statistics([s["train_seconds"] for s in summaries]),
        "runs": list(summaries),
    }


def _statistics(values: Sequence[float]) -> dict[str, float]:
    deviation = float(np.std(values, ddof=1))
    return {
        "mean": round(float(np.mean(values)), 4),
        "standard_deviation": round(deviation, 4),
        "standard_error": round(deviation / len(values) ** 0.5, 4),
    }


def draw(
    run: Run, dataset: AnyDataset, history: Sequence[EpochRecord], logits: Logits
) -> list[Path]:
    """Writes the run's pictures: curves, confusion matrix, mistakes and training images.

    Args:
      run: The run.
      dataset: The dataset.
      history: Records of its epochs.
      logits: Logits on the test split.

    Returns:
      The files.
    """
    # Imported here because importing Matplotlib takes long.
    from dlc_jax.runs import plots

    epochs = [record for record in history if record.epoch]
    labels = load_test_labels(dataset)
    figures = {
        "curves.png": plots.curves(
            [record.losses for record in epochs],
            [float(record.test["error"]) for record in epochs],
            f"{run.config.model} on {dataset.name}",
            [record.epoch for record in epochs],
        ),
        "confusion.png": plots.confusion(labels, logits.argmax(1), dataset.class_names),
        "mistakes.png": plots.mistakes(
            dataset.test.images, labels, np.asarray(jax.nn.softmax(logits)), dataset.class_names
        ),
        "training.png": plots.grid(
            _augmented(run.config, dataset.head(60).train.images),
            "training images, normalized and augmented",
        ),
    }
    for name, figure in figures.items():
        plots.save(figure, run.folder / name)
    return [run.folder / name for name in figures]


def _augmented(config: RunConfig, images: Any) -> np.ndarray:
    """Returns training images, normalized and augmented as in the last epoch, as uint8."""

    @jax.jit
    def augmented(images: Any, key: Any) -> Any:
        index = np.arange(len(images), dtype=np.int32)
        return config.augmentation(key, config.normalize(images), index, config.epochs - 1)

    outputs = augmented(images, jax.random.key(config.seed))
    pixels = np.asarray(outputs) * np.asarray(config.std) + np.asarray(config.mean)
    return pixels.round().clip(0, 255).astype(np.uint8)


def load_test_labels(dataset: AnyDataset) -> Int[np.ndarray, " examples"]:
    """Returns the labels of the test split."""
    test = dataset.test
    if not isinstance(test, Records):
        return np.asarray(test.labels)
    from dlc_jax.data.streaming import batches

    indices = np.array_split(np.arange(len(test)), -(-len(test) // 256))
    return np.concatenate([batch.labels for batch in batches(test, indices)])


def percent(fraction: Any) -> float:
    """Converts a fraction to percent, rounded to 4 decimal places.

    Example:
      >>> percent(np.float32(0.123))
      12.3
    """
    return round(100 * float(fraction), 4)


def metrics_line(record: EpochRecord) -> dict[str, Any]:
    """Returns the line of `metrics.jsonl` for an epoch."""
    return {
        "epoch": record.epoch,
        "step": record.step,
        "train_loss": float(record.train["loss"]),
        "test_loss": float(record.test["loss"]),
        "test_error_percent": percent(record.test["error"]),
        "train_seconds": round(record.train_seconds, 4),
        "images_per_second": round(record.num_examples / record.train_seconds, 1),
    }


def error_by_class(logits: Any, labels: Any, class_names: Sequence[str]) -> dict[str, float | None]:
    """Returns the test error of each class in percent; None for a class without test examples.

    Args:
      logits: Outputs of the network, [examples, classes].
      labels: True classes, [examples].
      class_names: Names of the classes, by label.

    Example:
      >>> error_by_class(np.eye(3)[[0, 1, 1]], np.array([0, 1, 0]), ("cat", "dog", "cow"))
      {'cat': 50.0, 'dog': 0.0, 'cow': None}
    """
    labels = np.asarray(labels)
    wrong = np.asarray(logits).argmax(1) != labels
    return {
        name: percent(wrong[labels == label].mean()) if (labels == label).any() else None
        for label, name in enumerate(unique_class_names(class_names))
    }
