"""Reports errors as one line and an exit code."""

import errno
import os
import re
import sys

from dlc_jax.cli import stdio
from dlc_jax.cli.output import BAD_INPUT, PEER_LOST, warn
from dlc_jax.errors import InputError, one_line
from dlc_jax.utils.environment import describe_unusable_jax

_ADVICE = {
    errno.ENOSPC: "; make room, and try again",
    errno.EDQUOT: "; make room, and try again",
    errno.EMFILE: "; allow more (ulimit -n), and try again",
}


def report_error(error: Exception) -> int | None:
    """Prints an error in one line, and returns the exit code; None for a bug of this program."""
    if isinstance(error, InputError):
        warn(str(error))
        if not error.raised_on_all_processes:
            _exit_without_peers(BAD_INPUT, error)
        return BAD_INPUT
    if isinstance(error, BrokenPipeError):
        # The reader of the output has ended, as `head` does after some lines.
        stdio.flush(sys.stdout)
        return 1
    if _is_peer_failure(error):
        from dlc_jax.sharding import processes

        warn(processes.peer_failure_message(one_line(error)))
        _exit_without_peers(PEER_LOST)
        return PEER_LOST
    message = _describe_system_error(error)
    if message is None:
        return None
    warn(message)
    _exit_without_peers(BAD_INPUT)
    return BAD_INPUT


def _describe_system_error(error: Exception) -> str | None:
    """Describes an error of the machine or its configuration; None for other errors."""
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
        details = f" ({one_line(error, 120)})" if str(error) else ""
        return f"there is too little memory{details}; use smaller batches or a smaller network"
    if isinstance(error, UnicodeError):
        return (
            f"a library can't read a name that is not UTF-8 ({one_line(error)}); rename the file "
            "or the folder"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "no more threads can be started; allow more (ulimit -u), and try again"
    if "jax" not in sys.modules:
        return _describe_jax_variable(error)
    return describe_unusable_jax()


def _describe_os_error(error: OSError) -> str:
    path = error.filename
    if path is None:
        # Errors of standard output have no file name; if flushing it fails too, it is the cause.
        path = "a file" if stdio.flush(sys.stdout) is None else "standard output"
    elif isinstance(path, int):
        path = f"descriptor {path}"
    advice = _ADVICE.get(error.errno or 0, "")
    return f"{error.strerror or one_line(error)}: {os.fsdecode(path)}{advice}"


def _describe_jax_variable(error: Exception) -> str | None:
    """Describes an environment variable whose value JAX rejected on import."""
    match = re.search(r"\bjax_\w+", str(error), re.IGNORECASE)
    if not match or not isinstance(error, ValueError):
        return None
    name = match[0].upper()
    value = os.environ.get(name, "")
    return f"{name}={value} can't be used ({one_line(error)}); correct or unset it"


def _is_peer_failure(error: Exception) -> bool:
    """Returns whether another process of a distributed run was lost."""
    if not isinstance(error, RuntimeError | ValueError):
        return False
    if "dlc_jax.sharding.processes" not in sys.modules:
        return False
    from dlc_jax.sharding import processes

    return processes.is_peer_failure(error)


def _exit_without_peers(status: int, error: Exception | None = None) -> None:
    """Exits at once if JAX would otherwise wait at exit for processes that did not fail."""
    if "dlc_jax.sharding.processes" not in sys.modules:
        return
    from dlc_jax.sharding import processes

    if isinstance(error, processes.PeersMissingError) or processes.has_peers():
        stdio.flush(sys.stdout)
        stdio.flush(sys.stderr)
        os._exit(status)
