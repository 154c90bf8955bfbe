"""What options and arguments may be, and what is said where they are not."""

import math
from typing import Any

import click

from dlc_jax.errors import InputError
from dlc_jax.utils.files import expand_home


class Location(click.ParamType):  # type: ignore[type-arg]
    """A file or a folder, of which a leading `~` is the home folder, as in a shell."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return expand_home(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


class PositiveNumber(click.ParamType):  # type: ignore[type-arg]
    """A number above 0."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            self.fail(f"{value} is not a positive number; give one such as 0.1", param, ctx)
        return number


class Integer(click.ParamType):  # type: ignore[type-arg]
    """A whole number from some number on."""

    name = "integer"

    def __init__(self, least: int) -> None:
        self.least, self.most = least, 2**31 - 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.least - 1
        if not self.least <= number <= self.most:
            choice = f"give a whole number from {self.least} to {self.most}"
            self.fail(f"{value} is not possible; {choice}", param, ctx)
        return number


class Devices(click.ParamType):  # type: ignore[type-arg]
    """How many devices; 0 for all of them."""

    name = "devices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value in ("all", 0):
            return 0
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value} is not possible; give all, or a whole number from 1", param, ctx)
        return number


class Assignment(click.ParamType):  # type: ignore[type-arg]
    """NAME=VALUE, the value being true, false, a whole number, or a word."""

    name = "assignment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not (name and equals and text):
            self.fail(f"{value} is not NAME=VALUE; give one such as stem=small", param, ctx)
        if text in ("true", "false"):
            return name, text == "true"
        return name, int(text) if text.lstrip("-").isdigit() else text


class Shape(click.ParamType):  # type: ignore[type-arg]
    """Height, width and channels with x between them."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        sizes = value.split("x")
        if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
            self.fail(f"{value} is not HEIGHTxWIDTHxCHANNELS; give one such as 32x32x3", param, ctx)
        return int(sizes[0]), int(sizes[1]), int(sizes[2])


class Part(click.ParamType):  # type: ignore[type-arg]
    """A number from 0 on, below a limit."""

    name = "number"

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < self.limit:
            most = "" if self.limit == math.inf else f", below {self.limit:g}"
            self.fail(f"{value} is not possible; give a number from 0 on{most}", param, ctx)
        return number


class Names(click.ParamType):  # type: ignore[type-arg]
    """Names with commas between them."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


class Counts(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers from 1 on with commas between them."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        counts = value.split(",")
        if not all(count.strip().isdecimal() and 1 <= int(count) <= 256 for count in counts):
            self.fail(
                f"{value} are not whole numbers from 1 to 256 with commas between them; give some "
                "such as 1,2,4",
                param,
                ctx,
            )
        return tuple(map(int, counts))
