import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dlc_jax import data
from dlc_jax.data import Dataset, Normalize, RecordDataset, cache, catalog
from dlc_jax.data.image_files import read_image
from dlc_jax.errors import DatasetUnavailableError, InputError
from dlc_jax.utils.files import write_atomically


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("DLC_JAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def equal(left: Dataset, right: Dataset) -> bool:
    arrays = zip((*left.train, *left.test), (*right.train, *right.test), strict=True)
    return all(np.array_equal(a, b) for a, b in arrays)


# --- mnist-5k ---------------------------------------------------------------------------


def test_mnist_5k_is_balanced_in_both_splits_and_in_every_batch(digits: Dataset) -> None:
    assert np.shape(digits.train.images) == (4000, 28, 28, 1)
    assert np.shape(digits.test.images) == (1000, 28, 28, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int32
    for labels in (digits.test.labels, *np.split(np.asarray(digits.train.labels), 40)):
        assert len(set(np.bincount(labels, minlength=10))) == 1


def test_the_splits_of_mnist_5k_are_disjoint(digits: Dataset) -> None:
    train, test = (
        {image.tobytes() for image in split.images} for split in (digits.train, digits.test)
    )
    assert not train & test


@pytest.mark.slow
def test_mnist_5k_is_a_subset_of_mnists_training_split(digits: Dataset, mnist: Dataset) -> None:
    known = {
        (image.tobytes(), int(label))
        for image, label in zip(mnist.train.images, mnist.train.labels, strict=True)
    }
    ours = zip(digits.test.images, digits.test.labels, strict=True)
    assert all((image.tobytes(), int(label)) in known for image, label in ours)


# --- TFDS -------------------------------------------------------------------------------


@pytest.mark.slow
def test_full_mnist_has_its_published_statistics(mnist: Dataset) -> None:
    assert np.shape(mnist.train.images) == (60000, 28, 28, 1)
    assert np.bincount(mnist.test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    normalize = Normalize.fit(mnist.train.images)
    np.testing.assert_allclose(np.asarray(normalize.mean) / 255, [0.13066], atol=1e-5)
    np.testing.assert_allclose(np.asarray(normalize.std) / 255, [0.30811], atol=1e-5)


@pytest.mark.slow
def test_cifar10_has_its_published_statistics() -> None:
    if data.find("cifar10") is None:
        pytest.skip(f"CIFAR-10 is not prepared in {data.data_folder()} (TFDS_DATA_DIR)")
    cifar10 = data.load("cifar10")
    assert np.shape(cifar10.train.images) == (50000, 32, 32, 3)
    assert np.bincount(cifar10.train.labels).tolist() == [5000] * 10
    assert cifar10.class_names[:3] == ("airplane", "automobile", "bird")
    normalize = Normalize.fit(cifar10.train.images)
    np.testing.assert_allclose(
        np.asarray(normalize.mean) / 255, [0.49140, 0.48216, 0.44653], atol=1e-5
    )
    np.testing.assert_allclose(
        np.asarray(normalize.std) / 255, [0.24703, 0.24349, 0.26159], atol=1e-5
    )


@pytest.mark.slow
def test_cached_mnist_opens_in_a_fifth_of_a_second(mnist: Dataset) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        again = data.load("mnist")
        times.append(time.perf_counter() - start)
    assert equal(again, mnist)
    assert min(times) < 0.2


@pytest.fixture
def copy(prepared_mnist: Path, cached: Path, tmp_path: Path) -> Path:
    """A copy of MNIST as TFDS prepared it, and an empty cache."""
    target = tmp_path / "tfds" / "mnist" / prepared_mnist.name
    shutil.copytree(prepared_mnist, target, copy_function=shutil.copyfile)
    return target


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("mnist-train.array_record-00000-of-00001", 0.5),
        ("mnist-test.array_record-00000-of-00001", 0.999),
        ("mnist-train.array_record-00000-of-00001", 0),
        ("dataset_info.json", 0.5),
        ("features.json", 0.5),
    ],
)
def test_truncated_files_of_a_prepared_dataset_are_an_error(
    copy: Path, file: str, size: float
) -> None:
    path = copy / file
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])
    with pytest.raises(InputError, match=f"{copy}.* is damaged"):
        data.load("mnist", copy.parents[1])


