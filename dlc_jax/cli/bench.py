"""dlc-jax bench."""

from pathlib import Path
from typing import Any

import click

from dlc_jax.cli.group import commands
from dlc_jax.cli.loading import DEFAULT_DATASET, load
from dlc_jax.cli.options import data_dir_option, json_option, results_dir_option
from dlc_jax.cli.output import say
from dlc_jax.cli.types import Counts, Integer, Location, Names, PositiveNumber
from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json


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
      dlc-jax bench gpu
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(bench_lecture)


@bench.command("lecture")
@click.option(
    "--epochs", type=Integer(1), default=5, show_default=True, help="Rounds of an epoch each."
)
@click.option(
    "--rivals",
    type=Names(),
    help="Of torch, torch-channels-last, torch-compile, flax, with commas between them.  "
    "[default: torch,flax, those of them that are installed]",
)
@click.option(
    "--seeds",
    type=Integer(0),
    default=0,
    show_default=True,
    help="Also train so many networks at once.",
)
@click.option(
    "--arrays",
    type=Location(),
    metavar="FILE",
    help="An .npz file of x_train, y_train, x_test, y_test instead of TFDS's MNIST.",
)
@data_dir_option
@results_dir_option
@json_option
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
    from dlc_jax.benchmark import lecture, report
    from dlc_jax.cli import progress
    from dlc_jax.utils.files import make_folder

    make_folder(Path(output_dir))
    if rivals is None:
        rivals = lecture.installed(("torch", "flax"))
    if arrays:
        splits = lecture.read_arrays(Path(arrays))
    else:
        dataset = load(DEFAULT_DATASET, data_dir)
        splits = dataset.train, dataset.test
    with progress.stages() as bar:
        results = lecture.run(splits, epochs=epochs, rivals=rivals, seeds=seeds, report=bar)
    kept = report.keep_lecture(Path(output_dir), results)
    _print_bench(report.lecture_lines(results), kept, results, as_json)


@bench.command("cifar10")
@click.option(
    "--recipe",
    metavar="NAME",
    help="What to train and how.  [default: cifar10-cpu on a CPU, else cifar10-fast]",
)
@click.option("--seeds", type=Integer(1), default=3, show_default=True, help="How many, from 0 on.")
@click.option(
    "--target",
    type=PositiveNumber(),
    help="Accuracy in percent that their mean should reach.  [default: 90 on a CPU, else 94]",
)
@click.option("--epochs", type=Integer(1), help="Passes over the training images.")
@click.option(
    "--arrays",
    type=Location(),
    metavar="FILE",
    help="An .npz file of x_train, y_train, x_test, y_test instead of TFDS's CIFAR-10.",
)
@data_dir_option
@results_dir_option
@json_option
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

    from dlc_jax.benchmark import cifar10, lecture, machine, report
    from dlc_jax.cli import progress
    from dlc_jax.data import Dataset
    from dlc_jax.runs import recipes
    from dlc_jax.utils.files import make_folder

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
        dataset = load("cifar10", data_dir)
    with progress.stages() as bar:
        results = cifar10.run(
            dataset,
            name,
            chosen,
            seeds=range(seeds),
            target=target if target is not None else 90.0 if on_cpu else 94.0,
            report=bar,
        )
    kept = machine.keep(Path(output_dir), "cifar10", results)
    _print_bench(report.cifar10_lines(results), [kept], results, as_json)


@bench.command("ops")
@click.option(
    "--rounds", type=Integer(1), default=5, show_default=True, help="Of which medians are taken."
)
@click.option("--batch-size", type=Integer(1), default=64, show_default=True, help="Images.")
@click.option(
    "--rivals",
    type=Names(),
    default="torch",
    show_default=True,
    help="Of torch, torch-channels-last, xla, one-device (ours with the CPU as one device), with "
    "commas between them.",
)
@results_dir_option
@json_option
def bench_ops(
    rounds: int, batch_size: int, rivals: tuple[str, ...], output_dir: str, as_json: bool
) -> None:
    """Time the convolutions and poolings of a ResNet-18 and a VGG-16 against rivals.

    Forward pass and both gradients, on images of 32x32.

    \b
    Example:
      dlc-jax bench ops --rivals torch,xla
    """
    from dlc_jax.benchmark import operations, report
    from dlc_jax.cli import progress
    from dlc_jax.utils.files import make_folder

    make_folder(Path(output_dir))
    with progress.stages() as bar:
        results = operations.run(rounds=rounds, batch_size=batch_size, rivals=rivals, report=bar)
    kept = report.keep_operations(Path(output_dir), results)
    _print_bench(report.operations_lines(results), kept, results, as_json)


