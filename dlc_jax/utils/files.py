"""Files that are either whole or not there, on whatever file system."""

import errno
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from dlc_jax.errors import InputError

_PART = ".part"
# As `atomic_writer` names them.
_PART_NAME = re.compile(r"\.(?P<of>.+)\.[a-z0-9_]{8}\.part", re.DOTALL)
# Characters of a file's name that are kept while it is written, so that there is room for more.
_LONGEST = 60
# Seconds after which nobody is taken to be still writing a file.
_ABANDONED = 3600.0
# What file systems of clusters and clouds say of what they can't do; a full or broken disk
# says something else.
_UNSUPPORTED = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOLCK", "ENOSYS", "ENOTSUP", "ENOTTY", "EOPNOTSUPP", "EPERM")
}
_BINARY = getattr(os, "O_BINARY", 0)


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
            if (
                part
                and (name is None or part["of"] == name[:_LONGEST])
                and untouched(path, _ABANDONED)
            ):
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
    # Not `tempfile.mkstemp`, whose files no one else may read until their mode is changed, which
    # some file systems refuse.
    part = path.parent / f".{path.name[:_LONGEST]}.{os.urandom(4).hex()}{_PART}"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            sync(file)
        _rename_over(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            error.filename = str(path)
        raise


def sync(file: IO[bytes]) -> None:
    """Has what was written to a file be on the disk, where the file system can do so."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if not is_unsupported(error):
            raise


def is_unsupported(error: OSError) -> bool:
    """Whether a file system can't do what was asked of it, instead of having failed to do it."""
    return error.errno in _UNSUPPORTED


def _rename_over(part: Path, path: Path) -> None:
    try:
        os.replace(part, path)
    except OSError as error:
        if not (is_unsupported(error) or error.errno == errno.EEXIST) or path.is_dir():
            raise
        # Some file systems rename no files, or only to a name that is not taken.
        shutil.copyfile(part, path)
        part.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file as a whole."""
    with atomic_writer(path) as file:
        file.write(content)


@contextmanager
def lock(folder: Path, name: str, refused: str) -> Iterator[None]:
    """Keeps other processes out of a folder.

    Where the file system has no locks, it only says so, as a warning of the logger `dlc_jax`.

    Args:
      folder: the folder.
      name: of the file in it that is locked.
      refused: what to say where another process is in it.

    Raises:
      InputError: another process is in it, or it can't be written to.
    """
    # It takes long to import, and most programs train nothing.
    from filelock import FileLock, Timeout

    # Its own way out, a file that stands for the lock, would stay when the process is killed.
    held = FileLock(folder / name, fallback_to_soft=False)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise InputError(refused) from error
    except OSError as error:
        # Where no file can be made, it is not for want of locks.
        if not is_unsupported(error) or not _can_make_files(folder):
            raise _not_writable(folder, error) from error
        logging.getLogger("dlc_jax").warning(
            "the file system of %r has no locks (%s); let no other process train there meanwhile",
            str(folder),
            error.strerror,
        )
    try:
        yield
    finally:
        held.release()


# A folder in which there is nothing, and nothing can be made.
NOWHERE = Path(os.devnull, "dlc_jax")


def cache_folder() -> Path:
    """Where to keep what can be made again: `DLC_JAX_CACHE_DIR`, else the user's cache folder.

    Where there is no home folder, `NOWHERE`.
    """
    told = os.environ.get("DLC_JAX_CACHE_DIR")
    try:
        if not told:
            # A machine that only measures may lack it.
            import platformdirs

            told = platformdirs.user_cache_dir("dlc_jax")
        folder = Path(told).expanduser()
    except RuntimeError:
        return NOWHERE
    return NOWHERE if str(folder).startswith("~") else folder


def expand_home(path: str) -> str:
    """A path with a leading `~` or `~user` replaced by the home folder.

    Raises:
      InputError: that folder is not known, and there is nothing of that name here.
    """
    expanded = os.path.expanduser(path)
    home = Path(expanded).parts[0] if expanded.startswith("~") else ""
    if home and not os.path.lexists(home):
        raise InputError(
            f"the home folder {home!r} of {path!r} is not known; write the path in full, or put "
            "./ before it for a name that begins with ~"
        )
    return expanded


def is_writable(folder: Path) -> bool:
    """Whether a folder is there, or can be made, and files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return _can_make_files(folder)


def _can_make_files(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_encodable(folder: Path) -> None:
    """Raises an InputError where a folder's name is not UTF-8, which checkpoints need."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the folder {str(folder)!r} has a name that is not UTF-8, and checkpoints can't be "
            "written into it; choose another name"
        ) from error


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
        raise _not_writable(path, error) from error


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"can't write to the folder {str(folder)!r} ({error.strerror or error}); name another one"
    )
