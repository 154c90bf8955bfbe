"""Being stopped: by Ctrl-C, and by SIGTERM, with which schedulers and machines announce an end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which asks to save and go."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`."""

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
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def deferred() -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM wait until its end, so that what is written is whole."""
    if not _in_main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        del frame
        held.append(number)

    previous = {n: signal.signal(n, hold) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
