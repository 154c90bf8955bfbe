"""A training run from its configuration to its folder of results."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xxhash
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import UInt8

from dlc_jax import checkpoint, hosts, parameters, plots, sharding, training
from dlc_jax.checkpoint import Checkpoints, Keeper, Progress
from dlc_jax.data import Dataset, Examples, Normalise, RecordDataset
from dlc_jax.data import order as orders
from dlc_jax.data.images import read_image
from dlc_jax.errors import InputError
from dlc_jax.explain.view import View
from dlc_jax.interruption import Terminated
from dlc_jax.losses import average_probabilities, cross_entropy, misclassified
from dlc_jax.recipes import LECTURE, Recipe
from dlc_jax.runs import CHECKPOINTS, EVENTS, Run, RunConfig
from dlc_jax.tensorboard import Board, library
from dlc_jax.training import EpochReport
from dlc_jax.training.fit import check_batch_size

if TYPE_CHECKING:
    from dlc_jax.explain.gallery.subject import Named

# So many images at most are shown to a network without their labels.
_UNLABELLED, _UNLABELLED_PIXELS = 5000, 10**8
# From so many pixels at most of a dataset on disk their mean and deviation are taken.
_PIXELS = 10**8
# So many examples at most of a dataset on disk are looked at one by one.
_SAMPLE = 1000
# What may differ between the checkpoint of a run and those who go on with it.
_NOT_OF_THE_RECIPE = {"dlc_jax", "jax", "device", "devices", "provenance", "stream"}
AnyDataset: TypeAlias = Dataset | RecordDataset


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
            library()


def configure(
    dataset: AnyDataset,
    recipe: Recipe = LECTURE,
    *,
    seed: int,
    name: str = "mnist-lecture",
    checkpoint_steps: int = 200,
    image_size: int | None = None,
    **changes: Any,
) -> RunConfig:
    """The configuration of a run of a recipe on a dataset.

    Args:
      dataset: what to train on, whatever the recipe's is.
      recipe: what to train and how; by default the lecture's program.
      seed: of the initial weights, and of all that is random in training.
      name: the recipe's name.
      checkpoint_steps: see `RunConfig`.
      image_size: to which a dataset on disk brings its images, if it does.
      **changes: fields of the recipe to be told otherwise.
    """
    from dlc_jax import __version__

    changed = dataclasses.replace(recipe, **changes)
    normalise = _normalise(dataset.first(changed.examples))
    fields = dataclasses.asdict(changed)
    return RunConfig(
        **fields | {"dataset": dataset.name},
        recipe=name,
        dlc_jax=__version__,
        jax=jax.__version__,
        device=jax.devices()[0].device_kind,
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        dataset_version=dataset.version,
        provenance=dataset.provenance,
        mean=tuple(np.asarray(normalise.mean).tolist()),
        std=tuple(np.asarray(normalise.std).tolist()),
        seed=seed,
        checkpoint_steps=checkpoint_steps,
        stream=isinstance(dataset, RecordDataset),
        image_size=image_size,
    )


def _normalise(dataset: AnyDataset) -> Normalise:
    """The mean and deviation of the training images' pixels, or of the first of many."""
    if isinstance(dataset, Dataset):
        return Normalise.fit(dataset.train.images)
    from dlc_jax.data.streaming import batches

    height, width, _ = dataset.image_shape
    count = min(len(dataset.train), max(_PIXELS // (height * width), 1))
    places = np.array_split(np.arange(count), -(-count // 256))
    return Normalise.over(np.asarray(piece.images) for piece in batches(dataset.train, places))


def train(
    config: RunConfig,
    dataset: AnyDataset,
    output_dir: Path,
    name: str | None = None,
    watch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    saving: Saving = Saving(),
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
    fitting = _Fitting.of(config, dataset, devices)

    def new() -> Run:
        [run] = _new_runs([fitting.config], output_dir, [name])
        return run

    return _train(new, fitting, watch, saving, lambda message: None)


def resume(
    run: Run,
    dataset: AnyDataset,
    watch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    saving: Saving = Saving(),
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
    fitting = _Fitting.of(run.config, dataset, devices)
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
    fitting = _Fitting.of(config, dataset, devices)
    with hosts.ending_together() as go_on:
        content = hosts.from_first(bytes)
        begun = checkpoint.from_bytes(content, fitting.state) if content else None
        for _ in fitting.reports(begun, lambda *part: go_on()):
            pass


def _train(
    make: Callable[[], Run],
    fitting: "_Fitting",
    watch: Callable[[Run, EpochReport], None],
    saving: Saving,
    complain: Callable[[str], None],
) -> Outcome:
    """Trains in a run's folder from where its checkpoints say."""
    with ExitStack() as stack:
        # To be left last, when all is written.
        go_on = stack.enter_context(hosts.ending_together())
        opened: list[_OpenRun] = []

        def tell() -> bytes:
            opened.append(stack.enter_context(_open(make(), fitting, saving, complain)))
            begun = opened[0].begun
            return checkpoint.to_bytes(begun) if begun else b""

        hosts.from_first(tell)
        [run] = opened

        def after_part(state: training.TrainState, losses: np.ndarray, seconds: float) -> None:
            run.keeper.after_part(state, losses, seconds)
            go_on()

        how = fitting, run.begun, after_part
        alone = _fit_profiled(run.run.folder, *how) if saving.profile else fitting.reports(*how[1:])
        return _keep([run], ([report] for report in alone), fitting.dataset, watch)[0]


@dataclass(frozen=True)
class _OpenRun:
    """A run's folder while it is in training.

    Attributes:
      run: the folder.
      begun: where training goes on from; None where it begins.
      keeper: of checkpoints.
      history: what is known of all epochs.
      board: where event files are asked for.
    """

    run: Run
    begun: Progress | None
    keeper: Keeper
    history: list[EpochReport]
    board: Board | None

    def add(self, report: EpochReport, images: int) -> None:
        """Keeps what an epoch of so many images came to."""
        self.history.append(report)
        if report.epoch:
            self.run.save_model(report.state.model)
            self.run.append_metrics(_metrics(report, images))
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
def _open(
    run: Run,
    fitting: "_Fitting",
    saving: Saving,
    complain: Callable[[str], None] = lambda message: None,
) -> Iterator[_OpenRun]:
    """Opens a run's folder for training, which ends with a checkpoint."""
    with ExitStack() as stack:
        stack.enter_context(run.locked())
        if not run.has_model:
            run.save_model(fitting.state.model)
        checkpoints = Checkpoints(run.folder / CHECKPOINTS, saving.keep, fitting.describe)
        stack.enter_context(checkpoints)
        begun = checkpoints.newest(fitting.state, complain)
        history = _history(run, begun, fitting.steps)
        board, events = None, run.folder / EVENTS
        if saving.tensorboard or events.exists():
            done = (begun.step - 1) // fitting.steps if begun else 0
            first = done * fitting.steps + 1 if begun else 0
            board = stack.enter_context(closing(Board(events, fitting.dataset.sizes[0], first)))
        keeper = Keeper(checkpoints, saving.every, begun, fitting.steps)
        stack.callback(keeper.write)
        yield _OpenRun(run, begun, keeper, history, board)


def _fit_profiled(
    folder: Path,
    fitting: "_Fitting",
    begun: Progress | None,
    after_part: Callable[[training.TrainState, np.ndarray, float], None],
) -> Iterator[EpochReport]:
    """The reports, with a trace of the first part after the first of them, when all is compiled."""
    tracing = False

    def end() -> None:
        nonlocal tracing
        if tracing:
            jax.profiler.stop_trace()
            tracing = False

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


def _history(run: Run, begun: Progress | None, steps: int) -> list[EpochReport]:
    """What is known of the epochs before the one that is now in progress, or evaluated again."""
    done = (begun.step - 1) // steps if begun else 0
    lines = [line for line in run.read_metrics() if line["epoch"] <= done]
    run.write_metrics(lines)
    if begun is None or not done:
        return []
    losses = begun.losses[: done * steps].reshape(done, steps)
    return [
        EpochReport(
            line["epoch"],
            begun.state,
            losses[line["epoch"] - 1],
            training.Metrics(
                jnp.float32(line["test_loss"]), jnp.float32(line["test_error_percent"] / 100)
            ),
            np.zeros((0, len(run.config.class_names)), np.float32),
            np.zeros(0, np.int32),
            line["train_seconds"],
            0.0,
            0.0,
        )
        for line in lines
    ]


def reports(config: RunConfig, dataset: AnyDataset) -> Iterator[EpochReport]:
    """`train` that keeps nothing: a report of the untrained network and of each epoch.

    Args:
      config: what to train, and how.
      dataset: what on.

    Raises:
      InputError: as for `train`.
    """
    return _Fitting.of(config, dataset).reports()


@dataclass(frozen=True)
class _Fitting:
    """What all processes know of a training before it begins.

    Attributes:
      config: what to train, and how.
      dataset: what on.
      state: the new network.
      mesh: the devices to spread each batch over.
    """

    config: RunConfig
    dataset: AnyDataset
    state: training.TrainState
    mesh: Mesh | None

    @classmethod
    def of(cls, config: RunConfig, dataset: AnyDataset, devices: int | None = None) -> "_Fitting":
        dataset = dataset.first(config.examples)
        check_batch_size(config.batch_size, dataset)
        [state] = _states([config], dataset)
        mesh = _mesh(config, state, devices, streams=isinstance(dataset, RecordDataset))
        spread = dataclasses.replace(config, devices=1 if mesh is None else mesh.size)
        return cls(spread, dataset, state, mesh)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.dataset.sizes[0] // self.config.batch_size)

    def describe(self, step: int) -> dict[str, Any]:
        """What a checkpoint at that step tells of the training."""
        config, count = self.config, self.dataset.sizes[0]
        epoch, within = divmod(step, self.steps)
        key = _key(config)
        order = np.arange(count) if key is None else np.asarray(orders.order(key, epoch, count))
        fields = dataclasses.asdict(config)
        return {
            "recipe": {name: fields[name] for name in fields.keys() - _NOT_OF_THE_RECIPE},
            "versions": {name: fields[name] for name in ("dlc_jax", "jax")},
            "epoch": epoch,
            "step_in_epoch": within,
            "key": None if key is None else np.asarray(jax.random.key_data(key)).tolist(),
            "order": xxhash.xxh3_128_hexdigest(order.astype(np.int64).tobytes()),
        }

    def reports(
        self,
        begun: Progress | None = None,
        after_part: Callable[[training.TrainState, np.ndarray, float], None] | None = None,
    ) -> Iterator[EpochReport]:
        """Trains from the beginning, or from where training had come to."""
        config = self.config
        how = _how(config) | {
            "mesh": self.mesh,
            "key": _key(config),
            "part_steps": config.checkpoint_steps,
            "after_part": after_part,
        }
        if begun is None:
            yield from training.fit(self.state, self.dataset, config.normalise, **how)
            return
        # Of the present epoch some steps are known, or all of them.
        known = begun.losses[(begun.step - 1) // self.steps * self.steps :]
        fitted = training.fit(begun.state, self.dataset, config.normalise, losses=known, **how)
        first = next(fitted)
        losses = first.losses if len(first.losses) else known
        seconds = first.train_seconds + begun.seconds[-1]
        yield dataclasses.replace(first, losses=losses, train_seconds=seconds)
        yield from fitted


def _mesh(
    config: RunConfig, state: training.TrainState, devices: int | None, *, streams: bool
) -> Mesh | None:
    """As many devices as are asked for, or as there were before, or as suit the machine."""
    if jax.process_count() > 1:
        devices = jax.device_count()
    elif devices is None and config.devices:
        devices = min(config.devices, jax.device_count())
    if devices is None:
        return sharding.cpu_mesh(config.batch_size)
    if devices > jax.device_count():
        raise InputError(
            f"there are {jax.device_count()} devices, not {devices}; ask for fewer (a CPU counts "
            f"as {devices} where JAX_NUM_CPU_DEVICES={devices} is set)"
        )
    even = streams or training.couples_examples(state)
    return sharding.device_mesh(config.batch_size, jax.devices()[:devices], even=even)


def train_together(
    configs: Sequence[RunConfig],
    dataset: AnyDataset,
    output_dir: Path,
    names: Sequence[str | None],
    watch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    saving: Saving = Saving(),
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
    states = _states(configs, dataset)
    keys = jnp.stack([_key(each) for each in configs]) if config.shuffle else None
    stacked = training.stack(states)
    together = training.fit_ensemble(stacked, dataset, config.normalise, keys=keys, **_how(config))
    with ExitStack() as stack:
        opened = [
            stack.enter_context(_open(run, _Fitting(run.config, dataset, state, None), saving))
            for run, state in zip(_new_runs(configs, output_dir, names), states, strict=True)
        ]
        return _keep(opened, _checkpointed(opened, together), dataset, watch)


def _checkpointed(
    runs: "Sequence[_OpenRun]", reports: Iterable[list[EpochReport]]
) -> Iterator[list[EpochReport]]:
    """The reports of networks trained together, whose epochs are of one part."""
    for together in reports:
        for run, report in zip(runs, together, strict=True):
            if report.epoch:
                run.keeper.after_part(report.state, report.losses, report.train_seconds)
        yield together


def _states(configs: Sequence[RunConfig], dataset: AnyDataset) -> list[training.TrainState]:
    """The new networks, with what they learn of the first training images without labels."""
    if dataset.image_shape != configs[0].image_shape:
        raise InputError(
            f"{dataset.name}'s images are {dataset.image_shape}, but the network is configured "
            f"for {configs[0].image_shape}; configure it with this dataset"
        )
    optimizer = configs[0].create_optimizer(dataset.sizes[0])
    most = max(min(_UNLABELLED, _UNLABELLED_PIXELS // math.prod(dataset.image_shape)), 1)
    unlabelled = jnp.asarray(dataset.sample(most).train.images)
    states = []
    for config in configs:
        images = config.normalise(unlabelled)
        model = config.create_model().prepared(images, jax.random.key(config.seed))
        states.append(training.create_state(model, optimizer))
    if not jax.tree.leaves(states[0].params):
        name = configs[0].model
        raise InputError(f"the network {name} has nothing to train by gradient descent")
    return states


def _how(config: RunConfig) -> dict[str, Any]:
    """The arguments of `training.fit` and `fit_ensemble` that a recipe has."""
    return {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "mirrored": config.mirrored_test,
        "translated": config.translated_test,
        "augmentation": config.augmentation,
        "label_smoothing": config.label_smoothing,
    }


def _key(config: RunConfig) -> Any:
    return jax.random.key(config.seed) if config.shuffle else None


def _keep(
    runs: "Sequence[_OpenRun]",
    reports: Iterable[list[EpochReport]],
    dataset: AnyDataset,
    watch: Callable[[Run, EpochReport], None],
) -> list[Outcome]:
    """Trains by going through the reports, and keeps what they tell."""
    summaries = []
    interrupted: KeyboardInterrupt | None = None
    try:
        for together in reports:
            for run, report in zip(runs, together, strict=True):
                run.add(report, dataset.sizes[0])
                watch(run.run, report)
    except KeyboardInterrupt as interruption:
        interrupted = interruption
    finally:
        summaries = [run.end(dataset) for run in runs]
    return [
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


def evaluate(runs: Sequence[Run], dataset: AnyDataset) -> dict[str, Any]:
    """Loss and error on a dataset's test split of a run's network, or of several as one.

    Several, which may differ in everything but what they were trained for, are asked for their
    probabilities, which are averaged.

    Args:
      runs: at least one.
      dataset: with the test split.

    Raises:
      InputError: the dataset's images or classes are not those of the network.
    """
    every, labels = zip(*(_test_logits(run, dataset) for run in runs), strict=True)
    logits = every[0] if len(every) == 1 else average_probabilities(jnp.stack(every))
    folders = [str(run.folder) for run in runs]
    return {
        **({"run": folders[0]} if len(runs) == 1 else {"runs": folders}),
        "dataset": dataset.name,
        "test_images": dataset.sizes[1],
        "test_loss": float(cross_entropy(logits, labels[0])),
        "test_error_percent": percent(misclassified(logits, labels[0]).mean()),
        "error_percent_by_class": _by_class(logits, labels[0], dataset.class_names),
    }


def _test_logits(run: Run, dataset: AnyDataset) -> tuple[Any, Any]:
    """A run's network's logits of a dataset's test split, and the labels."""
    config = run.config
    if (config.image_shape, len(config.class_names)) != (
        dataset.image_shape,
        len(dataset.class_names),
    ):
        raise InputError(f"the run in {str(run.folder)!r} was not trained for {dataset.name}")
    state = training.create_state(run.model(), optax.identity())
    looks: dict[str, Any] = {"mirrored": config.mirrored_test, "translated": config.translated_test}
    if isinstance(dataset, RecordDataset):
        return training.evaluate_records(state, dataset.test, config.normalise, **looks)[:2]
    logits, _ = training.evaluate(state, jax.device_put(dataset.test), config.normalise, **looks)
    return logits, jnp.asarray(dataset.test.labels)


def _by_class(logits: Any, labels: Any, class_names: Sequence[str]) -> dict[str, float | None]:
    """The test error in percent of each class, None where the test split has none of it."""
    labels = np.asarray(labels)
    wrong = np.asarray(logits).argmax(1) != labels
    return {
        name: percent(wrong[labels == label].mean()) if (labels == label).any() else None
        for label, name in enumerate(class_names)
    }


def predict(
    run: Run, model: nnx.Module, paths: Sequence[str], *, invert: bool | None = None
) -> list[dict[str, Any]]:
    """What a run's network takes pictures for.

    Args:
      run: the run.
      model: its network.
      paths: PNG or JPEG files of any size.
      invert: see `dlc_jax.data.images.read_image`.

    Returns:
      For each picture its path, the class, its probability, and all probabilities,
      largest first.

    Raises:
      InputError: a picture can't be read.
    """
    config = run.config
    pictures = read_images(config, paths, invert=invert)
    images = np.stack([pixels for pixels, _ in pictures])
    batch = Examples(config.normalise(images), np.zeros(len(images), np.int32))
    logits, _ = training.eval_step(training.create_state(model, optax.identity()), batch)
    results = []
    for path, (_, inverted), row in zip(
        paths, pictures, np.asarray(jax.nn.softmax(logits)), strict=True
    ):
        order = np.argsort(-row, kind="stable")
        probabilities = {config.class_names[label]: float(row[label]) for label in order}
        best = config.class_names[order[0]]
        results.append(
            {
                "image": path,
                "class": best,
                "probability": probabilities[best],
                "inverted": inverted,
                "probabilities": probabilities,
            }
        )
    return results


def read_images(
    config: RunConfig, paths: Sequence[str], *, invert: bool | None = None
) -> list[tuple[UInt8[np.ndarray, "height width channels"], bool]]:
    """Pictures as a run's network wants them, each with whether it was inverted.

    Args:
      config: of the run.
      paths: PNG or JPEG files of any size.
      invert: see `dlc_jax.data.images.read_image`.

    Raises:
      InputError: a picture can't be read.
    """
    dark = config.image_shape[2] == 1 and config.mean[0] < 127
    return [
        read_image(path, config.image_shape, dark_background=dark, invert=invert) for path in paths
    ]


def explain(
    run: Run,
    dataset: AnyDataset,
    methods: Sequence[str],
    paths: Sequence[str] = (),
    *,
    folder: Path,
    other: Run | None = None,
    invert: bool | None = None,
    seed: int = 0,
    progress: Callable[[str, float, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Pictures of what a run's network sees, and how it fails.

    Args:
      run: the run.
      dataset: what it was trained for.
      methods: some of `dlc_jax.explain.gallery.methods.METHODS`.
      paths: PNG or JPEG files to explain it on; without any, the first test image of each class.
      folder: where to write them.
      other: a run to whose network adversarial images may carry over.
      invert: see `dlc_jax.data.images.read_image`.
      seed: of all that is random.
      progress: called with what is made next, and how many methods are done of how many.

    Returns:
      The run, the files, what the network takes the images for, the tables, and for each method
      that does not suit the network, why.

    Raises:
      InputError: a picture can't be read, the network can't be explained, or the other one takes
        other images.
    """
    from dlc_jax.explain import gallery
    from dlc_jax.explain.gallery.subject import Subject, first_of_each_class

    config = run.config
    shown = dataset if isinstance(dataset, Dataset) else dataset.sample(_SAMPLE)
    if paths:
        pictures = np.stack([pixels for pixels, _ in read_images(config, paths, invert=invert)])
        pixels = pictures.astype(np.float32) / 255
        names = tuple(Path(path).name for path in paths)
    else:
        pixels, names = first_of_each_class(shown)
    subject = Subject.of(
        View.of_run(run),
        shown,
        pixels,
        names,
        jax.random.key(seed),
        _rival(run, other),
    )
    made = gallery.make(
        subject,
        methods,
        folder,
        title=f"What the {config.model} network sees in {config.dataset}",
        facts=f"{config.epochs} epochs of {config.recipe}, seed {config.seed}, in {run.folder}",
        progress=progress,
    )
    best = [dataset.class_names[label] for label in subject.predictions]
    return {
        "run": str(run.folder),
        "files": [str(file) for file in made.files],
        "images": dict(zip(names, best, strict=True)),
        "tables": {
            table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for table in made.tables
        },
        "refusals": made.refusals,
    }


def _rival(run: Run, other: Run | None) -> "Named | None":
    from dlc_jax.explain.gallery.subject import Named

    if other is None:
        return None
    for what in ("image_shape", "class_names"):
        ours, theirs = (tuple(getattr(each.config, what)) for each in (run, other))
        if ours != theirs:
            raise InputError(
                f"{str(other.folder)!r} has the {what} {theirs}, not {ours}; give a run on "
                f"{run.config.dataset}"
            )
    return Named(other.folder.name, View.of_run(other))


def summarise(run: Run, dataset: AnyDataset, history: list[EpochReport]) -> dict[str, Any]:
    """The result in numbers; those that no epoch has given yet are None."""
    config = run.config
    epochs = [report for report in history if report.epoch]
    seconds = sum(report.train_seconds for report in epochs)
    images = len(epochs) * dataset.sizes[0]
    return {
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "model": config.model,
        "seed": config.seed,
        "epochs": epochs[-1].epoch if epochs else 0,
        "train_loss": float(epochs[-1].losses.mean()) if epochs else None,
        "test_loss": float(history[-1].test.loss) if history else None,
        "test_error_percent": percent(history[-1].test.error) if history else None,
        "error_percent_by_class": _by_class(
            history[-1].test_logits, history[-1].test_labels, dataset.class_names
        )
        if history and len(history[-1].test_logits)
        else None,
        "train_seconds": round(seconds, 4),
        "compile_seconds": round(history[-1].compile_seconds, 4) if history else None,
        "images_per_second": round(images / seconds, 1) if epochs else None,
        "device": config.device,
        "run": str(run.folder),
        "parameters_sha256": parameters.fingerprint(history[-1].state.params) if history else None,
    }


def over_seeds(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several runs of a recipe came to.

    Args:
      summaries: of at least two runs that differ in their seeds, as `summarise` makes them.

    Returns:
      Mean, standard deviation (of the population that the seeds are drawn from) and standard
      error of the mean, of test error and training time, with the summaries under "runs".
    """
    return {
        "dataset": summaries[0]["dataset"],
        "model": summaries[0]["model"],
        "seeds": [summary["seed"] for summary in summaries],
        "test_error_percent": _statistics([s["test_error_percent"] for s in summaries]),
        "train_seconds": _statistics([s["train_seconds"] for s in summaries]),
        "runs": list(summaries),
    }


def _statistics(values: Sequence[float]) -> dict[str, float]:
    deviation = float(np.std(values, ddof=1))
    return {
        "mean": round(float(np.mean(values)), 4),
        "standard_deviation": round(deviation, 4),
        "standard_error": round(deviation / len(values) ** 0.5, 4),
    }


def draw(run: Run, dataset: AnyDataset, history: list[EpochReport]) -> list[Path]:
    """Writes the run's pictures: curves, confusion matrix, mistakes, and training images.

    Args:
      run: the run.
      dataset: what it was trained on.
      history: of its epochs, the last of them with the network's outputs.

    Returns:
      The files.
    """
    epochs = [report for report in history if report.epoch]
    logits, labels = history[-1].test_logits, history[-1].test_labels
    images = dataset.test.images
    figures = {
        "curves.png": plots.curves(
            [report.losses for report in epochs],
            [float(report.test.error) for report in epochs],
            f"{run.config.model} on {dataset.name}",
        ),
        "confusion.png": plots.confusion(labels, logits.argmax(1), dataset.class_names),
        "mistakes.png": plots.mistakes(
            images, labels, np.asarray(jax.nn.softmax(logits)), dataset.class_names
        ),
        "training.png": plots.grid(
            _as_the_network_sees_them(run.config, dataset.sample(60).train.images),
            "training images, changed as the network sees them",
        ),
    }
    for name, figure in figures.items():
        plots.save(figure, run.folder / name)
    return [run.folder / name for name in figures]


def _as_the_network_sees_them(config: RunConfig, images: Any) -> np.ndarray:
    """Training images, uint8, changed at random as in training."""
    key = jax.random.key(config.seed)
    changes = config.augmentation.draw(key, config.epochs - 1, images.shape)
    changed = config.augmentation.apply(config.normalise(images), changes)
    pixels = np.asarray(changed) * np.asarray(config.std) + np.asarray(config.mean)
    return pixels.round().clip(0, 255).astype(np.uint8)


def percent(fraction: Any) -> float:
    """A fraction in percent, without the noise of float32."""
    return round(100 * float(fraction), 4)


def _metrics(report: EpochReport, images: int) -> dict[str, Any]:
    return {
        "epoch": report.epoch,
        "step": int(report.state.step),
        "train_loss": float(report.losses.mean()),
        "test_loss": float(report.test.loss),
        "test_error_percent": percent(report.test.error),
        "train_seconds": round(report.train_seconds, 4),
        "images_per_second": round(images / report.train_seconds, 1),
    }
