"""Standard input, output and error, whatever the command was started by."""

import codecs
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal, TextIO

from dlc_jax.cli.output import complain

_NAMES = ("stdin", "stdout", "stderr")


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes of a file's name as they are, and escapes for what an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return b"".join(map(_encoded, text)), error.end


def _encoded(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00])
    return character.encode("ascii", "backslashreplace")


codecs.register_error("dlc_jax.escape", _escape)


@contextmanager
def usable() -> Iterator[None]:
    """Within it there are standard streams, which take any character.

    What libraries warn of, and loggers of this package, becomes a line of standard error, once.
    Afterwards, all is as it was.
    """
    before = {name: getattr(sys, name) for name in _NAMES}
    closed = _open_descriptors()
    errors: dict[TextIO, str] = {}
    for number, name in enumerate(_NAMES):
        stream = before[name]
        if stream is None or stream.closed:
            setattr(sys, name, _stand_in(number, number in closed))
        elif name != "stdin" and hasattr(stream, "reconfigure") and stream.errors:
            errors[stream] = stream.errors
            with suppress(OSError):
                stream.reconfigure(errors="dlc_jax.escape")
    try:
        with _told():
            yield
    finally:
        for name in ("stdout", "stderr"):
            settle(getattr(sys, name))
            settle(before[name])
        for stream, handler in errors.items():
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=handler)  # type: ignore[attr-defined]
        for name, stream in before.items():
            if getattr(sys, name) is not stream:
                getattr(sys, name).close()
            setattr(sys, name, stream)


def settle(stream: TextIO | None) -> OSError | None:
    """Writes what waits to be written; if that fails, returns why, and no one tries again."""
    if stream is None or stream.closed:
        return None
    try:
        stream.flush()
    except OSError as error:
        # Python would try it once more when it exits, and complain itself.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        with suppress(OSError):
            stream.flush()
        return error
    return None


def _open_descriptors() -> set[int]:
    """Opens those of the descriptors 0, 1 and 2 that are closed, and returns them.

    Files would otherwise be opened under their numbers, and get what native code prints.
    """
    closed = set()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                continue
            null = os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            closed.add(number)
    return closed


def _stand_in(number: int, ours: bool) -> TextIO:
    mode: Literal["r", "w"] = "w" if number else "r"
    if ours:
        return open(number, mode, encoding="utf-8", errors="replace", closefd=False)
    return open(os.devnull, mode, encoding="utf-8", errors="replace")


class _Complaints(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


@contextmanager
def _told() -> Iterator[None]:
    ours, matplotlib = logging.getLogger("dlc_jax"), logging.getLogger("matplotlib")
    propagates, level, handler = ours.propagate, matplotlib.level, _Complaints()
    seen: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split())
        # Of what is said of each of many programs or files, the first is enough.
        if text[:40] not in seen:
            seen.add(text[:40])
            complain(f"{text[:300]} ({category.__name__})")

    ours.addHandler(handler)
    ours.propagate = False
    # Without a folder for what it caches it works as well.
    matplotlib.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = propagates
        matplotlib.setLevel(level)
