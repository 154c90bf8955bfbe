"""Makes standard input, output and error usable if they are closed, full or ASCII."""

import codecs
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal, TextIO

from dlc_jax.cli.output import warn

_NAMES = ("stdin", "stdout", "stderr")


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """Error handler: keeps undecodable bytes of file names, and escapes other characters."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return b"".join(map(_encode, text)), error.end


def _encode(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00])
    return character.encode("ascii", "backslashreplace")


codecs.register_error("dlc_jax.escape", _escape)


@contextmanager
def usable() -> Iterator[None]:
    """Makes all standard streams usable for any text, and restores them afterwards.

    Missing streams are opened. Warnings of libraries and this package's log messages become lines
    on standard error, each once.
    """
    before = {name: getattr(sys, name) for name in _NAMES}
    closed = _open_descriptors()
    handlers: dict[TextIO, str] = {}
    for number, name in enumerate(_NAMES):
        stream = before[name]
        if stream is None or stream.closed:
            setattr(sys, name, _replacement(number, number in closed))
        elif name != "stdin" and hasattr(stream, "reconfigure") and stream.errors:
            handlers[stream] = stream.errors
            with suppress(OSError):
                stream.reconfigure(errors="dlc_jax.escape")
    try:
        with _one_line_warnings():
            yield
    finally:
        for name in ("stdout", "stderr"):
            flush(getattr(sys, name))
            flush(before[name])
        for stream, handler in handlers.items():
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=handler)  # type: ignore[attr-defined]
        for name, stream in before.items():
            if getattr(sys, name) is not stream:
                getattr(sys, name).close()
            setattr(sys, name, stream)


def flush(stream: TextIO | None) -> OSError | None:
    """Flushes a stream; if that fails, returns the error and discards what was not written."""
    if stream is None or stream.closed:
        return None
    try:
        stream.flush()
    except OSError as error:
        # Otherwise Python would flush again at exit, and print a traceback.
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

    Otherwise the next files to be opened would get these numbers, and the output of native code.
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


def _replacement(number: int, is_descriptor_open: bool) -> TextIO:
    mode: Literal["r", "w"] = "w" if number else "r"
    if is_descriptor_open:
        return open(number, mode, encoding="utf-8", errors="replace", closefd=False)
    return open(os.devnull, mode, encoding="utf-8", errors="replace")


class _WarnHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    ours, matplotlib = logging.getLogger("dlc_jax"), logging.getLogger("matplotlib")
    propagates, level, handler = ours.propagate, matplotlib.level, _WarnHandler()
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
        # Similar warnings, for example one per file, are shown once.
        if text[:40] not in seen:
            seen.add(text[:40])
            warn(f"{text[:300]} ({category.__name__})")

    ours.addHandler(handler)
    ours.propagate = False
    # Matplotlib warns if it has no cache folder, although it works.
    matplotlib.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = propagates
        matplotlib.setLevel(level)
