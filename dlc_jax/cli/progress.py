"""Progress on a terminal; nothing where standard error is something else."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dlc_jax.training import EpochReport
from dlc_jax.utils.text import printable, width

# A training step costs about three times as much as a forward pass: it computes the
# values, and the gradients with respect to parameters and to inputs.
_TRAIN_TO_TEST = 3


def _progress(*columns: ProgressColumn) -> Progress:
    return Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not _is_terminal(sys.stderr),
    )


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _spinner() -> SpinnerColumn:
    # The usual one needs more characters than ASCII has.
    return SpinnerColumn("dots" if "utf" in Console(stderr=True).encoding.lower() else "line")


def _text(template: str) -> TextColumn:
    # Brackets in a name are no markup.
    return TextColumn(template, markup=False)


@contextmanager
def counting(description: str) -> Iterator["Counter"]:
    """A bar for work of which one learns only later how much there is."""
    columns = (_spinner(), _text("{task.description}"), BarColumn())
    with _progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        yield Counter(progress, description)


class Counter:
    """Tells a bar how far the work is."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(printable(description), total=None)

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` pieces are done."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, float, int], None]]:
    """A bar over a known number of steps, each with a name of its own."""
    columns = (_spinner(), BarColumn(), _text("{task.completed:.0f}/{task.total}"))
    named = _text("{task.description}")
    with _progress(*columns, named, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=None)

        def report(what: str, done: float, total: int) -> None:
            progress.update(task, description=printable(what), completed=done, total=total)

        yield report


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the same keys, aligned under these; the first column to the left."""
    lines = [[*map(printable, cells)] for cells in (rows[0], *(row.values() for row in rows))]
    first, *rest = (max(map(width, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join(
            [
                name + " " * (first - width(name)),
                *(
                    " " * (most - width(text)) + text
                    for text, most in zip(texts, rest, strict=True)
                ),
            ]
        )
        for name, *texts in lines
    )


class _EpochBar(BarColumn):
    """Advances within an epoch by the time that the epoch should take."""

    def render(self, task: Task) -> "ProgressColumn":  # type: ignore[override]
        shown = task.completed
        task.completed = shown + _fraction(task)
        try:
            return super().render(task)  # type: ignore[return-value]
        finally:
            task.completed = shown


class _TimeLeft(ProgressColumn):
    """Epochs still to do, times what one takes."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = task.fields["epoch_seconds"]
        if seconds is None or task.total is None:
            return Text("compiling")
        left = (task.total - task.completed - _fraction(task)) * seconds
        return Text(f"{timedelta(seconds=round(left))} left")


def _fraction(task: Task) -> float:
    """How much of the present epoch should be done by now."""
    seconds = task.fields["epoch_seconds"]
    if seconds is None or task.finished:
        return 0.0
    return min((time.monotonic() - task.fields["since"]) / seconds, 0.99)


class EpochProgress:
    """Tells a bar what the epochs bring."""

    def __init__(self, progress: Progress, epochs: int, images: int, test_images: int) -> None:
        self._progress = progress
        self._images, self._test_images = images, test_images
        self._task = progress.add_task(
            "", total=epochs, epoch_seconds=None, since=time.monotonic(), numbers=""
        )

    def __call__(self, report: EpochReport) -> None:
        """Shows that an epoch is done."""
        if report.epoch:
            rate = self._images / report.train_seconds
            seconds = report.train_seconds + report.test_seconds
            numbers = f"loss {report.losses.mean():.4f}  {rate:,.0f} images/s"
        else:
            per_image = report.test_seconds / self._test_images
            seconds = self._images * per_image * _TRAIN_TO_TEST + report.test_seconds
            numbers = f"loss {float(report.test.loss):.4f}"
        self._progress.update(
            self._task,
            completed=report.epoch,
            epoch_seconds=seconds,
            since=time.monotonic(),
            numbers=numbers,
        )

    def line(self, text: str) -> None:
        """Prints a line on standard output, above the bar."""
        if self._progress.disable:
            print(text, flush=True)
        else:
            # The bar, on standard error, would be in the line's way.
            self._progress.stop()
            print(text, flush=True)
            self._progress.start()


@contextmanager
def epochs(count: int, images: int, test_images: int) -> Iterator[EpochProgress]:
    """A bar over epochs, with loss, images per second and time left.

    Args:
      count: how many epochs there are.
      images: training images in one.
      test_images: how many it is tested on.
    """
    columns = (
        _spinner(),
        TextColumn("epoch {task.completed}/{task.total}"),
        _EpochBar(),
        _text("{task.fields[numbers]}"),
        _TimeLeft(),
    )
    with _progress(*columns) as progress:
        yield EpochProgress(progress, count, images, test_images)
