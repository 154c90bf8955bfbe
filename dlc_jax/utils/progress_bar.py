"""Progress bars, shown if standard error is a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

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

from dlc_jax.utils.text import printable

if TYPE_CHECKING:
    from dlc_jax.training import EpochRecord

# Training on an image takes about three forward passes: the gradients with respect to parameters
# and to inputs take one each.
_TRAIN_TO_TEST_RATIO = 3


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
    # The default one is not ASCII.
    return SpinnerColumn("dots" if "utf" in Console(stderr=True).encoding.lower() else "line")


def _text(template: str) -> TextColumn:
    # Names may contain brackets, which are not markup.
    return TextColumn(template, markup=False)


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar; yields a function that takes the number done and the total number."""
    columns = (_spinner(), _text("{task.description}"), BarColumn())
    with _progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(printable(description), total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


@contextmanager
def stages() -> Iterator[Callable[[str, float, int], None]]:
    """Shows a bar; yields a function that takes a stage's name, the number done and the total."""
    columns = (_spinner(), BarColumn(), _text("{task.completed:.0f}/{task.total}"))
    name = _text("{task.description}")
    with _progress(*columns, name, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=None)

        def update(stage: str, done: float, total: int) -> None:
            progress.update(task, description=printable(stage), completed=done, total=total)

        yield update


class _EpochBarColumn(BarColumn):
    """A bar that also advances within an epoch, by the time the epoch is expected to take."""

    def render(self, task: Task) -> "ProgressColumn":  # type: ignore[override]
        completed = task.completed
        task.completed = completed + _fraction_of_epoch(task)
        try:
            return super().render(task)  # type: ignore[return-value]
        finally:
            task.completed = completed


class _EpochTimeColumn(ProgressColumn):
    """The time left: the number of epochs left times the duration of one."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = task.fields["epoch_seconds"]
        if seconds is None or task.total is None:
            return Text("compiling")
        left = (task.total - task.completed - _fraction_of_epoch(task)) * seconds
        return Text(f"{timedelta(seconds=round(left))} left")


def _fraction_of_epoch(task: Task) -> float:
    """Returns the fraction of the current epoch that should be done by now."""
    seconds = task.fields["epoch_seconds"]
    if seconds is None or task.finished:
        return 0.0
    return min((time.monotonic() - task.fields["epoch_start"]) / seconds, 0.99)


class EpochBar:
    """A bar over epochs; see `epoch_bar`."""

    def __init__(self, progress: Progress, num_epochs: int) -> None:
        self._progress = progress
        self._task = progress.add_task(
            "", total=num_epochs, epoch_seconds=None, epoch_start=time.monotonic(), metrics=""
        )

    def update(self, record: "EpochRecord") -> None:
        """Shows an epoch's record."""
        if record.epoch:
            rate = record.num_examples / record.train_seconds
            seconds = record.train_seconds + record.test_seconds
            metrics = f"loss {float(record.train['loss']):.4f}  {rate:,.0f} examples/s"
        else:
            test_images = record.num_examples * _TRAIN_TO_TEST_RATIO + record.num_test_examples
            seconds = record.test_seconds * test_images / max(record.num_test_examples, 1)
            metrics = f"loss {float(record.test['loss']):.4f}" if record.test else ""
        self._progress.update(
            self._task,
            completed=record.epoch,
            epoch_seconds=seconds,
            epoch_start=time.monotonic(),
            metrics=metrics,
        )

    def print_line(self, text: str) -> None:
        """Prints a line to standard output, above the bar."""
        if self._progress.disable:
            print(text, flush=True)
        else:
            # The bar on standard error would otherwise overlap the line.
            self._progress.stop()
            print(text, flush=True)
            self._progress.start()


@contextmanager
def epoch_bar(num_epochs: int) -> Iterator[EpochBar]:
    """Shows a bar over epochs, with loss, images per second and time left.

    Args:
      num_epochs: number of epochs.
    """
    columns = (
        _spinner(),
        TextColumn("epoch {task.completed}/{task.total}"),
        _EpochBarColumn(),
        _text("{task.fields[metrics]}"),
        _EpochTimeColumn(),
    )
    with _progress(*columns) as progress:
        yield EpochBar(progress, num_epochs)