def test_the_newest_prepared_version_is_found(tmp_path: Path) -> None:
    for version in ("3.0.9", "3.0.10", "2.9.9", "3.0.11.incomplete"):
        folder = tmp_path / "mnist" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()
    assert data.find("mnist", tmp_path) == tmp_path / "mnist" / "3.0.10"


@pytest.mark.parametrize(
    ("formats", "found"),
    [
        ({"3.0.0": "array_record", "3.0.1": "tfrecord"}, "3.0.0"),
        ({"3.0.0": "array_record", "3.0.1": None}, "3.0.0"),
        ({"3.0.0": "array_record", "2.0.0": "tfrecord"}, "3.0.0"),
        ({"2.0.0": "array_record", "2.1.0": "array_record", "4.0.0": "riegeli"}, "2.1.0"),
        ({"2.0.0": "tfrecord", "2.1.0": "parquet"}, "2.1.0"),
    ],
)
def test_the_newest_readable_version_is_found(
    tmp_path: Path, formats: dict[str, str | None], found: str
) -> None:
    for version, kind in formats.items():
        (tmp_path / "mnist" / version).mkdir(parents=True)
        info = {"name": "mnist"} | ({"fileFormat": kind} if kind else {})
        (tmp_path / "mnist" / version / "dataset_info.json").write_text(json.dumps(info))
    assert data.find("mnist", tmp_path) == tmp_path / "mnist" / found
    assert data.status("mnist", tmp_path)["version"] == found


def test_an_older_version_is_loaded_if_the_newer_is_unreadable(copy: Path) -> None:
    newer = copy.with_name("3.0.2")
    newer.mkdir()
    info = (copy / "dataset_info.json").read_text().replace("array_record", "tfrecord")
    (newer / "dataset_info.json").write_text(info)
    assert data.open_records("mnist", copy.parents[1]).version == copy.name


