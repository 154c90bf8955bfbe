"""dlc-jax recipes, data and models: list the recipes, datasets and networks."""

import dataclasses
from typing import Any

import click

from dlc_jax.cli.commands import commands
from dlc_jax.cli.options import data_dir_option, json_option, model_option
from dlc_jax.cli.output import print_line
from dlc_jax.cli.types import ImageShape, Integer
from dlc_jax.utils import strict_json


@commands.command("recipes")
@json_option
def list_recipes(as_json: bool) -> None:
    """List the recipes: combinations of dataset, model and hyperparameters.

    \b
    Example:
      dlc-jax recipes
    """
    from dlc_jax.runs.recipes import RECIPES

    if as_json:
        described = {
            name: {
                "summary": info.summary,
                "source": info.source,
                **dataclasses.asdict(info.recipe),
            }
            for name, info in RECIPES.items()
        }
        print_line(strict_json.dumps(described))
        return
    for name, info in RECIPES.items():
        recipe = info.recipe
        print_line(f"{name:18} {info.summary} ({info.source})")
        print_line(f"{'':18} {recipe.model} on {recipe.dataset}, {recipe.epochs} epochs")


@commands.command("data")
@data_dir_option
@json_option
def list_data(data_dir: str | None, as_json: bool) -> None:
    """List the datasets, and where they are on this machine.

    \b
    Example:
      dlc-jax data --data-dir ~/tensorflow_datasets
    """
    from dlc_jax import data
    from dlc_jax.utils.files import NOWHERE, cache_folder

    statuses = [data.status(name, data_dir) for name in data.names()]
    paths = {"data_folder": data.data_folder(data_dir), "cache_folder": cache_folder()}
    folders = {name: None if path == NOWHERE else str(path) for name, path in paths.items()}
    if as_json:
        print_line(strict_json.dumps({**folders, "datasets": statuses}))
        return
    for status in statuses:
        print_line(f"{status['name']:14} {status['summary']} ({status['reference']})")
        print_line(f"{'':14} {status['where']}")
        if status["cache"]:
            print_line(f"{'':14} decoded: {status['cache']}")
    print_line(
        f"prepared datasets: {folders['data_folder'] or 'no folder'}    "
        f"cache: {folders['cache_folder'] or 'no folder'}"
    )


@commands.command("models")
@click.argument("name", required=False)
@click.option(
    "--image-shape",
    type=ImageShape(),
    metavar="HxWxC",
    help="Height, width and channels of the images, for example 32x32x3.  [default: the paper's]",
)
@click.option("--num-classes", type=Integer(1), help="Number of classes.  [default: the paper's]")
@model_option
@json_option
def list_models(
    name: str | None,
    image_shape: tuple[int, int, int] | None,
    num_classes: int | None,
    model_options: tuple[tuple[str, Any], ...],
    as_json: bool,
) -> None:
    """List the networks, or the layers of one of them.

    Multiply-adds are those of convolutions and matrix products for one image. The depth is the
    number of convolutions and matrix products on the longest path.

    \b
    Examples:
      dlc-jax models
      dlc-jax models resnet18
      dlc-jax models resnet18 --image-shape 32x32x3 --num-classes 10 --model-option stem=small
    """
    from dlc_jax import models
    from dlc_jax.models import summary_table
    from dlc_jax.models.summary import describe
    from dlc_jax.utils import progress_bar

    if name is not None:
        result = describe(
            name, image_shape=image_shape, num_classes=num_classes, **dict(model_options)
        )
        lines = summary_table.layer_table(result)
    elif image_shape or num_classes or model_options:
        raise click.UsageError("name a network to describe it with options, for example resnet18")
    else:
        rows = []
        with progress_bar.stages() as update:
            for done, each in enumerate(models.names()):
                update(each, done, len(models.names()))
                rows.append(describe(each))
        result = {"models": [{k: v for k, v in row.items() if k != "layers"} for row in rows]}
        lines = summary_table.network_table(rows)
    print_line(strict_json.dumps(result) if as_json else "\n".join(lines))
