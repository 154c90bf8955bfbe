"""Trains a run, from its configuration to its folder with results."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dlc_jax import training
from dlc_jax.data import RecordDataset
from dlc_jax.data.source import ArraySource
from dlc_jax.errors import InputError
from dlc_jax.runs import checkpoint
from dlc_jax.runs.callbacks import (
    EachNetwork,
    LastEvaluated,
    Profiler,
    RunOptions,
    RunWriter,
    Shutdown,
    open_writer,
)
from dlc_jax.runs.config import AnyDataset, RunConfig
from dlc_jax.runs.folder import Run
from dlc_jax.runs.setup import (
    Setup,
    check_batch_size,
    make_task,
    make_test_source,
    new_states,
    run_key,
)
from dlc_jax.sharding import processes
from dlc_jax.training import Callback, DivergedError, EpochRecord, Progress
from dlc_jax.utils.signals import Terminated, defer_signals

EpochHook = Callable[[Run, EpochRecord], None]
_DEFAULTS = RunOptions()


@dataclass(frozen=True)
class TrainResult:
    """The result of training a run.

    Attributes:
      run: The run; None in all processes except the primary one.
      summary: The results, as in `summary.json`.
      interrupted: Whether Ctrl-C or SIGTERM ended the training early.
      terminated: Whether that was SIGTERM.
    """

    run: Run | None
    summary: dict[str, Any]
    interrupted: bool
    terminated: bool = False


def train(
    config: RunConfig,
    dataset: AnyDataset,
    output_dir: Path,
    name: str | None = None,
    *,
    on_epoch_end: EpochHook | None = None,
    options: RunOptions = _DEFAULTS,
    num_devices: int | None = None,
) -> TrainResult:
    """Trains a network, and writes a new run folder.

    The folder is usable from the beginning, since it has the initial network. Parameters and
    metrics are written after every epoch, checkpoints also within an epoch, and pictures at the
    end, also after an error or interruption. If several processes train together, all of them
    must call this; only the primary one writes.

    Args:
      config: The configuration, from `configure`.
      dataset: The dataset.
      output_dir: Folder in which the run's folder is created.
      name: Name of the run's folder; by default dataset, model and time.
      on_epoch_end: Called with a record of every epoch, and before training with epoch 0.
      options: Options of what is written.
      num_devices: Number of devices that share each batch; by default, the largest number of CPU
        cores that divides the batch size, one GPU or TPU, or all devices of several processes.

    Raises:
      InputError: Configuration and dataset don't match, the folder can't be created, another
        process trains in it, or (`training.DivergedError`) a number is not finite.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from dlc_jax import data, runs
      >>> digits = data.load("mnist-5k").take(50)
      >>> config = runs.configure(digits, seed=0, epochs=1, batch_size=50)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     result = runs.train(config, digits, Path(folder), "first")
      ...     sorted(path.name for path in result.run.folder.glob("*.json*"))
      ['config.json', 'metrics.jsonl', 'summary.json']
    """
    setup = Setup.from_config(config, dataset, num_devices)

    def create() -> Run:
        [run] = _create_runs([setup.config], output_dir, [name])
        return run

    return _train(create, setup, on_epoch_end, options, lambda message: None)


def resume(
    run: Run,
    dataset: AnyDataset,
    *,
    on_epoch_end: EpochHook | None = None,
    options: RunOptions = _DEFAULTS,
    warn: Callable[[str], None] = lambda message: None,
    num_devices: int | None = None,
) -> TrainResult:
    """Continues a run from its newest checkpoint.

    The results are bit-identical to those without the interruption, on the same machine with
    the same libraries and number of devices.

    Args:
      run: The run.
      dataset: The dataset.
      on_epoch_end: See `train`; first called with the last finished epoch.
      options: Options of what is written.
      warn: Called with a message for each damaged checkpoint, and if the data, the versions or
        the number of devices have changed.
      num_devices: Number of devices; by default as many as before.

    Raises:
      InputError: As for `train`, or the run was made by another version.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from dlc_jax import data, runs
      >>> digits = data.load("mnist-5k").take(50)
      >>> config = runs.configure(digits, seed=0, epochs=1, batch_size=50)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     run = runs.train(config, digits, Path(folder), "first").run
      ...     result = runs.resume(run, digits)  # it is finished already
      >>> result.summary["epochs"]
      1
    """
    run.check_resumable()
    setup = Setup.from_config(run.config, dataset, num_devices)
    before, now = run.config.num_devices, setup.config.num_devices
    if before not in (0, now):
        warn(
            f"the run used {before} devices, and now uses {now}: the results will be equal up to "
            "rounding, but not bit-identical"
        )
    if run.config.dataset_version != dataset.version:
        warn(
            f"the run was trained on version {run.config.dataset_version} of {dataset.name}, and "
            f"continues with version {dataset.version}, whose images may differ"
        )
    return _train(lambda: run, setup, on_epoch_end, options, warn)


def train_vmapped(
    configs: Sequence[RunConfig],
    dataset: AnyDataset,
    output_dir: Path,
    names: Sequence[str | None],
    *,
    on_epoch_end: EpochHook | None = None,
    options: RunOptions = _DEFAULTS,
) -> list[TrainResult]:
    """Trains several networks at once by `jax.vmap`, each with its own run folder.

    Interrupted runs are resumed one by one, with the same results up to rounding.

    Args:
      configs: Configurations that differ only in their seeds.
      dataset: The dataset, in memory.
      output_dir: Folder in which the runs' folders are created.
      names: Names of the folders, as for `train`.
      on_epoch_end: Called with the records of each network.
      options: Options of what is written; `profile` is ignored.

    Raises:
      InputError: As for `train`; the dataset is not in memory; or (`training.OutOfMemoryError`) the
        program needs more memory than the device has.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from dlc_jax import data, runs
      >>> digits = data.load("mnist-5k").take(50)
      >>> config = runs.configure(digits, seed=0, epochs=1, batch_size=50)
      >>> configs = [config, runs.configure(digits, seed=1, epochs=1, batch_size=50)]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     results = runs.train_vmapped(configs, digits, Path(folder), ["zero", "one"])
      >>> [result.summary["seed"] for result in results]
      [0, 1]
    """
    if isinstance(dataset, RecordDataset):
        raise InputError(
            f"{dataset.name} is streamed, but networks that are trained at once need it in memory; "
            "train them one by one"
        )
    dataset = dataset.take(configs[0].num_examples)
    check_batch_size(configs[0], dataset)
    task = make_task(configs[0], dataset.num_train)
    states = new_states(configs, dataset, task)
    keys = [run_key(config) for config in configs]
    stacked_keys = jnp.stack(keys) if configs[0].shuffle else None
    test = make_test_source(dataset)
    source = ArraySource(dataset.train, configs[0].batch_size, key=stacked_keys)
    setups = [
        Setup(config, dataset, task, state, key, source, test, None)
        for config, state, key in zip(configs, states, keys, strict=True)
    ]
    ensemble = replace(setups[0], task=training.Ensemble(task), key=stacked_keys)  # type: ignore[arg-type]
    progress = Progress(training.stack(states))
    results: list[TrainResult] = []
    with _deferred_interruption(results) as deferral, ExitStack() as stack:
        writers: list[RunWriter] = []

        def on_start() -> None:
            for run, setup in zip(_create_runs(configs, output_dir, names), setups, strict=True):
                opened = open_writer(run, setup, options, on_epoch_end, lambda message: None)
                writers.append(stack.enter_context(opened)[0])

        # The folders are created only if the device has enough memory.
        callbacks = [_CreateThenEach(on_start, writers)]
        results += _run_training(ensemble, progress, writers, callbacks, deferral)
    return results


class _CreateThenEach(EachNetwork):
    """`EachNetwork` whose callbacks are created at the start."""

    def __init__(self, create: Callable[[], None], callbacks: Sequence[Callback]) -> None:
        super().__init__(callbacks)
        self._create = create

    def on_train_begin(self, progress: Progress) -> None:
        self._create()
        super().on_train_begin(progress)


def _train(
    open_run: Callable[[], Run],
    setup: Setup,
    on_epoch_end: EpochHook | None,
    options: RunOptions,
    warn: Callable[[str], None],
) -> TrainResult:
    """Trains in a run's folder, from its newest checkpoint if there is one."""
    results: list[TrainResult] = []
    with _deferred_interruption(results) as deferral, ExitStack() as stack:
        # Entered first, so that the other processes wait until everything is written.
        shutdown = Shutdown(stack.enter_context(processes.synchronized_shutdown()))
        callbacks: list[Callback] = []
        writers: list[RunWriter] = []

        def open_folder() -> bytes:
            opened = open_writer(open_run(), setup, options, on_epoch_end, warn)
            writer, progress = stack.enter_context(opened)
            writers.append(writer)
            if options.profile:
                profiler = Profiler(writer.run.folder)
                stack.callback(profiler.close)
                callbacks.append(profiler)
            callbacks.append(writer)
            return checkpoint.to_bytes(progress) if progress else b""

        content = processes.broadcast_from_primary(open_folder)
        progress = Progress(setup.state)
        if content:
            progress = checkpoint.from_bytes(content, setup.state)
        chunk_steps = setup.config.checkpoint_steps
        results += _run_training(
            setup, progress, writers, [*callbacks, shutdown], deferral, chunk_steps
        )
    return results[0]


