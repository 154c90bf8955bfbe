"""Training by several processes, on one machine or on many, which JAX's own runtime joins.

All of them run the same program on the same arrays. The first one alone keeps a folder and prints;
what only it can know, it shares with the others.
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

# JAX's own default, 100 s, leaves the others waiting for longer than a minute for one that died.
_HEARTBEAT_SECONDS = 30
_SHUTDOWN_SECONDS = 30
_GRACE_SECONDS = 2
# What JAX's runtime logs where it has lost a process, as E1127 01:34:21.309322 ... client.h:86] ...
_OF_LOSS = re.compile(rb"[WEF]\d{4} [\d:.]+ +\d+ (coordination|client\.h|preemption)")
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
_FINE, _FAILED = b"+", b"-"
# How the messages begin of errors in sending and receiving.
_LOSSES = ("UNKNOWN: ", "INTERNAL: ", "ABORTED: ", "UNAVAILABLE: ", "DEADLINE_EXCEEDED: ")


class PeersMissing(InputError):
    """Other processes did not come in time; this one can do nothing more with JAX."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    wait_seconds: int = 300,
) -> None:
    """Joins this process with the others, before anything else is done with JAX.

    Without arguments they are found as JAX finds them: under SLURM, Open MPI and Kubernetes, and
    on TPU pods. If a process dies, the others end within a minute, with one line on standard error
    and exit code 1.

    Args:
      coordinator_address: HOST:PORT of the first process.
      num_processes: how many there are.
      process_id: which one this is, from 0 on.
      wait_seconds: how long to wait for all of them.

    Raises:
      InputError: they are not found, or do not fit together, or (`PeersMissing`) not all came.
    """
    _check(coordinator_address, num_processes, process_id)
    # It would take SIGTERM for itself, which then ended nothing.
    preemption = jax.config.jax_enable_preemption_service
    jax.config.update("jax_enable_preemption_service", False)
    try:
        _join(coordinator_address, num_processes, process_id, wait_seconds)
    except PeersMissing:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"the processes can't be joined ({one_line(error, 500)}); tell the address of the "
            "first one, how many there are, and which one this is"
        ) from error
    finally:
        jax.config.update("jax_enable_preemption_service", preemption)


def _join(
    address: str | None, num_processes: int | None, process_id: int | None, wait_seconds: int
) -> None:
    """Joins the others, in a thread: where they don't come JAX would abort, deaf to Ctrl-C."""
    failures: list[BaseException] = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                address,
                num_processes,
                process_id,
                initialization_timeout=wait_seconds + 3600,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except BaseException as error:
            failures.append(error)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(wait_seconds)
    if joining.is_alive():
        raise PeersMissing(
            f"not all processes came within {wait_seconds} s; start all of them, and tell each "
            "the same address of the first one and the same number of processes"
        )
    if failures:
        raise failures[0]


def peer_failure_message(reason: str) -> str:
    """What to say where another process can't be reached any more."""
    return (
        f"the processes can't go on together ({reason}); if one of them has died, start all of "
        "them again, with --resume RUN"
    )


def _check(address: str | None, num_processes: int | None, process_id: int | None) -> None:
    host, _, port = (address or "host:1").rpartition(":")
    if not (host and port.isdecimal() and 1 <= int(port) <= 65535):
        raise InputError(
            f"{address!r} is not the address of a process; give one such as 10.0.0.1:1234"
        )
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise InputError(
            f"there is no process {process_id} of {num_processes}; give 0 to {num_processes - 1}"
        )


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error is what JAX raises where another process can't be reached any more."""
    # It is a ValueError where a program has been waited for when it was called.
    jaxs = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
    return has_peers() and jaxs and str(error).startswith(_LOSSES)


def redirect_library_output() -> None:
    """Has what the libraries that join processes print go to standard error from now on.

    Standard output is left to this program; call it before `initialize`. Where JAX's runtime loses
    another process, it prints a stack trace and aborts; the process then ends with one line and
    exit code 1.
    """
    own, errors = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    os.close(writer)
    sys.stdout = os.fdopen(own, "w", buffering=1)
    sys.stderr = os.fdopen(errors, "w", buffering=1)
    threading.Thread(target=_forward, args=(reader, errors), daemon=True).start()
    with suppress(OSError, TypeError, AttributeError):  # there is no such library on Windows
        library = ctypes.CDLL(None)
        library.signal.argtypes = ctypes.c_int, ctypes.c_void_p
        library.signal.restype = ctypes.c_void_p
        library.signal(signal.SIGABRT, ctypes.cast(_AT_ABORT, ctypes.c_void_p))


