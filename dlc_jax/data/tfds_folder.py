"""Finds the datasets that TFDS has prepared on this machine."""

import hashlib
import json
import os
from pathlib import Path

from dlc_jax.errors import InputError


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of datasets: `data_dir`, else `TFDS_DATA_DIR`, else TFDS's default.

    Raises:
      InputError: `data_dir` is not a folder, or is in a home folder that does not exist.

    Example:
      >>> data_folder(".")
      PosixPath('.')
    """
    path = data_dir
    if path is None:
        path = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"there is no home folder for the data folder {str(path)!r}; "
            "set TFDS_DATA_DIR or data_dir (--data-dir) to another folder"
        ) from error
    if data_dir is not None and not folder.is_dir():
        raise InputError(
            f"the data folder {str(data_dir)!r} does not exist; create it or choose another"
        )
    return folder


def find(name: str, folder: Path) -> Path | None:
    """Returns a dataset's newest prepared version, <folder>/<name>/<version>, or None.

    Versions in ArrayRecord format take precedence over formats that need TensorFlow.
    """
    versions = [info.parent for info in folder.glob(f"{name}/*.*.*/dataset_info.json")]
    numbered = [path for path in versions if path.name.replace(".", "").isdigit()]

    def rank(path: Path) -> tuple[bool, list[int]]:
        return not _is_other_format(path), [*map(int, path.name.split("."))]

    return max(numbered, key=rank, default=None)


def _is_other_format(prepared: Path) -> bool:
    """Whether a version declares another format than ArrayRecord."""
    try:
        info = json.loads((prepared / "dataset_info.json").read_bytes())
        # When TFDS did not record the format yet, tfrecord was the only one.
        return info.get("fileFormat", "tfrecord") != "array_record"
    except (OSError, ValueError, AttributeError):
        # The damage is reported when the dataset is opened.
        return False


def fingerprint(prepared: Path) -> str:
    """Returns a hash of the names, sizes and modification times of a prepared dataset's files."""
    files = sorted(path for path in prepared.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
