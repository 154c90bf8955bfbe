"""The command line: the only place that parses arguments and prints."""

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from dlc_jax import __version__
from dlc_jax.environment import prepare_jax
from dlc_jax.errors import DatasetUnavailable, InputError
from dlc_jax.interruption import Terminated, terminable

if TYPE_CHECKING:
    from dlc_jax.data import Dataset, RecordDataset
    from dlc_jax.experiment import AnyDataset, Outcome, Saving
    from dlc_jax.recipes import Recipe
    from dlc_jax.runs import Run, RunConfig
    from dlc_jax.training import EpochReport

_DEFAULT_DATASET, _FALLBACK_DATASET = "mnist", "mnist-5k"
_LOST, _BAD_INPUT, _INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line; bad input is one line on standard error and exit code 2.

    Args:
      arguments: what stands after the command's name; by default what the user typed.
    """
    prepare_jax()
    try:
        status = commands.main(arguments, prog_name="dlc-jax", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        status = _BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dlc-jax"
        _complain(f"{error.format_message().rstrip('.')} (see {command} --help)")
        status = _BAD_INPUT
    except InputError as error:
        _complain(str(error))
        status = _BAD_INPUT
        if not error.common:
            _leave_others(status)
    except (click.Abort, KeyboardInterrupt) as error:
        # Click makes an Abort of what interrupts. Of SIGTERM whoever keeps the run has said how
        # to go on with it.
        if isinstance(error.__cause__ or error, Terminated):
            status = 0
        else:
            _complain("interrupted")
            status = _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        _complain(f"{error.strerror or error}: {error.filename or 'a file'}")
        status = _BAD_INPUT
        _leave_others(status)
    except (RuntimeError, ValueError) as error:
        if not _is_loss(error):
            raise
        reason = " ".join(str(error).split())[:200]
        _complain(
            f"the processes can't go on together ({reason}); if one of them has died, start all "
            "of them again, with --resume RUN"
        )
        _leave_others(_LOST)
    sys.exit(status if isinstance(status, int) else 0)


def _is_loss(error: Exception) -> bool:
    """Whether it tells that one of several processes has been lost."""
    if "dlc_jax.hosts" not in sys.modules:
        return False
    from dlc_jax import hosts

    return hosts.is_loss(error)


def _leave_others(status: int) -> None:
    """Exits at once where other processes, that know of no failure, would be waited for."""
    if "dlc_jax.hosts" not in sys.modules:
        return
    from dlc_jax import hosts

    if hosts.are_waiting():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _complain(message: str) -> None:
    click.echo(f"dlc-jax: {' '.join(message.split())}", err=True)


class _PositiveNumber(click.ParamType):  # type: ignore[type-arg]
    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            self.fail(f"{value} is not a positive number; give one such as 0.1", param, ctx)
        return number


class _Integer(click.ParamType):  # type: ignore[type-arg]
    name = "integer"

    def __init__(self, least: int) -> None:
        self.least, self.most = least, 2**31 - 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.least - 1
        if not self.least <= number <= self.most:
            choice = f"give a whole number from {self.least} to {self.most}"
            self.fail(f"{value} is not possible; {choice}", param, ctx)
        return number


class _Devices(click.ParamType):  # type: ignore[type-arg]
    """How many devices; 0 for all of them."""

    name = "devices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value in ("all", 0):
            return 0
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value} is not possible; give all, or a whole number from 1", param, ctx)
        return number


class _Assignment(click.ParamType):  # type: ignore[type-arg]
    """NAME=VALUE, the value being true, false, a whole number, or a word."""

    name = "assignment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not (name and equals and text):
            self.fail(f"{value} is not NAME=VALUE; give one such as stem=small", param, ctx)
        if text in ("true", "false"):
            return name, text == "true"
        return name, int(text) if text.lstrip("-").isdigit() else text


class _Shape(click.ParamType):  # type: ignore[type-arg]
    """Height, width and channels with x between them."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        sizes = value.split("x")
        if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
            self.fail(f"{value} is not HEIGHTxWIDTHxCHANNELS; give one such as 32x32x3", param, ctx)
        return int(sizes[0]), int(sizes[1]), int(sizes[2])


_model_options = click.option(
    "--option",
    "model_options",
    type=_Assignment(),
    multiple=True,
    metavar="NAME=VALUE",
    help="What else to tell the network, as stem=small or shortcut=A; may be repeated.",
)
_data_dir = click.option(
    "--data-dir",
    metavar="DIR",
    help="Where TFDS keeps its datasets.  [default: $TFDS_DATA_DIR, else ~/tensorflow_datasets]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dlc-jax")
