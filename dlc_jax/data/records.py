"""Examples that are read when they are asked for, from what TFDS has prepared.

Neither needs all of a dataset in memory, nor TensorFlow.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dlc_jax.data.dataset import Dataset, Examples, check_count
from dlc_jax.errors import DatasetUnavailable, InputError

Progress = Callable[[int, int], None]
Places = Int[np.ndarray, " places"]

_CHUNK = 1000
# Open files beside a dataset's own.
_OTHER_FILES = 1000
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Records:
    """A split whose examples can be read in any order; it can be sent to other processes.

    Attributes:
      reader: returns the examples at the given places, in that order.
      count: how many examples there are.
      image_shape: height, width and channels of an image.
    """

    reader: Callable[[Places], Examples]
    count: int
    image_shape: tuple[int, int, int]

    @classmethod
    def of(cls, examples: Examples, *, copy: bool = True) -> "Records":
        """Those of a split in memory.

        Args:
          examples: arrays of NumPy or JAX.
          copy: as for `Dataset`.
        """
        images, labels = (np.array(a) if copy else np.asarray(a) for a in examples)
        height, width, channels = images.shape[1:]
        return cls(_Held(images, labels), len(labels), (height, width, channels))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        # As of a list, from the end where it is negative.
        images, labels = self.read([range(self.count)[place]])
        return np.asarray(images[0]), int(labels[0])

    def read(self, places: Sequence[int] | Places) -> Examples:
        """The examples at the given places, in that order, as arrays of NumPy.

        Args:
          places: [n], from 0.

        Returns:
          Images uint8 [n, height, width, channels] and labels int32 [n].

        Raises:
          InputError: there is no such place, or a file is damaged.
        """
        asked = np.asarray(places, np.int64)
        if wrong := asked[(asked < 0) | (asked >= self.count)].tolist():
            raise InputError(f"there is no example {wrong[0]}; ask for 0 to {self.count - 1}")
        examples = self.reader(asked)
        if _gives_away(self.reader):
            return examples
        # A reader of someone else's may use its memory again.
        return Examples(*map(np.array, examples))

    @property
    def images(self) -> "_Images":
        """The images alone, each by its place."""
        return _Images(self)

    def first(self, examples: int) -> "Records":
        """The first so many of them only.

        Raises:
          InputError: there are fewer.
        """
        if examples > self.count:
            raise InputError(f"{examples} of {self.count} records can't be had; ask for fewer")
        return replace(self, count=examples)

    def part(self, index: int, parts: int) -> "Records":
        """One of so many parts of about the same size, from 0 on, in their order.

        Raises:
          InputError: there is no such part, or there are fewer records than parts.
        """
        if not 0 <= index < parts <= self.count:
            raise InputError(
                f"there is no part {index} of {parts} of {self.count} records; ask for fewer parts"
            )
        start, stop = (self.count * each // parts for each in (index, index + 1))
        return replace(self, reader=_From(self.reader, start), count=stop - start)

    def load(self, report: Callable[[int], None] = lambda done: None) -> Examples:
        """All of them in memory.

        Args:
          report: called with how many have been read.

        Raises:
          InputError: a file is damaged.
        """
        chunks = []
        for start in range(0, self.count, _CHUNK):
            stop = min(start + _CHUNK, self.count)
            chunks.append(self.read(range(start, stop)))
            report(stop)
        return Examples(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


@dataclass(frozen=True)
class RecordDataset:
    """A dataset whose examples are read when they are asked for.

    Attributes:
      name: what it is called here.
      version: its publisher's version.
      train: what to learn from.
      test: what to measure the error on.
      class_names: what each label means.
      provenance: where these records are, in words.
    """

    name: str
    version: str
    train: Records
    test: Records
    class_names: tuple[str, ...]
    provenance: str

    @classmethod
    def of(cls, dataset: Dataset, *, copy: bool = True) -> "RecordDataset":
        """That of a dataset in memory.

        Args:
          dataset: its examples may be arrays of NumPy or JAX.
          copy: as for `Dataset`.
        """
        return cls(
            dataset.name,
            dataset.version,
            Records.of(dataset.train, copy=copy),
            Records.of(dataset.test, copy=copy),
            dataset.class_names,
            dataset.provenance,
        )

    def first(self, examples: int) -> "RecordDataset":
        """The dataset with the first so many training examples only; all of them for 0.

        Raises:
          InputError: it has fewer.
        """
        check_count(self.name, examples, len(self.train))
        return replace(self, train=self.train.first(examples)) if examples else self

    @property
    def sizes(self) -> tuple[int, int]:
        """How many training and how many test examples there are."""
        return len(self.train), len(self.test)

    def sample(self, most: int) -> Dataset:
        """The first examples of each split, so many at most, in memory."""
        train, test = (
            split.first(min(most, len(split))).load() for split in (self.train, self.test)
        )
        about = self.name, self.version, train, test, self.class_names, self.provenance
        return Dataset(*about, copy=False)

    def part(self, index: int, parts: int) -> "RecordDataset":
        """The dataset with one of so many parts of each split; see `Records.part`."""
        train, test = (split.part(index, parts) for split in (self.train, self.test))
        return replace(self, train=train, test=test)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train.image_shape

    def load(self, progress: Progress = lambda done, total: None) -> Dataset:
        """The dataset in memory.

        Args:
          progress: called with the number of images decoded and the number there are.

        Raises:
          InputError: a file is damaged.
        """
        before = len(self.train)
        total = before + len(self.test)
        return Dataset(
            self.name,
            self.version,
            self.train.load(lambda done: progress(done, total)),
            self.test.load(lambda done: progress(before + done, total)),
            self.class_names,
            self.provenance,
            copy=False,
        )


@dataclass(frozen=True)
class _Images:
    """The images of records, each by its place."""

    records: Records

    def __getitem__(self, place: int) -> UInt8[np.ndarray, "height width channels"]:
        return self.records[place][0]


@dataclass(frozen=True)
class _From:
    """Reads from a place on."""

    reader: Callable[[Places], Examples]
    start: int

    def __call__(self, places: Places) -> Examples:
        return self.reader(places + self.start)


@dataclass(frozen=True)
class _Held:
    """Reads from arrays."""

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]

    def __call__(self, places: Places) -> Examples:
        return Examples(self.images[places], self.labels[places])


def _gives_away(reader: Callable[[Places], Examples]) -> bool:
    """Whether the arrays that a reader returns are the caller's alone."""
    if isinstance(reader, _From):
        return _gives_away(reader.reader)
    return isinstance(reader, _Held | _Stored)


