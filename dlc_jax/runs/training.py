"""Training, and what is kept of it."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlc_jax import training
from dlc_jax.runs import checkpoint
from dlc_jax.sharding import processes
from dlc_jax.runs.checkpoint import Progress
from dlc_jax.data import RecordDataset
from dlc_jax.errors import InputError, one_line
from dlc_jax.runs.configuration import AnyDataset
from dlc_jax.runs.fitting import Fitting, how_to_fit, key_of, new_states
from dlc_jax.runs.keeping import DEFAULT_SAVING, OpenRun, Saving, open_run
from dlc_jax.utils.signals import Terminated, defer_signals
from dlc_jax.runs.folder import Run, RunConfig
from dlc_jax.training import EpochReport


class _Ending:
    """What came of runs whose results are being written, in which no signal comes between.

    Attributes:
      outcomes: none before they are known.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.outcomes: list[Outcome] = []

    def begin(self) -> None:
        """From now on Ctrl-C and SIGTERM wait until all is written."""
        # Those of several processes wait already, so that all end together.
        if jax.process_count() == 1:
            self._stack.enter_context(defer_signals())


@contextmanager
def _whole_ending() -> Iterator[_Ending]:
    """Has a signal that comes when training is over make the outcomes interrupted ones."""
    stack = ExitStack()
    ending = _Ending(stack)
    try:
        with stack:
            yield ending
    except KeyboardInterrupt as late:
        if not ending.outcomes:
            raise
        terminated = isinstance(late, Terminated)
        ending.outcomes = [
            replace(outcome, interrupted=True, terminated=terminated) for outcome in ending.outcomes
        ]


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
      run: its folder.
      summary: the result as it stands in `summary.json`.
      interrupted: whether Ctrl-C or SIGTERM ended it early.
      terminated: whether it was SIGTERM.
    """

    run: Run
    summary: dict[str, Any]
    interrupted: bool
    terminated: bool = False


def train(
    config: RunConfig,
    dataset: AnyDataset,
    output_dir: Path,
    name: str | None = None,
    watch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    saving: Saving = DEFAULT_SAVING,
    devices: int | None = None,
) -> Outcome:
    """Trains a network, and keeps what came of it in a new folder.

    The folder is usable from the beginning: parameters and metrics are written after every
    epoch, checkpoints meanwhile, and the pictures whatever ends the training.

    Args:
      config: what to train, and how.
      dataset: what on.
      output_dir: where to make the run's folder.
      name: the folder's name; by default one that tells dataset, network and time.
      watch: called with every epoch's report, and first with that of the untrained network.
      saving: of checkpoints.
      devices: over how many to spread each batch, the first ones; by default over the cores of
        a CPU that share it evenly, and over all devices of several processes. In the others
        than the first of these, call `follow`.

    Raises:
      InputError: configuration and dataset do not fit together, the folder can't be made,
        another process trains in it, or (`training.Diverged`) the loss became infinite or not a
        number.
    """
    fitting = Fitting.of(config, dataset, devices)

    def new() -> Run:
        [run] = _new_runs([fitting.config], output_dir, [name])
        return run

    return _train(new, fitting, watch, saving, lambda message: None)


def resume(
    run: Run,
    dataset: AnyDataset,
    watch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    saving: Saving = DEFAULT_SAVING,
    complain: Callable[[str], None] = lambda message: None,
    devices: int | None = None,
) -> Outcome:
    """Goes on with a run that was stopped, from its newest checkpoint that is whole.

    What becomes of it is, bit by bit, what would have become of it otherwise, on the same
    machine with the same libraries and over as many devices.

    Args:
      run: the run.
      dataset: as for `train`, as are the following.
      watch: first called with the report of the last epoch that was done.
      saving: of checkpoints.
      complain: told of each checkpoint that is damaged, and of what is not as it was.
      devices: by default as many as before.

    Raises:
      InputError: as for `train`.
    """
    fitting = Fitting.of(run.config, dataset, devices)
    before, now = run.config.devices, fitting.config.devices
    if before not in (0, now):
        complain(
            f"the run's batches were spread over {before} devices, and now are over {now}: it "
            "will end with the same numbers up to rounding, not bit by bit"
        )
    return _train(lambda: run, fitting, watch, saving, complain)


def follow(config: RunConfig, dataset: AnyDataset, devices: int | None = None) -> None:
    """Does another process's part of the training that the first one keeps.

    Args:
      config: as the first process hands it to `train`, or that of the run that it resumes.
      dataset: likewise.
      devices: likewise.

    Raises:
      InputError: as for `train`.
    """
    fitting = Fitting.of(config, dataset, devices)
    with processes.synchronized_shutdown() as go_on:
        content = processes.broadcast_from_primary(bytes)
        begun = checkpoint.from_bytes(content, fitting.state) if content else None
        for _ in fitting.reports(begun, lambda *part: go_on()):
            pass


def _train(
    make: Callable[[], Run],
    fitting: Fitting,
    watch: Callable[[Run, EpochReport], None],
    saving: Saving,
    complain: Callable[[str], None],
) -> Outcome:
    """Trains in a run's folder from where its checkpoints say."""
    with _whole_ending() as ending, ExitStack() as stack:
        # To be left last, when all is written.
        go_on = stack.enter_context(processes.synchronized_shutdown())
        opened: list[OpenRun] = []

        def tell() -> bytes:
            opened.append(stack.enter_context(open_run(make(), fitting, saving, complain)))
            begun = opened[0].begun
            return checkpoint.to_bytes(begun) if begun else b""

        processes.broadcast_from_primary(tell)
        [run] = opened

        def after_part(state: training.TrainState, losses: np.ndarray, seconds: float) -> None:
            run.keeper.after_part(state, losses, seconds)
            go_on()

        how = fitting, run.begun, after_part
        alone = _fit_profiled(run.run.folder, *how) if saving.profile else fitting.reports(*how[1:])
        _keep([run], ([report] for report in alone), fitting.dataset, watch, ending)
    return ending.outcomes[0]


