"""Types of options and arguments. Each error names the value and gives a valid one."""

import math
from typing import Any

import click

from dlc_jax.errors import InputError
from dlc_jax.utils.files import expand_home

_MAX_INTEGER = 2**31 - 1


class PathType(click.ParamType):  # type: ignore[type-arg]
    """A path to a file or folder. A leading `~` is the home folder, as in a shell."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return expand_home(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


class Integer(click.ParamType):  # type: ignore[type-arg]
    """An integer that is at least `minimum`."""

    name = "integer"

    def __init__(self, minimum: int) -> None:
        self.minimum = minimum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.minimum - 1
        if not self.minimum <= number <= _MAX_INTEGER:
            self.fail(
                f"{value} is not an integer from {self.minimum} to {_MAX_INTEGER}", param, ctx
            )
        return number


class PositiveNumber(click.ParamType):  # type: ignore[type-arg]
    """A finite number above 0."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = _parse_float(value)
        if not (math.isfinite(number) and number > 0):
            self.fail(f"{value} is not a positive number; give one such as 0.1", param, ctx)
        return number


class Fraction(click.ParamType):  # type: ignore[type-arg]
    """A number that is at least 0 and below a limit, by default 1."""

    name = "number"

    def __init__(self, limit: float = 1) -> None:
        self.limit = limit

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = _parse_float(value)
        if not 0 <= number < self.limit:
            problem = "negative" if number < 0 else "too large"
            problem = "not a number" if math.isnan(number) else problem
            limit = "" if self.limit == math.inf else f", but below {self.limit:g}"
            self.fail(f"{value} is {problem}; give 0 or more{limit}", param, ctx)
        return number


class DeviceCount(click.ParamType):  # type: ignore[type-arg]
    """A number of devices, or "all"."""

    name = "devices"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == "all" or isinstance(value, int):
            return value
        if not (value.isdecimal() and int(value)):
            self.fail(f"{value} is not a number of devices; give all or an integer", param, ctx)
        return int(value)


class Assignment(click.ParamType):  # type: ignore[type-arg]
    """NAME=VALUE. The value is true, false, an integer or a word, or of a given type."""

    name = "assignment"

    def __init__(self, value_type: "click.ParamType[Any] | None" = None) -> None:
        self.value_type = value_type

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, _, text = value.partition("=")
        if not (name and text):
            self.fail(f"{value} is not NAME=VALUE; give a name and a value", param, ctx)
        if self.value_type is not None:
            return name, self.value_type.convert(text, param, ctx)
        if text in ("true", "false"):
            return name, text == "true"
        return name, int(text) if text.removeprefix("-").isdecimal() else text


class ImageShape(click.ParamType):  # type: ignore[type-arg]
    """Height, width and channels, separated by x."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        sizes = value.split("x")
        if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
            self.fail(f"{value} is not HEIGHTxWIDTHxCHANNELS; give one such as 32x32x3", param, ctx)
        return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _parse_float(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
