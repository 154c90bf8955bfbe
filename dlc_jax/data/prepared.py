"""Datasets that TFDS has prepared on this machine, read without TensorFlow."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dlc_jax.data.examples import Dataset, Examples
from dlc_jax.errors import DatasetUnavailable, InputError

Progress = Callable[[int, int], None]

_CHUNK = 1000


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


def read(prepared: Path, progress: Progress = lambda done, total: None) -> Dataset:
    """Decodes a prepared image classification dataset.

    Args:
      prepared: the folder <data_dir>/<name>/<version> that TFDS wrote.
      progress: called with the number of images decoded and the number there are.

    Raises:
      DatasetUnavailable: TFDS is not installed.
      InputError: the folder is damaged, or not in ArrayRecord format.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetUnavailable(
            "reading prepared datasets needs TFDS; run: pip install tensorflow-datasets "
            "importlib_resources"
        ) from error
    try:
        builder = tfds.builder_from_directory(prepared)
        file_format = builder.info.file_format.value
        if file_format == "array_record":
            return _decode(builder, prepared, progress)
    # TFDS, protobuf, ArrayRecord and Pillow each raise their own errors for damaged files.
    except Exception as error:
        raise InputError(
            f"the prepared dataset in {str(prepared)!r} is damaged "
            f"({type(error).__name__}); delete that folder and run again to prepare it anew"
        ) from error
    raise InputError(
        f"the dataset in {str(prepared)!r} was prepared as {file_format}, which needs "
        "TensorFlow; name another --data-dir to prepare it there as array_record"
    )


def _decode(builder: Any, prepared: Path, progress: Progress) -> Dataset:
    info = builder.info
    counts = {split: info.splits[split].num_examples for split in ("train", "test")}
    total = sum(counts.values())
    done = 0
    splits = {}
    for split, count in counts.items():
        chunks = []
        for chunk in _chunks(builder, split, count):
            chunks.append(chunk)
            done += len(chunk.labels)
            progress(done, total)
        splits[split] = Examples(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))
    return Dataset(
        name=info.name,
        version=str(info.version),
        train=splits["train"],
        test=splits["test"],
        class_names=tuple(info.features["label"].names),
        provenance=f"TFDS {info.name} {info.version}, prepared in {prepared}",
    )


def _chunks(builder: Any, split: str, count: int) -> Iterator[Examples]:
    import tensorflow_datasets as tfds

    # Pillow decodes them twice as fast as TFDS.
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    if len(source) != count:
        raise ValueError(f"{split}: {len(source)} records instead of {count}")
    for start in range(0, count, _CHUNK):
        rows = source.__getitems__(range(start, min(start + _CHUNK, count)))
        images = np.stack([_decode_image(row["image"]) for row in rows])
        yield Examples(images, np.array([row["label"] for row in rows], np.int32))


def _decode_image(encoded: bytes) -> np.ndarray:
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(encoded)))
    return image if image.ndim == 3 else image[..., None]
