"""Command lines of the benchmarks: options, errors of one line, progress and results."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from dlc_jax.errors import InputError, one_line
from dlc_jax.utils import strict_json
from dlc_jax.utils.environment import prepare_program
from dlc_jax.utils.files import expand_home

BAD_INPUT, INTERRUPTED = 2, 130
RESULTS = Path(__file__).parents[1] / "results"

# Called with what runs next, the steps done and the steps in total.
Progress = Callable[[str, int, int], None]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError`, with the options `--output-dir` and `--json`.

    Args:
      description: What is measured.
      examples: Command lines, one per line.
    """

    def __init__(self, description: str, examples: str) -> None:
        super().__init__(
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--output-dir",
            type=path,
            default=RESULTS,
            metavar="DIR",
            help="folder for results and figures (default: benchmarks/results)",
        )
        self.add_argument("--json", action="store_true", help="print JSON as the last line")

    def error(self, message: str) -> NoReturn:
        """Raises an `InputError` with the message."""
        raise InputError(message)


def run(file: str, main: Callable[[Sequence[str] | None], None], *arguments: str) -> NoReturn:
    """Runs a script; bad input is one line on standard error and exit code 2.

    Args:
      file: The script's `__file__`.
      main: Called with the arguments.
      arguments: The command line; by default, that of the process.
    """
    status = 0
    try:
        prepare_program()
        main(arguments or None)
    except (InputError, OSError) as error:
        message = str(error) if isinstance(error, InputError) else f"{error.filename}: {error}"
        print(f"{Path(file).name}: {one_line(InputError(message), 1000)}", file=sys.stderr)
        status = BAD_INPUT
    except KeyboardInterrupt:
        print(f"{Path(file).name}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)


@contextmanager
def progress() -> Iterator[Progress]:
    """Shows a line of progress on standard error, if that is a terminal."""

    def report(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{done}/{total} {what}", end="", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def no_progress(what: str, done: int, total: int) -> None:
    """Ignores progress."""


def show(
    lines: Sequence[str], files: Sequence[Path], results: dict[str, Any], as_json: bool
) -> None:
    """Prints results.

    Args:
      lines: The results as text.
      files: Where the results were written.
      results: The results.
      as_json: Whether to print them as a last line of JSON.
    """
    print(*lines, f"results: {', '.join(map(str, files))}", sep="\n")
    if as_json:
        print(strict_json.dumps(results))


def check_choice(kind: str, names: Sequence[str], choices: Sequence[str]) -> None:
    """Raises an `InputError` if a name is not one of the choices."""
    for name in names:
        if name not in choices:
            raise InputError(f"there is no {kind} {name!r}; choose from {', '.join(choices)}")


def path(text: str) -> Path:
    """Converts text to a path; a leading `~` is the home folder."""
    try:
        return Path(expand_home(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def integer(minimum: int) -> Callable[[str], int]:
    """Returns the type of an option that is a whole number of at least `minimum`."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,9}", text) or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"{text} is not a whole number from {minimum} to 999,999,999"
            )
        return int(text)

    return convert


def positive_number(text: str) -> float:
    """Converts text to a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number; give one such as 0.5")
    return number


def names(text: str) -> tuple[str, ...]:
    """Converts text to names, which are separated by commas."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def counts(text: str) -> tuple[int, ...]:
    """Converts text to whole numbers, which are separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 256 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text} are not whole numbers from 1 to 256, separated by commas; give for example "
            "1,2,4"
        )
    return tuple(map(int, parts))


def module_environment(**variables: str) -> dict[str, str]:
    """Returns the environment in which `python -m` finds the benchmarks, with more variables."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | variables