@dataclass(frozen=True)
class _Stored:
    """Reads and decodes what TFDS has prepared.

    Attributes:
      source: TFDS's, which returns images encoded.
      prepared: the folder, for error messages.
      image_shape: of the images to return.
      resized: whether to scale images to that shape, which they otherwise have already.
    """

    source: Any
    prepared: Path
    image_shape: tuple[int, int, int]
    resized: bool

    def __call__(self, places: Places) -> Examples:
        images = np.empty((len(places), *self.image_shape), np.uint8)
        with _undamaged(self.prepared):
            rows = self.source.__getitems__(places.tolist())
            for image, row in zip(images, rows, strict=True):
                image[:] = self._decode(row["image"])
        return Examples(images, np.array([row["label"] for row in rows], np.int32))

    def _decode(self, encoded: bytes) -> UInt8[np.ndarray, "height width channels"]:
        # Pillow decodes twice as fast as TFDS.
        from PIL import Image, ImageOps

        height, width, channels = self.image_shape
        picture: Image.Image = Image.open(io.BytesIO(encoded))
        # Among ImageNet's colour images are grey ones and some for printing (CMYK).
        if picture.mode != _MODES[channels]:
            picture = picture.convert(_MODES[channels])
        if self.resized:
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture).reshape(self.image_shape)