def commands() -> None:
    """The convnets of a deep learning lecture, in JAX.

    \b
    Examples:
      dlc-jax train                        learn MNIST with the lecture's network
      dlc-jax eval runs/NAME               test it again
      dlc-jax predict runs/NAME digit.png  ask it about a picture of your own
      dlc-jax explain all runs/NAME        look at what it sees, and how it fails
      dlc-jax models                       the networks, from 1943 on
    """


class _Part(click.ParamType):  # type: ignore[type-arg]
    """A number from 0 on, below a limit."""

    name = "number"

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < self.limit:
            most = "" if self.limit == math.inf else f", below {self.limit:g}"
            self.fail(f"{value} is not possible; give a number from 0 on{most}", param, ctx)
        return number


# The fields of a recipe that can be told otherwise: what they take, and what they are.
_FIELDS: dict[str, tuple[Any, str]] = {
    "examples": (_Integer(0), "How many of the training images, the first ones; 0 for all."),
    "epochs": (_Integer(1), "Passes over the training images."),
    "batch_size": (_Integer(1), "Images an update."),
    "optimizer": (click.Choice(["sgd", "muon"]), "What makes steps of gradients."),
    "learning_rate": (_PositiveNumber(), "Of the optimizer; the largest."),
    "schedule": (
        click.Choice(["constant", "step", "triangular", "cosine"]),
        "How the learning rate changes.",
    ),
    "momentum": (_Part(1), "Of the optimizer."),
    "nesterov": (bool, "Whether the momentum is Nesterov's."),
    "weight_decay": (_Part(), "By which part of them, times the rate, weights shrink each step."),
    "bias_factor": (_PositiveNumber(), "How many times larger the learning rate of biases is."),
    "lookahead": (
        _Integer(0),
        "After how many steps the parameters go back to their average; 0 for never.",
    ),
    "ema": (
        _Part(1),
        "Decay of the average of the parameters at which training ends; 0 for none.",
    ),
    "whitening_bias_epochs": (
        _Integer(0),
        "After how many epochs a whitening layer's bias stays as it is; 0 for never.",
    ),
    "label_smoothing": (_Part(1), "What part of each target is spread over all classes."),
    "shuffle": (bool, "Whether each epoch has an order of its own."),
    "flip": (
        click.Choice(["none", "random", "alternating"]),
        "Exchange left and right, at random or every other epoch.",
    ),
    "translate": (_Integer(0), "Move images by up to so many pixels."),
    "padding": (click.Choice(["zero", "reflect"]), "What then comes in at the borders."),
    "cutout": (_Integer(0), "Blank out a square of so many pixels."),
    "dtype": (click.Choice(["float32", "bfloat16"]), "What the network computes in."),
    "mirrored_test": (bool, "Whether to test on images and mirror images together."),
    "translated_test": (
        _Integer(0),
        "Test on images moved by so many pixels, too; 0 for not.",
    ),
}


