"""The history of convnets in a picture: what they cost, and what it bought.

Draws operations against parameters for every network of this package, and error on ImageNet
against operations, after the slide on the analysis of deep networks (Canziani et al. 2016).
Operations and parameters are counted here; errors are the published ones below.

Usage: python examples/history.py [PICTURE]
"""

import sys
from pathlib import Path

from dlc_jax import models
from dlc_jax.cli import progress
from dlc_jax.errors import InputError
from dlc_jax.models import report
from dlc_jax.runs import plots

# Top-1 error in percent, one crop of 224x224, of the weights that torchvision publishes
# (IMAGENET1K_V1, from its table of models).
ONE_CROP = {
    "alexnet": 43.478,
    "vgg11": 30.980,
    "vgg13": 30.072,
    "vgg16": 28.408,
    "vgg19": 27.624,
    "vgg11-bn": 29.630,
    "vgg13-bn": 28.414,
    "vgg16-bn": 26.640,
    "vgg19-bn": 25.782,
    "googlenet": 30.222,
    "resnet18": 30.242,
    "resnet34": 26.686,
    "resnet50": 23.870,
    "resnet101": 22.626,
    "resnet152": 21.688,
}
# Top-1 error in percent of single networks, many crops: the slide's table (He et al. 2015, table
# 4). Its VGG is the deepest; its ResNet-34 is B.
MANY_CROPS = {
    "vgg19": 24.4,
    "prelu-net": 21.59,
    "bn-inception": 21.99,
    "resnet34": 21.84,
    "resnet50": 20.74,
    "resnet101": 19.87,
    "resnet152": 19.38,
}


def main(picture: str = "history.png") -> None:
    described = []
    with progress.stages() as bar:
        for count, name in enumerate(models.names()):
            bar(name, count, len(models.names()))
            described.append(report.describe(name))
    errors = {"one crop (torchvision's weights)": ONE_CROP, "many crops (He et al.)": MANY_CROPS}
    plots.save(plots.history(described, errors), Path(picture))
    years = [row["year"] for row in described]
    print(f"{len(described)} networks from {min(years)} to {max(years)}: {picture}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"history.py: {error}")
