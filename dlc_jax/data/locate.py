"""Where the datasets are that TFDS has prepared on this machine."""

import hashlib
import json
import os
from pathlib import Path

from dlc_jax.errors import InputError


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where prepared datasets are: `data_dir`, else `TFDS_DATA_DIR`, else TFDS's default.

    Raises:
      InputError: `data_dir` is given and is not a folder, or it is in a home folder that this
        user does not have.
    """
    chosen = data_dir
    if chosen is None:
        chosen = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        folder = Path(chosen).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"there is no home folder for the data folder {str(chosen)!r}; "
            "point TFDS_DATA_DIR or --data-dir at another folder"
        ) from error
    if data_dir is not None and not folder.is_dir():
        raise InputError(
            f"the data folder {str(data_dir)!r} does not exist; make it or name another"
        )
    return folder


def find(name: str, folder: Path) -> Path | None:
    """The newest version of a dataset prepared in `folder`, as <folder>/<name>/<version>.

    Versions in a format that can't be read without TensorFlow count only where there are no
    others.
    """
    versions = [info.parent for info in folder.glob(f"{name}/*.*.*/dataset_info.json")]
    numbered = [path for path in versions if path.name.replace(".", "").isdigit()]

    def rank(path: Path) -> tuple[bool, list[int]]:
        return not _in_another_format(path), [*map(int, path.name.split("."))]

    return max(numbered, key=rank, default=None)


def _in_another_format(prepared: Path) -> bool:
    """Whether a version says that it is not in ArrayRecord format."""
    try:
        info = json.loads((prepared / "dataset_info.json").read_bytes())
        # TFDS did not write the format when there was only one.
        return info.get("fileFormat", "tfrecord") != "array_record"
    except (OSError, ValueError, AttributeError):
        # That it is damaged is told when it is opened.
        return False


def fingerprint(prepared: Path) -> str:
    """Changes when a file of the prepared dataset does, without reading them."""
    files = sorted(path for path in prepared.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