def _recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each field of a recipe; None where it is left as it is."""
    for name, (kind, text) in reversed(_FIELDS.items()):
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            flag += f"/--no-{name.replace('_', '-')}"
        option = click.option(
            flag, default=None, **({} if kind is bool else {"type": kind}), help=text
        )
        command = option(command)
    return command


@commands.command("recipes")
@_json
def list_recipes(as_json: bool) -> None:
    """List the recipes: what to train, on what and how.

    \b
    Example:
      dlc-jax recipes
    """
    import dataclasses

    from dlc_jax import recipes

    if as_json:
        click.echo(
            json.dumps(
                {
                    name: {
                        "summary": entry.summary,
                        "source": entry.source,
                        **dataclasses.asdict(entry.recipe),
                    }
                    for name, entry in recipes.RECIPES.items()
                }
            )
        )
        return
    for name, entry in recipes.RECIPES.items():
        recipe = entry.recipe
        click.echo(f"{name:18} {entry.summary} ({entry.source})")
        click.echo(f"{'':18} {recipe.model} on {recipe.dataset}, {recipe.epochs} epochs")


@commands.command()
@click.argument("recipe", required=False)
@click.option(
    "--dataset",
    metavar="NAME",
    help="What to learn; dlc-jax data lists them.  [default: the recipe's; "
    f"{_FALLBACK_DATASET} where {_DEFAULT_DATASET} can't be had]",
)
@click.option(
    "--model",
    metavar="NAME",
    help="The network; dlc-jax models lists them.  [default: the recipe's]",
)
@_model_options
@_recipe_options
@click.option(
    "--seed", type=_Integer(0), default=0, show_default=True, help="Of all that is random."
)
@click.option(
    "--seeds",
    type=_Integer(1),
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
@_data_dir
@click.option(
    "--output-dir",
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
    metavar="RUN",
    help="Go on with a run that was stopped, from its newest checkpoint; what becomes of it is "
    "what would have become of it otherwise.",
)
@click.option(
    "--checkpoint-steps",
    type=_Integer(1),
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
    type=_Integer(1),
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
    type=_Integer(1),
    help="Bring images that stream in to so many pixels in height and width.",
)
@click.option(
    "--devices",
    type=_Devices(),
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
@click.option("--num-processes", type=_Integer(1), help="How many there are, likewise.")
@click.option("--process-id", type=_Integer(0), help="Which one this is, from 0 on, likewise.")
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
@_json
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
    from dlc_jax import experiment, hosts, models, recipes
    from dlc_jax.files import make_folder

    _join(distributed, coordinator_address, num_processes, process_id)
    devices = _count_devices(devices)
    saving = experiment.Saving(checkpoint_seconds, keep_checkpoints, profile, tensorboard)
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
    if hosts.is_first():
        make_folder(Path(output_dir))
    chosen = recipes.find(recipe or "mnist-lecture")
    if model is not None:
        models.find(model)
        changes |= {"model": model, "model_options": {}}
    if model_options:
        kept = {} if model is not None else chosen.model_options
        changes["model_options"] = kept | dict(model_options)
    loaded: AnyDataset
    if _streams(dataset, stream, image_size):
        loaded = _open(dataset or chosen.dataset, data_dir, image_size)
        changes["image_size"] = image_size
    elif recipe is None:
        loaded = _load_or_fall_back(dataset, data_dir)
    else:
        loaded = _load(dataset or chosen.dataset, data_dir)
    how = {"name": recipe or "mnist-lecture", **changes}
    several = [how | {"seed": each} for each in range(seed, seed + seeds)]
    names = [f"{name}-seed{each['seed']}" if name and seeds > 1 else name for each in several]
    outcomes = _train(loaded, chosen, several, Path(output_dir), names, together, saving, devices)
    return _print_outcomes(outcomes, as_json)


def _join(
    distributed: bool, address: str | None, num_processes: int | None, process_id: int | None
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
    from dlc_jax import hosts

    hosts.print_apart()
    hosts.initialize(address, num_processes, process_id)


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
    from dlc_jax import experiment, hosts, terminal
    from dlc_jax.runs import Run, RunConfig

    def read() -> bytes:
        return Run.open(Path(folder)).config.to_json().encode()

    config = RunConfig.from_json(hosts.from_first(read).decode())
    others = [
        f"{field} {getattr(config, field)!r}, not {value!r}"
        for field, value in asked.items()
        if value is not None and value != getattr(config, field)
    ]
    if others:
        raise InputError(f"the run in {folder!r} has {'; '.join(others)}; leave that out")
    dataset = _load_again(config, data_dir)
    if not hosts.is_first():
        _follow([config], dataset, devices)
        return 0
    run = Run(Path(folder), config)
    images, tests = dataset.first(config.examples).sizes
    with terminal.epochs(config.epochs, images, tests) as progress, terminable():

        def watch(run: "Run", report: "EpochReport") -> None:
            progress(report)
            progress.line(
                _epoch_line(report, images) if report.epoch else _heading(run, (images, tests))
            )

        outcome = experiment.resume(run, dataset, watch, saving, _complain, devices)
    _print_outcome(outcome)
    return _print_outcomes([outcome], as_json)


def _follow(configs: "Sequence[RunConfig]", dataset: "AnyDataset", devices: int | None) -> None:
    """Takes part in what the first process trains, keeps and prints."""
    from dlc_jax import experiment

    with terminable():
        for config in configs:
            experiment.follow(config, dataset, devices)


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

    from dlc_jax import experiment, hosts
    from dlc_jax.data import RecordDataset
    from dlc_jax.training import NoRoom

    streams = isinstance(dataset, RecordDataset)
    if streams or devices is not None or jax.process_count() > 1:
        if together:
            raise InputError(
                "--together is for one device and images in memory; leave it out, or --devices, "
                "--distributed and --stream"
            )
        together = False
    if not hosts.is_first():
        configs = [experiment.configure(dataset, recipe, **how) for how in several]
        _follow(configs, dataset, devices)
        return []
    if len(several) > 1 and (together or (together is None and jax.default_backend() != "cpu")):
        try:
            return _train_some(dataset, recipe, several, output_dir, names, saving, devices)
        except NoRoom as error:
            if together:
                raise
            _complain(f"{error}; training them one by one")
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
    from dlc_jax import experiment, terminal

    configs = [experiment.configure(dataset, recipe, **how) for how in several]
    images, tests = dataset.first(configs[0].examples).sizes
    with terminal.epochs(configs[0].epochs, images, tests) as progress, terminable():

        def watch(run: "Run", report: "EpochReport") -> None:
            # Of networks that are trained together the first one stands for all of them.
            if run.config.seed == configs[0].seed:
                progress(report)
            if report.epoch:
                whose = f"seed {run.config.seed}   " if len(several) > 1 else ""
                progress.line(whose + _epoch_line(report, images))
            elif run.config.seed == configs[0].seed:
                progress.line(_heading(run, (images, tests)))

        if len(configs) == 1:
            how = dataset, output_dir, names[0], watch, saving, devices
            outcomes = [experiment.train(configs[0], *how)]
        else:
            outcomes = experiment.train_together(configs, dataset, output_dir, names, watch, saving)
    for outcome in outcomes:
        _print_outcome(outcome)
    return outcomes


def _load_or_fall_back(name: str | None, data_dir: str | None) -> "Dataset":
    import jax

    if name is not None or jax.process_count() > 1:
        return _load(name or _DEFAULT_DATASET, data_dir)
    from dlc_jax import data

    try:
        return _load(_DEFAULT_DATASET, data_dir)
    except InputError as error:
        # A folder that the user named, or what is prepared but damaged, is theirs to mend.
        theirs = data_dir is not None or data.find(_DEFAULT_DATASET) is not None
        if theirs and not isinstance(error, DatasetUnavailable):
            raise
        _complain(f"{error}; training on {_FALLBACK_DATASET} meanwhile")
        return _load(_FALLBACK_DATASET, None)


def _load(name: str, data_dir: str | None) -> "Dataset":
    import jax

    from dlc_jax import data, hosts, terminal

    with terminal.counting(f"reading {name}") as progress:
        if jax.process_count() == 1:
            return data.load(name, data_dir, progress=progress)
        if name not in data.CATALOGUE or not data.CATALOGUE[name].bundled:
            with hosts.first_alone():
                data.fetch(name, data_dir)
        part = jax.process_index(), jax.process_count()
        return hosts.gather(data.load(name, data_dir, progress=progress, part=part))


def _streams(name: str | None, stream: bool, image_size: int | None) -> bool:
    """Whether images shall be read while training goes on."""
    from dlc_jax import data

    return stream or image_size is not None or (name is not None and name not in data.CATALOGUE)


def _open(name: str, data_dir: str | None, image_size: int | None) -> "RecordDataset":
    from dlc_jax import data, hosts, terminal

    with terminal.counting(f"opening {name}") as progress, hosts.first_alone():
        return data.open_records(name, data_dir, image_size=image_size, progress=progress)


def _load_again(config: "RunConfig", data_dir: str | None) -> "AnyDataset":
    """What a run was trained on."""
    if config.stream:
        return _open(config.dataset, data_dir, config.image_size)
    return _load(config.dataset, data_dir)


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
    summary, folder = outcome.summary, outcome.run.folder
    if outcome.interrupted:
        _complain(
            f"interrupted after {summary['epochs']} of {outcome.run.config.epochs} epochs; "
            f"the network so far is in {folder}; to go on: dlc-jax train --resume {folder}"
        )
    else:
        click.echo(
            f"test error {summary['test_error_percent']:.2f} % on {summary['dataset']} after "
            f"{summary['epochs']} epochs: {summary['train_seconds']:.1f} s of training, "
            f"{summary['compile_seconds']:.1f} s of compiling"
        )
        click.echo(f"{folder}: curves.png, confusion.png, mistakes.png, training.png, ...")


def _print_outcomes(outcomes: list["Outcome"], as_json: bool) -> int:
    if not outcomes:
        return 0
    summaries = [outcome.summary for outcome in outcomes]
    result = summaries[0]
    if len(summaries) > 1:
        from dlc_jax import experiment

        result = experiment.over_seeds(summaries)
        error = result["test_error_percent"]
        click.echo(
            f"test error {error['mean']:.2f} % over {len(summaries)} seeds: standard deviation "
            f"{error['standard_deviation']:.2f}, standard error of the mean "
            f"{error['standard_error']:.2f}"
        )
    if as_json:
        click.echo(json.dumps(result))
    return _INTERRUPTED if outcomes[-1].interrupted and not outcomes[-1].terminated else 0


@commands.command("eval")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@_data_dir
@_json
def evaluate(runs: tuple[str, ...], data_dir: str | None, as_json: bool) -> None:
    """Test a run's network again, on the data that it was trained for.

    Several runs' networks are tested as one, whose probabilities are the mean of theirs.

    \b
    Examples:
      dlc-jax eval runs/first
      dlc-jax eval runs/first-seed0 runs/first-seed1 runs/first-seed2
    """
    from dlc_jax import experiment
    from dlc_jax.runs import Run

    opened = [Run.open(Path(run)) for run in runs]
    dataset = _load_again(opened[0].config, data_dir)
    result = experiment.evaluate(opened, dataset)
    if not as_json:
        click.echo(
            f"test error {result['test_error_percent']:.2f} %, loss {result['test_loss']:.4f}, "
            f"on {result['test_images']:,} test images of {result['dataset']}"
        )
        for name, error in result["error_percent_by_class"].items():
            told = "no images" if error is None else f"{error:6.2f} %"
            click.echo(f"  {name:12} {told}")
    else:
        click.echo(json.dumps(result))


@commands.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--invert/--no-invert",
    default=None,
    help="Turn dark into bright.  [default: where the network learned bright on dark, and "
    "the picture's border is bright]",
)
@_json
def predict(run: str, images: tuple[str, ...], invert: bool | None, as_json: bool) -> None:
    """Ask a run's network what is in pictures.

    They are PNG or JPEG files of any size.

    \b
    Example:
      dlc-jax predict runs/first photo.jpg digit.png
    """
    from dlc_jax import experiment
    from dlc_jax.runs import Run

    opened = Run.open(Path(run))
    predictions = experiment.predict(opened, opened.model(), images, invert=invert)
    if as_json:
        click.echo(json.dumps({"run": run, "predictions": predictions}))
        return
    for prediction in predictions:
        first, *others = list(prediction["probabilities"].items())[:3]
        also = ", ".join(f"{name} {100 * p:.1f} %" for name, p in others)
        note = "; inverted" if prediction["inverted"] else ""
        click.echo(f"{prediction['image']}: {first[0]} {100 * first[1]:.1f} %  ({also}{note})")


@commands.command()
@click.argument("method")
@click.argument("run")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option(
    "--output-dir", metavar="DIR", help="Where to write pictures.  [default: RUN/explain]"
)
@click.option(
    "--transfer",
    metavar="RUN",
    help="A second run: do adversarial images made for one network mislead the other?",
)
@click.option(
    "--invert/--no-invert", default=None, help="Turn dark into bright, as dlc-jax predict does."
)
@click.option(
    "--seed", type=_Integer(0), default=0, show_default=True, help="Of all that is random."
)
@_data_dir
@_json
def explain(
    method: str,
    run: str,
    images: tuple[str, ...],
    output_dir: str | None,
    transfer: str | None,
    invert: bool | None,
    seed: int,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Draw what a run's network sees, and how it fails.

    METHOD is one of these, or all, which also makes one HTML file of all their pictures:

    \b
      filters      the first layer's filters, and every stage's feature maps
      saliency     gradients by pixel: plain, guided, and the deconvnet's
      deconvnet    what in test images excites feature maps most
      occlusion    the answer's probability while a grey square hides a part
      grad-cam     where the answer comes from
      maximise     an image for each class, from noise
      dream        images with more of what a stage sees in them
      adversarial  small changes that mislead: FGSM, PGD, L-BFGS
      fooling      nothing to a person, and something for sure to the network

    IMAGES are PNG or JPEG files of any size; without any, the first test image of each class is
    taken.

    \b
    Examples:
      dlc-jax explain all runs/first
      dlc-jax explain grad-cam runs/first digit.png
      dlc-jax explain adversarial runs/first --transfer runs/second
    """
    from dlc_jax import experiment, terminal
    from dlc_jax.explain.gallery import methods
    from dlc_jax.runs import Run

    chosen = methods.find(method)
    if transfer and "adversarial" not in chosen:
        raise InputError(f"--transfer {transfer!r} is for adversarial images, not for {method}")
    opened = Run.open(Path(run))
    other = Run.open(Path(transfer)) if transfer else None
    dataset = _load_again(opened.config, data_dir)
    with terminal.stages() as progress:
        result = experiment.explain(
            opened,
            dataset,
            chosen,
            images,
            folder=Path(output_dir) if output_dir else opened.folder / "explain",
            other=other,
            invert=invert,
            seed=seed,
            progress=progress,
        )
    for name, refusal in result["refusals"].items():
        _complain(f"no {name}: {refusal}")
    for table in result["tables"].values():
        click.echo(terminal.table(table))
    for file in result["files"]:
        click.echo(file)
    if as_json:
        click.echo(json.dumps(result))