def _fit_profiled(
    folder: Path,
    fitting: Fitting,
    begun: Progress | None,
    after_part: Callable[[training.TrainState, np.ndarray, float], None],
) -> Iterator[EpochReport]:
    """The reports, with a trace of the first part after the first of them, when all is compiled."""
    tracing = False

    def end() -> None:
        nonlocal tracing
        if not tracing:
            return
        tracing = False
        try:
            jax.profiler.stop_trace()
        except jax.errors.JaxRuntimeError as error:
            raise InputError(
                f"can't write the trace in {str(folder / 'profile')!r} ({one_line(error)}); make "
                "room, and resume the run without --profile"
            ) from error

    def after_part_of_trace(state: training.TrainState, losses: np.ndarray, taken: float) -> None:
        end()
        after_part(state, losses, taken)

    reports = fitting.reports(begun, after_part_of_trace)
    yield next(reports)
    jax.profiler.start_trace(folder / "profile")
    tracing = True
    try:
        yield from reports
    finally:
        end()


def reports(config: RunConfig, dataset: AnyDataset) -> Iterator[EpochReport]:
    """`train` that keeps nothing: a report of the untrained network and of each epoch.

    Args:
      config: what to train, and how.
      dataset: what on.

    Raises:
      InputError: as for `train`.
    """
    return Fitting.of(config, dataset).reports()


def train_together(
    configs: Sequence[RunConfig],
    dataset: AnyDataset,
    output_dir: Path,
    names: Sequence[str | None],
    watch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    saving: Saving = DEFAULT_SAVING,
) -> list[Outcome]:
    """Trains several networks in one program, each with a folder of its own.

    What was stopped, `resume` goes on with one by one, to the same numbers up to rounding.

    Args:
      configs: what to train, and how; they differ in nothing but their seeds.
      dataset: what on.
      output_dir: where to make the runs' folders.
      names: the folders' names, as for `train`.
      watch: as for `train`, called for each network.
      saving: of checkpoints, which can be made after each epoch; without `profile`.

    Raises:
      InputError: as for `train`; the dataset is not in memory; or (`training.NoRoom`) the device
        has too little.
    """
    config = configs[0]
    dataset = dataset.first(config.examples)
    if isinstance(dataset, RecordDataset):
        raise InputError(
            f"{dataset.name} streams in, while networks trained together need it in memory; train "
            "them one by one"
        )
    states = new_states(configs, dataset)
    keys = jnp.stack([key_of(each) for each in configs]) if config.shuffle else None
    stacked = training.stack(states)
    together = training.fit_ensemble(
        stacked, dataset, config.normalise, keys=keys, **how_to_fit(config)
    )
    with _whole_ending() as ending, ExitStack() as stack:
        opened = [
            stack.enter_context(open_run(run, Fitting(run.config, dataset, state, None), saving))
            for run, state in zip(_new_runs(configs, output_dir, names), states, strict=True)
        ]
        _keep(opened, _checkpointed(opened, together), dataset, watch, ending)
    return ending.outcomes


def _checkpointed(
    runs: Sequence[OpenRun], reports: Iterable[list[EpochReport]]
) -> Iterator[list[EpochReport]]:
    """The reports of networks trained together, whose epochs are of one part."""
    for together in reports:
        for run, report in zip(runs, together, strict=True):
            if report.epoch:
                run.keeper.after_part(report.state, report.losses, report.train_seconds)
        yield together


def _keep(
    runs: Sequence[OpenRun],
    reports: Iterable[list[EpochReport]],
    dataset: AnyDataset,
    watch: Callable[[Run, EpochReport], None],
    ending: _Ending,
) -> None:
    """Trains by going through the reports, and keeps what they tell."""
    interrupted: KeyboardInterrupt | None = None
    try:
        for together in reports:
            for run, report in zip(runs, together, strict=True):
                run.add(report, dataset.sizes[0])
                watch(run.run, report)
    except KeyboardInterrupt as interruption:
        interrupted = interruption
    finally:
        ending.begin()
        summaries = [run.end(dataset) for run in runs]
    ending.outcomes = [
        Outcome(run.run, summary, interrupted is not None, isinstance(interrupted, Terminated))
        for run, summary in zip(runs, summaries, strict=True)
    ]


def _new_runs(
    configs: Sequence[RunConfig], output_dir: Path, names: Sequence[str | None]
) -> list[Run]:
    """New folders for all of the runs, or for none of them."""
    runs: list[Run] = []
    try:
        for config, name in zip(configs, names, strict=True):
            runs.append(Run.create(output_dir, name, config))
    except InputError:
        for run in runs:
            shutil.rmtree(run.folder)
        raise
    return runs
