"""Callbacks of runs: checkpoints, metrics, event files, profiles and interruption."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlc_jax.errors import InputError, one_line
from dlc_jax.runs.checkpoint import CheckpointCallback, CheckpointManager
from dlc_jax.runs.config import AnyDataset
from dlc_jax.runs.folder import CHECKPOINTS, EVENTS, METRICS, Run
from dlc_jax.runs.setup import Setup
from dlc_jax.runs.summary import Logits, draw, metrics_line, summarize
from dlc_jax.runs.tensorboard import EventWriter, check_installed
from dlc_jax.training import Callback, EpochRecord, Progress, means, unstack
from dlc_jax.utils.memory import return_free_memory

# Memory is returned only for states larger than this, in bytes, since it takes milliseconds.
_LARGE_STATE = 2**24


@dataclass(frozen=True)
class CheckpointOptions:
    """Options of checkpoints.

    Attributes:
      interval_seconds: Minimum time between checkpoints, which are saved at the end of a chunk of
        steps; 0 for one after every chunk.
      max_to_keep: Number of checkpoints to keep.
    """

    interval_seconds: float = 10.0
    max_to_keep: int = 3


@dataclass(frozen=True)
class RunOptions:
    """Options of what a run writes during training.

    Attributes:
      checkpoints: Options of checkpoints.
      profile: Whether to trace the first chunk of steps with JAX's profiler, into `profile/`.
      tensorboard: Whether to write event files for TensorBoard, into `tensorboard/`. A resumed
        run that already has event files always writes them.

    Raises:
      InputError: The package tensorboardX is not installed.
    """

    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    profile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.tensorboard:
            check_installed()


class LastEvaluated(Callback):
    """Keeps the state that was evaluated last, for the results.

    Attributes:
      state: The state; None before the first evaluation.
    """

    def __init__(self) -> None:
        self.state: Any = None

    def on_epoch_end(self, progress: Progress, record: EpochRecord) -> None:
        """Keeps the state."""
        del record
        large = sum(leaf.nbytes for leaf in jax.tree.leaves(progress.state)) > _LARGE_STATE
        replaces_another = self.state is not None
        self.state = progress.state
        if large and replaces_another:
            return_free_memory()


class Shutdown(Callback):
    """Ends all processes of a run at the same step when one of them gets a signal."""

    def __init__(self, raise_if_signalled: Callable[[], None]) -> None:
        self._raise_if_signalled = raise_if_signalled

    def on_chunk_end(self, progress: Progress) -> None:
        """Raises KeyboardInterrupt or `Terminated` after a signal."""
        del progress
        self._raise_if_signalled()

    def on_epoch_end(self, progress: Progress, record: EpochRecord) -> None:
        """Raises KeyboardInterrupt or `Terminated` after a signal."""
        del record
        self.on_chunk_end(progress)


class Profiler(Callback):
    """Traces the first chunk of steps with JAX's profiler.

    Args:
      folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "profile"
        self._has_started = self._is_tracing = False

    def on_epoch_end(self, progress: Progress, record: EpochRecord) -> None:
        """Starts the trace after the first evaluation, so that it contains only training."""
        del progress, record
        if not self._has_started:
            jax.profiler.start_trace(self._folder)
            self._has_started = self._is_tracing = True

    def on_chunk_end(self, progress: Progress) -> None:
        """Ends the trace."""
        del progress
        self.close()

    def close(self) -> None:
        """Ends the trace if it is running."""
        if not self._is_tracing:
            return
        self._is_tracing = False
        try:
            jax.profiler.stop_trace()
        except jax.errors.JaxRuntimeError as error:
            # The last checkpoint needs the space.
            shutil.rmtree(self._folder, ignore_errors=True)
            raise InputError(
                f"can't write the trace in {str(self._folder)!r} ({one_line(error)}); free some "
                "space, then resume the run without --profile"
            ) from error


class RunWriter(Callback):
    """Writes the network, metrics, checkpoints and event files of a run.

    Attributes:
      run: The run.
      history: Records of all epochs.
    """

    def __init__(
        self,
        run: Run,
        history: list[EpochRecord],
        checkpointer: CheckpointCallback,
        event_writer: EventWriter | None,
        on_epoch_end: Callable[[Run, EpochRecord], None] | None,
    ) -> None:
        self.run, self.history = run, history
        self._checkpointer, self._event_writer = checkpointer, event_writer
        self._on_epoch = on_epoch_end

    def on_train_begin(self, progress: Progress) -> None:
        """Calls the checkpointer."""
        self._checkpointer.on_train_begin(progress)

    def on_chunk_end(self, progress: Progress) -> None:
        """Calls the checkpointer."""
        self._checkpointer.on_chunk_end(progress)

    def on_epoch_end(self, progress: Progress, record: EpochRecord) -> None:
        """Saves the network and the epoch's metrics."""
        self.history.append(record)
        if record.epoch:
            self.run.save_model(progress.state.model)
            self.run.append_metrics(metrics_line(record))
        if self._event_writer:
            self._event_writer.epoch(record)
        if self._on_epoch:
            self._on_epoch(self.run, record)

    def finish(self, dataset: AnyDataset, logits: Logits | None) -> dict[str, Any]:
        """Writes the summary and the pictures.

        Args:
          dataset: The dataset.
          logits: Logits of the last evaluated network on the test split; None if they could not
            be computed.

        Returns:
          The summary.
        """
        summary = summarize(self.run, dataset, self.history, logits)
        self.run.write_summary(summary)
        if self.history and logits is not None:
            files = draw(self.run, dataset, self.history, logits)
            if self._event_writer:
                self._event_writer.pictures(files, self.history[-1].step)
        return summary