@commands.command("data")
@_data_dir
@_json
def list_data(data_dir: str | None, as_json: bool) -> None:
    """List the datasets, and where they are on this machine.

    \b
    Example:
      dlc-jax data --data-dir ~/tensorflow_datasets
    """
    from dlc_jax import data
    from dlc_jax.files import cache_folder

    statuses = [data.status(name, data_dir) for name in data.names()]
    places = {
        "data_folder": str(data.data_folder(data_dir)),
        "cache_folder": str(cache_folder()),
    }
    if as_json:
        click.echo(json.dumps({**places, "datasets": statuses}))
        return
    for status in statuses:
        click.echo(f"{status['name']:14} {status['summary']} ({status['reference']})")
        click.echo(f"{'':14} {status['where']}")
        if status["cache"]:
            click.echo(f"{'':14} decoded: {status['cache']}")
    click.echo(f"prepared datasets: {places['data_folder']}    cache: {places['cache_folder']}")


@commands.command("models")
@click.argument("name", required=False)
@click.option(
    "--image-shape",
    type=_Shape(),
    metavar="HxWxC",
    help="Height, width and channels of its images.  [default: its paper's]",
)
@click.option("--classes", type=_Integer(1), help="How many.  [default: its paper's]")
@_model_options
@_json
def list_models(
    name: str | None,
    image_shape: tuple[int, int, int] | None,
    classes: int | None,
    model_options: tuple[tuple[str, Any], ...],
    as_json: bool,
) -> None:
    """List the networks, or the layers of one of them.

    Sizes are for the images and classes of the network's paper. Multiply-adds are those of
    convolutions and matrix products for one image; the depth is how many of them follow one
    another.

    \b
    Examples:
      dlc-jax models
      dlc-jax models resnet18
      dlc-jax models resnet18 --image-shape 32x32x3 --classes 10 --option stem=small
    """
    from dlc_jax import models, terminal
    from dlc_jax.models import report

    told = {"image_shape": image_shape, "num_classes": classes, **dict(model_options)}
    if name is not None:
        described = report.describe(name, **told)
        lines = report.layer_lines(described)
    elif image_shape or classes or model_options:
        raise click.UsageError("name a network to describe it for other images, as resnet18")
    else:
        rows = []
        with terminal.stages() as progress:
            for done, each in enumerate(models.names()):
                progress(each, done, len(models.names()))
                rows.append(report.describe(each))
        described = {"models": [{k: v for k, v in row.items() if k != "layers"} for row in rows]}
        lines = report.table_lines(rows)
    if as_json:
        click.echo(json.dumps(described))
    else:
        click.echo("\n".join(lines))