@pytest.mark.parametrize("given", [None, "~/data"])
def test_a_missing_home_folder_is_an_error(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_home(path: str) -> str:
        return path

    monkeypatch.setattr("os.path.expanduser", without_home)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert data.data_folder() == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    with pytest.raises(InputError, match=r"no home folder .*'~/.*TFDS_DATA_DIR or data_dir \(--"):
        data.data_folder(given)


def test_a_changed_file_changes_the_cache_key(copy: Path) -> None:
    before = catalog.cache_key("mnist", copy)
    (copy / "features.json").write_text("{}")
    assert catalog.cache_key("mnist", copy) != before


def test_without_tfds_a_prepared_dataset_is_unavailable(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(DatasetUnavailableError, match="pip install tensorflow-datasets"):
        data.load("mnist", copy.parents[1])


@pytest.mark.parametrize(("name", "named"), [("mnits", "mnist"), ("cifar", "cifar10")])
def test_an_unknown_dataset_is_an_error_with_suggestions(name: str, named: str) -> None:
    with pytest.raises(InputError, match=f"{name!r}.*{named}"):
        data.load(name)


def test_a_missing_data_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        data.load("mnist", tmp_path / "nowhere")


# --- cache ------------------------------------------------------------------------------


def test_the_cache_returns_the_loaded_dataset(cached: Path, few_digits: Dataset) -> None:
    first = cache.get_or_load("few-1", lambda: few_digits)
    second = cache.get_or_load("few-1", lambda: pytest.fail("loaded again"))
    assert equal(first, second)
    assert second.class_names == few_digits.class_names
    assert second.provenance == few_digits.provenance
    assert [path.name for path in cached.iterdir()] == ["few-1.safetensors"]


def test_damage_anywhere_in_a_cache_file_is_an_error(cached: Path, few_digits: Dataset) -> None:
    cache.get_or_load("few-1", lambda: few_digits)
    path = cached / "few-1.safetensors"
    content = path.read_bytes()
    flipped = [bytes([byte ^ 1]) for byte in content]
    damaged = [content[:size] for size in (0, 7, 100, len(content) // 2, len(content) - 1)]
    damaged += [
        content[:at] + flipped[at] + content[at + 1 :]
        for at in (0, 30, len(content) // 2, len(content) - 1)
    ]
    for version in damaged:
        path.write_bytes(version)
        with pytest.raises(InputError, match=r"few-1\.safetensors' is damaged; delete it"):
            cache.get_or_load("few-1", lambda: few_digits)


def test_a_failed_load_leaves_no_cache_file(cached: Path) -> None:
    def fail() -> Dataset:
        raise InputError("no")

    with pytest.raises(InputError):
        cache.get_or_load("few-1", fail)
    assert not cached.exists() or not list(cached.iterdir())


def test_without_a_writable_cache_loading_works(
    monkeypatch: pytest.MonkeyPatch, few_digits: Dataset
) -> None:
    monkeypatch.setenv("DLC_JAX_CACHE_DIR", "/dev/null/cache")
    assert equal(cache.get_or_load("few-1", lambda: few_digits), few_digits)


@pytest.mark.parametrize("failing", ["mkdir", "open", "replace", "write"])
def test_if_writing_the_cache_fails_loading_works_and_leaves_no_file(
    cached: Path, few_digits: Dataset, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cached.mkdir()
    where = {
        "mkdir": "pathlib.Path.mkdir",
        "open": "os.open",
        "replace": "os.replace",
        "write": "os.fsync",
    }
    monkeypatch.setattr(where[failing], refuse)
    for _ in range(2):
        assert equal(cache.get_or_load("few-1", lambda: few_digits), few_digits)
    monkeypatch.undo()
    assert not list(cached.iterdir())


def test_if_reading_the_cache_fails_loading_works(
    cached: Path, few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get_or_load("few-1", lambda: few_digits)
    opened = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert equal(cache.get_or_load("few-1", lambda: few_digits), few_digits)


def aged(path: Path, hours: float) -> Path:
    """Sets the modification time to some hours ago."""
    when = time.time() - 3600 * hours
    os.utime(path, (when, when))
    return path


def test_only_cache_files_of_killed_processes_are_removed(
    cached: Path, few_digits: Dataset
) -> None:
    cached.mkdir()
    left = [cached / ".few-0.safetensors.ab12_xyz.part", cached / ".other-1.2.abcdefgh.part"]
    others = [
        cached / "mine.part",
        cached / ".mine.part",
        cached / ".hidden",
        cached / ".notes.ABCDEFGH.part",
    ]
    written = cached / ".few-1.safetensors.1234abcd.part"
    for path in (*left, *others, written):
        path.write_bytes(b"half")
    for path in (*left, *others):
        aged(path, hours=2)
    cache.get_or_load("few-1", lambda: few_digits)
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in (*others, written))


def test_writing_a_file_removes_only_its_own_abandoned_parts(tmp_path: Path) -> None:
    left = tmp_path / ".table.csv.ab12_xyz.part"
    others = [tmp_path / ".other.csv.ab12_xyz.part", tmp_path / ".table.csv.part"]
    for path in (left, *others):
        path.touch()
        aged(path, hours=2)
    written = tmp_path / ".table.csv.1234abcd.part"
    written.touch()
    write_atomically(tmp_path / "table.csv", b"1,2")
    assert not left.exists()
    assert all(path.exists() for path in (*others, written))


def test_the_most_recently_used_sources_of_a_dataset_are_kept(
    cached: Path, few_digits: Dataset
) -> None:
    """Sources are kept with all their shards; other files are never removed."""
    cached.mkdir()
    sources = [f"few-1.0.{n}-{n:012x}" for n in range(6)]
    shards = [f"{sources[0]}-{n}of2" for n in range(2)]
    others = ["few-5k-0.25.0", "fewer-1.0.0-0123456789ab", "few-mine", "few-1.0.0-of-mine"]
    for age, key in enumerate([*others, *shards, *sources]):
        (cached / f"{key}.safetensors").touch()
        aged(cached / f"{key}.safetensors", hours=100 - age)
    cache.get_or_load("few-2.0.0-0123456789ab", lambda: few_digits)
    kept = {path.stem for path in cached.iterdir()}
    assert kept == {*others, *sources[-2:], "few-2.0.0-0123456789ab"}


def test_a_source_in_use_stays_in_the_cache(cached: Path, few_digits: Dataset) -> None:
    cache.get_or_load("few-1.0.0", lambda: few_digits)
    aged(cached / "few-1.0.0.safetensors", hours=1)
    for version in ("1.0.1", "1.0.2", "1.0.3", "1.0.4"):
        cache.get_or_load("few-1.0.0", lambda: pytest.fail("loaded again"))
        cache.get_or_load(f"few-{version}", lambda: few_digits)
        aged(cached / f"few-{version}.safetensors", hours=0.5)
    assert (cached / "few-1.0.0.safetensors").exists()
    assert len(list(cached.iterdir())) == 3


# --- normalisation ----------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 300), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    )
)
def test_normalize_fits_mean_and_standard_deviation_of_each_channel(images: np.ndarray) -> None:
    normalize = Normalize.fit(images)
    wide = images.astype(np.float64)
    np.testing.assert_allclose(normalize.mean, wide.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    std = wide.std((0, 1, 2))
    np.testing.assert_allclose(normalize.std, np.where(std == 0, 1, std), rtol=1e-5, atol=1e-3)
    assert np.isfinite(normalize(images)).all()


def test_normalize_is_hashable_and_a_pytree_without_leaves(few_digits: Dataset) -> None:
    normalize, images = Normalize.fit(few_digits.train.images), few_digits.test.images
    same = Normalize(np.asarray(normalize.mean), list(normalize.std))
    assert same == normalize
    assert hash(same) == hash(normalize)
    assert not jax.tree.leaves(normalize)
    assert all(type(value) is float for value in (*normalize.mean, *normalize.std))
    expected = normalize(images)
    as_argument = jax.jit(lambda normalize, images: normalize(images))
    np.testing.assert_array_equal(as_argument(normalize, images), expected)
    static = jax.jit(Normalize.__call__, static_argnums=0)
    np.testing.assert_array_equal(static(normalize, images), expected)
    mapped = jax.vmap(Normalize.__call__, (None, 0))
    np.testing.assert_array_equal(mapped(normalize, images), expected)


def test_normalize_fits_batches_as_all_images_at_once(few_digits: Dataset) -> None:
    images = np.asarray(few_digits.train.images)
    assert Normalize.from_batches(np.array_split(images, 7)) == Normalize.fit(images)


# --- splits -----------------------------------------------------------------------------


def test_shards_and_takes_partition_records(few_digits: Dataset) -> None:
    records = RecordDataset.from_dataset(few_digits)
    shards = [records.shard(index, 3) for index in range(3)]
    assert [(shard.num_train, shard.num_test) for shard in shards] == [(76, 16), (77, 17), (77, 17)]
    labels = np.concatenate([shard.load().train.labels for shard in shards])
    np.testing.assert_array_equal(labels, few_digits.train.labels)
    for dataset in (few_digits, records):
        assert dataset.take(100).num_train == 100
        assert dataset.take(0).num_train == 230
        head = dataset.head(60)
        assert (head.num_train, head.num_test) == (60, 50)
        with pytest.raises(InputError, match="few has 230 training examples, not 231"):
            dataset.take(231)
    with pytest.raises(InputError, match="no shard 3 of 3 of 230 records"):
        records.train.shard(3, 3)


# --- pictures ---------------------------------------------------------------------------


def test_an_enlarged_digit_in_colour_or_jpeg_is_read(digits: Dataset, tmp_path: Path) -> None:
    pixels = np.asarray(digits.test.images)[3]
    large = Image.fromarray(pixels[..., 0]).resize((280, 280), Image.Resampling.NEAREST)
    for name, picture in {"a.png": large, "b.jpg": large.convert("RGB")}.items():
        picture.save(tmp_path / name)
        read, inverted = read_image(tmp_path / name, (28, 28, 1), dark_background=True)
        assert not inverted
        assert np.abs(read.astype(int) - pixels).mean() < 8


def test_a_bright_background_is_inverted_for_networks_trained_on_dark_ones(
    digits: Dataset, tmp_path: Path
) -> None:
    pixels = np.asarray(digits.test.images)[3]
    Image.fromarray(255 - pixels[..., 0]).save(tmp_path / "paper.png")
    read, inverted = read_image(tmp_path / "paper.png", (28, 28, 1), dark_background=True)
    assert inverted
    np.testing.assert_array_equal(read, pixels)
    kept, _ = read_image(tmp_path / "paper.png", (28, 28, 1), dark_background=True, invert=False)
    np.testing.assert_array_equal(kept, 255 - pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 20, 3)])
def test_every_mode_of_png_is_read(mode: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((9, 30), 0x8080, np.uint16))
    else:
        picture = Image.new("L", (30, 9), 128).convert(mode, dither=Image.Dither.NONE)
    picture.save(tmp_path / "picture.png")
    read, _ = read_image(tmp_path / "picture.png", shape)
    assert read.shape == shape
    assert read.dtype == np.uint8
    grey = 255 if mode == "1" else 128
    assert np.abs(read.astype(int) - grey).max() <= 1


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    assert read_image(tmp_path / "nothing.png", (28, 28, 1))[0].min() == 255
