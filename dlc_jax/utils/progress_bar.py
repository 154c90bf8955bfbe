"""Progress bars, shown if standard error is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dlc_jax.utils.text import printable


def create_progress(*columns: ProgressColumn) -> Progress:
    """Returns a transient display on standard error, disabled where that is not a terminal."""
    return Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not _is_terminal(sys.stderr),
    )


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def spinner() -> SpinnerColumn:
    """Returns a spinner, of ASCII characters if the terminal has no others."""
    return SpinnerColumn("dots" if "utf" in Console(stderr=True).encoding.lower() else "line")


def plain_text(template: str) -> TextColumn:
    """Returns a column of text whose brackets are not markup."""
    return TextColumn(template, markup=False)


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar; yields a function that takes the number done and the total number."""
    columns = (spinner(), plain_text("{task.description}"), BarColumn())
    with create_progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(printable(description), total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


@contextmanager
def stages() -> Iterator[Callable[[str, float, int], None]]:
    """Shows a bar; yields a function that takes a stage's name, the number done and the total."""
    columns = (spinner(), BarColumn(), plain_text("{task.completed:.0f}/{task.total}"))
    name = plain_text("{task.description}")
    with create_progress(*columns, name, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=None)

        def update(stage: str, done: float, total: int) -> None:
            progress.update(task, description=printable(stage), completed=done, total=total)

        yield update
