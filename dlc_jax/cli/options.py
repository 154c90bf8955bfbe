"""Options that several commands have."""

from collections.abc import Callable
from typing import Any

import click

from dlc_jax.cli.types import Assignment, Integer, Location, Part, PositiveNumber

model_options_option = click.option(
    "--option",
    "model_options",
    type=Assignment(),
    multiple=True,
    metavar="NAME=VALUE",
    help="What else to tell the network, as stem=small or shortcut=A; may be repeated.",
)
data_dir_option = click.option(
    "--data-dir",
    type=Location(),
    metavar="DIR",
    help="Where TFDS keeps its datasets.  [default: $TFDS_DATA_DIR, else ~/tensorflow_datasets]",
)
results_dir_option = click.option(
    "--output-dir",
    type=Location(),
    metavar="DIR",
    default="benchmarks/results",
    show_default=True,
    help="Where to keep the results, a file a device, and their picture.",
)
as_is_option = click.option(
    "--as-is", is_flag=True, help="Only scale pictures; don't bring digits into MNIST's form."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last.")


# The fields of a recipe that can be told otherwise: what they take, and what they are.
_FIELDS: dict[str, tuple[Any, str]] = {
    "examples": (Integer(0), "How many of the training images, the first ones; 0 for all."),
    "epochs": (Integer(1), "Passes over the training images."),
    "batch_size": (Integer(1), "Images an update."),
    "optimizer": (
        click.Choice(["sgd", "adam", "adamw", "muon"]),
        "Optimizer. Another than the recipe's comes with its usual learning rate, momentum and "
        "weight decay.",
    ),
    "learning_rate": (PositiveNumber(), "Of the optimizer; the largest."),
    "schedule": (
        click.Choice(["constant", "step", "triangular", "cosine"]),
        "How the learning rate changes.",
    ),
    "momentum": (Part(1), "Of the optimizer."),
    "nesterov": (bool, "Whether the momentum is Nesterov's."),
    "weight_decay": (Part(), "By which part of them, times the rate, weights shrink each step."),
    "bias_factor": (PositiveNumber(), "How many times larger the learning rate of biases is."),
    "lookahead": (
        Integer(0),
        "After how many steps the parameters go back to their average; 0 for never.",
    ),
    "ema": (
        Part(1),
        "Decay of the average of the parameters at which training ends; 0 for none.",
    ),
    "whitening_bias_epochs": (
        Integer(0),
        "After how many epochs a whitening layer's bias stays as it is; 0 for never.",
    ),
    "label_smoothing": (Part(1), "What part of each target is spread over all classes."),
    "shuffle": (bool, "Whether each epoch has an order of its own."),
    "flip": (
        click.Choice(["none", "random", "alternating"]),
        "Exchange left and right, at random or every other epoch.",
    ),
    "translate": (Integer(0), "Move images by up to so many pixels."),
    "padding": (click.Choice(["zero", "reflect"]), "What then comes in at the borders."),
    "cutout": (Integer(0), "Blank out a square of so many pixels."),
    "dtype": (click.Choice(["float32", "bfloat16"]), "What the network computes in."),
    "mirrored_test": (bool, "Whether to test on images and mirror images together."),
    "translated_test": (
        Integer(0),
        "Test on images moved by so many pixels, too; 0 for not.",
    ),
}


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each field of a recipe; None where it is left as it is."""
    for name, (kind, text) in reversed(_FIELDS.items()):
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            flag += f"/--no-{name.replace('_', '-')}"
        option = click.option(
            flag, default=None, **({} if kind is bool else {"type": kind}), help=text
        )
        command = option(command)
    return command
