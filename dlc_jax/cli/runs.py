"""What is asked of a run that there is: dlc-jax eval, predict and explain."""

from pathlib import Path

import click

from dlc_jax.cli.group import commands
from dlc_jax.cli.loading import load_again
from dlc_jax.cli.options import as_is_option, data_dir_option, json_option
from dlc_jax.cli.output import complain, of_one_line, say
from dlc_jax.cli.types import Integer, Location
from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json
from dlc_jax.utils.text import printable


@commands.command("eval")
@click.argument("runs", nargs=-1, required=True, type=Location(), metavar="RUN...")
@data_dir_option
@json_option
def evaluate(runs: tuple[str, ...], data_dir: str | None, as_json: bool) -> None:
    """Test a run's network again, on the data that it was trained for.

    Several runs' networks are tested as one, whose probabilities are the mean of theirs.

    \b
    Examples:
      dlc-jax eval runs/first
      dlc-jax eval runs/first-seed0 runs/first-seed1 runs/first-seed2
    """
    from dlc_jax import runs
    from dlc_jax.runs.folder import Run

    opened = [Run.open(Path(run)) for run in runs]
    dataset = load_again(opened[0].config, data_dir)
    result = runs.evaluate(opened, dataset)
    if not as_json:
        say(
            f"test error {result['test_error_percent']:.2f} %, loss {result['test_loss']:.4f}, "
            f"on {result['test_images']:,} test images of {result['dataset']}"
        )
        for name, error in result["error_percent_by_class"].items():
            told = "no images" if error is None else f"{error:6.2f} %"
            say(f"  {printable(name):12} {told}")
    else:
        say(strict_json.dumps(result))


@commands.command()
@click.argument("run", type=Location())
@click.argument("images", nargs=-1, required=True, type=Location(), metavar="IMAGE...")
@click.option(
    "--invert/--no-invert",
    default=None,
    help="Turn dark into bright.  [default: where the network learned bright on dark, and "
    "the picture's border is bright]",
)
@as_is_option
@click.option(
    "--show",
    type=Location(),
    metavar="FILE.png",
    help="Draw each picture (the first 200), what the network gets of it, and its answers.",
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
    """Ask a run's network what is in pictures.

    They are PNG, JPEG, WebP, GIF or BMP files of any size. For a network trained on MNIST,
    photographs of handwritten digits are brought into MNIST's form: the paper is evened out, and
    the digit is found, scaled and centred.

    \b
    Examples:
      dlc-jax predict runs/first photo.jpg digit.png
      dlc-jax predict runs/first photo.jpg --show seen.png
    """
    from dlc_jax import runs
    from dlc_jax.cli import progress
    from dlc_jax.data.images import Picture
    from dlc_jax.runs.folder import Run

    if show and not show.lower().endswith(".png"):
        raise InputError(f"--show {show!r} is no name of a PNG file; end it with .png")
    if show and not Path(show).absolute().parent.is_dir():
        raise InputError(f"--show {show!r} is in a folder that does not exist; make it first")
    opened = Run.open(Path(run))
    shown: list[Picture] = []

    def keep(picture: Picture) -> None:
        if show and len(shown) < 200:
            shown.append(picture)

    with progress.counting("pictures") as bar:
        predictions = runs.predict(
            opened, opened.model(), images, invert=invert, as_is=as_is, seen=keep, progress=bar
        )
    if show:
        from dlc_jax.runs import plots

        pairs = [(picture.original, picture.pixels) for picture in shown]
        plots.save(plots.answers(pairs, predictions[: len(pairs)]), Path(show))
    if as_json:
        say(strict_json.dumps({"run": run, "predictions": predictions}))
        return
    for prediction in predictions:
        first, *others = list(prediction["probabilities"].items())[:3]
        also = ", ".join(f"{printable(name)} {100 * p:.1f} %" for name, p in others)
        note = "; inverted" if prediction["inverted"] else ""
        best = f"{printable(first[0])} {100 * first[1]:.1f} %"
        say(f"{of_one_line(prediction['image'])}: {best}  ({also}{note})")


@commands.command()
@click.argument("method")
@click.argument("run", type=Location())
@click.argument("images", nargs=-1, type=Location(), metavar="[IMAGE]...")
@click.option(
    "--output-dir",
    type=Location(),
    metavar="DIR",
    help="Where to write pictures.  [default: RUN/explain]",
)
@click.option(
    "--transfer",
    type=Location(),
    metavar="RUN",
    help="A second run: do adversarial images made for one network mislead the other?",
)
@click.option(
    "--invert/--no-invert", default=None, help="Turn dark into bright, as dlc-jax predict does."
)
@as_is_option
@click.option(
    "--seed", type=Integer(0), default=0, show_default=True, help="Of all that is random."
)
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

    IMAGES are PNG, JPEG, WebP, GIF or BMP files of any size, read as dlc-jax predict does;
    without any, the first test image of each class is taken.

    \b
    Examples:
      dlc-jax explain all runs/first
      dlc-jax explain grad-cam runs/first digit.png
      dlc-jax explain adversarial runs/first --transfer runs/second
    """
    from dlc_jax import runs
    from dlc_jax.cli import progress
    from dlc_jax.explain.report import methods
    from dlc_jax.runs.folder import Run

    chosen = methods.find(method)
    if transfer and "adversarial" not in chosen:
        raise InputError(f"--transfer {transfer!r} is for adversarial images, not for {method}")
    opened = Run.open(Path(run))
    other = Run.open(Path(transfer)) if transfer else None
    dataset = load_again(opened.config, data_dir)
    with progress.stages() as bar:
        result = runs.explain(
            opened,
            dataset,
            chosen,
            images,
            folder=Path(output_dir) if output_dir else opened.folder / "explain",
            other=other,
            invert=invert,
            as_is=as_is,
            seed=seed,
            progress=bar,
        )
    for name, refusal in result["refusals"].items():
        complain(f"no {name}: {refusal}")
    for table in result["tables"].values():
        say(progress.table(table))
    for file in result["files"]:
        say(of_one_line(file))
    if as_json:
        say(strict_json.dumps(result))
