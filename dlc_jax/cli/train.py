"""dlc-jax train."""

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dlc_jax.cli.commands import commands
from dlc_jax.cli.loading import load_dataset_of, load_for_training
from dlc_jax.cli.options import TrainCommand, data_dir_option, json_option, option
from dlc_jax.cli.output import INTERRUPTED, escape_newlines, print_line, warn
from dlc_jax.cli.types import DeviceCount, Integer, PathType
from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json
from dlc_jax.utils.signals import raise_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dlc_jax.runs import AnyDataset, RunOptions, TrainResult
    from dlc_jax.runs.config import RunConfig
    from dlc_jax.runs.folder import Run
    from dlc_jax.runs.recipe import Recipe
    from dlc_jax.training import EpochRecord

_DEFAULT_RECIPE = "mnist-lecture"
# Options that may differ between the processes of a run: they concern one machine, or only the
# primary process, which writes and prints.
_PER_PROCESS = {
    "coordinator_address",
    "num_processes",
    "process_id",
    "join_timeout",
    "data_dir",
    "output_dir",
    "checkpoint_seconds",
    "max_to_keep",
    "profile",
    "tensorboard",
    "as_json",
}
_NOT_WITH_RESUME = ("name", "seeds", "vmap_seeds", "output_dir")


@commands.command(cls=TrainCommand)
@click.argument("recipe", required=False)
@data_dir_option
@option(
    "--stream",
    is_flag=True,
    group="data",
    help="Read images during training, for datasets larger than memory. Datasets that dlc-jax "
    "data does not list are always streamed.",
)
@option(
    "--image-size",
    type=Integer(1),
    group="data",
    help="Height and width to which streamed images are resized, for example 224.",
)
@option("--seed", type=Integer(0), default=0, show_default=True, group="run", help="Random seed.")
@option(
    "--seeds",
    type=Integer(1),
    default=1,
    show_default=True,
    group="run",
    help="Number of networks to train, with consecutive seeds that start at --seed.",
)
@option(
    "--vmap-seeds/--no-vmap-seeds",
    default=None,
    group="run",
    help="Train all seeds at once, vectorized with jax.vmap.  [default: yes on a GPU or TPU with "
    "enough memory]",
)
@option(
    "--output-dir",
    type=PathType(),
    metavar="DIR",
    default="runs",
    show_default=True,
    group="run",
    help="Folder in which the run folder is made.",
)
@option(
    "--name",
    metavar="NAME",
    group="run",
    help="Name of the run folder.  [default: dataset, model and time]",
)
@option(
    "--resume",
    type=PathType(),
    metavar="RUN",
    group="run",
    help="Continue an interrupted run from its newest checkpoint, for example runs/first.",
)
@option(
    "--checkpoint-steps",
    type=Integer(1),
    group="run",
    help="Check every N steps whether a checkpoint is due.  [default: 200]",
)
@option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    group="run",
    help="Minimum time between two checkpoints.",
)
@option(
    "--max-to-keep",
    type=Integer(1),
    default=3,
    show_default=True,
    group="run",
    help="Number of checkpoints to keep, the newest ones.",
)
@option(
    "--profile",
    is_flag=True,
    group="run",
    help="Trace the first steps with JAX's profiler into RUN/profile, for Perfetto or XProf; not "
    "with --vmap-seeds.",
)
@option(
    "--tensorboard",
    is_flag=True,
    group="run",
    help="Write metrics and pictures for TensorBoard into RUN/tensorboard; needs pip install "
    "'dlc-jax[tensorboard]'.",
)
@json_option
@option(
    "--devices",
    type=DeviceCount(),
    metavar="all|N",
    group="devices",
    help="Number of devices to split each batch over.  [default: the largest number of CPU cores "
    "that divides the batch size, one GPU or TPU, or all with --distributed]",
)
@option(
    "--distributed",
    is_flag=True,
    group="devices",
    help="Train in several processes, each started with this command. SLURM, Open MPI, Kubernetes "
    "and TPU pods are detected.",
)
@option(
    "--coordinator-address",
    metavar="HOST:PORT",
    group="devices",
    help="Address of the first process, if it is not detected.",
)
@option(
    "--num-processes",
    type=Integer(1),
    group="devices",
    help="Number of processes, if it is not detected.",
)
@option(
    "--process-id",
    type=Integer(0),
    group="devices",
    help="Number of this process, counted from 0, if it is not detected.",
)
@option(
    "--join-timeout",
    type=Integer(1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    group="devices",
    help="Time to wait for the other processes to start.",
)
@click.pass_context
def train(
    ctx: click.Context,
    /,
    recipe: str | None,
    data_dir: str | None,
    stream: bool,
    image_size: int | None,
    seed: int,
    seeds: int,
    vmap_seeds: bool | None,
    output_dir: str,
    name: str | None,
    resume: str | None,
    checkpoint_steps: int | None,
    checkpoint_seconds: float,
    max_to_keep: int,
    profile: bool,
    tensorboard: bool,
    as_json: bool,
    devices: int | str | None,
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    join_timeout: int,
    **recipe_fields: Any,
) -> int:
    """Train a network by a recipe, by default the lecture's program.

    Metrics, pictures and parameters are written into a new run folder. dlc-jax recipes lists the
    recipes; options that are not given have the recipe's values. If neither RECIPE nor --dataset
    is given and MNIST is not available, mnist-5k is used.

    \b
    Examples:
      dlc-jax train
      dlc-jax train cifar10-cpu
      dlc-jax train cifar10-fast --seeds 20
      dlc-jax train --dataset fashion_mnist --epochs 20 --seed 1
      dlc-jax train --resume runs/first
      dlc-jax train --model resnet18 --model-option stem=small --batch-size 50
      dlc-jax train --devices all
      dlc-jax train --dataset imagenet2012 --image-size 224 --model resnet50 --batch-size 256
      srun dlc-jax train --distributed
    """
    _join_processes(
        distributed, coordinator_address, num_processes, process_id, join_timeout, ctx.params
    )
    import jax

    from dlc_jax import runs
    from dlc_jax.runs import recipes, train_seeds
    from dlc_jax.sharding import processes
    from dlc_jax.utils.files import check_encodable, make_folder

    num_devices = jax.device_count() if isinstance(devices, str) else devices
    options = runs.RunOptions(
        runs.CheckpointOptions(checkpoint_seconds, max_to_keep), profile, tensorboard
    )
    if resume is not None:
        result = _resume(Path(resume), data_dir, _given(ctx), options, num_devices)
        return _print_results([result], as_json)
    if processes.is_primary():
        check_encodable(Path(output_dir, name or ""))
        make_folder(Path(output_dir))
    chosen = _override(recipes.find(recipe or _DEFAULT_RECIPE), _given_fields(recipe_fields))
    dataset = load_for_training(
        chosen.dataset,
        data_dir,
        stream=stream,
        image_size=image_size,
        can_fall_back=recipe is None and recipe_fields["dataset"] is None,
    )
    config = runs.configure(
        dataset,
        chosen,
        seed=seed,
        name=recipe or _DEFAULT_RECIPE,
        checkpoint_steps=checkpoint_steps or 200,
        image_size=image_size,
    )
    configs = [dataclasses.replace(config, seed=each) for each in range(seed, seed + seeds)]
    names = [f"{name}-seed{each.seed}" if name and seeds > 1 else name for each in configs]
    with _watch(configs, dataset) as on_epoch_end:
        results = train_seeds(
            configs,
            dataset,
            Path(output_dir),
            names,
            vmap=vmap_seeds,
            on_epoch_end=on_epoch_end,
            options=options,
            warn=warn,
            num_devices=num_devices,
        )
    return _print_results(results, as_json)


def _join_processes(
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    join_timeout: int,
    params: dict[str, Any],
) -> None:
    """Joins the other processes of a distributed run, and compares their options."""
    if not distributed:
        given = {
            "--coordinator-address": coordinator_address,
            "--num-processes": num_processes,
            "--process-id": process_id,
        }
        for flag, value in given.items():
            if value is not None:
                raise InputError(f"{flag} is for several processes; add --distributed")
        return
    from dlc_jax.sharding import processes

    processes.redirect_library_output()
    processes.initialize(coordinator_address, num_processes, process_id, join_timeout)
    shared = {name: value for name, value in params.items() if name not in _PER_PROCESS}
    processes.check_agreement({**shared, **processes.versions()})


def _given_fields(recipe_fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the recipe fields for which options were given, with NAME=VALUE pairs as dicts."""
    return {
        name: dict(value) if isinstance(value, tuple) else value
        for name, value in recipe_fields.items()
        if value not in (None, ())
    }


def _override(recipe: "Recipe", fields: dict[str, Any]) -> "Recipe":
    """Replaces fields of a recipe; NAME=VALUE pairs are added to those of the recipe."""
    from dlc_jax import models

    if "model" in fields:
        models.find(fields["model"])
        recipe = recipe.replace(model=fields["model"])
    added = {
        name: getattr(recipe, name) | value
        for name, value in fields.items()
        if isinstance(value, dict)
    }
    return recipe.replace(**fields | added)


def _given(ctx: click.Context) -> dict[str, Any]:
    """Returns the parameters that the user gave."""
    default = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) not in default
    }


def _resume(
    folder: Path,
    data_dir: str | None,
    given: dict[str, Any],
    options: "RunOptions",
    num_devices: int | None,
) -> "TrainResult":
    from dlc_jax import runs
    from dlc_jax.runs.config import RunConfig
    from dlc_jax.runs.folder import Run
    from dlc_jax.sharding import processes

    for name in _NOT_WITH_RESUME:
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is for new runs; leave it out to resume one")

    def read_config() -> bytes:
        run = Run.open(folder)
        run.check_resumable()
        return run.config.to_json().encode()

    config = RunConfig.from_json(processes.broadcast_from_primary(read_config).decode())
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    config.check_unchanged(
        _given_fields({name: value for name, value in given.items() if name in fields})
    )
    dataset = load_dataset_of(config, data_dir)
    with _watch([config], dataset) as on_epoch_end:
        return runs.resume(
            Run(folder, config),
            dataset,
            on_epoch_end=on_epoch_end,
            options=options,
            warn=warn,
            num_devices=num_devices,
        )


@contextmanager
def _watch(
    configs: "list[RunConfig]", dataset: "AnyDataset"
) -> "Iterator[Callable[[Run, EpochRecord], None]]":
    """Shows a progress bar; yields a function that prints a line for each epoch."""
    from dlc_jax.sharding import processes
    from dlc_jax.training.epoch_bar import epoch_bar

    if not processes.is_primary():
        with raise_on_sigterm():
            yield lambda run, record: None
        return
    dataset = dataset.take(configs[0].num_examples)
    with epoch_bar(configs[0].epochs) as bar, raise_on_sigterm():

        def on_epoch_end(run: "Run", record: "EpochRecord") -> None:
            bar.update(record)
            if record.epoch:
                prefix = f"seed {run.config.seed}   " if len(configs) > 1 else ""
                bar.print_line(prefix + _epoch_line(record))
            elif run.config.seed == configs[0].seed:
                bar.print_line(
                    f"{run.config.model} network on {run.config.dataset} ({dataset.num_train:,} "
                    f"training and {dataset.num_test:,} test images), {run.config.device}"
                )

        yield on_epoch_end


def _epoch_line(record: "EpochRecord") -> str:
    return (
        f"epoch {record.epoch:3d}   train loss {float(record.train['loss']):.4f}   "
        f"test error {100 * float(record.test['error']):5.2f} %   "
        f"{record.num_examples / record.train_seconds:,.0f} images/s"
    )


def _print_results(results: "list[TrainResult]", as_json: bool) -> int:
    """Prints the results of all runs, and returns the exit code."""
    from dlc_jax import runs

    code = INTERRUPTED if results[-1].interrupted and not results[-1].terminated else 0
    for result in results:
        if result.run is None:  # not the primary process
            return code
        _print_result(result, result.run)
    summaries = [result.summary for result in results]
    value = summaries[0]
    if len(summaries) > 1 and results[-1].interrupted:
        # The last run is incomplete, and would distort a mean.
        value = {"runs": summaries}
    elif len(summaries) > 1:
        value = runs.seed_statistics(summaries)
        error = value["test_error_percent"]
        print_line(
            f"test error {error['mean']:.2f} % over {len(summaries)} seeds: standard deviation "
            f"{error['standard_deviation']:.2f}, standard error of the mean "
            f"{error['standard_error']:.2f}"
        )
    if as_json:
        print_line(strict_json.dumps(value))
    return code


def _print_result(result: "TrainResult", run: "Run") -> None:
    summary, config = result.summary, run.config
    folder = escape_newlines(str(run.folder))
    if result.interrupted and summary["epochs"] < config.epochs:
        warn(
            f"interrupted after {summary['epochs']} of {config.epochs} epochs; the network is "
            f"saved in {folder}; resume it with dlc-jax train --resume {folder}"
        )
    else:
        print_line(
            f"test error {summary['test_error_percent']:.2f} % on {summary['dataset']} after "
            f"{summary['epochs']} epochs: {summary['train_seconds']:.1f} s of training, "
            f"{summary['compile_seconds']:.1f} s of compilation"
        )
        print_line(f"{folder}: curves.png, confusion.png, mistakes.png, training.png, ...")
