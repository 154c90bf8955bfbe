"""Where the datasets are that TFDS has prepared on this machine."""

import hashlib
import os
from pathlib import Path

from dlc_jax.errors import InputError


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where prepared datasets are: `data_dir`, else `TFDS_DATA_DIR`, else TFDS's default.

    Raises:
      InputError: `data_dir` is given and is not a folder.
    """
    if data_dir is None:
        default = Path.home() / "tensorflow_datasets"
        return Path(os.environ.get("TFDS_DATA_DIR") or default).expanduser()
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"the data folder {str(data_dir)!r} does not exist; make it or name another"
        )
    return folder


def find(name: str, folder: Path) -> Path | None:
    """The newest version of a dataset prepared in `folder`, as <folder>/<name>/<version>."""
    versions = [info.parent for info in folder.glob(f"{name}/*.*.*/dataset_info.json")]
    numbered = [path for path in versions if path.name.replace(".", "").isdigit()]
    return max(numbered, key=lambda path: [*map(int, path.name.split("."))], default=None)


def fingerprint(prepared: Path) -> str:
    """Changes when a file of the prepared dataset does, without reading them."""
    files = sorted(path for path in prepared.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
