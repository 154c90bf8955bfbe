"""Names that others chose, made fit to be shown: in a line of text, a table or a picture."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

# They change the direction of the text around them.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """A text on one line, with escapes for what can't be shown.

    Control characters would move a terminal's cursor, and bytes of a file name that are not UTF-8
    (as Python keeps them, see `os.fsdecode`) can't be encoded.
    """
    return "".join(map(_printable, " ".join(text.split())))


def _printable(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    elif not (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS
    ):
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def width(text: str) -> int:
    """How many columns a text takes in a terminal."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, most: int) -> str:
    """A text as `printable` makes it, of at most so many columns: of a longer one both ends."""
    text = printable(text)
    if width(text) <= most:
        return text
    end = _first(text[::-1], most // 2)[::-1]
    return f"{_first(text, most - 1 - width(end))}…{end}"


def _first(text: str, columns: int) -> str:
    taken = 0
    for place, character in enumerate(text):
        taken += _width(character)
        if taken > columns:
            return text[:place]
    return text


def told_apart(paths: Sequence[str]) -> list[str]:
    """Files' names, with as many of the folders above as it takes to tell those of one name apart.

    Paths that are the same have the same name.
    """
    parts = [PurePath(path).parts or (path,) for path in paths]
    lengths = [1] * len(parts)
    distinct = len(set(parts))
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = [part[-taken:] for part, taken in zip(parts, lengths, strict=True)]
        if len(set(names)) == distinct:
            break
        # How many different files have each name.
        counts = Counter(name for name, _ in dict.fromkeys(zip(names, parts, strict=True)))
        lengths = [
            min(length + 1, len(part)) if counts[name] > 1 else taken
            for part, name, taken in zip(parts, names, lengths, strict=True)
        ]
    return [str(PurePath(*part[-taken:])) for part, taken in zip(parts, lengths, strict=True)]


def class_names_told_apart(names: Sequence[str]) -> list[str]:
    """Names of classes; those that several have, such as ImageNet's cranes, with their labels."""
    counts = Counter(names)
    return [
        f"{name} (class {label})" if counts[name] > 1 else name for label, name in enumerate(names)
    ]
