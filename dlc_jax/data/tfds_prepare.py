"""Downloads datasets and prepares them in TFDS's format, without TensorFlow.

TFDS's builders read and encode files with TensorFlow. The builders here inherit everything else
from them (URLs, checksums, features, and keys, which determine the order of the examples), but read
the files in Python and yield Pillow images.
"""

import errno
import gzip
import logging
import os
import queue
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8

from dlc_jax.errors import DatasetUnavailableError, InputError
from dlc_jax.utils.files import is_unmodified

# Pairs of a key and the features of an example.
Rows = Iterator[tuple[int, dict[str, Any]]]

# Seconds to wait for an answer of the host.
_PROBE_TIMEOUT = 4.0
# Seconds without changes after which unfinished files count as abandoned.
_ABANDONED_AFTER = 24 * 3600.0


def prepare(name: str, data_dir: Path, *, progress: bool = False) -> Path:
    """Downloads a dataset and prepares it in ArrayRecord format, as TFDS would.

    Args:
      name: TFDS's name of the dataset: mnist, fashion_mnist or cifar10.
      data_dir: Folder of prepared datasets, created if needed. The downloaded files stay in its
        subfolder `downloads`, as with TFDS.
      progress: Whether to show TFDS's progress bars, if standard error is a terminal.

    Returns:
      The folder <data_dir>/<name>/<version>. If it exists, nothing is downloaded.

    Raises:
      DatasetUnavailableError: TFDS is not installed, or the host does not answer within 4 seconds.
      InputError: The dataset is unknown, `data_dir` can't be written to or is full, or the
        files are not what TFDS expects.
    """
    builder_class = _builder_class(name)
    prepared = data_dir / name / str(builder_class.VERSION)
    if prepared.exists():
        return prepared
    _check_writable(data_dir)
    urls = list(builder_class.url_infos)
    _probe(name, urls[0], data_dir)
    with _quiet(bars=progress and sys.stderr.isatty()), _removing_unfinished(name, data_dir):
        import tensorflow_datasets as tfds

        config = tfds.download.DownloadConfig(
            force_checksums_validation=True, try_download_gcs=False
        )
        try:
            builder = builder_class(data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare(download_config=config)
        # TFDS, requests, gzip, tarfile and ArrayRecord each raise their own errors.
        except Exception as error:
            # Another process may have prepared it in the meantime.
            if not prepared.exists():
                raise _to_input_error(error, name, data_dir, urls) from error
    return prepared


class _Builder:
    """Base class of the mixins below; `official` is TFDS's builder class."""

    official: ClassVar[Any]

    # Silenced, since TFDS would print both messages to standard output.
    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


class _MnistLike(_Builder):
    def _split_generators(self, dl_manager: Any) -> Any:
        # One after the other, since TFDS would continue the other downloads if one failed.
        def download(urls: dict[str, str]) -> dict[str, Path]:
            return {key: dl_manager.download(url) for key, url in urls.items()}

        # TFDS would unpack the files with TensorFlow.
        packed = SimpleNamespace(download_and_extract=download)
        return self.official._split_generators(self, packed)

    def _generate_examples(self, num_examples: int, data_path: Path, label_path: Path) -> Rows:
        from PIL import Image

        del num_examples
        rows = zip(_idx(data_path), _idx(label_path), strict=True)
        for index, (pixels, label) in enumerate(rows):
            yield index, {"image": Image.fromarray(pixels), "label": int(label)}


class _CifarLike(_Builder):
    _cifar_info: Any
    info: Any

    def _split_generators(self, dl_manager: Any) -> dict[str, Rows]:
        layout = self._cifar_info
        names = [*layout.label_files, *layout.test_files, *layout.train_files]
        archive = dl_manager.download(layout.url)
        labels, test, *train = _members(archive, [layout.prefix + name for name in names])
        self.info.features["label"].names = labels.decode().split()
        return {
            "train": self._generate_examples("train_", train),
            "test": self._generate_examples("test_", [test]),
        }

    def _generate_examples(self, split_prefix: str, files: list[bytes]) -> Rows:
        from PIL import Image

        rows = (row for data in files for row in zip(*_cifar(data), strict=True))
        for index, (label, pixels) in enumerate(rows):
            example = {"image": Image.fromarray(pixels), "label": int(label)}
            yield index, example | {"id": f"{split_prefix}{index:05d}"}


_BUILDERS: dict[str, tuple[str, type[_Builder]]] = {
    "mnist": ("MNIST", _MnistLike),
    "fashion_mnist": ("FashionMNIST", _MnistLike),
    "cifar10": ("Cifar10", _CifarLike),
}


@cache
def _builder_class(name: str) -> Any:
    """TFDS's builder class of a dataset, with the methods of the mixins above."""
    if name not in _BUILDERS:
        raise InputError(f"{name!r} can't be prepared; choose one of {', '.join(_BUILDERS)}")
    class_name, mixin = _BUILDERS[name]
    try:
        import tensorflow_datasets as tfds

        official = getattr(tfds.image_classification, class_name)
    except ImportError as error:
        raise DatasetUnavailableError(
            f"downloading {name!r} needs TFDS ({error}); run: pip install tensorflow-datasets "
            "importlib_resources"
        ) from error
    namespace = {"__module__": __name__, "name": name, "official": official}
    builder_class = type(official)(class_name, (mixin, official), namespace, skip_registration=True)
    # TFDS finds the checksums by the module. If it were set on creation, TFDS would register the
    # class there.
    builder_class.__module__ = official.__module__
    return builder_class


def _idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Reads a gzipped IDX file of bytes: images [n, height, width] or labels [n].

    Raises:
      ValueError: It has another format, or another length than its header says.
    """
    with gzip.open(path) as file:
        data = file.read()
    # Two zeros, the type (8: unsigned byte), the rank, then big-endian int32 sizes.
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is not an IDX file of bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _members(archive: Path, names: list[str]) -> list[bytes]:
    """Contents of files in a tar.gz archive.

    Raises:
      ValueError: A file is missing.
    """
    found = {}
    with tarfile.open(archive, "r:gz") as tar:
        # In the archive's order: seeking back would decompress it again.
        for member in tar:
            if member.name in names and (file := tar.extractfile(member)):
                found[member.name] = file.read()
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{', '.join(missing)} is not in the archive")
    return [found[name] for name in names]


def _cifar(data: bytes) -> tuple[UInt8[np.ndarray, " n"], UInt8[np.ndarray, "n 32 32 3"]]:
    """Labels and images of CIFAR-10's binary format: per record a label and 3x32x32 pixels.

    Raises:
      ValueError: `data` is not a whole number of records.
    """
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return records[:, 0], np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _check_writable(data_dir: Path) -> None:
    try:
        # Creates no folder before the download is known to work.
        existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise _unwritable(data_dir, str(error.strerror)) from error


def _probe(name: str, url: str, data_dir: Path) -> None:
    """Requests a URL once, since TFDS would retry for minutes."""
    import requests

    problems: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def request() -> None:
        try:
            with requests.get(url, stream=True, timeout=_PROBE_TIMEOUT) as response:
                problems.put(None if response.ok else f"HTTP status {response.status_code}")
        except Exception as error:
            problems.put(type(error).__name__)

    # The timeout of requests limits neither the total time nor name resolution.
    threading.Thread(target=request, daemon=True).start()
    try:
        problem = problems.get(timeout=_PROBE_TIMEOUT)
    except queue.Empty:
        problem = f"no answer in {_PROBE_TIMEOUT:g} seconds"
    if problem:
        raise _unreachable(name, url, data_dir, problem)


@contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Context without log messages of TFDS and urllib3, and with progress bars only if `bars`."""
    from tensorflow_datasets.core.utils import tqdm_utils

    def drop(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in ("absl", "urllib3.connectionpool")]
    bars_before = tqdm_utils._active
    tqdm_utils.display_progress_bar(bars)
    for logger in loggers:
        logger.addFilter(drop)
    try:
        yield
    finally:
        tqdm_utils.display_progress_bar(bars_before)
        for logger in loggers:
            logger.removeFilter(drop)


@contextmanager
def _removing_unfinished(name: str, data_dir: Path) -> Iterator[None]:
    """Context that removes the unfinished downloads that TFDS leaves when it fails.

    Those of killed processes are removed once they are a day old.
    """
    downloads = data_dir / "downloads" / name

    def unfinished() -> set[Path]:
        return {*downloads.glob("*.tmp.*"), *downloads.glob("incomplete.*")}

    def remove(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)

    with suppress(OSError):
        for path in {*unfinished(), *(data_dir / name).glob("*.incomplete*")}:
            if is_unmodified(path, _ABANDONED_AFTER):
                remove(path)
    before = unfinished()
    try:
        yield
    finally:
        for path in unfinished() - before:
            remove(path)
        with suppress(OSError):
            (data_dir / name).rmdir()


def _to_input_error(error: Exception, name: str, data_dir: Path, urls: list[str]) -> InputError:
    """A one-line error for a failed preparation."""
    import requests
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    text = " ".join(str(error).split())
    url = next((url for url in urls if url in text), urls[0])
    downloads = data_dir / "downloads" / name
    if isinstance(error, NonMatchingChecksumError):
        return InputError(
            f"{url} is not the file that TFDS expects (its checksum differs); try again later, "
            f"or set TFDS_DATA_DIR or data_dir (--data-dir) to a folder where {name!r} is prepared"
        )
    if isinstance(error, (DownloadError, requests.RequestException)):
        return _unreachable(name, url, data_dir, type(error).__name__)
    # ArrayRecord has no error class for a full disk.
    if (disk_full := os.strerror(errno.ENOSPC)) in text:
        return _unwritable(data_dir, disk_full)
    if isinstance(error, OSError) and error.strerror:
        return _unwritable(data_dir, error.strerror)
    return InputError(
        f"the files of {name!r} in {str(downloads)!r} can't be read "
        f"({type(error).__name__}: {text}); delete that folder and run again"
    )


def _unreachable(name: str, url: str, data_dir: Path, problem: str) -> DatasetUnavailableError:
    return DatasetUnavailableError(
        f"{name!r} is not prepared in {str(data_dir)!r} and {urlsplit(url).netloc} can't be "
        f"reached ({problem}); connect to the network, or set TFDS_DATA_DIR or data_dir "
        "(--data-dir) to a folder where it is prepared"
    )


def _unwritable(data_dir: Path, problem: str) -> InputError:
    return InputError(
        f"the data folder {str(data_dir)!r} can't be written to ({problem}); "
        "set TFDS_DATA_DIR or data_dir (--data-dir) to another folder"
    )