@bench.command("gpu")
@click.option(
    "--budget",
    type=PositiveNumber(),
    default=480,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take in all.",
)
@click.option("--only", type=Names(), help="Some of the parts, with commas between them.")
@click.option(
    "--arrays",
    type=Location(),
    metavar="FOLDER",
    help="Exported datasets, mnist-*.npz and cifar10-*.npz, instead of TFDS's.",
)
@click.option("--rehearse", is_flag=True, help="Run everything tiny, on any device.")
@click.option(
    "--profile",
    type=Location(),
    metavar="FOLDER",
    help="Also profile, and keep the profiles here.",
)
@results_dir_option
@json_option
def bench_gpu(
    budget: float,
    only: tuple[str, ...] | None,
    arrays: str | None,
    rehearse: bool,
    profile: str | None,
    output_dir: str,
    as_json: bool,
) -> None:
    """Measure a GPU: the lecture's ten epochs, CIFAR-10 in seconds, ResNet-50, and more.

    The parts run in order of worth, each in a process of its own, until the budget is spent:
    lecture, cifar10, seeds, throughput, operations, correctness, resnet20, resnet18. Results are
    written after each part; parts measured earlier on the same device are kept.

    \b
    Examples:
      dlc-jax bench gpu
      dlc-jax bench gpu --only lecture,cifar10 --arrays exported --budget 240
      dlc-jax bench gpu --rehearse
    """
    from dlc_jax.benchmark.gpu import report, suite
    from dlc_jax.cli import progress
    from dlc_jax.utils.files import make_folder

    make_folder(Path(output_dir))
    with progress.stages() as bar:
        results, kept = suite.run(
            budget=budget,
            output_dir=Path(output_dir),
            folder=Path(arrays) if arrays else None,
            only=only or (),
            rehearse=rehearse,
            profile=Path(profile) if profile else None,
            report=bar,
        )
    lines = report.markdown(results).splitlines() if results else []
    _print_bench(lines, kept, results, as_json)


@bench.command("startup")
@click.option(
    "--rounds", type=Integer(1), default=5, show_default=True, help="Of which medians are taken."
)
@results_dir_option
@json_option
def bench_startup(rounds: int, output_dir: str, as_json: bool) -> None:
    """Time importing, and a process from its start to its first training step.

    \b
    Example:
      dlc-jax bench startup --rounds 3
    """
    from dlc_jax.benchmark import machine, report, startup
    from dlc_jax.cli import progress
    from dlc_jax.utils.files import make_folder

    make_folder(Path(output_dir))
    with progress.stages() as bar:
        results = startup.run(rounds=rounds, report=bar)
    kept = machine.keep(Path(output_dir), "startup", results)
    _print_bench(report.startup_lines(results), [kept], results, as_json)


@bench.command("scaling")
@click.option(
    "--devices",
    type=Counts(),
    default="1,2,4,8",
    show_default=True,
    help="As how many devices one process counts the CPU.",
)
@click.option(
    "--processes",
    type=Counts(),
    default="1,2,4",
    show_default=True,
    help="How many processes of one device each.",
)
@click.option(
    "--batch-size",
    type=Integer(1),
    default=96,
    show_default=True,
    help="Images an update, of each device and of all together; all must share it evenly.",
)
@click.option(
    "--images",
    type=Integer(1),
    default=18432,
    show_default=True,
    help="In an epoch, at least.",
)
@click.option(
    "--rounds", type=Integer(1), default=5, show_default=True, help="Of which medians are taken."
)
@click.option(
    "--networks",
    type=Names(),
    default="lecture,resnet18,resnet50",
    show_default=True,
    help="Of which a step is measured for what is worked out on paper.",
)
@click.option(
    "--on-paper",
    type=Location(),
    metavar="FILE",
    help="Measure nothing: work on the results that an earlier run has kept in this file.",
)
@click.option(
    "--page",
    type=Location(),
    metavar="FILE",
    help="Also renew the tables of a page of Markdown, as benchmarks/README.md.",
)
@results_dir_option
@json_option
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
    from dlc_jax.benchmark import scaling, scaling_report
    from dlc_jax.cli import progress
    from dlc_jax.utils.files import make_folder

    if page is not None:
        scaling_report.check(Path(page))
    if on_paper is not None:
        results, kept = scaling.read(Path(on_paper)), [Path(on_paper)]
        lines = scaling_report.paper_lines(results)
    else:
        make_folder(Path(output_dir))
        with progress.stages() as bar:
            results = scaling.run(**options, report=bar)
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
        say(line)
    say(f"results: {', '.join(map(str, files))}")
    if as_json:
        say(strict_json.dumps(results))