class EachNetwork(Callback):
    """Calls a separate callback for each network of an ensemble."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_train_begin(self, progress: Progress) -> None:
        """Calls each network's callback."""
        for callback, own in zip(self._callbacks, _split_progress(progress), strict=True):
            callback.on_train_begin(own)

    def on_chunk_end(self, progress: Progress) -> None:
        """Calls each network's callback."""
        for callback, own in zip(self._callbacks, _split_progress(progress), strict=True):
            callback.on_chunk_end(own)

    def on_epoch_end(self, progress: Progress, record: EpochRecord) -> None:
        """Calls each network's callback."""
        networks = _split_progress(progress)
        for index, (callback, own) in enumerate(zip(self._callbacks, networks, strict=True)):
            callback.on_epoch_end(own, _network_record(record, index, len(networks)))


def _split_progress(progress: Progress) -> list[Progress]:
    states = unstack(progress.state)
    seconds = [each / len(states) for each in progress.seconds]
    return [
        Progress(state, jax.tree.map(lambda a, i=index: a[:, i], progress.metrics), seconds)
        for index, state in enumerate(states)
    ]


def _network_record(record: EpochRecord, index: int, networks: int) -> EpochRecord:
    return replace(
        record,
        train={name: values[index] for name, values in record.train.items()},
        test={name: values[index] for name, values in record.test.items()},
        losses=record.losses[:, index] if record.epoch else record.losses,
        train_seconds=record.train_seconds / networks,
        test_seconds=record.test_seconds / networks,
    )


@contextmanager
def open_writer(
    run: Run,
    setup: Setup,
    options: RunOptions,
    on_epoch_end: Callable[[Run, EpochRecord], None] | None,
    warn: Callable[[str], None],
) -> Iterator[tuple[RunWriter, Progress | None]]:
    """Locks a run's folder and opens it for training; on leaving, saves the last checkpoint.

    Yields:
      The writer, and the progress of the newest checkpoint, or None.
    """
    with ExitStack() as stack:
        stack.enter_context(run.locked())
        if not run.has_model:
            run.save_model(setup.state.model)
        keep = options.checkpoints.max_to_keep
        manager = CheckpointManager(run.folder / CHECKPOINTS, keep, setup.describe)
        stack.enter_context(manager)
        progress = manager.restore_latest(setup.state, warn)
        epoch_steps = setup.source.plan.steps_per_epoch
        history = _history(run, progress, epoch_steps, setup.dataset.num_train, warn)
        event_writer, events = None, run.folder / EVENTS
        if options.tensorboard or events.exists():
            done = (progress.step - 1) // epoch_steps if progress else 0
            first_step = done * epoch_steps + 1 if progress else 0
            event_writer = stack.enter_context(closing(EventWriter(events, first_step)))
        checkpointer = CheckpointCallback(manager, options.checkpoints.interval_seconds)
        stack.enter_context(checkpointer)
        writer = RunWriter(run, history, checkpointer, event_writer, on_epoch_end)
        yield writer, progress


def _history(
    run: Run,
    progress: Progress | None,
    epoch_steps: int,
    num_examples: int,
    warn: Callable[[str], None],
) -> list[EpochRecord]:
    """Reads the records of finished epochs, and removes other lines from `metrics.jsonl`."""
    done = (progress.step - 1) // epoch_steps if progress else 0
    known = {line["epoch"]: line for line in run.read_metrics() if _is_complete(line)}
    lines = [known[epoch] for epoch in sorted(known) if epoch <= done]
    run.write_metrics(lines)
    missing = done - len(lines)
    if missing:
        warn(
            f"{str(run.folder / METRICS)!r} has no metrics of {missing} of the {done} finished "
            "epochs; continuing without them"
        )
    if progress is None or not done:
        return []
    losses = means(progress.metrics)["loss"]
    return [
        EpochRecord(
            epoch=line["epoch"],
            step=line["epoch"] * epoch_steps,
            train={"loss": np.array(line["train_loss"], np.float32)},
            test={
                "loss": np.array(line["test_loss"], np.float32),
                "error": np.array(line["test_error_percent"] / 100, np.float32),
            },
            losses=losses[(line["epoch"] - 1) * epoch_steps : line["epoch"] * epoch_steps],
            train_seconds=line["train_seconds"],
            test_seconds=0.0,
            compile_seconds=0.0,
            num_examples=num_examples,
        )
        for line in lines
    ]


def _is_complete(line: Any) -> bool:
    """Returns whether a line of `metrics.jsonl` has all required fields."""
    if not isinstance(line, dict):
        return False
    names = ("train_loss", "test_loss", "test_error_percent", "train_seconds")
    epoch = line.get("epoch")
    return (
        type(epoch) is int
        and epoch > 0
        and all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            for value in map(line.get, names)
        )
    )
