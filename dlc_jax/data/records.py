"""Datasets whose examples are read from disk on demand, as TFDS has prepared them.

They need neither memory for the whole dataset nor TensorFlow.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int, UInt8

from dlc_jax.data.dataset import Dataset, Examples, check_num_examples
from dlc_jax.errors import DatasetUnavailableError, InputError

# Called with the number of images decoded and their total number.
ProgressFn: TypeAlias = Callable[[int, int], None]
Indices: TypeAlias = Int[np.ndarray, " examples"]

_CHUNK_SIZE = 1000
# Open files besides the dataset's own.
_OTHER_FILES = 1000
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Records:
    """A split whose examples are read on demand, in any order. It can be pickled.

    Attributes:
      reader: Function that returns the examples at the given indices, in that order.
      num_examples: Number of examples.
      image_shape: Height, width and channels of an image.

    Example:
      >>> images = np.zeros((3, 2, 2, 1), np.uint8)
      >>> records = Records.from_arrays(Examples(images, np.array([5, 6, 7])))
      >>> records.read([2, 0]).labels
      array([7, 5])
    """

    reader: Callable[[Indices], Examples]
    num_examples: int
    image_shape: tuple[int, int, int]

    @classmethod
    def from_arrays(cls, examples: Examples, *, copy: bool = True) -> "Records":
        """Makes records of a split in memory.

        Args:
          examples: NumPy or JAX arrays.
          copy: Whether to copy the arrays, so that later changes to them have no effect.
        """
        images, labels = (np.array(a) if copy else np.asarray(a) for a in examples)
        height, width, channels = images.shape[1:]
        return cls(_ArrayReader(images, labels), len(labels), (height, width, channels))

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        # A negative index counts from the end, as in a list.
        images, labels = self.read([range(self.num_examples)[index]])
        return np.asarray(images[0]), int(labels[0])

    def read(self, indices: Sequence[int] | Indices) -> Examples:
        """Reads the examples at the given indices, in that order, as NumPy arrays.

        Args:
          indices: Indices [n], starting at 0.

        Returns:
          Images uint8 [n, height, width, channels] and labels int32 [n].

        Raises:
          InputError: An index is out of range, or a file is damaged.
        """
        indices = np.asarray(indices, np.int64)
        if outside := indices[(indices < 0) | (indices >= self.num_examples)].tolist():
            raise InputError(
                f"index {outside[0]} is out of range; use 0 to {self.num_examples - 1}"
            )
        examples = self.reader(indices)
        if _returns_new_arrays(self.reader):
            return examples
        # Other readers may reuse their memory.
        return Examples(*map(np.array, examples))

    @property
    def images(self) -> "_Images":
        """The images without their labels, by index."""
        return _Images(self)

    def take(self, num_examples: int) -> "Records":
        """Returns the first `num_examples` records.

        Raises:
          InputError: There are fewer records.
        """
        if num_examples > self.num_examples:
            raise InputError(
                f"there are {self.num_examples} records, not {num_examples}; use fewer"
            )
        return replace(self, num_examples=num_examples)

    def shard(self, index: int, num_shards: int) -> "Records":
        """Returns one of `num_shards` contiguous shards of about the same size.

        Args:
          index: Number of the shard, starting at 0.
          num_shards: Number of shards.

        Raises:
          InputError: There is no such shard, or there are fewer records than shards.

        Example:
          >>> labels = np.arange(5)
          >>> records = Records.from_arrays(Examples(np.zeros((5, 2, 2, 1), np.uint8), labels))
          >>> records.shard(1, 2).load().labels
          array([2, 3, 4])
        """
        if not 0 <= index < num_shards <= self.num_examples:
            raise InputError(
                f"there is no shard {index} of {num_shards} of {self.num_examples} records; use 0 "
                f"to num_shards - 1, and at most {self.num_examples} shards"
            )
        start, stop = (self.num_examples * each // num_shards for each in (index, index + 1))
        return replace(self, reader=_OffsetReader(self.reader, start), num_examples=stop - start)

    def load(self, report: Callable[[int], None] = lambda num_read: None) -> Examples:
        """Reads all records into memory.

        Args:
          report: Function called with the number of records read so far.

        Raises:
          InputError: A file is damaged.
        """
        chunks = []
        for start in range(0, self.num_examples, _CHUNK_SIZE):
            stop = min(start + _CHUNK_SIZE, self.num_examples)
            chunks.append(self.read(range(start, stop)))
            report(stop)
        return Examples(*(np.concatenate(arrays) for arrays in zip(*chunks, strict=True)))


@dataclass(frozen=True)
class RecordDataset:
    """An image classification dataset whose examples are read on demand.

    Attributes:
      name: Name of the dataset.
      version: The publisher's version.
      train: Training split.
      test: Test split.
      class_names: Names of the classes, by label.
      provenance: Description of where the records are.
    """

    name: str
    version: str
    train: Records
    test: Records
    class_names: tuple[str, ...]
    provenance: str

    @classmethod
    def from_dataset(cls, dataset: Dataset, *, copy: bool = True) -> "RecordDataset":
        """Makes records of a dataset in memory.

        Args:
          dataset: A dataset of NumPy or JAX arrays.
          copy: Whether to copy the arrays, so that later changes to them have no effect.
        """
        return cls(
            dataset.name,
            dataset.version,
            Records.from_arrays(dataset.train, copy=copy),
            Records.from_arrays(dataset.test, copy=copy),
            dataset.class_names,
            dataset.provenance,
        )

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """Number of test examples."""
        return len(self.test)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train.image_shape

    def take(self, num_examples: int) -> "RecordDataset":
        """Returns the dataset with its first `num_examples` training examples; 0 keeps all.

        Raises:
          InputError: The dataset has fewer.
        """
        check_num_examples(self.name, num_examples, self.num_train)
        return replace(self, train=self.train.take(num_examples)) if num_examples else self

    def head(self, max_examples: int) -> Dataset:
        """Reads the first examples of each split into memory, at most `max_examples` of each."""
        train, test = (
            split.take(min(max_examples, len(split))) for split in (self.train, self.test)
        )
        return replace(self, train=train, test=test).load()

    def shard(self, index: int, num_shards: int) -> "RecordDataset":
        """Returns one of `num_shards` shards of each split; see `Records.shard`."""
        train, test = (split.shard(index, num_shards) for split in (self.train, self.test))
        return replace(self, train=train, test=test)

    def load(self, progress: ProgressFn = lambda num_decoded, total: None) -> Dataset:
        """Reads the dataset into memory.

        Args:
          progress: Function called with the number of images decoded and their total number.

        Raises:
          InputError: A file is damaged.
        """
        total = self.num_train + self.num_test
        return Dataset(
            self.name,
            self.version,
            self.train.load(lambda num_read: progress(num_read, total)),
            self.test.load(lambda num_read: progress(self.num_train + num_read, total)),
            self.class_names,
            self.provenance,
            copy=False,
        )


@dataclass(frozen=True)
class _Images:
    """The images of records, by index."""

    records: Records

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        return self.records[index][0]


@dataclass(frozen=True)
class _OffsetReader:
    """Adds an offset to the indices."""

    reader: Callable[[Indices], Examples]
    offset: int

    def __call__(self, indices: Indices) -> Examples:
        return self.reader(indices + self.offset)


@dataclass(frozen=True)
class _ArrayReader:
    """Reads from arrays in memory."""

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]

    def __call__(self, indices: Indices) -> Examples:
        return Examples(self.images[indices], self.labels[indices])


def _returns_new_arrays(reader: Callable[[Indices], Examples]) -> bool:
    """Whether a reader returns arrays to which nothing else refers."""
    if isinstance(reader, _OffsetReader):
        return _returns_new_arrays(reader.reader)
    return isinstance(reader, _ArrayReader | _ArrayRecordReader)


@dataclass(frozen=True)
class _ArrayRecordReader:
    """Reads and decodes the records of a dataset that TFDS has prepared.

    Attributes:
      source: TFDS's data source, which returns encoded images.
      folder: The dataset's folder, for error messages.
      image_shape: Height, width and channels of the images to return.
      resize: Whether to scale the images to that shape.
    """

    source: Any
    folder: Path
    image_shape: tuple[int, int, int]
    resize: bool

    def __call__(self, indices: Indices) -> Examples:
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        with _reading(self.folder):
            rows = self.source.__getitems__(indices.tolist())
            for image, row in zip(images, rows, strict=True):
                image[:] = self._decode(row["image"])
        return Examples(images, np.array([row["label"] for row in rows], np.int32))

    def _decode(self, encoded: bytes) -> UInt8[np.ndarray, "height width channels"]:
        # Pillow decodes twice as fast as TFDS.
        from PIL import Image, ImageOps

        height, width, channels = self.image_shape
        picture: Image.Image = Image.open(io.BytesIO(encoded))
        # Some of ImageNet's images are gray or CMYK.
        if picture.mode != _MODES[channels]:
            picture = picture.convert(_MODES[channels])
        if self.resize:
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture).reshape(self.image_shape)


def open_prepared(folder: Path, image_size: int | None = None) -> RecordDataset:
    """Opens an image classification dataset that TFDS has prepared.

    Args:
      folder: <data_dir>/<name>/<version>, as TFDS wrote it.
      image_size: Height and width of the images in pixels: the shorter side is scaled to it, and
        the central square is cropped. By default images keep their size.

    Raises:
      DatasetUnavailableError: TFDS is not installed.
      InputError: The files are damaged, not in ArrayRecord format, or not labeled images; or the
        images differ in size and `image_size` is not given.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetUnavailableError(
            "reading prepared datasets needs TFDS; run: pip install tensorflow-datasets "
            "importlib_resources"
        ) from error
    with _reading(folder):
        builder = tfds.builder_from_directory(folder)
        info, features = builder.info, dict(builder.info.features.items())
        _raise_file_limit(sum(split.num_shards for split in info.splits.values()))
        file_format = info.file_format.value
    if file_format != "array_record":
        raise InputError(
            f"the dataset in {str(folder)!r} was prepared as {file_format}, which needs "
            "TensorFlow; prepare it as array_record in another data_dir (--data-dir)"
        )
    shape = _image_shape(features, folder, image_size)
    return RecordDataset(
        name=info.name,
        version=str(info.version),
        train=_split(builder, "train", folder, shape, image_size is not None),
        test=_test_split(builder, folder, shape, image_size is not None),
        class_names=tuple(features["label"].names),
        provenance=f"TFDS {info.name} {info.version}, prepared in {folder}",
    )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Raises any error inside as an `InputError` about damaged files.

    TFDS, protobuf, ArrayRecord and Pillow each raise their own errors.
    """
    try:
        yield
    except Exception as error:
        # ArrayRecord has no error class for too many open files.
        if os.strerror(errno.EMFILE) in str(error):
            raise InputError(
                f"the dataset in {str(folder)!r} has more files than may be open at the same time; "
                "raise the limit (ulimit -n)"
            ) from error
        raise InputError(
            f"the prepared dataset in {str(folder)!r} is damaged "
            f"({type(error).__name__}); delete that folder, and run again to prepare it"
        ) from error


def _raise_file_limit(count: int) -> None:
    """Raises the limit of open files to `count` and some more, as far as allowed.

    ArrayRecord keeps files open, and ImageNet has more than the usual limit.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _image_shape(
    features: dict[str, Any], folder: Path, image_size: int | None
) -> tuple[int, int, int]:
    """Shape of the images to return, after checking that the features are an image and a label."""
    import tensorflow_datasets as tfds

    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(name), kind) for name, kind in kinds.items()):
        raise InputError(
            f"the dataset in {str(folder)!r} has no 'image' with a class as its 'label' but "
            f"{', '.join(map(repr, features))}; choose a dataset for image classification"
        )
    if image_size is not None and image_size < 1:
        raise InputError(f"an image size of {image_size} pixels is too small; give 1 or more")
    height, width, channels = features["image"].shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise InputError(
            f"the images in {str(folder)!r} differ in size; give an image_size to scale "
            "them to, such as 224"
        )
    return height, width, channels


def _split(
    builder: Any, split: str, folder: Path, shape: tuple[int, int, int], resize: bool
) -> Records:
    import tensorflow_datasets as tfds

    if split not in builder.info.splits:
        raise InputError(
            f"the dataset in {str(folder)!r} has no split {split!r} but "
            f"{', '.join(map(repr, builder.info.splits))}; choose another dataset"
        )
    with _reading(folder):
        count = builder.info.splits[split].num_examples
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        if len(source) != count:
            raise ValueError(f"{split}: {len(source)} records instead of {count}")
    return Records(_ArrayRecordReader(source, folder, shape, resize), count, shape)


def _test_split(builder: Any, folder: Path, shape: tuple[int, int, int], resize: bool) -> Records:
    """The test split, or validation if there is none or its labels are secret, as in ImageNet."""
    if "test" in builder.info.splits:
        test = _split(builder, "test", folder, shape, resize)
        if test[0][1] >= 0:
            return test
    return _split(builder, "validation", folder, shape, resize)
