"""Files that are either whole or not there."""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dlc_jax.errors import InputError

_PART = ".part"
# As `atomic_writer` names them.
_PART_NAME = re.compile(r"\.(?P<of>.+)\.[a-z0-9_]{8}\.part")
# Seconds after which nobody is taken to be still writing a file.
_ABANDONED = 3600.0


def half_written(folder: Path) -> list[Path]:
    """Files in a folder that `atomic_writer` had begun when its process was killed."""
    return list(folder.glob(f".*{_PART}"))


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes files that `atomic_writer` had begun, and that nobody has written to for an hour.

    Args:
      folder: where they are.
      name: of the file that was to be written; by default any.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            part = _PART_NAME.fullmatch(path.name)
            if part and name in (None, part["of"]) and untouched(path, _ABANDONED):
                path.unlink(missing_ok=True)


def untouched(path: Path, seconds: float) -> bool:
    """Whether a file, or any in a folder, was last written to before so many seconds or more."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(file.lstat().st_mtime for file in files) < time.time() - seconds


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Has what goes wrong in writing a file tell its name, as it does in opening one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes its name only once it is completely written.

    Whatever was at `path` stays there until then, and for good if writing fails. What a killed
    process has left of the same file is removed.
    """
    remove_abandoned(path.parent, path.name)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent)
    try:
        with named(path), os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file as a whole."""
    with atomic_writer(path) as file:
        file.write(content)


def cache_folder() -> Path:
    """Where to keep what can be made again: `DLC_JAX_CACHE_DIR`, else the user's cache folder."""
    told = os.environ.get("DLC_JAX_CACHE_DIR")
    if told:
        return Path(told)
    # A machine that only measures may lack it.
    import platformdirs

    return Path(platformdirs.user_cache_dir("dlc_jax"))


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, where they are missing, and sees that it is writable.

    Raises:
      InputError: it can't be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"can't write to the folder {str(path)!r} ({error.strerror}); name another one"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
