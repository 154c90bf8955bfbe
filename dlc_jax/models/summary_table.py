"""Tables of networks and of their layers, as text."""

from collections.abc import Sequence
from typing import Any


def network_table(descriptions: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the lines of a table with one network per line.

    Args:
      descriptions: Networks as `dlc_jax.models.summary.describe` returns them.

    Example:
      >>> from dlc_jax.models.summary import describe
      >>> print(*network_table([describe("tc")]), sep="\\n")
      name  year  parameters  multiply-adds  depth  input  source
      tc    1986          23         1.15 k      2  6x6x1  Rumelhart et al., the T-C problem
    """
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
        for row in descriptions
    ]
    return _aligned([titles, *rows], right={2, 3, 4})


def layer_table(description: dict[str, Any]) -> list[str]:
    """Returns the lines of a network's summary and of a table with one layer per line.

    Args:
      description: A network as `dlc_jax.models.summary.describe` returns it.

    Example:
      >>> from dlc_jax.models.summary import describe
      >>> print(*layer_table(describe("tc"))[3:], sep="\\n")
      layer   type             output  parameters  multiply-adds
      hidden  3x3 convolution  8x8x2           20         1.15 k
      output  linear           1                3              2
      logits                   2
    """
    options = "".join(f", {name}={value}" for name, value in description["options"].items())
    titles = ("layer", "type", "output", "parameters", "multiply-adds")
    rows = [
        (
            layer["name"],
            layer["kind"],
            _shape(layer["shape"]),
            f"{layer['parameters']:,}" if layer["parameters"] else "",
            _short(layer["multiply_adds"]) if layer["multiply_adds"] else "",
        )
        for layer in description["layers"]
    ]
    return [
        f"{description['name']} ({description['source']}, {description['year']}){options}: "
        f"images of {_shape(description['image_shape'])}, {description['num_classes']} classes",
        f"{description['parameters']:,} parameters, {_short(description['multiply_adds'])} "
        f"multiply-adds per image, {description['depth']} layers deep",
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
    """Three digits and an SI prefix, as in "1.81 G"."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
