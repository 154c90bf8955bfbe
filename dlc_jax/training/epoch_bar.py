"""A progress bar over epochs, shown if standard error is a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from dlc_jax.training.loop import Callback, EpochRecord, Progress
from dlc_jax.utils.progress_bar import create_progress, plain_text, spinner

# Training on an image takes about three forward passes: the gradients with respect to parameters
# and to inputs take one each.
_TRAIN_TO_TEST_RATIO = 3


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


class EpochBar(Callback):
    """A bar over epochs; see `epoch_bar`."""

    def __init__(self, progress: RichProgress, num_epochs: int) -> None:
        self._progress = progress
        self._task = progress.add_task(
            "", total=num_epochs, epoch_seconds=None, epoch_start=time.monotonic(), metrics=""
        )

    def on_epoch_end(self, progress: Progress, record: EpochRecord) -> None:
        """Shows an epoch's record."""
        del progress
        self.update(record)

    def update(self, record: EpochRecord) -> None:
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
    """Shows a bar over epochs, with loss, examples per second and time left.

    Args:
      num_epochs: Number of epochs.
    """
    columns = (
        spinner(),
        TextColumn("epoch {task.completed}/{task.total}"),
        _EpochBarColumn(),
        plain_text("{task.fields[metrics]}"),
        _EpochTimeColumn(),
    )
    with create_progress(*columns) as progress:
        yield EpochBar(progress, num_epochs)
