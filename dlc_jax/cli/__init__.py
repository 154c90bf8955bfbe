"""The command line: the only place that parses arguments and prints."""

import errno
import os
import re
import sys
from contextlib import suppress
from typing import NoReturn

import click

from dlc_jax.cli import bench, listings, runs, standard_streams, train
from dlc_jax.cli.group import commands
from dlc_jax.cli.output import BAD_INPUT, INTERRUPTED, LOST, complain
from dlc_jax.errors import InputError, one_line
from dlc_jax.utils.environment import prepare_program, why_unusable
from dlc_jax.utils.signals import Terminated

__all__ = ["bench", "commands", "listings", "main", "runs", "train"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line; bad input is one line on standard error and exit code 2.

    Args:
      arguments: what stands after the command's name; by default what the user typed.
    """
    with standard_streams.usable():
        status = _run(arguments)
        failure = standard_streams.settle(sys.stdout)
        if failure is not None and not status:
            if not isinstance(failure, BrokenPipeError):
                failure.filename = "standard output"
            status = _told(failure) or BAD_INPUT
    sys.exit(status)


def _run(arguments: list[str] | None) -> int:
    """Runs a command, and returns the exit code."""
    try:
        prepare_program()
        status = commands.main(arguments, prog_name="dlc-jax", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        # Where it can't be said, the exit code tells.
        with suppress(OSError):
            click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        status = BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dlc-jax"
        complain(f"{error.format_message().rstrip('.')} (see {command} --help)")
        status = BAD_INPUT
    except (click.Abort, KeyboardInterrupt) as error:
        # Click makes an Abort of what interrupts. Of SIGTERM whoever keeps the run has said how
        # to go on with it.
        if isinstance(error.__cause__ or error, Terminated):
            status = 0
        else:
            complain("interrupted")
            status = INTERRUPTED
    except Exception as error:
        known = _told(error)
        if known is None:
            raise
        status = known
    return status if isinstance(status, int) else 0


def _told(error: Exception) -> int | None:
    """Says what is wrong, and returns the exit code; None where it is a defect of this program."""
    if isinstance(error, InputError):
        complain(str(error))
        if not error.raised_on_all_processes:
            _leave_others(BAD_INPUT, error)
        return BAD_INPUT
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone, and wants no more.
        standard_streams.settle(sys.stdout)
        return 1
    if isinstance(error, (RuntimeError, ValueError)) and _is_loss(error):
        from dlc_jax.sharding import processes

        complain(processes.peer_failure_message(one_line(error)))
        _leave_others(LOST)
        return LOST
    cause = _surroundings(error)
    if cause is None:
        return None
    complain(cause)
    _leave_others(BAD_INPUT)
    return BAD_INPUT


def _surroundings(error: Exception) -> str | None:
    """What of the machine, or of how it is set up, an error is about; None where it is not."""
    if isinstance(error, OSError):
        advice = {
            errno.ENOSPC: "; make room, and try again",
            errno.EDQUOT: "; make room, and try again",
            errno.EMFILE: "; allow more (ulimit -n), and try again",
        }.get(error.errno or 0, "")
        where = error.filename
        if where is None:
            # What could not be printed can't be now, either.
            where = "a file" if standard_streams.settle(sys.stdout) is None else "standard output"
        elif isinstance(where, int):
            where = f"descriptor {where}"
        return f"{error.strerror or one_line(error)}: {os.fsdecode(where)}{advice}"
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
        told = f" ({one_line(error, 120)})" if str(error) else ""
        return f"there is too little memory{told}; take a smaller batch or a smaller network"
    if isinstance(error, UnicodeError):
        return (
            f"a library can't take a name that is not UTF-8 ({one_line(error)}); rename the file "
            "or the folder"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "no more threads can be started; allow more (ulimit -u), and try again"
    if "jax" not in sys.modules:
        named = re.search(r"\bjax_\w+", str(error), re.IGNORECASE)
        if named and isinstance(error, ValueError):
            name = named[0].upper()
            return (
                f"{name}={os.environ.get(name, '')} can't be used ({one_line(error)}); mend or "
                "unset it"
            )
        return None
    # Whatever JAX raises where there is no device for it.
    return why_unusable()


def _is_loss(error: Exception) -> bool:
    """Whether it tells that one of several processes has been lost."""
    if "dlc_jax.sharding.processes" not in sys.modules:
        return False
    from dlc_jax.sharding import processes

    return processes.is_peer_failure(error)


def _leave_others(status: int, error: Exception | None = None) -> None:
    """Exits at once where other processes, that know of no failure, would be waited for."""
    if "dlc_jax.sharding.processes" not in sys.modules:
        return
    from dlc_jax.sharding import processes

    if isinstance(error, processes.PeersMissing) or processes.has_peers():
        standard_streams.settle(sys.stdout)
        standard_streams.settle(sys.stderr)
        os._exit(status)
