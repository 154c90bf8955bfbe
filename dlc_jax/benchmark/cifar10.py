"""How long a recipe takes to learn CIFAR-10 to an accuracy, over several seeds."""

import statistics
from collections.abc import Sequence
from typing import Any

from dlc_jax.benchmark import machine
from dlc_jax.benchmark.rounds import Report
from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.runs.recipes import Recipe


def run(
    dataset: Dataset,
    name: str,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    target: float,
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Trains by a recipe once for each seed.

    The target counts as reached where the mean over the seeds reaches it; one lucky seed does
    not. Testing after each epoch is not counted, compiling is counted apart.

    Args:
      dataset: what to train and to test on.
      name: the recipe's.
      recipe: what to train and how.
      seeds: of initial weights, order and augmentation.
      target: in percent of the test images.
      report: called with what runs next, and how many epochs are done of how many.

    Returns:
      Seconds, and accuracies after each epoch, of each seed; mean and standard error of the
      last; with machine, versions, date and commit.

    Raises:
      InputError: the target is not from 0 to 100, or recipe and dataset do not fit together.
    """
    if not 0 <= target <= 100:
        raise InputError(f"an accuracy of {target:g} % is not possible; give one from 0 to 100")
    total = len(seeds) * recipe.epochs
    runs: list[dict[str, Any]] = []
    for i, seed in enumerate(seeds):
        config = runs.configure(dataset, recipe, seed=seed, name=name)
        accuracies, seconds, compiling = [], 0.0, 0.0
        report(f"seed {seed}", i * recipe.epochs, total)
        for epoch in runs.reports(config, dataset):
            compiling = epoch.compile_seconds
            if epoch.epoch:
                seconds += epoch.train_seconds
                accuracies.append(100 - runs.percent(epoch.test.error))
                report(f"seed {seed}", i * recipe.epochs + epoch.epoch, total)
        runs.append(
            {
                "seed": seed,
                "compile_s": compiling,
                "train_s": seconds,
                "accuracy_percent": accuracies[-1],
                "accuracy_percent_by_epoch": accuracies,
            }
        )
    last = [run["accuracy_percent"] for run in runs]
    mean = statistics.mean(last)
    error = statistics.stdev(last) / len(last) ** 0.5 if len(last) > 1 else None
    median = statistics.median(run["train_s"] for run in runs)
    return machine.describe() | {
        "recipe": name,
        "epochs": recipe.epochs,
        "images": len(dataset.first(recipe.examples).train.labels),
        "target_percent": target,
        "accuracy_percent": {"mean": mean, "standard_error": error},
        "seconds_to_target": median if mean >= target else None,
        "runs": runs,
    }
