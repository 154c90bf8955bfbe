"""dlc-jax explain."""

from pathlib import Path

import click

from dlc_jax.cli.commands import commands
from dlc_jax.cli.loading import load_dataset_of
from dlc_jax.cli.options import as_is_option, data_dir_option, json_option
from dlc_jax.cli.output import escape_newlines, format_table, print_line, warn
from dlc_jax.cli.types import Integer, PathType
from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json


@commands.command()
@click.argument("method")
@click.argument("run", type=PathType())
@click.argument("images", nargs=-1, type=PathType(), metavar="[IMAGE]...")
@click.option(
    "--output-dir",
    type=PathType(),
    metavar="DIR",
    help="Folder for the pictures.  [default: RUN/explain]",
)
@click.option(
    "--transfer",
    type=PathType(),
    metavar="RUN",
    help="A second run: test whether adversarial images for one network mislead the other.",
)
@click.option(
    "--invert/--no-invert", default=None, help="Invert dark and bright, as for dlc-jax predict."
)
@as_is_option
@click.option("--seed", type=Integer(0), default=0, show_default=True, help="Random seed.")
@data_dir_option
@json_option
def explain(
    method: str,
    run: str,
    images: tuple[str, ...],
    output_dir: str | None,
    transfer: str | None,
    invert: bool | None,
    as_is: bool,
    seed: int,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Draw what the network of a run sees, and how it fails.

    METHOD is one of these, or all, which also writes one HTML file with all pictures:

    \b
      filters                  filters of the first layer, feature maps of all stages
      saliency                 gradients with respect to pixels: plain, guided, deconvnet
      deconvnet                parts of test images that excite feature maps most
      occlusion                probability of the class while a gray square covers a part
      grad-cam                 class activation maps
      activation-maximization  an image for each class, from noise
      deep-dream               images that excite a stage more
      adversarial              small changes that mislead: FGSM, PGD, L-BFGS
      fooling                  noise and patterns that are classified with confidence

    IMAGES are PNG, JPEG, WebP, GIF or BMP files of any size, read as by dlc-jax predict. By
    default, the first test image of each class is used.

    \b
    Examples:
      dlc-jax explain all runs/first
      dlc-jax explain grad-cam runs/first digit.png
      dlc-jax explain adversarial runs/first --transfer runs/second
    """
    from dlc_jax.explain import explain_run
    from dlc_jax.explain.report.methods import select_methods
    from dlc_jax.runs.folder import Run
    from dlc_jax.utils import progress_bar

    methods = select_methods(method)
    if transfer and "adversarial" not in methods:
        raise InputError(
            f"--transfer {transfer!r} is for adversarial, not for {method}; leave it out"
        )
    opened = Run.open(Path(run))
    dataset = load_dataset_of(opened.config, data_dir)
    with progress_bar.stages() as update:
        result = explain_run(
            opened,
            dataset,
            methods,
            images,
            output_dir=Path(output_dir) if output_dir else opened.folder / "explain",
            transfer_run=Run.open(Path(transfer)) if transfer else None,
            invert=invert,
            as_is=as_is,
            seed=seed,
            progress=update,
        )
    for name, reason in result["skipped"].items():
        warn(f"no {name}: {reason}")
    for table in result["tables"].values():
        print_line(format_table(table))
    for file in result["files"]:
        print_line(escape_newlines(file))
    if as_json:
        print_line(strict_json.dumps(result))
