"""CIFAR-10 in seconds: accuracy and duration of the recipe `cifar10-fast` over many seeds."""

import dataclasses
import statistics
from typing import Any

import jax
from harness import recipe_training

from gpu_parts import profiling
from gpu_parts.settings import Save, Settings

SEEDS = 40
# Published seconds to 94 %, with the device.
PUBLISHED = {
    "airbench94 (Jordan 2024), A100": 3.09,
    "airbench94 with Muon, A100": 2.59,
    "the record on an A100 that we know of": 2.015,
}


def measure(settings: Settings, save: Save) -> None:
    """Trains once per seed while time remains, but at least once."""
    dataset = settings.dataset("cifar10")
    recipe = recipe_training.find("cifar10-fast")
    if settings.rehearse:
        options = {"widths": [8, 8, 8]}
        recipe = dataclasses.replace(recipe, epochs=2, batch_size=128, model_options=options)
    seeds = range(settings.size(SEEDS, 2))
    trainer = recipe_training.Trainer(dataset, recipe, seeds)
    jax.block_until_ready(trainer.first_epoch())
    results: dict[str, Any] = {
        "compile_s": trainer.compile_seconds,
        "epochs": recipe.epochs,
        "published_s": PUBLISHED,
        "runs": [],
    }
    for index in range(len(seeds)):
        if results["runs"] and settings.remaining < 2 * results["runs"][-1]["train_s"] + 5:
            break
        results["runs"].append(trainer.run(index))
        accuracies = [run["accuracy_percent"] for run in results["runs"]]
        results["accuracy_percent"] = statistics.mean(accuracies)
        if len(accuracies) > 1:
            results["standard_error"] = statistics.stdev(accuracies) / len(accuracies) ** 0.5
        results["train_s"] = statistics.median(run["train_s"] for run in results["runs"])
        save(results)
    if settings.profile:
        results["kernels"] = profiling.kernels(trainer.first_epoch, settings.profile)
        save(results)
