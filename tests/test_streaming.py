import io
import itertools
import json
import multiprocessing
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from dlc_jax import data
from dlc_jax.data import Batch, Dataset, Examples, RecordDataset, Records, streaming
from dlc_jax.data.shuffling import epoch_permutation
from dlc_jax.errors import DatasetUnavailableError, InputError

KEY = jax.random.key(7)


def counted(count: int) -> Records:
    """Records whose images and labels are their indices, which are below 256."""
    labels = np.arange(count, dtype=np.int32)
    return Records.from_arrays(Examples(labels.astype(np.uint8).reshape(-1, 1, 1, 1), labels))


def real(batch: Batch) -> Examples:
    """The examples of a batch without padding."""
    own = np.asarray(batch.weights) > 0
    return Examples(*(np.asarray(array)[own] for array in batch.examples))


def labels_of(batches: Iterable[Batch]) -> list[list[int]]:
    return [real(batch).labels.tolist() for batch in batches]


def assert_same(left: Examples, right: Examples) -> None:
    np.testing.assert_array_equal(left.images, right.images)
    np.testing.assert_array_equal(left.labels, right.labels)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(jax.devices()[:2], ("batch",))


# --- the order of the batches -----------------------------------------------------------


@pytest.mark.slow
def test_a_stream_of_mnist_is_what_is_loaded_in_the_order_of_each_epoch(mnist: Dataset) -> None:
    stream = data.stream("mnist", split="test", batch_size=3000, key=KEY, epochs=2)
    batches = list(map(real, stream))
    assert [len(batch.labels) for batch in batches] == [3000, 3000, 3000, 1000] * 2
    indices = np.concatenate([epoch_permutation(KEY, epoch, 10_000) for epoch in range(2)])
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert_same(Examples(images, labels), Examples(*(a[indices] for a in mnist.test)))


def test_without_a_key_a_stream_goes_through_the_records_as_they_stand() -> None:
    stream = data.stream(counted(5), batch_size=2, epochs=2)
    assert labels_of(stream) == [[0, 1], [2, 3], [4]] * 2


@settings(max_examples=12, deadline=None)
@given(batch_size=st.integers(1, 60), start=st.integers(0, 150), examples=st.integers(30, 32))
def test_a_stream_that_starts_at_any_step_goes_on_as_if_never_stopped(
    digits: Dataset, batch_size: int, start: int, examples: int
) -> None:
    records = RecordDataset.from_dataset(digits).take(examples).train
    whole = data.stream(records, batch_size=batch_size, key=KEY)
    late = data.stream(records, batch_size=batch_size, key=KEY, start=start)
    expected = itertools.islice(whole, start, start + 3)
    for left, right in zip(expected, itertools.islice(late, 3), strict=True):
        assert_same(real(left), real(right))


@pytest.mark.parametrize("start", [6, 7])
def test_a_stream_that_starts_at_its_end_is_empty(start: int) -> None:
    assert not list(data.stream(counted(5), batch_size=2, epochs=2, start=start))


@pytest.mark.parametrize(
    "how", [{"num_threads": 0}, {"num_threads": 3, "prefetch_buffer_size": 5}, {"num_workers": 2}]
)
def test_threads_and_processes_give_the_same_batches(how: dict[str, int]) -> None:
    records = counted(23)
    expected = [epoch_permutation(KEY, epoch, 23).tolist() for epoch in range(3)]
    batches = data.stream(records, batch_size=10, key=KEY, epochs=3, **how)  # type: ignore[arg-type]
    assert labels_of(batches) == [
        places[first : first + 10] for places in expected for first in (0, 10, 20)
    ]


def test_the_order_of_an_epoch_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def count(key: Any, epoch: int, examples: int) -> Any:
        computed.append(epoch)
        return epoch_permutation(key, epoch, examples)

    monkeypatch.setattr(streaming, "epoch_permutation", count)
    assert len(list(data.stream(counted(200), batch_size=2, key=KEY, epochs=3))) == 300
    assert computed == [0, 1, 2]


# --- devices and processes --------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 2])
def test_a_mesh_shares_each_batch_and_changes_nothing(mesh: Mesh, start: int) -> None:
    alone = data.stream(counted(22), batch_size=7, key=KEY, epochs=2, start=start)
    shared = data.stream(counted(22), batch_size=7, key=KEY, epochs=2, start=start, mesh=mesh)
    for left, right in zip(alone, shared, strict=True):
        assert_same(real(left), real(right))
        for array in jax.tree.leaves((right.examples, right.mask)):
            assert isinstance(array, jax.Array)
            sharding = NamedSharding(mesh, PartitionSpec("batch"))
            assert array.sharding.is_equivalent_to(sharding, array.ndim)
            assert {len(shard.data) for shard in array.addressable_shards} == {4}