def _forward(reader: int, errors: int) -> None:
    """Writes what libraries print to standard error, but for what JAX's runtime says of a loss."""
    with os.fdopen(reader, "rb") as lines:
        lost = False
        for line in lines:
            lost = lost or bool(_OF_LOSS.match(line))
            if not lost:
                os.write(errors, line)


def _end_at_abort(number: int) -> None:
    """Ends a process whose runtime aborts; called in the thread that does."""
    # The main thread mostly sees the loss, too, and then tells what it knows of it.
    time.sleep(_GRACE_SECONDS)
    reason = "another one has been lost"
    with suppress(OSError, ValueError):
        print(f"dlc-jax: {peer_failure_message(reason)}", file=sys.stderr, flush=True)
    os._exit(1)


_AT_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end_at_abort)


def has_peers() -> bool:
    """Whether other processes would be waited for when this one exits."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Whether this is the process that keeps the results; a single one is."""
    return jax.process_index() == 0


def broadcast_from_primary(make: Callable[[], bytes]) -> bytes:
    """What `make` returns in the first process, which alone calls it.

    Raises:
      InputError: in all processes, where it raises one in the first.
    """
    if jax.process_count() == 1:
        return make()
    content, failure = b"", None
    if is_primary():
        try:
            content = _FINE + make()
        except InputError as error:
            content, failure = _FAILED + str(error).encode(), error
    content = _broadcast(content)
    if content.startswith(_FAILED):
        failure = failure or InputError(content.removeprefix(_FAILED).decode())
        failure.raised_on_all_processes = True
        raise failure
    return content.removeprefix(_FINE)


def _broadcast(content: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(size, np.uint8)
    if is_primary():
        padded[:] = np.frombuffer(content, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded)))


@contextmanager
def primary_first() -> Iterator[None]:
    """Within it the first process is ahead of the others, which wait until it has left."""
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
    """Within it Ctrl-C and SIGTERM, whichever process they come to, end all at the same point.

    Of a single process they end what it is doing, as elsewhere. Several must enter and leave it
    together, and are waited for when it is left. A signal that has ended them is the last one
    that counts: a scheduler sends it to all of them, but not at the same moment.

    Yields:
      What each process is to call at the same points, often: it raises `Terminated` or
      KeyboardInterrupt in all of them if one was asked to end, once.
    """
    if jax.process_count() == 1:
        yield lambda: None
        return
    ended = False

    def go_on() -> None:
        nonlocal ended
        number = held[0] if held else 0
        asked = np.asarray(multihost_utils.process_allgather(np.int32(number)))
        if asked.any() and not ended:
            ended = True
            raise Terminated if signal.SIGTERM in asked else KeyboardInterrupt

    with defer_signals() as held:
        try:
            yield go_on
        except KeyboardInterrupt:
            # The first one may have caught it, and may have much to write down.
            go_on()
            raise
        else:
            go_on()
        finally:
            if ended:
                ignore_signals()
                held.clear()


def check_agreement(told: Mapping[str, Any]) -> None:
    """Sees that all processes were told the same; all of them must call it, at the same point.

    Args:
      told: what this one was told, by its name, as JSON.

    Raises:
      InputError: in all processes, where they differ; it names what does.
    """
    if jax.process_count() == 1:
        return
    content = strict_json.dumps(dict(sorted(told.items()))).encode()
    everyones = [json.loads(each) for each in _from_all(content)]
    differences = []
    for name in sorted(set().union(*everyones)):
        ranks: dict[str, int] = {}
        for rank, each in enumerate(everyones):
            ranks.setdefault(repr(each.get(name)), rank)
        if len(ranks) > 1:
            told_by = (f"{_short(value)} (process {rank})" for value, rank in ranks.items())
            differences.append(f"{name} {', '.join(told_by)}")
    if differences:
        error = InputError(
            f"the processes were told different things: {'; '.join(differences)}; start all of "
            "them with the same options, data and versions"
        )
        error.raised_on_all_processes = True
        raise error


def _short(value: str, most: int = 60) -> str:
    return value if len(value) <= most else value[: most - 3] + "..."


def _from_all(content: bytes) -> list[bytes]:
    """What each process has to say, in their order."""
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(content))))
    # All must send arrays of one shape.
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    everyones = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(each[:size]) for each, size in zip(everyones, sizes, strict=True)]


def versions() -> dict[str, Any]:
    """The libraries' versions and JAX's settings, which decide what a training comes to."""
    from dlc_jax import __version__

    libraries = {"dlc_jax": __version__} | {name: metadata.version(name) for name in _LIBRARIES}
    settings = {name: str(getattr(jax.config, name)) for name in _SETTINGS}
    return {**libraries, **settings}
