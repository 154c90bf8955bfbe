"""The command line: parses arguments, calls functions of the package, and prints.

Elsewhere, only progress bars (`utils.progress_bar`, `training.epoch_bar`) and the message that
another process died (`sharding.processes`) are printed.
"""

import sys
from contextlib import suppress
from typing import NoReturn

import click

from dlc_jax.cli import evaluate, explain, listings, predict, stdio, train
from dlc_jax.cli.commands import commands
from dlc_jax.cli.errors import report_error
from dlc_jax.cli.output import BAD_INPUT, INTERRUPTED, warn
from dlc_jax.utils.environment import prepare_program
from dlc_jax.utils.signals import Terminated

__all__ = ["commands", "evaluate", "explain", "listings", "main", "predict", "train"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line. Errors are one line on standard error; bad input exits with code 2.

    Args:
      arguments: Arguments of the command; by default those of the process.
    """
    with stdio.usable():
        status = _run(arguments)
        error = stdio.flush(sys.stdout)
        if error is not None and not status:
            if not isinstance(error, BrokenPipeError):
                error.filename = "standard output"
            status = report_error(error) or BAD_INPUT
    sys.exit(status)


def _run(arguments: list[str] | None) -> int:
    """Runs a command, and returns the exit code."""
    try:
        # Must come before a command imports JAX, which then reads the environment variables.
        prepare_program()
        status = commands.main(arguments, prog_name="dlc-jax", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        with suppress(OSError):
            click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dlc-jax"
        warn(f"{error.format_message().rstrip('.')} (see {command} --help)")
        return BAD_INPUT
    except (click.Abort, KeyboardInterrupt) as error:
        # Click raises Abort from KeyboardInterrupt, of which Terminated is a subclass.
        if isinstance(error.__cause__ or error, Terminated):
            return 0
        warn("interrupted")
        return INTERRUPTED
    except Exception as error:
        status = report_error(error)
        if status is None:
            raise
        return status
