"""Handling of Ctrl-C (SIGINT), and of SIGTERM, which schedulers send before they kill a job."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """Raised when the process receives SIGTERM, upon which it should save and exit."""


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raises `Terminated` on SIGTERM within the context.

    A handler that is installed within the context stays installed.
    """

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise Terminated

    if not _in_main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is terminate:
            _restore(signal.SIGTERM, previous)


@contextmanager
def defer_signals() -> Iterator[list[int]]:
    """Defers Ctrl-C and SIGTERM until the end of the context, so that files are complete.

    A handler that is installed within the context stays installed.

    Yields:
      The deferred signals. The first one is raised at the end; signals removed from the list are
      dropped.
    """
    deferred: list[int] = []
    if not _in_main_thread():
        yield deferred
        return

    def defer(number: int, frame: FrameType | None) -> None:
        del frame
        deferred.append(number)

    previous = {n: signal.signal(n, defer) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield deferred
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is defer:
                _restore(number, handler)
        if deferred:
            signal.raise_signal(deferred[0])


def ignore_signals() -> None:
    """Ignores Ctrl-C and SIGTERM from now on, in a process that is about to end."""
    if _in_main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _restore(number: int, handler: Any) -> None:
    # None stands for a handler that was not installed from Python, and can't be restored.
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
