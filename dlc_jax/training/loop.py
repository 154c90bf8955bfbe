"""The training loop and its callbacks."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray

from dlc_jax import sharding
from dlc_jax.data.batching import Batch
from dlc_jax.data.source import Source
from dlc_jax.errors import InputError
from dlc_jax.training import divergence
from dlc_jax.training.scan import (
    add_sums,
    evaluate_steps,
    means,
    sums_over_steps,
    train_steps,
)
from dlc_jax.training.task import Metrics, Task

# Short enough that Ctrl-C seems immediate, long enough that polling costs nothing.
_POLL_SECONDS = 0.005


class OutOfMemoryError(InputError):
    """The program needs more memory than the device has."""


@dataclass(frozen=True)
class EpochRecord:
    """The results of one epoch.

    Attributes:
      epoch: Number of the epoch, from 1; 0 for the state before training.
      step: Number of updates made.
      train: Mean of each training metric over the epoch, [*networks]; empty before training.
      test: Mean of each test metric after the epoch, [*networks]; empty without test data.
      losses: The training loss of each step, [steps, *networks].
      train_seconds: Duration of the training, without evaluation and compilation.
      test_seconds: Duration of the evaluation.
      compile_seconds: Duration of all compilation, the same in every record of a run.
      num_examples: Number of training examples in an epoch.
      num_test_examples: Number of test examples.
    """

    epoch: int
    step: int
    train: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    losses: Float[np.ndarray, " steps *networks"]
    train_seconds: float
    test_seconds: float
    compile_seconds: float
    num_examples: int
    num_test_examples: int = 0


class Progress:
    """The progress of training: the state, and the metrics and durations so far.

    Args:
      state: The state.
      metrics: Training metrics of every step so far, [steps, *networks].
      seconds: Duration of the training in each epoch so far, including the current one.

    Attributes:
      state: The state.
      seconds: Duration of the training in each epoch so far, including the current one.
    """

    def __init__(
        self, state: Any, metrics: Metrics | None = None, seconds: Sequence[float] = ()
    ) -> None:
        self.state, self.seconds = state, list(seconds)
        self._chunks = [metrics] if metrics else []

    @property
    def step(self) -> int:
        """Number of updates made."""
        return int(np.max(self.state.step))

    @property
    def metrics(self) -> Metrics:
        """Training metrics of every step so far, [steps, *networks]."""
        if len(self._chunks) > 1:
            self._chunks = [jax.tree.map(lambda *parts: np.concatenate(parts), *self._chunks)]
        return self._chunks[0] if self._chunks else {}

    def add(self, state: Any, metrics: Metrics, seconds: float, epoch: int) -> None:
        """Adds the results of a chunk of steps of an epoch, counted from 1."""
        self.state = state
        self._chunks.append(jax.tree.map(np.asarray, metrics))
        self.seconds += [0.0] * (epoch - len(self.seconds))
        self.seconds[-1] += seconds


class Callback:
    """A hook of the training loop. Its methods do nothing; override those you need."""

    def on_train_begin(self, progress: Progress) -> None:
        """Called when everything is compiled, before the first step."""

    def on_chunk_end(self, progress: Progress) -> None:
        """Called after each chunk of steps."""

    def on_epoch_end(self, progress: Progress, record: EpochRecord) -> None:
        """Called after each epoch and its evaluation, and before training with epoch 0."""


class LambdaCallback(Callback):
    """Calls a function with the record of each epoch.

    Args:
      function: Called with the record of each epoch.
    """

    def __init__(self, function: Callable[[EpochRecord], None]) -> None:
        self._function = function

    def on_epoch_end(self, progress: Progress, record: EpochRecord) -> None:
        """Calls the function."""
        del progress
        self._function(record)


def train(
    task: Task,
    source: Source,
    *,
    num_epochs: int,
    progress: Progress,
    key: PRNGKeyArray | None = None,
    test: Source | None = None,
    max_chunk_steps: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[EpochRecord]:
    """Trains a task, evaluating it after each epoch.

    Training continues from the step of `progress`. On the same machine with the same libraries,
    the result is bit-identical to that of uninterrupted training.

    Args:
      task: The task.
      source: Training data, and the devices that share each batch.
      num_epochs: Number of passes over the training data.
      progress: The initial state, or that of an interrupted training; it is updated.
      key: The run's key, for the random numbers of steps.
      test: Test data, without shuffling, on the same devices.
      max_chunk_steps: Number of steps in an epoch between two calls of `Callback.on_chunk_end`,
        which is also called at the end of each epoch; by default only then.
      callbacks: Callbacks, called in this order.

    Returns:
      A record of each epoch; the first one is of the initial state, unless training continues
      within an epoch.

    Raises:
      DivergedError: A metric, or an array of the state, is not finite. Earlier records are valid.
      OutOfMemoryError: The program needs more memory than the device has.

    Example:
      >>> import jax, numpy as np, optax
      >>> from flax import nnx
      >>> from dlc_jax.data import ArraySource
      >>> from dlc_jax.training import Supervised
      >>> def squared(model, x):
      ...     outputs = model(x)
      ...     return (outputs**2).sum(-1), outputs
      >>> task = Supervised(
      ...     lambda key: nnx.Linear(2, 1, rngs=nnx.Rngs(key)), squared, optax.sgd(0.1)
      ... )
      >>> source = ArraySource(np.ones((6, 2), np.float32), batch_size=2)
      >>> progress = Progress(task.init(jax.random.key(0)))
      >>> records = train(task, source, num_epochs=3, progress=progress, test=source)
      >>> [record.epoch for record in records]
      [0, 1, 2, 3]
    """
    epoch_steps = source.plan.steps_per_epoch
    stop = num_epochs * epoch_steps
    divergence.check_state(progress.state, "before training")
    progress.state, key = sharding.replicate((progress.state, key), source.mesh)
    start = time.perf_counter()
    programs = _Programs(task, key, source.mesh)
    programs.compile_training(
        progress.state, source, source.sizes(progress.step, stop, max_chunk_steps)
    )
    programs.compile_evaluation(progress.state, test)
    compile_seconds = time.perf_counter() - start
    chunks = source.chunks(progress.step, stop, max_chunk_steps)
    upcoming = next(chunks, None)
    records: list[EpochRecord] = []

    def end_epoch() -> None:
        epoch = progress.step // epoch_steps
        start = time.perf_counter()
        test_metrics = programs.evaluate(progress.state, test)
        test_seconds = time.perf_counter() - start
        divergence.check_test_metrics(
            test_metrics, f"after epoch {epoch}" if epoch else "before training"
        )
        steps = _of_epoch(progress.metrics, epoch, epoch_steps)
        record = EpochRecord(
            epoch=epoch,
            step=progress.step,
            train=means(sums_over_steps(steps)),
            test=test_metrics,
            losses=means(steps).get("loss", np.zeros(0, np.float32)),
            train_seconds=progress.seconds[epoch - 1] if epoch else 0.0,
            test_seconds=test_seconds,
            compile_seconds=compile_seconds,
            num_examples=source.plan.num_examples,
            num_test_examples=test.plan.num_examples if test else 0,
        )
        records.append(record)
        for callback in callbacks:
            callback.on_epoch_end(progress, record)

    for callback in callbacks:
        callback.on_train_begin(progress)
    if progress.step % epoch_steps == 0:
        end_epoch()
    while upcoming is not None:
        start = time.perf_counter()
        state, metrics, finite = programs.train(progress.state, upcoming)
        # The next chunk is prepared while the devices work on this one.
        upcoming = next(chunks, None)
        _wait((state, metrics))
        seconds = time.perf_counter() - start
        epoch = progress.step // epoch_steps + 1
        divergence.check_metrics(means(metrics), progress.step + 1, f"epoch {epoch}")
        if not finite:
            divergence.check_state(state, f"in epoch {epoch}")
        progress.add(state, metrics, seconds, epoch)
        for callback in callbacks:
            callback.on_chunk_end(progress)
        if progress.step % epoch_steps == 0:
            end_epoch()
    return records


def _of_epoch(metrics: Metrics, epoch: int, epoch_steps: int) -> Metrics:
    """Returns the metrics of each step of an epoch, counted from 1; none for epoch 0."""
    if not epoch:
        return {}
    return jax.tree.map(lambda a: a[(epoch - 1) * epoch_steps : epoch * epoch_steps], metrics)


class _Programs:
    """The compiled programs of a task, one for each number of steps in a chunk."""

    def __init__(self, task: Task, key: PRNGKeyArray | None, mesh: Mesh | None) -> None:
        self._task, self._mesh, self._key = task, mesh, key
        self._training: dict[int, Any] = {}
        self._evaluation: dict[int, Any] = {}

    def compile_training(self, state: Any, source: Source, sizes: Sequence[int]) -> None:
        """Compiles the training for chunks of a source."""
        for size in sizes:
            arguments = self._task, state, source.abstract(size), self._key, self._mesh
            program = _checked_steps.lower(*arguments).compile()
            _check_memory(program)
            self._training[size] = program

    def compile_evaluation(self, state: Any, test: Source | None) -> None:
        """Compiles the evaluation on test data, if there is any."""
        if test is None:
            return
        for size in test.sizes(0, test.plan.steps_per_epoch):
            arguments = self._task, state, test.abstract(size), self._mesh
            self._evaluation[size] = evaluate_steps.lower(*arguments).compile()

    def train(self, state: Any, chunk: Batch) -> tuple[Any, Metrics, Any]:
        """Returns the new state, the metrics of each step, and whether the state is finite."""
        result: tuple[Any, Metrics, Any] = self._training[len(chunk.index)](state, chunk, self._key)
        return result

    def evaluate(self, state: Any, test: Source | None) -> dict[str, np.ndarray]:
        """Returns the means of the test metrics; none without test data."""
        if test is None:
            return {}
        chunks = test.chunks(0, test.plan.steps_per_epoch)
        sums = [self._evaluation[len(chunk.index)](state, chunk) for chunk in chunks]
        _wait(sums)
        return means(functools.reduce(add_sums, sums))


@partial(jax.jit, static_argnames=("task", "mesh"))
def _checked_steps(
    task: Task, state: Any, chunk: Batch, key: PRNGKeyArray | None, mesh: Mesh | None
) -> tuple[Any, Metrics, Any]:
    state, metrics = train_steps(task, state, chunk, key, mesh)
    return state, metrics, divergence.is_finite(state)


def _check_memory(program: Any) -> None:
    """Raises `OutOfMemoryError` if the program needs more memory than the device has."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    sizes = program.memory_analysis()
    if limit is None or sizes is None:
        return
    needed = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    if needed > limit:
        raise OutOfMemoryError(
            f"training needs {needed / 2**30:.1f} GiB on a device of {limit / 2**30:.1f} GiB; "
            "train fewer networks at once, or use smaller batches"
        )


def _wait(arrays: Any) -> None:
    """Waits for arrays so that Ctrl-C can interrupt it, unlike `jax.block_until_ready`."""
    leaves = [leaf for leaf in jax.tree.leaves(arrays) if hasattr(leaf, "is_ready")]
    while not all(leaf.is_ready() for leaf in leaves):
        time.sleep(_POLL_SECONDS)
