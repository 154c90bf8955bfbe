"""The group of all commands."""

import click

from dlc_jax import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dlc-jax")
def commands() -> None:
    """Train, test and explain convolutional networks in JAX.

    \b
    Examples:
      dlc-jax train                        train the lecture's network on MNIST
      dlc-jax eval runs/NAME               test a trained network
      dlc-jax predict runs/NAME digit.png  classify a picture of your own
      dlc-jax explain all runs/NAME        show what a network sees, and how it fails
      dlc-jax models                       list the networks, since 1943
    """
