"""Atomic writes, locks and folders, on any file system."""

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

_PARTIAL_SUFFIX = ".part"
# The names that `atomic_writer` gives to partial files.
_PARTIAL_NAME = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}\.part", re.DOTALL)
# Length to which they truncate the target's name, since the length of file names is limited.
_MAX_TARGET_LENGTH = 60
# Age at which a partial file is considered abandoned.
_ABANDONED_SECONDS = 3600.0
# Errors by which file systems of clusters and clouds report unsupported operations. A full or
# broken disk reports others.
_UNSUPPORTED_ERRORS = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOLCK", "ENOSYS", "ENOTSUP", "ENOTTY", "EOPNOTSUPP", "EPERM")
}
_BINARY = getattr(os, "O_BINARY", 0)


def partial_files(folder: Path) -> list[Path]:
    """Returns the partial files that killed processes left in a folder; see `atomic_writer`."""
    return list(folder.glob(f".*{_PARTIAL_SUFFIX}"))


def remove_partial_files(folder: Path, name: str | None = None) -> None:
    """Removes partial files of `atomic_writer` that have not been modified for an hour.

    Args:
      folder: Folder to clean up.
      name: Name of the file whose partial files to remove; by default, all are removed.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = _PARTIAL_NAME.fullmatch(path.name)
            if (
                match
                and (name is None or match["target"] == name[:_MAX_TARGET_LENGTH])
                and is_unmodified(path, _ABANDONED_SECONDS)
            ):
                path.unlink(missing_ok=True)


def is_unmodified(path: Path, seconds: float) -> bool:
    """Returns whether a file, or everything in a folder, has been unmodified for `seconds`."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(file.lstat().st_mtime for file in files) < time.time() - seconds


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Adds the path to an OSError that does not name it, as when writing to an open file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that replaces `path` only once it is complete.

    If writing fails, an existing file is kept. Abandoned partial files of `path` are removed.
    """
    remove_partial_files(path.parent, path.name)
    # Not `tempfile.mkstemp`: its files are private, and some file systems have no chmod.
    unique = os.urandom(4).hex()
    partial = path.parent / f".{path.name[:_MAX_TARGET_LENGTH]}.{unique}{_PARTIAL_SUFFIX}"
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            sync(file)
        _replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise


def sync(file: IO[bytes]) -> None:
    """Flushes a file to the disk, if the file system supports it."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if not is_unsupported(error):
            raise


def is_unsupported(error: OSError) -> bool:
    """Returns whether an operation failed because the file system does not support it."""
    return error.errno in _UNSUPPORTED_ERRORS


def _replace(partial: Path, path: Path) -> None:
    try:
        os.replace(partial, path)
    except OSError as error:
        if not (is_unsupported(error) or error.errno == errno.EEXIST) or path.is_dir():
            raise
        # Some file systems can't rename, or not to an existing file.
        shutil.copyfile(partial, path)
        partial.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file atomically."""
    with atomic_writer(path) as file:
        file.write(content)


@contextmanager
def lock(folder: Path, name: str, message: str) -> Iterator[None]:
    """Locks a folder against other processes.

    If the file system has no locks, the logger `dlc_jax` warns about it.

    Args:
      folder: The folder.
      name: Name of the lock file in the folder.
      message: Error message if another process holds the lock.

    Raises:
      InputError: Another process holds the lock, or the folder is not writable.
    """
    # Slow to import.
    from filelock import FileLock, Timeout

    # A soft lock would stay locked when the process is killed.
    held = FileLock(folder / name, fallback_to_soft=False)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise InputError(message) from error
    except OSError as error:
        # The error may also mean that the folder is not writable.
        if not is_unsupported(error) or not _can_make_files(folder):
            raise _not_writable(folder, error) from error
        logging.getLogger("dlc_jax").warning(
            "the file system of %r has no locks (%s); don't let another process train there",
            str(folder),
            error.strerror,
        )
    try:
        yield
    finally:
        held.release()


# A folder that does not exist and can't be created.
NOWHERE = Path(os.devnull, "dlc_jax")


def cache_folder() -> Path:
    """Returns the cache folder: `DLC_JAX_CACHE_DIR`, or dlc_jax in the user's cache folder.

    Without a home folder, it is `NOWHERE`.
    """
    path = os.environ.get("DLC_JAX_CACHE_DIR")
    try:
        if not path:
            # Not needed where the variable is set.
            import platformdirs

            path = platformdirs.user_cache_dir("dlc_jax")
        folder = Path(path).expanduser()
    except RuntimeError:
        return NOWHERE
    return NOWHERE if str(folder).startswith("~") else folder


def expand_home(path: str) -> str:
    """Replaces a leading `~` or `~user` by the home folder.

    Raises:
      InputError: The home folder is unknown, and no file has this name.
    """
    expanded = os.path.expanduser(path)
    home = Path(expanded).parts[0] if expanded.startswith("~") else ""
    if home and not os.path.lexists(home):
        raise InputError(
            f"the home folder {home!r} of {path!r} is unknown; give the full path, or put ./ "
            "before a name that begins with ~"
        )
    return expanded


def is_writable(folder: Path) -> bool:
    """Returns whether a folder is writable, after creating it if needed."""
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
    """Checks that a folder's name is UTF-8, as checkpoints require.

    Raises:
      InputError: The name is not UTF-8.
    """
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the name of the folder {str(folder)!r} is not UTF-8, which checkpoints require; "
            "choose another name"
        ) from error


def make_folder(path: Path) -> None:
    """Creates a folder and its parents if they are missing, and checks that it is writable.

    Raises:
      InputError: The folder can't be created or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"can't write to the folder {str(folder)!r} ({error.strerror or error}); choose another one"
    )
