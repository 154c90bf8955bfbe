"""What is told beside the results, and how commands end."""

import click

LOST, BAD_INPUT, INTERRUPTED = 1, 2, 130


def complain(message: str) -> None:
    """Says in one line, on standard error, what is wrong or not as it was asked for."""
    click.echo(f"dlc-jax: {' '.join(message.split())}", err=True)
