"""What is told: the results, what is said beside them, and how commands end."""

import sys
from contextlib import suppress

LOST, BAD_INPUT, INTERRUPTED = 1, 2, 130

# Control characters in a name would move the cursor, or worse.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\n"}


def of_one_line(path: str) -> str:
    """A file's name as it is, but for newlines."""
    return path.replace("\n", "\\x0a")


def say(text: object) -> None:
    """Prints a line, or several, on standard output."""
    # Not `click.echo`, which takes another encoding than that of an output of ASCII.
    try:
        print(str(text).translate(_ESCAPES), flush=True)
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def complain(message: str) -> None:
    """Says in one line, on standard error, what is wrong or not as it was asked for."""
    text = " ".join(message.split()).translate(_ESCAPES)
    # Where it can't be said, the exit code tells.
    with suppress(OSError, ValueError):
        print(f"dlc-jax: {text}", file=sys.stderr, flush=True)