@commands.group(invoke_without_command=True)
@click.pass_context
def bench(ctx: click.Context) -> None:
    """Measure this package against others on this machine.

    Without a command, the lecture's epoch is measured.

    \b
    Examples:
      dlc-jax bench
      dlc-jax bench lecture --rivals torch,flax --json
      dlc-jax bench ops --rounds 5
      dlc-jax bench cifar10 --seeds 3
      dlc-jax bench scaling
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(bench_lecture)


_results_dir = click.option(
    "--output-dir",
    metavar="DIR",
    default="benchmarks/results",
    show_default=True,
    help="Where to keep the results, a file a device, and their picture.",
)


class _Names(click.ParamType):  # type: ignore[type-arg]
    """Names with commas between them."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


@bench.command("lecture")
@click.option(
    "--epochs", type=_Integer(1), default=5, show_default=True, help="Rounds of an epoch each."
)
@click.option(
    "--rivals",
    type=_Names(),
    help="Of torch, torch-channels-last, torch-compile, flax, with commas between them.  "
    "[default: torch,flax, those of them that are installed]",
)
@click.option(
    "--seeds",
    type=_Integer(0),
    default=0,
    show_default=True,
    help="Also train so many networks at once.",
)
@click.option(
    "--arrays",
    metavar="FILE",
    help="An .npz file of x_train, y_train, x_test, y_test instead of TFDS's MNIST.",
)
@_data_dir
@_results_dir
@_json
def bench_lecture(
    epochs: int,
    rivals: tuple[str, ...] | None,
    seeds: int,
    arrays: str | None,
    data_dir: str | None,
    output_dir: str,
    as_json: bool,
) -> None:
    """Time epochs of the lecture's program against rivals.

    Each contender runs in a process of its own, and they take turns. Compiling is timed
    apart. PyTorch's 7 seconds for ten epochs on a GTX 1080 are the lecture's.

    \b
    Examples:
      dlc-jax bench lecture --rivals torch,flax --epochs 5
      dlc-jax bench lecture --arrays mnist.npz --seeds 64 --json
    """
    from dlc_jax import terminal
    from dlc_jax.benchmark import lecture, report
    from dlc_jax.files import make_folder

    make_folder(Path(output_dir))
    if rivals is None:
        rivals = lecture.installed(("torch", "flax"))
    if arrays:
        splits = lecture.read_arrays(Path(arrays))
    else:
        dataset = _load(_DEFAULT_DATASET, data_dir)
        splits = dataset.train, dataset.test
    with terminal.stages() as progress:
        results = lecture.run(splits, epochs=epochs, rivals=rivals, seeds=seeds, report=progress)
    kept = report.keep_lecture(Path(output_dir), results)
    _print_bench(report.lecture_lines(results), kept, results, as_json)


