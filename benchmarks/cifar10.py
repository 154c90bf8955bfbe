"""Times training by a recipe until it reaches an accuracy on CIFAR-10, over several seeds."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import command, machine

from dlc_jax.errors import InputError
from dlc_jax.utils.files import make_folder

if TYPE_CHECKING:
    from dlc_jax.data import Dataset
    from dlc_jax.runs import Recipe

_EXAMPLES = """\
  python benchmarks/cifar10.py
  python benchmarks/cifar10.py --recipe cifar10-fast --seeds 20 --arrays cifar10.npz --json"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and prints and saves the results."""
    parser = command.Parser(
        "Time how long a recipe takes to reach an accuracy on CIFAR-10. Compilation is timed "
        "separately.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--recipe",
        metavar="NAME",
        help="recipe (default: cifar10-cpu on a CPU, otherwise cifar10-fast)",
    )
    add(
        "--seeds",
        type=command.integer(1),
        default=3,
        help="number of random seeds, starting with 0 (default: %(default)s)",
    )
    add(
        "--target",
        type=command.positive_number,
        help="mean accuracy to reach, in percent (default: 90 on a CPU, otherwise 94)",
    )
    add("--epochs", type=command.integer(1), help="number of epochs (default: the recipe's)")
    add(
        "--arrays",
        type=command.path,
        metavar="FILE",
        help=".npz file of x_train, y_train, x_test, y_test to use instead of TFDS's CIFAR-10",
    )
    add("--data-dir", type=command.path, metavar="DIR", help="folder of TFDS's datasets")
    options = parser.parse_args(arguments)

    # Imported late: JAX reads its environment, which `command.run` sets, when it is imported.
    import jax
    from harness import recipe_training

    make_folder(options.output_dir)
    on_cpu = jax.default_backend() == "cpu"
    name = options.recipe or ("cifar10-cpu" if on_cpu else "cifar10-fast")
    recipe = recipe_training.find(name)
    if recipe.dataset != "cifar10":
        raise InputError(f"the recipe {name} is not for CIFAR-10; choose one such as cifar10-cpu")
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs)
    with command.progress() as progress:
        results = run(
            _load(options.arrays, options.data_dir),
            name,
            recipe,
            seeds=range(options.seeds),
            target=options.target or (90.0 if on_cpu else 94.0),
            progress=progress,
        )
    path = machine.save_section(options.output_dir, "cifar10", results)
    command.show(table(results), [path], results, options.json)


def _load(arrays: Path | None, data_dir: Path | None) -> "Dataset":
    from harness.arrays import read_arrays

    from dlc_jax import data

    if arrays is None:
        dataset: Any = data.load("cifar10", data_dir)
        return dataset
    labels = tuple(map(str, range(10)))
    return data.Dataset(
        "cifar10", "", *read_arrays(arrays, (32, 32, 3)), labels, f"arrays in {arrays}"
    )


def run(
    dataset: "Dataset",
    name: str,
    recipe: "Recipe",
    *,
    seeds: Sequence[int],
    target: float,
    progress: command.Progress = command.no_progress,
) -> dict[str, Any]:
    """Trains by a recipe once per seed.

    The target counts as reached if the mean over the seeds reaches it. Testing after each epoch
    is not counted, and compilation is counted separately.

    Args:
      dataset: Training and test images.
      name: Name of the recipe.
      recipe: Network, optimizer and augmentation.
      seeds: Random seeds.
      target: Accuracy in percent of the test images.
      progress: Called after each epoch.

    Returns:
      The seconds and the accuracies by epoch of each seed, and mean and standard error of the
      last accuracies; with machine, versions, date and commit.

    Raises:
      InputError: The target is above 100, or the recipe is for other images.
    """
    from harness import recipe_training

    if not 0 <= target <= 100:
        raise InputError(f"an accuracy of {target:g} % is not possible; give one from 0 to 100")
    total = len(seeds) * recipe.epochs
    runs: list[dict[str, Any]] = []
    for index, seed in enumerate(seeds):

        def on_epoch_end(epoch: int, seed: int = seed, before: int = index * recipe.epochs) -> None:
            progress(f"seed {seed}", before + epoch, total)

        runs.append(recipe_training.train(dataset, name, recipe, seed, on_epoch_end))
    last = [run["accuracy_percent"] for run in runs]
    mean = statistics.mean(last)
    error = statistics.stdev(last) / len(last) ** 0.5 if len(last) > 1 else None
    median = statistics.median(run["train_s"] for run in runs)
    return machine.describe() | {
        "recipe": name,
        "epochs": recipe.epochs,
        "images": dataset.take(recipe.num_examples).num_train,
        "target_percent": target,
        "accuracy_percent": {"mean": mean, "standard_error": error},
        "seconds_to_target": median if mean >= target else None,
        "runs": runs,
    }


def table(results: dict[str, Any]) -> list[str]:
    """Returns the results as lines of text."""
    lines = [
        f"{results['recipe']} on {results['device']} ({results['platform']}): "
        f"{results['epochs']} epochs of {results['images']:,} images",
        f"  {'seed':>6} {'compiling':>11} {'training':>11} {'accuracy':>10}",
    ]
    lines += [
        f"  {run['seed']:>6} {run['compile_s']:>9.1f} s {run['train_s']:>9.2f} s "
        f"{run['accuracy_percent']:>8.2f} %"
        for run in results["runs"]
    ]
    accuracy, target = results["accuracy_percent"], results["target_percent"]
    error = accuracy["standard_error"]
    lines.append(
        f"  mean accuracy {accuracy['mean']:.2f} %"
        + (f", standard error {error:.2f}" if error is not None else "")
    )
    if results["seconds_to_target"] is None:
        return [*lines, f"  the mean does not reach {target:g} %"]
    seconds = results["seconds_to_target"]
    return [*lines, f"  time to {target:g} %: {seconds:.2f} s of training, without compilation"]


if __name__ == "__main__":
    command.run(__file__, main)
