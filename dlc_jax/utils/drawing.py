"""Matplotlib without its global state: figures look the same whatever the user has set.

Nothing here uses pyplot, which has a current figure and a backend.
"""

import functools
import io
import os
import unicodedata
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np

from dlc_jax.utils.text import printable, shortened

try:
    import matplotlib
except ValueError:
    # MPLBACKEND names a backend that is not there; these figures need none.
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
def own_style() -> Iterator[None]:
    """Within it Matplotlib's settings are its defaults, and NumPy and Matplotlib tell nothing.

    Figures take settings both when they are made and when they are drawn.
    """
    with style.context("default"), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer, canvas = io.BytesIO(), figure.canvas
    with own_style():
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            if families := _families(frozenset(_lacking(text.get_text()))):
                text.set_fontfamily([*text.get_fontfamily(), *families])
        try:
            FigureCanvasAgg(figure).print_png(buffer)
        finally:
            figure.set_canvas(canvas)
    return buffer.getvalue()


def displayed(name: str, most: int) -> str:
    """A name as it can be drawn, on one line and of at most so many columns.

    Characters that no font of this machine has are written as escapes. Give it to a `Text` with
    `parse_math=False`: dollar signs in names are no formulas.
    """
    text = printable(name)
    lacking = set(_lacking(text))
    for family in _families(frozenset(lacking)):
        lacking -= {c for c in lacking if ord(c) in _characters(_file(family))}
    escaped = (c.encode("ascii", "backslashreplace").decode() if c in lacking else c for c in text)
    return shortened("".join(escaped), most)


def _lacking(text: str) -> list[str]:
    """The characters of a text that Matplotlib's own font has not."""
    if text.isascii():
        return []
    own = _characters(_file("DejaVu Sans"))
    return [c for c in text if ord(c) not in own and unicodedata.category(c) not in ("Cf", "Mn")]


@functools.cache
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    """Fonts of this machine that together have as many of some characters as can be had."""
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
def _file(family: str) -> str:
    return str(font_manager.findfont(family))


@functools.cache
def _characters(file: str) -> Collection[int]:
    """The characters of a font, none where it can't be drawn in any size."""
    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