@bench.command("cifar10")
@click.option(
    "--recipe",
    metavar="NAME",
    help="What to train and how.  [default: cifar10-cpu on a CPU, else cifar10-fast]",
)
@click.option(
    "--seeds", type=_Integer(1), default=3, show_default=True, help="How many, from 0 on."
)
@click.option(
    "--target",
    type=_PositiveNumber(),
    help="Accuracy in percent that their mean should reach.  [default: 90 on a CPU, else 94]",
)
@click.option("--epochs", type=_Integer(1), help="Passes over the training images.")
@click.option(
    "--arrays",
    metavar="FILE",
    help="An .npz file of x_train, y_train, x_test, y_test instead of TFDS's CIFAR-10.",
)
@_data_dir
@_results_dir
@_json
def bench_cifar10(
    recipe: str | None,
    seeds: int,
    target: float | None,
    epochs: int | None,
    arrays: str | None,
    data_dir: str | None,
    output_dir: str,
    as_json: bool,
) -> None:
    """Time how long it takes to learn CIFAR-10 to an accuracy.

    Compiling is timed apart, and accuracies stand beside the times.

    \b
    Examples:
      dlc-jax bench cifar10
      dlc-jax bench cifar10 --recipe cifar10-fast --seeds 20 --arrays cifar10.npz --json
    """
    import dataclasses

    import jax

    from dlc_jax import recipes, terminal
    from dlc_jax.benchmark import cifar10, lecture, machine, report
    from dlc_jax.data import Dataset
    from dlc_jax.files import make_folder

    make_folder(Path(output_dir))
    on_cpu = jax.default_backend() == "cpu"
    name = recipe or ("cifar10-cpu" if on_cpu else "cifar10-fast")
    chosen = recipes.find(name)
    if chosen.dataset != "cifar10":
        raise InputError(f"the recipe {name} is not for CIFAR-10; take cifar10-cpu, for example")
    if epochs is not None:
        chosen = dataclasses.replace(chosen, epochs=epochs)
    if arrays:
        splits = lecture.read_arrays(Path(arrays), (32, 32, 3))
        labels = tuple(str(label) for label in range(10))
        dataset = Dataset("cifar10", "", *splits, labels, f"arrays in {arrays}")
    else:
        dataset = _load("cifar10", data_dir)
    with terminal.stages() as progress:
        results = cifar10.run(
            dataset,
            name,
            chosen,
            seeds=range(seeds),
            target=target if target is not None else 90.0 if on_cpu else 94.0,
            report=progress,
        )
    kept = machine.keep(Path(output_dir), "cifar10", results)
    _print_bench(report.cifar10_lines(results), [kept], results, as_json)


