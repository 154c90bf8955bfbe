"""Networks described, for people and for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dlc_jax import models
from dlc_jax.models.summary import summarise


def describe(
    name: str,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What is known of a network, and what it is made of, in plain Python.

    Args:
      name: as in `dlc_jax.models.names()`.
      image_shape: height, width and channels; by default its paper's.
      num_classes: by default its paper's.
      **options: what else the network can be told.

    Raises:
      InputError: see `dlc_jax.models.create`.
    """
    entry = models.find(name)
    shape = image_shape or entry.image_shape
    classes = num_classes or entry.num_classes
    model = models.abstract(name, image_shape=shape, num_classes=classes, **options)
    summary = dataclasses.asdict(summarise(model, shape))
    return {
        "name": name,
        "year": entry.year,
        "source": entry.source,
        "image_shape": list(shape),
        "num_classes": classes,
        "options": options,
        **summary,
    }


def table_lines(described: Sequence[dict[str, Any]]) -> list[str]:
    """A line a network."""
    titles = ("name", "year", "parameters", "multiply-adds", "depth", "input", "source")
    rows = [
        (
            row["name"],
            str(row["year"]),
            f"{row['parameters']:,}",
            _short(row["multiply_adds"]),
            str(row["depth"]),
            _shape(row["image_shape"]),
            row["source"],
        )
        for row in described
    ]
    return _aligned([titles, *rows], right={2, 3, 4})


def layer_lines(described: dict[str, Any]) -> list[str]:
    """The network in a few lines, then a line a layer."""
    told = "".join(f", {name}={value}" for name, value in described["options"].items())
    titles = ("layer", "what", "output", "parameters", "multiply-adds")
    rows = [
        (
            layer["name"],
            layer["kind"],
            _shape(layer["shape"]),
            f"{layer['parameters']:,}" if layer["parameters"] else "",
            _short(layer["multiply_adds"]) if layer["multiply_adds"] else "",
        )
        for layer in described["layers"]
    ]
    return [
        f"{described['name']} ({described['source']}, {described['year']}){told}: images of "
        f"{_shape(described['image_shape'])}, {described['num_classes']} classes",
        f"{described['parameters']:,} parameters, {_short(described['multiply_adds'])} "
        f"multiply-adds an image, {described['depth']} layers deep",
        "",
        *_aligned([titles, *rows], right={3, 4}),
    ]


def _aligned(rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _short(number: int) -> str:
    """Three digits and a unit: 1.81 G."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
