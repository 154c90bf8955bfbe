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
from dlc_jax.data import Dataset, Normalise, cache
from dlc_jax.data.images import read_image
from dlc_jax.errors import DatasetUnavailable, InputError
from dlc_jax.utils.files import write_atomically


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("DLC_JAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(left: Dataset, right: Dataset) -> bool:
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


def test_mnist_5k_trains_on_none_of_its_test_digits(digits: Dataset) -> None:
    train, test = (
        {image.tobytes() for image in split.images} for split in (digits.train, digits.test)
    )
    assert not train & test


@pytest.mark.slow
def test_mnist_5k_are_digits_of_mnists_training_split(digits: Dataset, mnist: Dataset) -> None:
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
    normalise = Normalise.fit(mnist.train.images)
    np.testing.assert_allclose(np.asarray(normalise.mean) / 255, [0.13066], atol=1e-5)
    np.testing.assert_allclose(np.asarray(normalise.std) / 255, [0.30811], atol=1e-5)


@pytest.mark.slow
def test_cifar10_has_its_published_statistics() -> None:
    if data.find("cifar10") is None:
        pytest.skip(f"CIFAR-10 is not prepared in {data.data_folder()} (TFDS_DATA_DIR)")
    cifar10 = data.load("cifar10")
    assert np.shape(cifar10.train.images) == (50000, 32, 32, 3)
    assert np.bincount(cifar10.train.labels).tolist() == [5000] * 10
    assert cifar10.class_names[:3] == ("airplane", "automobile", "bird")
    normalise = Normalise.fit(cifar10.train.images)
    np.testing.assert_allclose(normalise.mean / 255, [0.49140, 0.48216, 0.44653], atol=1e-5)
    np.testing.assert_allclose(normalise.std / 255, [0.24703, 0.24349, 0.26159], atol=1e-5)


@pytest.mark.slow
def test_cached_mnist_opens_in_a_fifth_of_a_second(mnist: Dataset) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        again = data.load("mnist")
        times.append(time.perf_counter() - start)
    assert same(again, mnist)
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
def test_of_prepared_versions_the_newest_that_can_be_read_is_found(
    tmp_path: Path, formats: dict[str, str | None], found: str
) -> None:
    for version, kind in formats.items():
        (tmp_path / "mnist" / version).mkdir(parents=True)
        info = {"name": "mnist"} | ({"fileFormat": kind} if kind else {})
        (tmp_path / "mnist" / version / "dataset_info.json").write_text(json.dumps(info))
    assert data.find("mnist", tmp_path) == tmp_path / "mnist" / found
    assert data.status("mnist", tmp_path)["version"] == found


def test_an_older_version_is_loaded_where_the_newer_can_not_be_read(copy: Path) -> None:
    newer = copy.with_name("3.0.2")
    newer.mkdir()
    info = (copy / "dataset_info.json").read_text().replace("array_record", "tfrecord")
    (newer / "dataset_info.json").write_text(info)
    assert data.open_records("mnist", copy.parents[1]).version == copy.name


@pytest.mark.parametrize("given", [None, "~/data"])
def test_without_a_home_folder_another_data_folder_is_asked_for(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(path: str) -> str:
        return path

    monkeypatch.setattr("os.path.expanduser", homeless)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert data.data_folder() == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    with pytest.raises(InputError, match=r"no home folder .*'~/.*TFDS_DATA_DIR or --data-dir"):
        data.data_folder(given)


def test_a_changed_file_is_not_mistaken_for_what_was_cached(copy: Path) -> None:
    before = data.cache_key("mnist", copy)
    (copy / "features.json").write_text("{}")
    assert data.cache_key("mnist", copy) != before


def test_without_tfds_a_prepared_dataset_is_unavailable(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(DatasetUnavailable, match="pip install tensorflow-datasets"):
        data.load("mnist", copy.parents[1])


@pytest.mark.parametrize(("name", "named"), [("mnits", "mnist"), ("cifar", "cifar10")])
def test_unknown_datasets_are_answered_with_the_nearest(name: str, named: str) -> None:
    with pytest.raises(InputError, match=f"{name!r}.*{named}"):
        data.load(name)


def test_a_data_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        data.load("mnist", tmp_path / "nowhere")


# --- cache ------------------------------------------------------------------------------


def test_the_cache_gives_back_what_was_loaded(cached: Path, few_digits: Dataset) -> None:
    first = cache.through("few-1", lambda: few_digits)
    second = cache.through("few-1", lambda: pytest.fail("loaded again"))
    assert same(first, second)
    assert second.class_names == few_digits.class_names
    assert second.provenance == few_digits.provenance
    assert [path.name for path in cached.iterdir()] == ["few-1.safetensors"]


def test_damage_anywhere_in_a_cache_file_is_an_error(cached: Path, few_digits: Dataset) -> None:
    cache.through("few-1", lambda: few_digits)
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
            cache.through("few-1", lambda: few_digits)


def test_a_failed_load_leaves_nothing_in_the_cache(cached: Path) -> None:
    def fail() -> Dataset:
        raise InputError("no")

    with pytest.raises(InputError):
        cache.through("few-1", fail)
    assert not cached.exists() or not list(cached.iterdir())


def test_without_a_writable_cache_loading_works(
    monkeypatch: pytest.MonkeyPatch, few_digits: Dataset
) -> None:
    monkeypatch.setenv("DLC_JAX_CACHE_DIR", "/dev/null/cache")
    assert same(cache.through("few-1", lambda: few_digits), few_digits)


@pytest.mark.parametrize("failing", ["mkdir", "open", "replace", "write"])
def test_where_the_cache_can_not_be_written_loading_works_and_leaves_nothing(
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
        assert same(cache.through("few-1", lambda: few_digits), few_digits)
    monkeypatch.undo()
    assert not list(cached.iterdir())


def test_where_the_cache_can_not_be_read_loading_works(
    cached: Path, few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.through("few-1", lambda: few_digits)
    opened = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert same(cache.through("few-1", lambda: few_digits), few_digits)


def aged(path: Path, hours: float) -> Path:
    """The file as if it had last been written to so long ago."""
    when = time.time() - 3600 * hours
    os.utime(path, (when, when))
    return path


def test_what_killed_processes_left_in_the_cache_is_removed_and_nothing_else(
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
    cache.through("few-1", lambda: few_digits)
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in (*others, written))


def test_writing_a_file_anew_removes_what_was_left_of_it_and_nothing_else(tmp_path: Path) -> None:
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


def test_of_each_dataset_the_sources_used_last_are_kept(cached: Path, few_digits: Dataset) -> None:
    """Sources are kept with all their parts, and other datasets' and a user's files always."""
    cached.mkdir()
    sources = [f"few-1.0.{n}-{n:012x}" for n in range(6)]
    parts = [f"{sources[0]}-{n}of2" for n in range(2)]
    others = ["few-5k-0.25.0", "fewer-1.0.0-0123456789ab", "few-mine", "few-1.0.0-of-mine"]
    for age, key in enumerate([*others, *parts, *sources]):
        (cached / f"{key}.safetensors").touch()
        aged(cached / f"{key}.safetensors", hours=100 - age)
    cache.through("few-2.0.0-0123456789ab", lambda: few_digits)
    kept = {path.stem for path in cached.iterdir()}
    assert kept == {*others, *sources[-2:], "few-2.0.0-0123456789ab"}


def test_a_source_that_is_used_stays_in_the_cache(cached: Path, few_digits: Dataset) -> None:
    cache.through("few-1.0.0", lambda: few_digits)
    aged(cached / "few-1.0.0.safetensors", hours=1)
    for version in ("1.0.1", "1.0.2", "1.0.3", "1.0.4"):
        cache.through("few-1.0.0", lambda: pytest.fail("loaded again"))
        cache.through(f"few-{version}", lambda: few_digits)
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
def test_normalising_fits_every_channels_mean_and_deviation(images: np.ndarray) -> None:
    normalise = Normalise.fit(images)
    wide = images.astype(np.float64)
    np.testing.assert_allclose(normalise.mean, wide.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    std = wide.std((0, 1, 2))
    np.testing.assert_allclose(normalise.std, np.where(std == 0, 1, std), rtol=1e-5, atol=1e-3)
    assert np.isfinite(normalise(images)).all()


def test_normalising_is_a_pytree_that_jit_takes(few_digits: Dataset) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    compiled = jax.jit(lambda normalise, images: normalise(images))
    np.testing.assert_allclose(
        compiled(normalise, few_digits.test.images), normalise(few_digits.test.images), rtol=1e-6
    )


# --- pictures ---------------------------------------------------------------------------


def test_a_digit_survives_enlarging_colouring_and_jpeg(digits: Dataset, tmp_path: Path) -> None:
    pixels = np.asarray(digits.test.images)[3]
    large = Image.fromarray(pixels[..., 0]).resize((280, 280), Image.Resampling.NEAREST)
    for name, picture in {"a.png": large, "b.jpg": large.convert("RGB")}.items():
        picture.save(tmp_path / name)
        read, inverted = read_image(tmp_path / name, (28, 28, 1), dark_background=True)
        assert not inverted
        assert np.abs(read.astype(int) - pixels).mean() < 8


def test_ink_on_paper_is_inverted_where_the_network_learned_bright_on_dark(
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


def test_what_is_transparent_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    assert read_image(tmp_path / "nothing.png", (28, 28, 1))[0].min() == 255
