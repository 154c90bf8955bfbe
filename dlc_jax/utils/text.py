"""Names of files, classes and runs made safe to show in a terminal, a table or a figure."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

# Characters that change the direction of the surrounding text.
_BIDIRECTIONAL = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


def printable(text: str) -> str:
    r"""Returns the text on one line, with control characters and undecodable bytes escaped.

    Example:
      >>> printable("two\nlines \x1b[31mred")
      'two lines \\x1b[31mred'
    """
    return "".join(map(_escape, " ".join(text.split())))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # A byte that is not UTF-8, as os.fsdecode represents it.
        code -= 0xDC00
    elif not (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDIRECTIONAL
    ):
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def display_width(text: str) -> int:
    """Returns the number of terminal columns that the text takes.

    Example:
      >>> display_width("cat"), display_width("猫")
      (3, 2)
    """
    return sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def truncate(text: str, max_width: int) -> str:
    """Returns the `printable` text in at most `max_width` columns, shortened in the middle.

    Example:
      >>> truncate("a long file name.png", 11)
      'a lon…e.png'
    """
    text = printable(text)
    if display_width(text) <= max_width:
        return text
    end = _prefix(text[::-1], max_width // 2)[::-1]
    return f"{_prefix(text, max_width - 1 - display_width(end))}…{end}"


def _prefix(text: str, max_width: int) -> str:
    width = 0
    for position, character in enumerate(text):
        width += _character_width(character)
        if width > max_width:
            return text[:position]
    return text


def unique_path_names(paths: Sequence[str]) -> list[str]:
    """Returns file names, preceded by as many parent folders as make the names unique.

    Example:
      >>> unique_path_names(["runs/a/x.png", "runs/b/x.png", "runs/y.png"])
      ['a/x.png', 'b/x.png', 'y.png']
    """
    parts = [PurePath(path).parts or (path,) for path in paths]
    lengths = [1] * len(parts)
    distinct = len(set(parts))
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = [part[-taken:] for part, taken in zip(parts, lengths, strict=True)]
        if len(set(names)) == distinct:
            break
        # Number of different paths by name.
        counts = Counter(name for name, _ in dict.fromkeys(zip(names, parts, strict=True)))
        lengths = [
            min(length + 1, len(part)) if counts[name] > 1 else taken
            for part, name, taken in zip(parts, names, lengths, strict=True)
        ]
    return [str(PurePath(*part[-taken:])) for part, taken in zip(parts, lengths, strict=True)]


def unique_class_names(names: Sequence[str]) -> list[str]:
    """Returns class names, followed by the label where several classes have the same name.

    Example:
      >>> unique_class_names(["crane", "heron", "crane"])
      ['crane (class 0)', 'heron', 'crane (class 2)']
    """
    counts = Counter(names)
    return [
        f"{name} (class {label})" if counts[name] > 1 else name for label, name in enumerate(names)
    ]
