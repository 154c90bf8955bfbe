"""dlc-jax predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlc_jax.cli.commands import commands
from dlc_jax.cli.options import as_is_option, json_option
from dlc_jax.cli.output import escape_newlines, print_line
from dlc_jax.cli.types import PathType
from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json
from dlc_jax.utils.text import printable

if TYPE_CHECKING:
    from dlc_jax.data.image_files import Picture

_MAX_SHOWN = 200


@commands.command()
@click.argument("run", type=PathType())
@click.argument("images", nargs=-1, required=True, type=PathType(), metavar="IMAGE...")
@click.option(
    "--invert/--no-invert",
    default=None,
    help="Invert dark and bright.  [default: invert if the training images are bright on dark and "
    "the picture's border is bright]",
)
@as_is_option
@click.option(
    "--show",
    type=PathType(),
    metavar="FILE.png",
    help=f"Draw the first {_MAX_SHOWN} pictures, the network's inputs, and its predictions.",
)
@json_option
def predict(
    run: str,
    images: tuple[str, ...],
    invert: bool | None,
    as_is: bool,
    show: str | None,
    as_json: bool,
) -> None:
    """Classify pictures with the network of a run.

    Pictures are PNG, JPEG, WebP, GIF or BMP files of any size. For a network trained on MNIST,
    photographs of handwritten digits are preprocessed as MNIST was: the background is removed,
    and the digit is found, scaled and centered.

    \b
    Examples:
      dlc-jax predict runs/first photo.jpg digit.png
      dlc-jax predict runs/first photo.jpg --show predictions.png
    """
    from dlc_jax import runs
    from dlc_jax.runs.folder import Run
    from dlc_jax.utils import progress_bar

    if show:
        _check_figure_path(show)
    opened = Run.open(Path(run))
    shown: list[Picture] = []

    def on_picture(picture: "Picture") -> None:
        if show and len(shown) < _MAX_SHOWN:
            shown.append(picture)

    with progress_bar.counting("pictures") as update:
        predictions = runs.predict(
            opened,
            opened.load_model(),
            images,
            invert=invert,
            as_is=as_is,
            on_picture=on_picture,
            progress=update,
        )
    if show:
        from dlc_jax.runs import plots

        pairs = [(picture.original, picture.pixels) for picture in shown]
        plots.save(plots.predictions(pairs, predictions[: len(pairs)]), Path(show))
    if as_json:
        print_line(strict_json.dumps({"run": run, "predictions": predictions}))
        return
    for prediction in predictions:
        print_line(_format_prediction(prediction))


def _check_figure_path(path: str) -> None:
    if not path.lower().endswith(".png"):
        raise InputError(f"--show {path!r} is not the name of a PNG file; end it with .png")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"--show {path!r} is in a folder that does not exist; create it first")


def _format_prediction(prediction: dict[str, Any]) -> str:
    best, *others = (
        f"{printable(name)} {100 * probability:.1f} %"
        for name, probability in [*prediction["probabilities"].items()][:3]
    )
    note = "; inverted" if prediction["inverted"] else ""
    return f"{escape_newlines(prediction['image'])}: {best}  ({', '.join(others)}{note})"
