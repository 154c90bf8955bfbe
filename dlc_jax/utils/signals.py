"""Being stopped: by Ctrl-C, and by SIGTERM, with which schedulers and machines announce an end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which asks to save and go."""


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`, unless something in it has the signal handled anew."""

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
    """Within it Ctrl-C and SIGTERM wait until its end, so that what is written is whole.

    Whatever in it has a signal handled anew keeps it.

    Yields:
      The numbers of the signals that wait, to which later ones are added; of those that are
      taken out of it nothing comes.
    """
    held: list[int] = []
    if not _in_main_thread():
        yield held
        return

    def hold(number: int, frame: FrameType | None) -> None:
        del frame
        held.append(number)

    previous = {n: signal.signal(n, hold) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield held
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is hold:
                _restore(number, handler)
        if held:
            signal.raise_signal(held[0])


def ignore_signals() -> None:
    """From now on Ctrl-C and SIGTERM do nothing, as for a process that is about to end."""
    if _in_main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _restore(number: int, handler: Any) -> None:
    # None stands for a handler that is not Python's own, which can't be set again from here.
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