@contextmanager
def _deferred_interruption(results: list[TrainResult]) -> Iterator[ExitStack]:
    """Context in which a signal during the writing of results marks them as interrupted.

    Yields:
      The stack in which signals are deferred after the training.
    """
    try:
        with ExitStack() as deferral:
            yield deferral
    except KeyboardInterrupt as late:
        if not results:
            raise
        terminated = isinstance(late, Terminated)
        results[:] = [replace(each, interrupted=True, terminated=terminated) for each in results]


def _run_training(
    setup: Setup,
    progress: Progress,
    writers: list[RunWriter],
    callbacks: Sequence[Callback],
    deferral: ExitStack,
    max_chunk_steps: int | None = None,
) -> list[TrainResult]:
    """Trains, and writes the results, also after an error or interruption."""
    last = LastEvaluated()
    interruption: KeyboardInterrupt | None = None
    try:
        training.train(
            setup.task,
            setup.source,
            num_epochs=setup.config.epochs,
            progress=progress,
            key=setup.key,
            test=setup.test,
            max_chunk_steps=max_chunk_steps,
            callbacks=[last, *callbacks],
        )
    except KeyboardInterrupt as caught:
        interruption = caught
        if not writers and processes.is_primary():
            raise
    except Exception as error:
        _write_results(setup, last.state, writers, deferral, error)
        raise
    summaries = _write_results(setup, last.state, writers, deferral)
    status = interruption is not None, isinstance(interruption, Terminated)
    if not writers:
        return [TrainResult(None, {}, *status)]
    return [
        TrainResult(writer.run, summary, *status)
        for writer, summary in zip(writers, summaries, strict=True)
    ]


