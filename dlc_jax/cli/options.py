"""Options of several commands, options from the fields of a recipe, and help with headings."""

import dataclasses
import functools
import math
from typing import Any

import click

from dlc_jax.cli.types import Assignment, Fraction, Integer, PathType, PositiveNumber

# Headings in the help of dlc-jax train.
_HEADINGS = {
    "data": "Data",
    "model": "Model",
    "optimizer": "Optimizer",
    "augmentation": "Augmentation",
    "evaluation": "Evaluation",
    "run": "Run",
    "devices": "Device",
}


class GroupedOption(click.Option):
    """An option with a group, under whose heading `TrainCommand` lists it."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


option = functools.partial(click.option, cls=GroupedOption)


class TrainCommand(click.Command):
    """A command with an option for each field of a recipe, and a heading for each group."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns all parameters; those of the recipe are added late, since they import JAX."""
        return [*recipe_options(), *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options under the headings of their groups."""
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS.values()}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                rows[_HEADINGS[getattr(param, "group", "run")]].append(record)
        for heading, records in rows.items():
            with formatter.section(f"{heading} options"):
                formatter.write_dl(records)


@functools.cache
def recipe_options() -> tuple[GroupedOption, ...]:
    """Returns an option for each field of a recipe; its value is None if it is not given."""
    from dlc_jax.runs.recipe import Recipe

    return tuple(_recipe_option(field) for field in dataclasses.fields(Recipe))


def _recipe_option(field: "dataclasses.Field[Any]") -> GroupedOption:
    flag = f"--{field.name.replace('_', '-')}"
    attributes: dict[str, Any] = {"help": field.metadata["help"], "group": field.metadata["group"]}
    if isinstance(field.default, bool):
        return GroupedOption([f"{flag}/--no-{flag[2:]}"], default=None, **attributes)
    if field.default is dataclasses.MISSING:
        integers = Integer(0) if field.name == "freeze_after" else None
        # The name is singular, `--model-option`, since it is given once for each option.
        return GroupedOption(
            [flag.removesuffix("s"), field.name],
            type=Assignment(integers),
            multiple=True,
            metavar="NAME=EPOCHS" if integers else "NAME=VALUE",
            **attributes,
        )
    kind = _option_type(field)
    metavar = "NAME" if kind is str else None
    return GroupedOption([flag], type=kind, default=None, metavar=metavar, **attributes)


def _option_type(field: "dataclasses.Field[Any]") -> Any:
    limits = field.metadata
    if "choices" in limits:
        return click.Choice(limits["choices"])
    if isinstance(field.default, int):
        return Integer(limits["minimum"])
    if isinstance(field.default, float):
        if "exclusive_minimum" in limits:
            return PositiveNumber()
        return Fraction(limits.get("exclusive_maximum", math.inf))
    return str


model_option = click.option(
    "--model-option",
    "model_options",
    type=Assignment(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the network, for example stem=small; may be repeated.",
)
data_dir_option = option(
    "--data-dir",
    type=PathType(),
    metavar="DIR",
    group="data",
    help="Folder of the TFDS datasets.  [default: $TFDS_DATA_DIR, else ~/tensorflow_datasets]",
)
as_is_option = click.option(
    "--as-is", is_flag=True, help="Only resize pictures; don't preprocess digits as for MNIST."
)
json_option = option(
    "--json", "as_json", is_flag=True, group="run", help="Print one JSON object as the last line."
)
