"""Training in several processes, on one machine or on many, connected by JAX's distributed runtime.

All processes run the same program on the same arrays. Only the primary process, number 0, writes
files and prints.
"""

import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dlc_jax.errors import InputError, one_line
from dlc_jax.utils import strict_json
from dlc_jax.utils.signals import Terminated, defer_signals, ignore_signals
from dlc_jax.utils.text import truncate

# With JAX's default, 100 s, the others would wait for a dead process for more than a minute.
_HEARTBEAT_SECONDS = 30
_SHUTDOWN_SECONDS = 30
_GRACE_SECONDS = 2
# JAX's runtime logs E1127 01:34:21.309322 ... client.h:86] ... when it loses a process.
_PEER_LOSS_LOG = re.compile(rb"[WEF]\d{4} [\d:.]+ +\d+ (coordination|client\.h|preemption)")
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
_SUCCESS, _FAILURE = b"+", b"-"
# Prefixes of the messages of communication errors.
_ERROR_PREFIXES = (
    "UNKNOWN: ",
    "INTERNAL: ",
    "ABORTED: ",
    "UNAVAILABLE: ",
    "DEADLINE_EXCEEDED: ",
)


class PeersMissingError(InputError):
    """Raised when other processes did not connect in time; this one can no longer use JAX."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = 300,
) -> None:
    """Connects this process to the others; call it before anything else that uses JAX.

    Without arguments JAX detects the others: under SLURM, Open MPI and Kubernetes, and on TPU
    pods. If a process dies, the others end within a minute. Where JAX aborts them, they end with
    one line on standard error and exit code 1 if `redirect_library_output` was called before.

    Args:
      coordinator_address: HOST:PORT of the primary process.
      num_processes: Number of processes.
      process_id: Number of this process, starting at 0.
      timeout_seconds: Time to wait for all processes, in seconds.

    Raises:
      InputError: The arguments are wrong or missing, or (`PeersMissingError`) not all processes
        connected in time.
    """
    _check_arguments(coordinator_address, num_processes, process_id)
    # JAX's preemption service would handle SIGTERM, which would then not end the process.
    preemption = jax.config.jax_enable_preemption_service
    jax.config.update("jax_enable_preemption_service", False)
    try:
        _connect(coordinator_address, num_processes, process_id, timeout_seconds)
    except PeersMissingError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"can't connect the processes ({one_line(error, 500)}); give the coordinator's "
            "address, the number of processes, and the number of this one"
        ) from error
    finally:
        jax.config.update("jax_enable_preemption_service", preemption)


def _connect(
    address: str | None, num_processes: int | None, process_id: int | None, timeout_seconds: int
) -> None:
    """Connects to the others, in a thread: at a timeout JAX would abort, and ignore Ctrl-C."""
    failures: list[BaseException] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                address,
                num_processes,
                process_id,
                initialization_timeout=timeout_seconds + 3600,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if thread.is_alive():
        raise PeersMissingError(
            f"not all processes connected within {timeout_seconds} s; start all of them, with the "
            "same coordinator address and the same number of processes"
        )
    if failures:
        raise failures[0]


def peer_failure_message(reason: str) -> str:
    """Returns the error message for a lost connection to another process."""
    return (
        f"the connection to another process was lost ({reason}); if a process has died, start all "
        "of them again and resume the run (--resume RUN)"
    )


def _check_arguments(
    address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    host, _, port = (address or "host:1").rpartition(":")
    if not (host and port.isdecimal() and 1 <= int(port) <= 65535):
        raise InputError(
            f"{address!r} is not the address of a process; give HOST:PORT, such as 10.0.0.1:1234"
        )
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise InputError(
            f"process_id={process_id} is out of range for {num_processes} processes; use 0 to "
            f"{num_processes - 1}"
        )


def is_peer_failure(error: BaseException) -> bool:
    """Returns whether JAX raised an error because it lost another process."""
    # Programs that block when they are called raise a ValueError instead.
    is_jax_error = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
    return has_peers() and is_jax_error and str(error).startswith(_ERROR_PREFIXES)


def redirect_library_output() -> None:
    """Redirects the output of libraries to standard error; call it before `initialize`.

    Only Python writes to standard output. When JAX's runtime loses another process, it would print
    a stack trace and abort; instead, this process ends with one line and exit code 1.
    """
    output, errors = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    os.close(writer)
    sys.stdout = os.fdopen(output, "w", buffering=1)
    sys.stderr = os.fdopen(errors, "w", buffering=1)
    threading.Thread(target=_forward, args=(reader, errors), daemon=True).start()
    with suppress(OSError, TypeError, AttributeError):  # CDLL(None) fails on Windows
        library = ctypes.CDLL(None)
        library.signal.argtypes = ctypes.c_int, ctypes.c_void_p
        library.signal.restype = ctypes.c_void_p
        library.signal(signal.SIGABRT, ctypes.cast(_ABORT_HANDLER, ctypes.c_void_p))


def _forward(reader: int, errors: int) -> None:
    """Copies lines to standard error, up to the first message about a lost process."""
    with os.fdopen(reader, "rb") as lines:
        lost = False
        for line in lines:
            lost = lost or bool(_PEER_LOSS_LOG.match(line))
            if not lost:
                os.write(errors, line)


def _exit_on_abort(number: int) -> None:
    """Ends the process; called in the thread that aborts."""
    # The main thread usually gets an error as well, whose message says more.
    time.sleep(_GRACE_SECONDS)
    message = peer_failure_message("JAX's runtime aborted")
    with suppress(OSError, ValueError):
        print(f"dlc-jax: {message}", file=sys.stderr, flush=True)
    os._exit(1)


_ABORT_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_exit_on_abort)


def has_peers() -> bool:
    """Returns whether this is one of several connected processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Returns whether this process writes the results, as a single process does."""
    return jax.process_index() == 0


def broadcast_from_primary(make: Callable[[], bytes]) -> bytes:
    """Calls a function in the primary process, and returns its result in all processes.

    Raises:
      InputError: In all processes, if the function raises one.

    Example:
      >>> broadcast_from_primary(lambda: b"content")
      b'content'
    """
    if jax.process_count() == 1:
        return make()
    content, failure = b"", None
    if is_primary():
        try:
            content = _SUCCESS + make()
        except InputError as error:
            content, failure = _FAILURE + str(error).encode(), error
    content = _broadcast(content)
    if content.startswith(_FAILURE):
        failure = failure or InputError(content.removeprefix(_FAILURE).decode())
        failure.raised_on_all_processes = True
        raise failure
    return content.removeprefix(_SUCCESS)


def _broadcast(content: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(size, np.uint8)
    if is_primary():
        padded[:] = np.frombuffer(content, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded)))


@contextmanager
def primary_first() -> Iterator[None]:
    """Lets the primary process leave the context before the others enter it.

    Example:
      >>> with primary_first():
      ...     print("download")
      download
    """
    if not is_primary():
        _barrier()
    try:
        yield
    finally:
        if is_primary():
            _barrier()


def _barrier() -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dlc_jax")


@contextmanager
def synchronized_shutdown() -> Iterator[Callable[[], None]]:
    """Makes Ctrl-C and SIGTERM end all processes at the same point.

    In a single process the signals raise at once, as usual. Several processes must enter and leave
    the context together. After the first signal further ones are ignored: a scheduler sends it to
    all processes, but not at the same moment.

    Yields:
      A function that all processes must call often, at the same points. If one of them has received
      a signal, it raises `Terminated` or KeyboardInterrupt in all of them, once.

    Example:
      >>> with synchronized_shutdown() as raise_if_signalled:
      ...     for step in range(3):
      ...         raise_if_signalled()
    """
    if jax.process_count() == 1:
        yield lambda: None
        return
    raised = False

    def raise_if_signalled() -> None:
        nonlocal raised
        number = deferred[0] if deferred else 0
        numbers = np.asarray(multihost_utils.process_allgather(np.int32(number)))
        if numbers.any() and not raised:
            raised = True
            raise Terminated if signal.SIGTERM in numbers else KeyboardInterrupt

    with defer_signals() as deferred:
        try:
            yield raise_if_signalled
        except KeyboardInterrupt:
            # The others wait here until the primary process has written the results.
            raise_if_signalled()
            raise
        else:
            raise_if_signalled()
        finally:
            if raised:
                ignore_signals()
                deferred.clear()


def check_agreement(values: Mapping[str, Any]) -> None:
    """Checks that values are the same in all processes; all of them must call it.

    Args:
      values: This process's values by name, which JSON can represent.

    Raises:
      InputError: In all processes, if values differ; the message names them.

    Example:
      >>> check_agreement({"seed": 0})
    """
    if jax.process_count() == 1:
        return
    content = strict_json.dumps(dict(sorted(values.items()))).encode()
    gathered = [json.loads(each) for each in _all_gather(content)]
    differences = []
    for name in sorted(set().union(*gathered)):
        ranks: dict[str, int] = {}
        for rank, each in enumerate(gathered):
            ranks.setdefault(repr(each.get(name)), rank)
        if len(ranks) > 1:
            by_rank = (f"{truncate(value, 60)} (process {rank})" for value, rank in ranks.items())
            differences.append(f"{name} {', '.join(by_rank)}")
    if differences:
        error = InputError(
            f"the processes differ: {'; '.join(differences)}; start all of them with the same "
            "options, data and versions"
        )
        error.raised_on_all_processes = True
        raise error


def _all_gather(content: bytes) -> list[bytes]:
    """Returns the contents of all processes, in order."""
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(content))))
    # All processes must send arrays of the same shape.
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def versions() -> dict[str, Any]:
    """Returns the library versions and JAX settings on which the results of training depend."""
    from dlc_jax import __version__

    libraries = {"dlc_jax": __version__} | {name: metadata.version(name) for name in _LIBRARIES}
    settings = {name: str(getattr(jax.config, name)) for name in _SETTINGS}
    return {**libraries, **settings}
