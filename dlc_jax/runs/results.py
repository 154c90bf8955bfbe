"""What training came to, in numbers and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dlc_jax.models import parameters
from dlc_jax.runs import plots
from dlc_jax.data import Normalise
from dlc_jax.runs.configuration import AnyDataset
from dlc_jax.runs.folder import Run, RunConfig
from dlc_jax.utils.text import class_names_told_apart
from dlc_jax.training import EpochReport

# So many examples at most of a dataset on disk are looked at one by one.
SAMPLE = 1000


def summarise(run: Run, dataset: AnyDataset, history: list[EpochReport]) -> dict[str, Any]:
    """The result in numbers; those that no epoch has given yet are None."""
    config = run.config
    epochs = [report for report in history if report.epoch]
    seconds = sum(report.train_seconds for report in epochs)
    images = len(epochs) * dataset.sizes[0]
    return {
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "model": config.model,
        "seed": config.seed,
        "epochs": epochs[-1].epoch if epochs else 0,
        "train_loss": float(epochs[-1].losses.mean()) if epochs else None,
        "test_loss": float(history[-1].test.loss) if history else None,
        "test_error_percent": percent(history[-1].test.error) if history else None,
        "error_percent_by_class": error_by_class(
            history[-1].test_logits, history[-1].test_labels, dataset.class_names
        )
        if history and len(history[-1].test_logits)
        else None,
        "train_seconds": round(seconds, 4),
        "compile_seconds": round(history[-1].compile_seconds, 4) if history else None,
        "images_per_second": round(images / seconds, 1) if epochs else None,
        "device": config.device,
        "run": str(run.folder),
        "parameters_sha256": _fingerprint(run, history[-1]) if history else None,
    }


def _fingerprint(run: Run, last: EpochReport) -> str:
    """Of the last network; of that in the run's folder where the report is without."""
    params = last.state.params or nnx.state(run.model(), nnx.Param)
    return parameters.fingerprint(params)


def over_seeds(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several runs of a recipe came to.

    Args:
      summaries: of at least two runs that differ in their seeds, as `summarise` makes them.

    Returns:
      Mean, standard deviation (of the population that the seeds are drawn from) and standard
      error of the mean, of test error and training time, with the summaries under "runs".
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


def draw(run: Run, dataset: AnyDataset, history: list[EpochReport]) -> list[Path]:
    """Writes the run's pictures: curves, confusion matrix, mistakes, and training images.

    Args:
      run: the run.
      dataset: what it was trained on.
      history: of its epochs, the last of them with the network's outputs.

    Returns:
      The files.
    """
    epochs = [report for report in history if report.epoch]
    logits, labels = history[-1].test_logits, history[-1].test_labels
    images = dataset.test.images
    figures = {
        "curves.png": plots.curves(
            [report.losses for report in epochs],
            [float(report.test.error) for report in epochs],
            f"{run.config.model} on {dataset.name}",
        ),
        "confusion.png": plots.confusion(labels, logits.argmax(1), dataset.class_names),
        "mistakes.png": plots.mistakes(
            images, labels, np.asarray(jax.nn.softmax(logits)), dataset.class_names
        ),
        "training.png": plots.grid(
            _as_the_network_sees_them(run.config, dataset.sample(60).train.images),
            "training images, changed as the network sees them",
        ),
    }
    for name, figure in figures.items():
        plots.save(figure, run.folder / name)
    return [run.folder / name for name in figures]


def _as_the_network_sees_them(config: RunConfig, images: Any) -> np.ndarray:
    """Training images, uint8, changed at random as in training."""

    # Compiled as a whole: what is drawn and not needed then costs nothing.
    @jax.jit
    def changed(normalise: Normalise, images: Any, key: Any) -> Any:
        changes = config.augmentation.draw(key, config.epochs - 1, images.shape)
        return config.augmentation.apply(normalise(images), changes)

    seen = changed(config.normalise, images, jax.random.key(config.seed))
    pixels = np.asarray(seen) * np.asarray(config.std) + np.asarray(config.mean)
    return pixels.round().clip(0, 255).astype(np.uint8)


def percent(fraction: Any) -> float:
    """A fraction in percent, without the noise of float32."""
    return round(100 * float(fraction), 4)


def metrics_of(report: EpochReport, images: int) -> dict[str, Any]:
    """An epoch of so many images as a line of `metrics.jsonl`."""
    return {
        "epoch": report.epoch,
        "step": int(report.state.step),
        "train_loss": float(report.losses.mean()),
        "test_loss": float(report.test.loss),
        "test_error_percent": percent(report.test.error),
        "train_seconds": round(report.train_seconds, 4),
        "images_per_second": round(images / report.train_seconds, 1),
    }


def error_by_class(logits: Any, labels: Any, class_names: Sequence[str]) -> dict[str, float | None]:
    """The test error in percent of each class, None where the test split has none of it."""
    labels = np.asarray(labels)
    wrong = np.asarray(logits).argmax(1) != labels
    return {
        name: percent(wrong[labels == label].mean()) if (labels == label).any() else None
        for label, name in enumerate(class_names_told_apart(class_names))
    }
