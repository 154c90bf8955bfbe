"""Output and exit codes."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from dlc_jax.utils.text import display_width, printable

PEER_LOST, BAD_INPUT, INTERRUPTED = 1, 2, 130

# Control characters in a name could move the cursor or change the terminal's settings.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\n"}


def escape_newlines(path: str) -> str:
    """Returns a path with newlines escaped, so that it fits on one line."""
    return path.replace("\n", "\\x0a")


def print_line(text: object) -> None:
    """Prints a line, or several, to standard output."""
    # Not `click.echo`, which encodes as UTF-8 even if the output is ASCII.
    try:
        print(str(text).translate(_ESCAPES), flush=True)
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def warn(message: str) -> None:
    """Prints a warning or an error to standard error, in one line."""
    text = " ".join(message.split()).translate(_ESCAPES)
    # If standard error can't be written to, only the exit code shows the error.
    with suppress(OSError, ValueError):
        print(f"dlc-jax: {text}", file=sys.stderr, flush=True)


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Formats rows with the same keys as a table; the first column is aligned to the left.

    Example:
      >>> rows = [{"class": "cat", "error": "7 %"}, {"class": "bird", "error": "12 %"}]
      >>> print(format_table(rows))
      class  error
      cat      7 %
      bird    12 %
    """
    lines = [[*map(printable, cells)] for cells in (rows[0], *(row.values() for row in rows))]
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(_pad, line, widths, range(len(line)))) for line in lines)


def _pad(text: str, size: int, column: int) -> str:
    spaces = " " * (size - display_width(text))
    return spaces + text if column else text + spaces