@bench.command("ops")
@click.option(
    "--rounds", type=_Integer(1), default=5, show_default=True, help="Of which medians are taken."
)
@click.option("--batch-size", type=_Integer(1), default=64, show_default=True, help="Images.")
@click.option(
    "--rivals",
    type=_Names(),
    default="torch",
    show_default=True,
    help="Of torch, torch-channels-last, xla, one-device (ours with the CPU as one device), with "
    "commas between them.",
)
@_results_dir
@_json
def bench_ops(
    rounds: int, batch_size: int, rivals: tuple[str, ...], output_dir: str, as_json: bool
) -> None:
    """Time the convolutions and poolings of a ResNet-18 and a VGG-16 against rivals.

    Forward pass and both gradients, on images of 32x32.

    \b
    Example:
      dlc-jax bench ops --rivals torch,xla
    """
    from dlc_jax import terminal
    from dlc_jax.benchmark import operations, report
    from dlc_jax.files import make_folder

    make_folder(Path(output_dir))
    with terminal.stages() as progress:
        results = operations.run(
            rounds=rounds, batch_size=batch_size, rivals=rivals, report=progress
        )
    kept = report.keep_operations(Path(output_dir), results)
    _print_bench(report.operations_lines(results), kept, results, as_json)


@bench.command("startup")
@click.option(
    "--rounds", type=_Integer(1), default=5, show_default=True, help="Of which medians are taken."
)
@_results_dir
@_json
def bench_startup(rounds: int, output_dir: str, as_json: bool) -> None:
    """Time importing, and a process from its start to its first training step.

    \b
    Example:
      dlc-jax bench startup --rounds 3
    """
    from dlc_jax import terminal
    from dlc_jax.benchmark import machine, report, startup
    from dlc_jax.files import make_folder

    make_folder(Path(output_dir))
    with terminal.stages() as progress:
        results = startup.run(rounds=rounds, report=progress)
    kept = machine.keep(Path(output_dir), "startup", results)
    _print_bench(report.startup_lines(results), [kept], results, as_json)


