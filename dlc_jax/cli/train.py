"""dlc-jax train."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dlc_jax.cli.group import commands
from dlc_jax.cli.loading import (
    DEFAULT_DATASET,
    FALLBACK_DATASET,
    load,
    load_again,
    load_or_fall_back,
    open_records,
    streams,
)
from dlc_jax.cli.options import data_dir_option, json_option, model_options_option, recipe_options
from dlc_jax.cli.output import INTERRUPTED, complain, of_one_line, say
from dlc_jax.cli.types import Devices, Integer, Location
from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json
from dlc_jax.utils.signals import raise_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dlc_jax.runs import AnyDataset, Outcome, Saving
    from dlc_jax.runs.folder import Run, RunConfig
    from dlc_jax.runs.recipes import Recipe
    from dlc_jax.training import EpochReport


# What processes that train together may be told differently: what concerns each one's machine, or
# only the first one.
_OF_ONE_PROCESS = {
    "coordinator_address",
    "num_processes",
    "process_id",
    "join_seconds",
    "data_dir",
    "output_dir",
    "checkpoint_seconds",
    "keep_checkpoints",
    "profile",
    "tensorboard",
    "as_json",
}


@commands.command()
@click.argument("recipe", required=False)
@click.option(
    "--dataset",
    metavar="NAME",
    help="What to learn; dlc-jax data lists them.  [default: the recipe's; "
    f"{FALLBACK_DATASET} where {DEFAULT_DATASET} can't be had]",
)
@click.option(
    "--model",
    metavar="NAME",
    help="The network; dlc-jax models lists them.  [default: the recipe's]",
)
@model_options_option
@recipe_options
@click.option(
    "--seed", type=Integer(0), default=0, show_default=True, help="Of all that is random."
)
@click.option(
    "--seeds",
    type=Integer(1),
    default=1,
    show_default=True,
    help="Train so many networks, with seeds from --seed on.",
)
@click.option(
    "--together/--one-by-one",
    default=None,
    help="Whether to train them in one program.  [default: together, but one by one on a CPU "
    "and where the device's memory holds only one]",
)
@data_dir_option
@click.option(
    "--output-dir",
    type=Location(),
    metavar="DIR",
    default="runs",
    show_default=True,
    help="Where to make the run's folder.",
)
@click.option(
    "--name", metavar="NAME", help="The run folder's name.  [default: dataset, network and time]"
)
@click.option(
    "--resume",
    type=Location(),
    metavar="RUN",
    help="Go on with a run that was stopped, from its newest checkpoint; what becomes of it is "
    "what would have become of it otherwise.",
)
@click.option(
    "--checkpoint-steps",
    type=Integer(1),
    help="A checkpoint can be made every so many steps of an epoch.  [default: 200]",
)
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="A checkpoint is made after so many seconds, where one can be.",
)
@click.option(
    "--keep-checkpoints",
    type=Integer(1),
    default=3,
    show_default=True,
    help="How many stay, the newest ones.",
)
@click.option(
    "--stream",
    is_flag=True,
    help="Read the images batch by batch while training goes on, for those that do not fit into "
    "memory; as done with any dataset of yours that dlc-jax data does not list.",
)
@click.option(
    "--image-size",
    type=Integer(1),
    help="Bring images that stream in to so many pixels in height and width.",
)
@click.option(
    "--devices",
    type=Devices(),
    metavar="all|N",
    help="Spread each batch over so many devices.  [default: the cores of a CPU that share it "
    "evenly, or one GPU or TPU; with --distributed all]",
)
@click.option(
    "--distributed",
    is_flag=True,
    help="Train with the other processes that were started with this command; SLURM, Open MPI, "
    "Kubernetes and TPU pods are detected.",
)
@click.option(
    "--coordinator-address",
    metavar="HOST:PORT",
    help="Of the first process, where --distributed does not find it.",
)
@click.option("--num-processes", type=Integer(1), help="How many there are, likewise.")
@click.option("--process-id", type=Integer(0), help="Which one this is, from 0 on, likewise.")
@click.option(
    "--join-seconds",
    type=Integer(1),
    default=300,
    show_default=True,
    help="How long to wait for the others at the start.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Trace a run's first steps with JAX's profiler, into its profile/, for Perfetto or "
    "XProf; not with --together.",
)
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Also write numbers and pictures for TensorBoard, into a run's tensorboard/; needs "
    "pip install 'dlc-jax[tensorboard]'.",
)
@json_option
def train(
    recipe: str | None,
    dataset: str | None,
    model: str | None,
    model_options: tuple[tuple[str, Any], ...],
    seed: int,
    seeds: int,
    together: bool | None,
    data_dir: str | None,
    output_dir: str,
    name: str | None,
    resume: str | None,
    checkpoint_steps: int | None,
    checkpoint_seconds: float,
    keep_checkpoints: int,
    stream: bool,
    image_size: int | None,
    devices: int | None,
    distributed: bool,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    join_seconds: int,
    profile: bool,
    tensorboard: bool,
    as_json: bool,
    **fields: Any,
) -> int:
    """Train a network by a recipe, by default the lecture's program.

    Numbers, pictures and parameters go into a new run folder. dlc-jax recipes lists the
    recipes; every option that is left out is as in the recipe.

    \b
    Examples:
      dlc-jax train
      dlc-jax train cifar10-cpu
      dlc-jax train cifar10-fast --seeds 20
      dlc-jax train --dataset fashion_mnist --epochs 20 --seed 1
      dlc-jax train --resume runs/first
      dlc-jax train --model resnet18 --option stem=small --batch-size 50
      dlc-jax train --devices all
      dlc-jax train --dataset imagenet2012 --image-size 224 --model resnet50 --batch-size 256
      srun dlc-jax train --distributed
    """
    from dlc_jax import models, runs
    from dlc_jax.runs import recipes
    from dlc_jax.sharding import processes
    from dlc_jax.utils.files import check_encodable, make_folder

    _join(distributed, coordinator_address, num_processes, process_id, join_seconds)
    if distributed:
        told = click.get_current_context().params
        kept = {name: told[name] for name in told.keys() - _OF_ONE_PROCESS}
        processes.check_agreement({**kept, **processes.versions()})
    devices = _count_devices(devices)
    saving = runs.Saving(checkpoint_seconds, keep_checkpoints, profile, tensorboard)
    changes = {field: value for field, value in fields.items() if value is not None}
    if checkpoint_steps is not None:
        changes["checkpoint_steps"] = checkpoint_steps
    if resume is not None:
        if name is not None or seeds > 1:
            raise InputError("--name and --seeds are for new runs; leave them out to resume one")
        asked = {"recipe": recipe, "dataset": dataset, "model": model, **changes}
        if click.get_current_context().get_parameter_source("seed") != ParameterSource.DEFAULT:
            asked["seed"] = seed
        if model_options:
            asked["model_options"] = dict(model_options)
        return _resume(resume, asked, data_dir, saving, devices, as_json)
    if processes.is_primary():
        check_encodable(Path(output_dir, name or ""))
        make_folder(Path(output_dir))
    chosen = recipes.find(recipe or "mnist-lecture")
    if model is not None:
        models.find(model)
        changes |= {"model": model, "model_options": {}}
    if model_options:
        kept = {} if model is not None else chosen.model_options
        changes["model_options"] = kept | dict(model_options)
    loaded: AnyDataset
    if streams(dataset, stream, image_size):
        loaded = open_records(dataset or chosen.dataset, data_dir, image_size)
        changes["image_size"] = image_size
    elif recipe is None:
        loaded = load_or_fall_back(dataset, data_dir)
    else:
        loaded = load(dataset or chosen.dataset, data_dir)
    how = {"name": recipe or "mnist-lecture", **changes}
    several = [how | {"seed": each} for each in range(seed, seed + seeds)]
    names = [f"{name}-seed{each['seed']}" if name and seeds > 1 else name for each in several]
    outcomes = _train(loaded, chosen, several, Path(output_dir), names, together, saving, devices)
    return _print_outcomes(outcomes, as_json)


def _join(
    distributed: bool,
    address: str | None,
    num_processes: int | None,
    process_id: int | None,
    join_seconds: int,
) -> None:
    """Joins this process with others, if it is to be."""
    given = {
        "--coordinator-address": address,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    named = [option for option, value in given.items() if value is not None]
    if not distributed:
        if named:
            raise InputError(f"{named[0]} is for several processes; add --distributed")
        return
    from dlc_jax.sharding import processes

    processes.redirect_library_output()
    processes.initialize(address, num_processes, process_id, join_seconds)


def _count_devices(devices: int | None) -> int | None:
    """The number of devices that was asked for, if any was."""
    if devices != 0:
        return devices
    import jax

    return jax.device_count()


def _resume(
    folder: str,
    asked: dict[str, Any],
    data_dir: str | None,
    saving: "Saving",
    devices: int | None,
    as_json: bool,
) -> int:
    from dlc_jax import runs
    from dlc_jax.cli import progress
    from dlc_jax.runs.folder import Run, RunConfig
    from dlc_jax.sharding import processes

    def read() -> bytes:
        return Run.open(Path(folder)).config.to_json().encode()

    config = RunConfig.from_json(processes.broadcast_from_primary(read).decode())
    others = [
        f"{field} {getattr(config, field)!r}, not {value!r}"
        for field, value in asked.items()
        if value is not None and value != getattr(config, field)
    ]
    if others:
        raise InputError(f"the run in {folder!r} has {'; '.join(others)}; leave that out")
    dataset = load_again(config, data_dir)
    if not processes.is_primary():
        _follow([config], dataset, devices)
        return 0
    run = Run(Path(folder), config)
    images, tests = dataset.first(config.examples).sizes
    with progress.epochs(config.epochs, images, tests) as bar, raise_on_sigterm():

        def watch(run: "Run", report: "EpochReport") -> None:
            bar(report)
            bar.line(
                _epoch_line(report, images) if report.epoch else _heading(run, (images, tests))
            )

        outcome = runs.resume(run, dataset, watch, saving, complain, devices)
    _print_outcome(outcome)
    return _print_outcomes([outcome], as_json)


def _follow(configs: "Sequence[RunConfig]", dataset: "AnyDataset", devices: int | None) -> None:
    """Takes part in what the first process trains, keeps and prints."""
    from dlc_jax import runs

    with raise_on_sigterm():
        for config in configs:
            runs.follow(config, dataset, devices)


def _train(
    dataset: "AnyDataset",
    recipe: "Recipe",
    several: list[dict[str, Any]],
    output_dir: Path,
    names: list[str | None],
    together: bool | None,
    saving: "Saving",
    devices: int | None,
) -> "list[Outcome]":
    """Trains networks together or one by one; None where that depends on the device."""
    import jax

    from dlc_jax import runs
    from dlc_jax.data import RecordDataset
    from dlc_jax.sharding import processes
    from dlc_jax.training import NoRoom

    streams = isinstance(dataset, RecordDataset)
    if streams or devices is not None or jax.process_count() > 1:
        if together:
            raise InputError(
                "--together is for one device and images in memory; leave it out, or --devices, "
                "--distributed and --stream"
            )
        together = False
    if not processes.is_primary():
        configs = [runs.configure(dataset, recipe, **how) for how in several]
        _follow(configs, dataset, devices)
        return []
    if len(several) > 1 and (together or (together is None and jax.default_backend() != "cpu")):
        try:
            return _train_some(dataset, recipe, several, output_dir, names, saving, devices)
        except NoRoom as error:
            if together:
                raise
            complain(f"{error}; training them one by one")
    outcomes: list[Outcome] = []
    for how, name in zip(several, names, strict=True):
        outcomes += _train_some(dataset, recipe, [how], output_dir, [name], saving, devices)
        if outcomes[-1].interrupted:
            break
    return outcomes


def _train_some(
    dataset: "AnyDataset",
    recipe: "Recipe",
    several: list[dict[str, Any]],
    output_dir: Path,
    names: list[str | None],
    saving: "Saving",
    devices: int | None,
) -> "list[Outcome]":
    from dlc_jax import runs
    from dlc_jax.cli import progress

    configs = [runs.configure(dataset, recipe, **how) for how in several]
    images, tests = dataset.first(configs[0].examples).sizes
    with progress.epochs(configs[0].epochs, images, tests) as bar, raise_on_sigterm():

        def watch(run: "Run", report: "EpochReport") -> None:
            # Of networks that are trained together the first one stands for all of them.
            if run.config.seed == configs[0].seed:
                bar(report)
            if report.epoch:
                whose = f"seed {run.config.seed}   " if len(several) > 1 else ""
                bar.line(whose + _epoch_line(report, images))
            elif run.config.seed == configs[0].seed:
                bar.line(_heading(run, (images, tests)))

        if len(configs) == 1:
            how = dataset, output_dir, names[0], watch, saving, devices
            outcomes = [runs.train(configs[0], *how)]
        else:
            outcomes = runs.train_together(configs, dataset, output_dir, names, watch, saving)
    for outcome in outcomes:
        _print_outcome(outcome)
    return outcomes


def _heading(run: "Run", counts: tuple[int, int]) -> str:
    config = run.config
    return (
        f"{config.model} network on {config.dataset} ({counts[0]:,} training and "
        f"{counts[1]:,} test images), {config.device}"
    )


def _epoch_line(report: "EpochReport", images: int) -> str:
    return (
        f"epoch {report.epoch:3d}   train loss {report.losses.mean():.4f}   "
        f"test error {100 * float(report.test.error):5.2f} %   "
        f"{images / report.train_seconds:,.0f} images/s"
    )


def _print_outcome(outcome: "Outcome") -> None:
    summary, folder = outcome.summary, of_one_line(str(outcome.run.folder))
    if outcome.interrupted and summary["epochs"] < outcome.run.config.epochs:
        complain(
            f"interrupted after {summary['epochs']} of {outcome.run.config.epochs} epochs; "
            f"the network so far is in {folder}; to go on: dlc-jax train --resume {folder}"
        )
    else:
        say(
            f"test error {summary['test_error_percent']:.2f} % on {summary['dataset']} after "
            f"{summary['epochs']} epochs: {summary['train_seconds']:.1f} s of training, "
            f"{summary['compile_seconds']:.1f} s of compiling"
        )
        say(f"{folder}: curves.png, confusion.png, mistakes.png, training.png, ...")


def _print_outcomes(outcomes: list["Outcome"], as_json: bool) -> int:
    if not outcomes:
        return 0
    summaries = [outcome.summary for outcome in outcomes]
    result = summaries[0]
    if len(summaries) > 1 and outcomes[-1].interrupted:
        # A mean over seeds is one of whole runs.
        result = {"runs": summaries}
    elif len(summaries) > 1:
        from dlc_jax import runs

        result = runs.over_seeds(summaries)
        error = result["test_error_percent"]
        say(
            f"test error {error['mean']:.2f} % over {len(summaries)} seeds: standard deviation "
            f"{error['standard_deviation']:.2f}, standard error of the mean "
            f"{error['standard_error']:.2f}"
        )
    if as_json:
        say(strict_json.dumps(result))
    return INTERRUPTED if outcomes[-1].interrupted and not outcomes[-1].terminated else 0
