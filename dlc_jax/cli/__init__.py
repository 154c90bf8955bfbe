"""The command line: the only place that parses arguments and prints."""

import errno
import os
import sys
from typing import NoReturn

import click

from dlc_jax.cli import bench, lists, runs, train
from dlc_jax.cli.group import commands
from dlc_jax.cli.output import BAD_INPUT, INTERRUPTED, LOST, complain
from dlc_jax.environment import prepare_jax
from dlc_jax.errors import InputError, one_line
from dlc_jax.interruption import Terminated

__all__ = ["bench", "commands", "lists", "main", "runs", "train"]


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
        status = BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dlc-jax"
        complain(f"{error.format_message().rstrip('.')} (see {command} --help)")
        status = BAD_INPUT
    except InputError as error:
        complain(str(error))
        status = BAD_INPUT
        if not error.common:
            _leave_others(status, error)
    except (click.Abort, KeyboardInterrupt) as error:
        # Click makes an Abort of what interrupts. Of SIGTERM whoever keeps the run has said how
        # to go on with it.
        if isinstance(error.__cause__ or error, Terminated):
            status = 0
        else:
            complain("interrupted")
            status = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        advice = "; make room, and try again" if error.errno == errno.ENOSPC else ""
        complain(f"{error.strerror or error}: {error.filename or 'a file'}{advice}")
        status = BAD_INPUT
        _leave_others(status)
    except (RuntimeError, ValueError) as error:
        if not _is_loss(error):
            raise
        from dlc_jax import hosts

        complain(hosts.loss(one_line(error)))
        _leave_others(LOST)
    sys.exit(status if isinstance(status, int) else 0)


def _is_loss(error: Exception) -> bool:
    """Whether it tells that one of several processes has been lost."""
    if "dlc_jax.hosts" not in sys.modules:
        return False
    from dlc_jax import hosts

    return hosts.is_loss(error)


def _leave_others(status: int, error: Exception | None = None) -> None:
    """Exits at once where other processes, that know of no failure, would be waited for."""
    if "dlc_jax.hosts" not in sys.modules:
        return
    from dlc_jax import hosts

    if isinstance(error, hosts.NotJoined) or hosts.are_waiting():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