def open_prepared(prepared: Path, image_size: int | None = None) -> RecordDataset:
    """Opens an image classification dataset that TFDS has prepared.

    Args:
      prepared: the folder <data_dir>/<name>/<version> that TFDS wrote.
      image_size: height and width in pixels of the images to return: each is scaled so that
        its shorter side is that, and its central square is kept. By default images stay as
        they are.

    Raises:
      DatasetUnavailable: TFDS is not installed.
      InputError: the folder is damaged, not in ArrayRecord format, or of something else than
        labelled images; its images differ in size, and no size to return is given.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetUnavailable(
            "reading prepared datasets needs TFDS; run: pip install tensorflow-datasets "
            "importlib_resources"
        ) from error
    with _undamaged(prepared):
        builder = tfds.builder_from_directory(prepared)
        info, features = builder.info, dict(builder.info.features.items())
        _allow_files(sum(split.num_shards for split in info.splits.values()))
        file_format = info.file_format.value
    if file_format != "array_record":
        raise InputError(
            f"the dataset in {str(prepared)!r} was prepared as {file_format}, which needs "
            "TensorFlow; name another --data-dir to prepare it there as array_record"
        )
    shape = _image_shape(features, prepared, image_size)
    return RecordDataset(
        name=info.name,
        version=str(info.version),
        train=_split(builder, "train", prepared, shape, image_size is not None),
        test=_test_split(builder, prepared, shape, image_size is not None),
        class_names=tuple(features["label"].names),
        provenance=f"TFDS {info.name} {info.version}, prepared in {prepared}",
    )


@contextmanager
def _undamaged(prepared: Path) -> Iterator[None]:
    """Blames damaged files for what goes wrong inside.

    TFDS, protobuf, ArrayRecord and Pillow each raise their own errors for them.
    """
    try:
        yield
    except Exception as error:
        # ArrayRecord has no error of its own for this either.
        if os.strerror(errno.EMFILE) in str(error):
            raise InputError(
                f"the files in {str(prepared)!r} are more than may be open at the same time; "
                "raise the limit (ulimit -n)"
            ) from error
        raise InputError(
            f"the prepared dataset in {str(prepared)!r} is damaged "
            f"({type(error).__name__}); delete that folder and run again to prepare it anew"
        ) from error


def _allow_files(count: int) -> None:
    """Lets this process have so many files open beside others, as far as it may.

    ArrayRecord keeps those open that it has read from; ImageNet's are more than the usual limit.
    """
    import resource

    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _image_shape(
    features: dict[str, Any], prepared: Path, image_size: int | None
) -> tuple[int, int, int]:
    """The shape of the images to return, if `features` are those of labelled images."""
    import tensorflow_datasets as tfds

    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(name), kind) for name, kind in kinds.items()):
        raise InputError(
            f"the dataset in {str(prepared)!r} has no 'image' with a class as its 'label' but "
            f"{', '.join(map(repr, features))}; name one for image classification"
        )
    if image_size is not None and image_size < 1:
        raise InputError(f"an image size of {image_size} pixels is too small; give 1 or more")
    height, width, channels = features["image"].shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise InputError(
            f"the images in {str(prepared)!r} differ in size; give an image_size to scale "
            "them to, such as 224"
        )
    return height, width, channels


def _split(
    builder: Any, split: str, prepared: Path, shape: tuple[int, int, int], resized: bool
) -> Records:
    import tensorflow_datasets as tfds

    if split not in builder.info.splits:
        raise InputError(
            f"the dataset in {str(prepared)!r} has no split {split!r} but "
            f"{', '.join(map(repr, builder.info.splits))}; name another dataset"
        )
    with _undamaged(prepared):
        count = builder.info.splits[split].num_examples
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        if len(source) != count:
            raise ValueError(f"{split}: {len(source)} records instead of {count}")
    return Records(_Stored(source, prepared, shape, resized), count, shape)


def _test_split(
    builder: Any, prepared: Path, shape: tuple[int, int, int], resized: bool
) -> Records:
    """The split called test, or validation where its labels are kept secret, as ImageNet's."""
    if "test" in builder.info.splits:
        test = _split(builder, "test", prepared, shape, resized)
        if test[0][1] >= 0:
            return test
    return _split(builder, "validation", prepared, shape, resized)
