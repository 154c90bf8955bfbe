"""Recipes by name; `dlc-jax recipes` lists them."""

import difflib
from dataclasses import dataclass
from typing import Any

from dlc_jax.errors import InputError
from dlc_jax.runs.recipe import Recipe


@dataclass(frozen=True)
class RecipeInfo:
    """A recipe and its description.

    Attributes:
      summary: Description in a few words.
      source: Paper and section.
      recipe: The recipe.
    """

    summary: str
    source: str
    recipe: Recipe


LECTURE = Recipe()

# Jordan 2024, section 3. The paper's listing has a learning rate of 11.5 / (1,024 (1 + 1 / (1 -
# momentum))) for the sum of the losses of a batch. Its weight decay enters the momentum, which
# multiplies it by 1 / (1 - momentum).
_JORDAN = Recipe(
    dataset="cifar10",
    model="airbench",
    epochs=10,
    batch_size=1024,
    schedule="triangular",
    learning_rate=1.5,
    momentum=0.85,
    nesterov=True,
    weight_decay=0.009,
    bias_lr_multiplier=64,
    label_smoothing=0.2,
    shuffle=True,
    flip="alternating",
    translate=2,
    padding="reflect",
    tta_flip=True,
)
# A quarter of the network's width, and smaller batches with a smaller learning rate.
_NARROW: dict[str, Any] = {
    "model_options": {"widths": [32, 128, 128]},
    "batch_size": 250,
    "learning_rate": 0.37,
}

RECIPES: dict[str, RecipeInfo] = {
    "mnist-lecture": RecipeInfo("the program on the slide", "Fleuret, EE-559, lecture 1a", LECTURE),
    "mnist-best": RecipeInfo(
        "a test error of at most 0.35 % with one network",
        "Jordan 2024 with a quarter of the paper's network, and without flips",
        _JORDAN.replace(
            **_NARROW,
            dataset="mnist",
            epochs=16,
            lookahead_period=5,
            label_smoothing=0.1,
            flip="none",
            padding="zero",
            tta_flip=False,
            tta_translate=1,
        ),
    ),
    "cifar10-lecture": RecipeInfo(
        "the network on the slide and plain SGD, on color images",
        "Fleuret, EE-559, lecture 1a",
        Recipe(dataset="cifar10", epochs=20, learning_rate=0.05, shuffle=True),
    ),
    "cifar10-resnet20": RecipeInfo(
        "the paper's 64,000 steps, to its test error of 8.75 %",
        "He et al. 2015, section 4.2",
        Recipe(
            dataset="cifar10",
            model="resnet20",
            epochs=164,
            batch_size=128,
            schedule="step",
            momentum=0.9,
            weight_decay=0.001,
            shuffle=True,
            flip="random",
            translate=4,
        ),
    ),
    "cifar10-resnet18": RecipeInfo(
        "a ResNet-18 with a stem for small images",
        "He et al. 2015, table 1, with cutout (DeVries and Taylor 2017) and our hyperparameters",
        Recipe(
            dataset="cifar10",
            model="resnet18",
            model_options={"stem": "small"},
            dtype="bfloat16",
            epochs=60,
            batch_size=128,
            schedule="cosine",
            momentum=0.9,
            nesterov=True,
            weight_decay=0.005,
            shuffle=True,
            flip="random",
            translate=4,
            cutout=8,
        ),
    ),
    "cifar10-fast": RecipeInfo(
        "an accuracy of 94 % in ten epochs, for a GPU",
        "Jordan 2024, arXiv 2404.00498, section 3",
        _JORDAN.replace(
            dtype="bfloat16",
            lookahead_period=5,
            freeze_after={"whitening_bias": 3},
            tta_translate=1,
        ),
    ),
    "cifar10-cpu": RecipeInfo(
        "an accuracy of 90 % in minutes on two CPU cores",
        "Jordan 2024, with a quarter of the paper's network",
        _JORDAN.replace(**_NARROW, epochs=8),
    ),
}


def names() -> list[str]:
    """Returns the names of all recipes.

    Example:
      >>> names()[0]
      'mnist-lecture'
    """
    return list(RECIPES)


def find(name: str) -> Recipe:
    """Returns a recipe by its name.

    Args:
      name: One of `names()`.

    Raises:
      InputError: There is no recipe of this name.

    Example:
      >>> find("cifar10-cpu").epochs
      8
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise InputError(f"there is no recipe {name!r}; did you mean {', '.join(near)}?")
    return RECIPES[name].recipe
