"""What there is: dlc-jax recipes, data and models."""

from typing import Any

import click

from dlc_jax.cli.group import commands
from dlc_jax.cli.options import data_dir_option, json_option, model_options_option
from dlc_jax.cli.output import say
from dlc_jax.cli.types import Integer, Shape
from dlc_jax.utils import strict_json


@commands.command("recipes")
@json_option
def list_recipes(as_json: bool) -> None:
    """List the recipes: what to train, on what and how.

    \b
    Example:
      dlc-jax recipes
    """
    import dataclasses

    from dlc_jax.runs import recipes

    if as_json:
        say(
            strict_json.dumps(
                {
                    name: {
                        "summary": entry.summary,
                        "source": entry.source,
                        **dataclasses.asdict(entry.recipe),
                    }
                    for name, entry in recipes.RECIPES.items()
                }
            )
        )
        return
    for name, entry in recipes.RECIPES.items():
        recipe = entry.recipe
        say(f"{name:18} {entry.summary} ({entry.source})")
        say(f"{'':18} {recipe.model} on {recipe.dataset}, {recipe.epochs} epochs")


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
    folders = {"data_folder": data.data_folder(data_dir), "cache_folder": cache_folder()}
    places = {name: None if path == NOWHERE else str(path) for name, path in folders.items()}
    if as_json:
        say(strict_json.dumps({**places, "datasets": statuses}))
        return
    for status in statuses:
        say(f"{status['name']:14} {status['summary']} ({status['reference']})")
        say(f"{'':14} {status['where']}")
        if status["cache"]:
            say(f"{'':14} decoded: {status['cache']}")
    say(
        f"prepared datasets: {places['data_folder'] or 'no folder'}    "
        f"cache: {places['cache_folder'] or 'no folder'}"
    )


@commands.command("models")
@click.argument("name", required=False)
@click.option(
    "--image-shape",
    type=Shape(),
    metavar="HxWxC",
    help="Height, width and channels of its images.  [default: its paper's]",
)
@click.option("--classes", type=Integer(1), help="How many.  [default: its paper's]")
@model_options_option
@json_option
def list_models(
    name: str | None,
    image_shape: tuple[int, int, int] | None,
    classes: int | None,
    model_options: tuple[tuple[str, Any], ...],
    as_json: bool,
) -> None:
    """List the networks, or the layers of one of them.

    Sizes are for the images and classes of the network's paper. Multiply-adds are those of
    convolutions and matrix products for one image; the depth is how many of them follow one
    another.

    \b
    Examples:
      dlc-jax models
      dlc-jax models resnet18
      dlc-jax models resnet18 --image-shape 32x32x3 --classes 10 --option stem=small
    """
    from dlc_jax import models
    from dlc_jax.cli import progress
    from dlc_jax.models import report

    told = {"image_shape": image_shape, "num_classes": classes, **dict(model_options)}
    if name is not None:
        described = report.describe(name, **told)
        lines = report.layer_lines(described)
    elif image_shape or classes or model_options:
        raise click.UsageError("name a network to describe it for other images, as resnet18")
    else:
        rows = []
        with progress.stages() as bar:
            for done, each in enumerate(models.names()):
                bar(each, done, len(models.names()))
                rows.append(report.describe(each))
        described = {"models": [{k: v for k, v in row.items() if k != "layers"} for row in rows]}
        lines = report.table_lines(rows)
    if as_json:
        say(strict_json.dumps(described))
    else:
        say("\n".join(lines))