def _write_results(
    setup: Setup,
    state: Any,
    writers: Sequence[RunWriter],
    deferral: ExitStack,
    error: Exception | None = None,
) -> list[dict[str, Any]]:
    """Writes summaries and pictures; signals are deferred until `deferral` is closed."""
    # In several processes, `synchronized_shutdown` already defers them.
    if jax.process_count() == 1:
        deferral.enter_context(defer_signals())
    states = [state]
    task: Any = setup.task
    if isinstance(task, training.Ensemble):
        task = task.task
        states = [None] * len(writers) if state is None else training.unstack(state)
    # After an error in one process, the others don't take part in the computation.
    can_compute = error is None or isinstance(error, DivergedError) or jax.process_count() == 1
    logits = [
        training.predict(task, each, setup.test) if each is not None and can_compute else None
        for each in states
    ]
    return [
        writer.finish(setup.dataset, each) for writer, each in zip(writers, logits, strict=False)
    ]


def _create_runs(
    configs: Sequence[RunConfig], output_dir: Path, names: Sequence[str | None]
) -> list[Run]:
    """Creates the folders of all runs, or of none if one can't be created."""
    runs: list[Run] = []
    try:
        for config, name in zip(configs, names, strict=True):
            runs.append(Run.create(output_dir, name, config))
    except InputError:
        for run in runs:
            shutil.rmtree(run.folder)
        raise
    return runs