PROCESS = """
import json, sys, jax, numpy as np
port, rank = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
from jax.sharding import Mesh
from dlc_jax import data
labels = np.arange(10, dtype=np.int32)
held = data.Records.from_arrays(data.Examples(np.zeros((10, 1, 1, 1), np.uint8), labels))
read = []
def reader(indices):
    read.append(indices.tolist())
    return held.reader(indices)
# Neighbours in the mesh are of different processes.
devices = sorted(jax.devices(), key=lambda device: (device.id % 2, device.process_index))
mesh = Mesh(devices, ("batch",))
records = data.Records(reader, 10, (1, 1, 1))
shards = [
    {
        devices.index(shard.device): shard.data.tolist()
        for shard in batch.examples.labels.addressable_shards
    }
    for batch in data.stream(records, batch_size=8, epochs=1, mesh=mesh, num_threads=1)
]
print(json.dumps({"read": read, "shards": shards}))
"""


@pytest.mark.slow
def test_each_process_reads_the_rows_of_its_own_devices_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), rank], stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    first, second = (
        json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes
    )
    assert first == {
        # The last batch is padded with its own examples.
        "read": [[0, 1, 4, 5], [8, 9, 8, 9]],
        "shards": [{"0": [0, 1], "2": [4, 5]}, {"0": [8, 9], "2": [8, 9]}],
    }
    assert second == {
        "read": [[2, 3, 6, 7], [8, 9, 8, 9]],
        "shards": [{"1": [2, 3], "3": [6, 7]}, {"1": [8, 9], "3": [8, 9]}],
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_is_closed_early_leaves_nothing_running(workers: int) -> None:
    stream = data.stream(counted(200), batch_size=2, key=KEY, num_workers=workers)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("grain-prefetch") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not multiprocessing.active_children()


# --- records ----------------------------------------------------------------------------


def test_records_are_read_one_by_one_or_in_any_order(digits: Dataset) -> None:
    records = data.open_records("mnist-5k").test
    assert len(records) == 1000
    for place in (3, -1):
        image, label = records[place]
        np.testing.assert_array_equal(image, digits.test.images[place])
        assert label == digits.test.labels[place]
    assert_same(records.read([5, 2, 5]), Examples(*(array[[5, 2, 5]] for array in digits.test)))
    assert len(records.take(4)) == 4


@pytest.mark.usefixtures("prepared_mnist")
def test_records_of_mnist_can_be_sent_to_another_process() -> None:
    records = data.open_records("mnist").test
    sent = pickle.loads(pickle.dumps(records))
    assert_same(sent.read([9999, 0]), records.read([9999, 0]))


# --- datasets of TFDS that are not in the catalog -------------------------------------

LABELS = {"train": [0, 2, 1, 2, 0], "validation": [1, 1, 0], "test": [-1, -1]}


def picture(index: int) -> Image.Image:
    """Green on the left, red in its central square's left half, else blue; 2 to 1 or 1 to 2."""
    size = 40 + 8 * index
    image = Image.new("RGB", (2 * size, size), "blue")
    image.paste("lime", (0, 0, size // 2, size))
    image.paste("red", (size // 2, 0, size, size))
    return image if index % 2 == 0 else image.transpose(Image.Transpose.TRANSPOSE)


def jpeg(image: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    file.seek(0)
    return file


class TinyImagenet(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,
):
    VERSION = tfds.core.Version("5.1.0")
    modes = ("RGB", "RGB", "L", "CMYK", "RGB")

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {split: self._generate_examples(split) for split in LABELS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (label, mode) in enumerate(zip(LABELS[split], self.modes, strict=False)):
            image = jpeg(picture(index).convert(mode))
            yield index, {"image": image, "label": label, "file_name": f"{index}.jpg"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a dataset as ImageNet's: JPEGs of several sizes and a secret test."""
    folder = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    TinyImagenet(data_dir=folder, file_format="array_record").download_and_prepare(
        download_config=config
    )
    return folder


def test_a_dataset_of_any_name_is_opened_and_tested_on_what_has_labels(prepared: Path) -> None:
    dataset = data.open_records("tiny_imagenet", prepared, image_size=32)
    assert (dataset.name, dataset.version) == ("tiny_imagenet", "5.1.0")
    assert dataset.class_names == ("cat", "dog", "owl")
    assert dataset.image_shape == (32, 32, 3)
    assert sorted(dataset.train.load().labels) == sorted(LABELS["train"])
    assert sorted(dataset.test.load().labels) == sorted(LABELS["validation"])
    assert len(dataset.take(2).train) == 2
    with pytest.raises(InputError, match="tiny_imagenet has 5 training examples, not 6"):
        dataset.take(6)


def test_images_of_all_sizes_come_as_their_central_squares(prepared: Path) -> None:
    (batch,) = data.stream("tiny_imagenet", prepared, batch_size=9, epochs=1, image_size=32)
    images = real(batch).images.astype(int)
    assert images.shape == (5, 32, 32, 3)
    # TFDS has shuffled them: the grey one is that of a single colour channel.
    (grey,) = (index for index, image in enumerate(images) if (np.ptp(image, axis=-1) < 3).all())
    for image in np.delete(images, grey, axis=0):
        upright = image if image[16, 4, 0] > image[16, 28, 0] else image.swapaxes(0, 1)
        halves = np.repeat([[255, 0, 0], [0, 0, 255]], 16, axis=0)
        assert np.abs(upright - halves)[:, [*range(13), *range(19, 32)]].max() < 30


def test_images_of_several_sizes_need_a_size_to_come_in(prepared: Path) -> None:
    with pytest.raises(InputError, match="differ in size; give an image_size"):
        data.open_records("tiny_imagenet", prepared)


@pytest.mark.usefixtures("prepared_mnist")
def test_images_of_one_size_are_scaled_where_it_is_asked_for() -> None:
    image, _ = data.open_records("mnist", image_size=14).test[3]
    original, _ = data.open_records("mnist").test[3]
    picture = Image.fromarray(np.asarray(original)[..., 0])
    np.testing.assert_array_equal(image[..., 0], picture.resize((14, 14), Image.Resampling.BICUBIC))


def changed(prepared: Path, folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the data folder with a change in one of its files."""
    shutil.copytree(prepared, folder / "copy")
    path = folder / "copy" / "tiny_imagenet" / "5.1.0" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return folder / "copy"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("dataset_info.json", "array_record", "tfrecord", "was prepared as tfrecord"),
        ("features.json", '"label"', '"kind"', "no 'image' with a class as its 'label' but"),
        ("dataset_info.json", '"train"', '"all"', "no split 'train' but 'all', "),
        ("dataset_info.json", '"validation"', '"other"', "no split 'validation' but"),
    ],
)
def test_what_can_not_be_streamed_is_said_in_one_line(
    prepared: Path, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    folder = changed(prepared, tmp_path, file, old, new)
    with pytest.raises(InputError, match=message) as error:
        data.open_records("tiny_imagenet", folder, image_size=32)
    assert len(str(error.value).splitlines()) == 1
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_ends_the_stream_with_an_error(
    prepared: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    records = data.open_records("tiny_imagenet", tmp_path / "copy", image_size=32).train
    (path,) = (tmp_path / "copy").rglob("*train.array_record*")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{tmp_path}.* is damaged"):
        list(data.stream(records, batch_size=2, epochs=1, num_workers=workers))


def test_more_files_may_be_open_where_a_dataset_needs_them(prepared: Path) -> None:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    try:
        data.open_records("tiny_imagenet", prepared, image_size=32)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1003, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def test_too_many_open_files_are_not_taken_for_damage(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = data.open_records("tiny_imagenet", prepared, image_size=32).train

    def fail(self: Any, places: list[int]) -> None:
        raise RuntimeError("open() failed: Too many open files; opening train-00149")

    monkeypatch.setattr(type(train.reader.source), "__getitems__", fail)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"raise the limit \(ulimit -n\)"):
        train.read([0])


# --- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet2012", "imagenette/full-size", "..", "", "/etc", "*"])
def test_a_dataset_that_is_not_prepared_is_named_with_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailableError) as error:
        data.stream(name, tmp_path, batch_size=2)
    assert repr(name) in str(error.value)
    assert repr(str(tmp_path)) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"start": -1}, "start is -1; give 0 or more"),
        ({"epochs": -2}, "epochs is -2; give 0 or more"),
        ({"num_workers": -1}, "num_workers is -1; give 0 or more"),
        ({"image_size": 0}, "an image size of 0 pixels is too small; give 1 or more"),
        ({"split": "validation"}, "split is 'validation'; it must be train or test"),
    ],
)
def test_numbers_out_of_range_are_refused(
    prepared: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        data.stream("tiny_imagenet", prepared, **{"batch_size": 2, "image_size": 32} | arguments)


@pytest.mark.parametrize("place", [-1, 5])
def test_places_beyond_the_records_are_refused(place: int) -> None:
    with pytest.raises(InputError, match=f"index {place} is out of range; use 0 to 4"):
        counted(5).read([0, place])


def test_no_records_make_no_stream() -> None:
    none = counted(5).take(0)
    with pytest.raises(InputError, match="the number of records is 0; give 1 or more"):
        data.stream(none, batch_size=1)
    with pytest.raises(InputError, match="there are 5 records, not 6; use fewer"):
        counted(5).take(6)


def test_bundled_digits_stay_as_large_as_they_are() -> None:
    with pytest.raises(InputError, match="mnist-5k can't be scaled to 32 pixels"):
        data.open_records("mnist-5k", image_size=32)
