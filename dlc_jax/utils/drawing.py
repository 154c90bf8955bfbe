"""Matplotlib figures that do not depend on global state such as pyplot or user settings."""

import functools
import io
import os
import unicodedata
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np

from dlc_jax.utils.text import printable, truncate

try:
    import matplotlib
except ValueError:
    # MPLBACKEND names an unknown backend, which is not needed here.
    _backend = os.environ.pop("MPLBACKEND", "")
    try:
        import matplotlib  # noqa: F401
    finally:
        os.environ["MPLBACKEND"] = _backend

from matplotlib import font_manager, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text


@contextmanager
def default_style() -> Iterator[None]:
    """Gives Matplotlib its default settings within the context, and suppresses warnings.

    Figures need the context both when they are created and when they are rendered.

    Example:
      >>> with default_style():
      ...     figure = Figure(figsize=(1, 1))
    """
    with style.context("default"), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def to_png(figure: Figure) -> bytes:
    """Renders a figure as the content of a PNG file.

    Example:
      >>> to_png(Figure(figsize=(1, 1)))[1:4]
      b'PNG'
    """
    buffer, canvas = io.BytesIO(), figure.canvas
    with default_style():
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            if families := _fallback_fonts(frozenset(_missing_characters(text.get_text()))):
                text.set_fontfamily([*text.get_fontfamily(), *families])
        try:
            FigureCanvasAgg(figure).print_png(buffer)
        finally:
            figure.set_canvas(canvas)
    return buffer.getvalue()


def drawable(text: str, max_width: int) -> str:
    r"""Returns the text on one line of at most `max_width` columns; escapes missing characters.

    Pass it to Matplotlib with `parse_math=False`, since names may contain dollar signs.

    Example:
      >>> drawable("cost $5\U0010fffd", 30)
      'cost $5\\U0010fffd'
    """
    text = printable(text)
    missing = set(_missing_characters(text))
    for family in _fallback_fonts(frozenset(missing)):
        missing -= {c for c in missing if ord(c) in _characters(_font_file(family))}
    escaped = (c.encode("ascii", "backslashreplace").decode() if c in missing else c for c in text)
    return truncate("".join(escaped), max_width)


def _missing_characters(text: str) -> list[str]:
    """The characters that Matplotlib's default font does not have."""
    if text.isascii():
        return []
    default = _characters(_font_file("DejaVu Sans"))
    return [
        c for c in text if ord(c) not in default and unicodedata.category(c) not in ("Cf", "Mn")
    ]


@functools.cache
def _fallback_fonts(characters: frozenset[str]) -> tuple[str, ...]:
    """Installed font families that together cover as many of the characters as possible."""
    wanted, chosen = {ord(c) for c in characters}, []
    while wanted:
        found = {
            entry.name: wanted.intersection(_characters(entry.fname))
            for entry in font_manager.fontManager.ttflist
            if entry.style == "normal" and not entry.name.startswith("Last")
        }
        best = max(sorted(found), key=lambda name: len(found[name]), default="")
        if not best or not found[best]:
            break
        chosen.append(best)
        wanted -= found[best]
    return tuple(chosen)


@functools.cache
def _font_file(family: str) -> str:
    return str(font_manager.findfont(family))


@functools.cache
def _characters(file: str) -> Collection[int]:
    """The characters of a font; none if it is not scalable."""
    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
