"""Residual networks on CIFAR-10: the recipes `cifar10-resnet18` and `cifar10-resnet20` in full."""

import dataclasses

from harness import recipe_training

from gpu_parts.settings import Save, Settings

# Target accuracies in percent: our own, and that of He et al. 2015, table 6.
GOALS = {"cifar10-resnet18": 95.0, "cifar10-resnet20": 100 - 8.75}


def measure_resnet18(settings: Settings, save: Save) -> None:
    """Trains by `cifar10-resnet18`."""
    _measure("cifar10-resnet18", settings, save)


def measure_resnet20(settings: Settings, save: Save) -> None:
    """Trains by `cifar10-resnet20`."""
    _measure("cifar10-resnet20", settings, save)


def _measure(name: str, settings: Settings, save: Save) -> None:
    """Trains once per seed while time remains, but at least once."""
    recipe = recipe_training.find(name)
    if settings.rehearse:
        recipe = dataclasses.replace(recipe, epochs=1, batch_size=32)
    seeds = range(settings.size(4, 1))
    dataset = settings.dataset("cifar10", rehearsed=64)
    trainer = recipe_training.Trainer(dataset, recipe, seeds)
    runs: list[list[dict[str, float]]] = []
    result = {
        "goal_percent": GOALS[name],
        "compile_s": trainer.compile_seconds,
        "epochs": recipe.epochs,
        "runs": runs,
    }
    for index in range(len(seeds)):
        if runs and settings.remaining < 1.1 * runs[-1][-1]["train_s"] + 5:
            break
        runs.append([])
        for tested in trainer.run_tested(index, every=max(recipe.epochs // 20, 1)):
            runs[-1].append(tested)
            save({name: result})
