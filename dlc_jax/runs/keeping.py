"""What is kept of a run while it is in training, and found again."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dlc_jax import training
from dlc_jax.runs.checkpoint import Checkpoints, Keeper, Progress
from dlc_jax.runs.configuration import AnyDataset
from dlc_jax.runs.fitting import Fitting
from dlc_jax.runs.results import draw, metrics_of, summarise
from dlc_jax.utils.memory import return_free_memory
from dlc_jax.runs.folder import CHECKPOINTS, EVENTS, METRICS, Run
from dlc_jax.runs.tensorboard import Board, check_library
from dlc_jax.training import EpochReport

_NO_LABELS = np.zeros(0, np.int32)

# Bytes of a state from which its memory is worth the milliseconds that returning it takes.
_LARGE = 2**24


@dataclass(frozen=True)
class Saving:
    """What a run keeps of itself while it is in training.

    Attributes:
      every: a checkpoint after so many seconds, when the next part of an epoch ends; 0 for each
        part.
      keep: how many checkpoints, the newest ones.
      profile: whether JAX's profiler traces the first part of an epoch, into `profile/`.
      tensorboard: whether to write event files for TensorBoard, into `tensorboard/`; a run that
        has some goes on with them.

    Raises:
      InputError: there is no library for event files.
    """

    every: float = 10.0
    keep: int = 3
    profile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.tensorboard:
            check_library()


DEFAULT_SAVING = Saving()


@dataclass(frozen=True)
class OpenRun:
    """A run's folder while it is in training.

    Attributes:
      run: the folder.
      begun: where training goes on from; None where it begins.
      keeper: of checkpoints.
      history: what is known of all epochs; of the last one alone also its network and outputs.
      board: where event files are asked for.
    """

    run: Run
    begun: Progress | None
    keeper: Keeper
    history: list[EpochReport]
    board: Board | None

    def add(self, report: EpochReport, images: int) -> None:
        """Keeps what an epoch of so many images came to."""
        if self.history:
            # Every epoch's network would fill the memory.
            before, self.history[-1] = self.history[-1], without_network(self.history[-1])
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(before.state))
            del before
            if size > _LARGE:
                return_free_memory()
        self.history.append(report)
        if report.epoch:
            self.run.save_model(report.state.model)
            self.run.append_metrics(metrics_of(report, images))
        if self.board:
            self.board.epoch(report)

    def end(self, dataset: AnyDataset) -> dict[str, Any]:
        """Writes the summary and the pictures, and returns the former."""
        summary = summarise(self.run, dataset, self.history)
        self.run.write_summary(summary)
        if self.history and len(self.history[-1].test_logits):
            files = draw(self.run, dataset, self.history)
            if self.board:
                self.board.pictures(files, int(self.history[-1].state.step))
        return summary


@contextmanager
def open_run(
    run: Run,
    fitting: Fitting,
    saving: Saving,
    complain: Callable[[str], None] = lambda message: None,
) -> Iterator[OpenRun]:
    """Opens a run's folder for training, which ends with a checkpoint."""
    with ExitStack() as stack:
        stack.enter_context(run.locked())
        if not run.has_model:
            run.save_model(fitting.state.model)
        checkpoints = Checkpoints(run.folder / CHECKPOINTS, saving.keep, fitting.describe)
        stack.enter_context(checkpoints)
        begun = checkpoints.newest(fitting.state, complain)
        history = _history(run, begun, fitting.steps, complain)
        board, events = None, run.folder / EVENTS
        if saving.tensorboard or events.exists():
            done = (begun.step - 1) // fitting.steps if begun else 0
            first = done * fitting.steps + 1 if begun else 0
            board = stack.enter_context(closing(Board(events, fitting.dataset.sizes[0], first)))
        keeper = Keeper(checkpoints, saving.every, begun, fitting.steps)
        stack.callback(keeper.write)
        yield OpenRun(run, begun, keeper, history, board)


def without_network(report: EpochReport) -> EpochReport:
    """A report with the numbers alone: its state, but for the step, and its outputs are empty."""
    state = dataclasses.replace(
        report.state, params=nnx.State({}), stats=nnx.State({}), opt_state=optax.EmptyState()
    )
    return dataclasses.replace(
        report, state=state, test_logits=report.test_logits[:0].copy(), test_labels=_NO_LABELS
    )


def _history(
    run: Run, begun: Progress | None, steps: int, complain: Callable[[str], None]
) -> list[EpochReport]:
    """What is known of the epochs before the one that is now in progress, or evaluated again."""
    done = (begun.step - 1) // steps if begun else 0
    known = {line["epoch"]: line for line in run.read_metrics() if _is_whole(line)}
    lines = [known[epoch] for epoch in sorted(known) if epoch <= done]
    run.write_metrics(lines)
    missing = done - len(lines)
    if missing:
        complain(
            f"{str(run.folder / METRICS)!r} no longer tells of {missing} of the {done} epochs "
            "done; going on without their numbers"
        )
    if begun is None or not done:
        return []
    losses = begun.losses[: done * steps].reshape(done, steps)
    return [
        without_network(
            EpochReport(
                line["epoch"],
                begun.state,
                losses[line["epoch"] - 1],
                training.Metrics(
                    jnp.float32(line["test_loss"]), jnp.float32(line["test_error_percent"] / 100)
                ),
                np.zeros((0, len(run.config.class_names)), np.float32),
                _NO_LABELS,
                line["train_seconds"],
                0.0,
                0.0,
            )
        )
        for line in lines
    ]


def _is_whole(line: Any) -> bool:
    """Whether a line of `metrics.jsonl` tells what is needed of an epoch."""
    if not isinstance(line, dict):
        return False
    values = [line.get(name) for name in ("test_loss", "test_error_percent", "train_seconds")]
    epoch = line.get("epoch")
    return (
        type(epoch) is int
        and epoch > 0
        and all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            for value in values
        )
    )
