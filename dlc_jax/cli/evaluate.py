"""dlc-jax eval."""

from pathlib import Path

import click

from dlc_jax.cli.commands import commands
from dlc_jax.cli.loading import load_dataset_of
from dlc_jax.cli.options import data_dir_option, json_option
from dlc_jax.cli.output import print_line
from dlc_jax.cli.types import PathType
from dlc_jax.utils import strict_json
from dlc_jax.utils.text import printable


@commands.command("eval")
@click.argument("runs", nargs=-1, required=True, type=PathType(), metavar="RUN...")
@data_dir_option
@json_option
def evaluate(runs: tuple[str, ...], data_dir: str | None, as_json: bool) -> None:
    """Test the network of a run on the test images of its dataset.

    The networks of several runs are tested as an ensemble, which averages their probabilities.

    \b
    Examples:
      dlc-jax eval runs/first
      dlc-jax eval runs/first-seed0 runs/first-seed1 runs/first-seed2
    """
    from dlc_jax.runs import evaluate
    from dlc_jax.runs.folder import Run

    opened = [Run.open(Path(run)) for run in runs]
    result = evaluate(opened, load_dataset_of(opened[0].config, data_dir))
    if as_json:
        print_line(strict_json.dumps(result))
        return
    print_line(
        f"test error {result['test_error_percent']:.2f} %, loss {result['test_loss']:.4f}, "
        f"on {result['test_images']:,} test images of {result['dataset']}"
    )
    for name, error in result["error_percent_by_class"].items():
        value = "no images" if error is None else f"{error:6.2f} %"
        print_line(f"  {printable(name):12} {value}")
