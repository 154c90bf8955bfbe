"""What the commands belong to."""

import click

from dlc_jax import __version__


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
