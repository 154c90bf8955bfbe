"""Residual networks on CIFAR-10: `cifar10-resnet18` and `cifar10-resnet20` in full."""

import dataclasses
from typing import Any

from dlc_jax.benchmark.gpu.part import Keep, Settings
from dlc_jax.benchmark.gpu.trainer import Trainer
from dlc_jax.runs import recipes

# In percent: of ours, and of He et al. 2015, table 6.
GOALS = {"cifar10-resnet18": 95.0, "cifar10-resnet20": 100 - 8.75}


def measure(settings: Settings, keep: Keep, names: tuple[str, ...] = tuple(GOALS)) -> None:
    """Each recipe for one seed after the other, while there is time; at least once."""
    dataset = settings.dataset("cifar10")
    results: dict[str, Any] = {}
    for name in names:
        recipe = recipes.find(name)
        if settings.rehearse:
            recipe = dataclasses.replace(recipe, epochs=1, batch_size=256)
        trainer = Trainer(dataset, recipe, range(settings.size(4, 1)))
        result: dict[str, Any] = {
            "goal_percent": GOALS[name],
            "compile_s": trainer.compile_seconds,
            "epochs": recipe.epochs,
            "runs": [],
        }
        results[name] = result
        for place in range(settings.size(4, 1)):
            if result["runs"] and settings.left < 1.1 * result["runs"][-1][-1]["train_s"] + 5:
                break
            result["runs"].append([])
            for tested in trainer.tested(place, every=max(recipe.epochs // 20, 1)):
                result["runs"][-1].append(tested)
                keep(results)


def measure_resnet18(settings: Settings, keep: Keep) -> None:
    """`cifar10-resnet18` alone."""
    measure(settings, keep, ("cifar10-resnet18",))


def measure_resnet20(settings: Settings, keep: Keep) -> None:
    """`cifar10-resnet20` alone."""
    measure(settings, keep, ("cifar10-resnet20",))