class _Counts(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers from 1 on with commas between them."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        counts = value.split(",")
        if not all(count.strip().isdecimal() and 1 <= int(count) <= 256 for count in counts):
            self.fail(
                f"{value} are not whole numbers from 1 to 256 with commas between them; give some "
                "such as 1,2,4",
                param,
                ctx,
            )
        return tuple(map(int, counts))


@bench.command("scaling")
@click.option(
    "--devices",
    type=_Counts(),
    default="1,2,4,8",
    show_default=True,
    help="As how many devices one process counts the CPU.",
)
@click.option(
    "--processes",
    type=_Counts(),
    default="1,2,4",
    show_default=True,
    help="How many processes of one device each.",
)
@click.option(
    "--batch-size",
    type=_Integer(1),
    default=96,
    show_default=True,
    help="Images an update, of each device and of all together; all must share it evenly.",
)
@click.option(
    "--images",
    type=_Integer(1),
    default=18432,
    show_default=True,
    help="In an epoch, at least.",
)
@click.option(
    "--rounds", type=_Integer(1), default=5, show_default=True, help="Of which medians are taken."
)
@click.option(
    "--networks",
    type=_Names(),
    default="lecture,resnet18,resnet50",
    show_default=True,
    help="Of which a step is measured for what is worked out on paper.",
)
@click.option(
    "--on-paper",
    metavar="FILE",
    help="Measure nothing: work on the results that an earlier run has kept in this file.",
)
@click.option(
    "--page",
    metavar="FILE",
    help="Also renew the tables of a page of Markdown, as benchmarks/README.md.",
)
@_results_dir
@_json
def bench_scaling(
    on_paper: str | None, page: str | None, output_dir: str, as_json: bool, **options: Any
) -> None:
    """Time data-parallel training by devices and processes, and work out what would bound it.

    The lecture network is trained by simulated devices of one process and by processes that are
    joined over loopback; then a step of it, of ResNet-18 and of ResNet-50 is timed on all cores.
    From that, from the bytes of their parameters and from published rates of interconnects follows
    at which number of devices communication would bound each. Takes some five minutes on two
    cores.

    \b
    Examples:
      dlc-jax bench scaling --page benchmarks/README.md
      dlc-jax bench scaling --devices 1,2 --processes 1,2 --networks lecture --rounds 3
      dlc-jax bench scaling --on-paper benchmarks/results/MACHINE-scaling.json
    """
    from dlc_jax import terminal
    from dlc_jax.benchmark import scaling, scaling_report
    from dlc_jax.files import make_folder

    if page is not None:
        scaling_report.check(Path(page))
    if on_paper is not None:
        results, kept = scaling.read(Path(on_paper)), [Path(on_paper)]
        lines = scaling_report.paper_lines(results)
    else:
        make_folder(Path(output_dir))
        with terminal.stages() as progress:
            results = scaling.run(**options, report=progress)
        kept = scaling_report.keep(Path(output_dir), results)
        lines = scaling_report.lines(results)
    if page is not None:
        scaling_report.renew(Path(page), results)
        kept = [*kept, Path(page)]
    _print_bench(lines, kept, results, as_json)


def _print_bench(
    lines: list[str], files: list[Path], results: dict[str, Any], as_json: bool
) -> None:
    for line in lines:
        click.echo(line)
    click.echo(f"results: {', '.join(map(str, files))}")
    if as_json:
        click.echo(json.dumps(results))
