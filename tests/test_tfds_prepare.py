import gzip
import hashlib
import io
import logging
import os
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlc_jax.data import tfds_prepare as preparing
from dlc_jax.data.tfds_prepare import prepare
from dlc_jax.errors import DatasetUnavailableError, InputError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("importlib_resources")

NAMES = ["mnist", "fashion_mnist", "cifar10"]
OFFICIAL = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "Cifar10"}
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
CIFAR_CLASSES += ["dog", "frog", "horse", "ship", "truck"]
COUNTS = {"train": 30, "test": 10}

Files = dict[str, bytes]
Split = tuple[np.ndarray, np.ndarray]
Publish = Callable[..., str]


def random_splits(name: str) -> dict[str, Split]:
    random = np.random.default_rng(len(name))
    shape = (32, 32, 3) if name == "cifar10" else (28, 28, 1)
    return {
        split: (
            random.integers(0, 256, (count, *shape), np.uint8),
            random.integers(0, 10, count, np.uint8),
        )
        for split, count in COUNTS.items()
    }


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def cifar_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels[:, None], planes], axis=1).tobytes()


def cifar_archive(splits: dict[str, Split]) -> bytes:
    images, labels = splits["train"]
    members = {
        f"data_batch_{part + 1}.bin": cifar_records(images[part * 6 :][:6], labels[part * 6 :][:6])
        for part in reversed(range(5))
    }
    members["test_batch.bin"] = cifar_records(*splits["test"])
    members["batches.meta.txt"] = ("\n".join(CIFAR_CLASSES) + "\n\n").encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def source_files(name: str, splits: dict[str, Split]) -> Files:
    if name == "cifar10":
        return {"cifar-10-binary.tar.gz": cifar_archive(splits)}
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = splits[split]
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(images[..., 0])
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(labels)
    return files


def official_class(name: str) -> Any:
    return getattr(tfds.image_classification, OFFICIAL[name])


def official_cifar_info(url: str) -> Any:
    builder = SimpleNamespace(name="cifar10")
    return official_class("cifar10")._cifar_info.fget(builder)._replace(url=url)


@pytest.fixture(autouse=True)
def without_tensorflow() -> Iterator[None]:
    before = "tensorflow" in sys.modules
    yield
    assert ("tensorflow" in sys.modules) == before


@pytest.fixture(autouse=True)
def temporary_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each builder of TFDS leaves an empty folder in it.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")


@pytest.fixture
def server() -> Iterator[tuple[str, Files]]:
    """A server of the files in a dict that the test fills."""
    files: Files = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path[1:])
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/", files
        http.shutdown()
        thread.join()


def move(monkeypatch: pytest.MonkeyPatch, name: str, base: str, files: Files) -> None:
    """Makes a builder expect these files at another address."""
    from tensorflow_datasets.core.download.checksums import UrlInfo

    infos = {
        base + file: UrlInfo(len(data), hashlib.sha256(data).hexdigest(), file)
        for file, data in files.items()
    }
    builder_class = preparing._builder_class(name)
    monkeypatch.setattr(builder_class, "url_infos", infos)
    if name == "cifar10":
        monkeypatch.setattr(builder_class, "_cifar_info", official_cifar_info(next(iter(infos))))
    else:
        monkeypatch.setattr(builder_class, "URL", base)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, server: tuple[str, Files]) -> Publish:
    """Serves the given files; TFDS expects `expected`, by default the same files."""
    base, files = server

    def serve(name: str, given: Files, expected: Files | None = None) -> str:
        files.update(given)
        move(monkeypatch, name, base, given if expected is None else expected)
        return base

    return serve


def contents(images: Any, labels: Any) -> Counter[tuple[bytes, int]]:
    return Counter(
        (np.asarray(image).tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    )


def leftovers(data_dir: Path) -> list[Path]:
    """Files that a failure should have removed: all but complete downloads."""
    downloads = data_dir / "downloads"
    unfinished = [*downloads.rglob("*.tmp.*"), *data_dir.rglob("incomplete.*")]
    return unfinished + [path for path in data_dir.iterdir() if path != downloads]


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("name", NAMES)
def test_prepared_examples_are_those_served(name: str, tmp_path: Path, publish: Publish) -> None:
    splits = random_splits(name)
    publish(name, source_files(name, splits))
    prepared = prepare(name, tmp_path)
    builder = tfds.builder_from_directory(prepared)
    assert prepared == tmp_path / name / str(official_class(name).VERSION)
    for split, (images, labels) in splits.items():
        source = builder.as_data_source(split)
        rows = [source[index] for index in range(len(source))]
        assert builder.info.splits[split].num_examples == COUNTS[split]
        assert {row["image"].shape for row in rows} == {images.shape[1:]}
        read = contents([row["image"] for row in rows], [row["label"] for row in rows])
        assert read == contents(images, labels)


@pytest.mark.parametrize("name", NAMES)
def test_prepared_metadata_is_tfds_own(name: str, tmp_path: Path, publish: Publish) -> None:
    publish(name, source_files(name, random_splits(name)))
    info = tfds.builder_from_directory(prepare(name, tmp_path)).info
    official = official_class(name)(data_dir=tmp_path / "empty").info
    names = CIFAR_CLASSES if name == "cifar10" else official.features["label"].names
    assert info.features["label"].names == names
    assert info.features.to_json() == official.features.to_json()
    assert info.file_format.value == "array_record"
    for attribute in ("name", "version", "module_name", "description", "citation", "homepage"):
        assert getattr(info, attribute) == getattr(official, attribute)
    assert info.supervised_keys == official.supervised_keys


@pytest.mark.parametrize("name", NAMES)
def test_urls_and_checksums_are_tfds_own(name: str, tmp_path: Path) -> None:
    made, official = preparing._builder_class(name), official_class(name)
    assert made.url_infos == official.url_infos
    assert made.name == official.name == name
    assert made.VERSION == official.VERSION
    builder = made(data_dir=tmp_path)
    assert builder.info.as_json == official(data_dir=tmp_path).info.as_json
    if name == "cifar10":
        urls = [builder._cifar_info.url]
    else:
        generators = builder._split_generators(SimpleNamespace(download=lambda urls: urls))
        arguments = [generator.gen_kwargs for generator in generators]
        urls = [kwargs[key] for kwargs in arguments for key in ("data_path", "label_path")]
    assert set(urls) == set(official.url_infos)


def test_mnist_examples_have_tfds_own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow_datasets.image_classification import mnist

    images, labels = random_splits("mnist")["train"]
    paths = {"data_path": tmp_path / "images.gz", "label_path": tmp_path / "labels.gz"}
    paths["data_path"].write_bytes(idx(images[..., 0]))
    paths["label_path"].write_bytes(idx(labels))
    monkeypatch.setattr(mnist, "_extract_mnist_images", lambda path, count: images)
    monkeypatch.setattr(mnist, "_extract_mnist_labels", lambda path, count: labels)
    official = official_class("mnist")._generate_examples(None, num_examples=0, **paths)
    builder = preparing._builder_class("mnist")(data_dir=tmp_path)
    for (key, row), (official_key, official_row) in zip(
        builder._generate_examples(num_examples=0, **paths), official, strict=True
    ):
        assert (key, row["label"]) == (official_key, official_row["label"])
        np.testing.assert_array_equal(np.asarray(row["image"]), official_row["image"][..., 0])


def test_cifar_examples_have_tfds_own_keys_and_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorflow_datasets.image_classification import cifar

    images, labels = random_splits("cifar10")["train"]
    halves = [slice(0, 20), slice(20, 30)]
    monkeypatch.setattr(
        cifar,
        "_load_data",
        lambda part, count: zip(labels[part][:, None], images[part], strict=True),
    )
    builder = preparing._builder_class("cifar10")(data_dir=tmp_path)
    official = official_class("cifar10")._generate_examples(builder, "train_", halves)
    records = [cifar_records(images[half], labels[half]) for half in halves]
    for (key, row), (official_key, official_row) in zip(
        builder._generate_examples("train_", records), official, strict=True
    ):
        assert (key, row["id"]) == (official_key, official_row["id"])
        assert row["label"] == official_row["label"]
        np.testing.assert_array_equal(np.asarray(row["image"]), official_row["image"])


def test_cifar_ids_count_through_the_batches(tmp_path: Path, publish: Publish) -> None:
    splits = random_splits("cifar10")
    publish("cifar10", source_files("cifar10", splits))
    builder = tfds.builder_from_directory(prepare("cifar10", tmp_path))
    for split, (images, labels) in splits.items():
        rows = sorted(builder.as_data_source(split), key=lambda row: row["id"])
        assert rows[-1]["id"].decode() == f"{split}_{len(images) - 1:05d}"
        np.testing.assert_array_equal([row["image"] for row in rows], images)
        np.testing.assert_array_equal([row["label"] for row in rows], labels)


def test_a_prepared_dataset_needs_no_network(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("mnist", source_files("mnist", random_splits("mnist")))
    prepared = prepare("mnist", tmp_path)
    monkeypatch.setattr(preparing, "_probe", pytest.fail)
    assert prepare("mnist", tmp_path) == prepared


def test_preparing_is_silent_and_restores_tfds(
    tmp_path: Path,
    publish: Publish,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorflow_datasets.core.utils import tqdm_utils

    publish("mnist", source_files("mnist", random_splits("mnist")))
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tqdm_utils, "_active", True)
    prepare("mnist", tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name == "absl"]
    assert tqdm_utils._active
    assert not logging.getLogger("absl").filters
    assert tfds.builder_cls("mnist") is official_class("mnist")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_only_on_a_terminal(
    terminal: bool, tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("mnist", source_files("mnist", random_splits("mnist")))
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    prepare("mnist", tmp_path, progress=True)
    assert ("Generating" in screen.getvalue()) == terminal


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_checksum_is_an_error_and_leaves_no_files(
    name: str, tmp_path: Path, publish: Publish
) -> None:
    right = source_files(name, random_splits(name))
    last = list(right)[-1]
    base = publish(name, right | {last: right[last] + b"more"}, expected=right)
    with pytest.raises(InputError) as error:
        prepare(name, tmp_path)
    assert base + last in one_line(error)
    assert "checksum" in str(error.value)
    assert not leftovers(tmp_path)


def damaged(name: str) -> Files:
    files = source_files(name, random_splits(name))
    return {file: data[: len(data) // 2] for file, data in files.items()}


def missing_batch() -> Files:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin"))
    return {"cifar-10-binary.tar.gz": buffer.getvalue()}


def labels_for_images() -> Files:
    files = source_files("mnist", random_splits("mnist"))
    return dict.fromkeys(files, files["t10k-labels-idx1-ubyte.gz"])


def fewer_labels_than_images() -> Files:
    files = source_files("mnist", random_splits("mnist"))
    return files | {"train-labels-idx1-ubyte.gz": files["t10k-labels-idx1-ubyte.gz"]}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", damaged("mnist")),
        ("cifar10", damaged("cifar10")),
        ("mnist", dict.fromkeys(damaged("mnist"), gzip.compress(b"not IDX"))),
        ("mnist", dict.fromkeys(damaged("mnist"), b"not gzip")),
        ("mnist", labels_for_images()),
        ("mnist", fewer_labels_than_images()),
        ("cifar10", missing_batch()),
    ],
    ids=["cut gz", "cut tar.gz", "no IDX", "no gzip", "no images", "few labels", "no batch"],
)
def test_a_damaged_file_is_a_one_line_error_and_leaves_no_files(
    name: str, files: Files, tmp_path: Path, publish: Publish
) -> None:
    publish(name, files)
    with pytest.raises(InputError) as error:
        prepare(name, tmp_path)
    assert str(tmp_path / "downloads" / name) in one_line(error)
    assert error.value.__cause__ is not None
    assert not leftovers(tmp_path)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def assert_unavailable_within_seconds(name: str, data_dir: Path, host: str) -> str:
    start = time.monotonic()
    with pytest.raises(DatasetUnavailableError) as error:
        prepare(name, data_dir)
    assert time.monotonic() - start < 8
    assert host in one_line(error)
    assert repr(name) in str(error.value)
    assert not data_dir.exists()
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_unreachable_host_is_an_error_within_seconds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"127.0.0.1:{closed_port()}"
    move(monkeypatch, name, f"http://{host}/", {"file": b""})
    assert_unavailable_within_seconds(name, tmp_path / "data", host)


def test_a_server_that_never_answers_is_an_error_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The system accepts the connection, but nothing reads from it.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        move(monkeypatch, "mnist", f"http://{host}/", {"file": b""})
        assert_unavailable_within_seconds("mnist", tmp_path / "data", host)


def test_endless_name_resolution_is_an_error_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = threading.Event()

    def look_up(*args: Any, **kwargs: Any) -> Any:
        finished.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(preparing, "_PROBE_TIMEOUT", 0.5)
    move(monkeypatch, "mnist", "http://host.invalid/", {"file": b""})
    try:
        assert_unavailable_within_seconds("mnist", tmp_path / "data", "host.invalid")
    finally:
        finished.set()


def test_an_error_status_names_host_and_status(tmp_path: Path, publish: Publish) -> None:
    base = publish("mnist", {}, expected=source_files("mnist", random_splits("mnist")))
    assert "404" in assert_unavailable_within_seconds(
        "mnist", tmp_path / "data", base.split("/")[2]
    )


def test_a_file_missing_on_the_server_leaves_no_files(tmp_path: Path, publish: Publish) -> None:
    files = source_files("mnist", random_splits("mnist"))
    first, *_ = files
    base = publish("mnist", {first: files[first]}, expected=files)
    with pytest.raises(DatasetUnavailableError) as error:
        prepare("mnist", tmp_path)
    assert base.split("/")[2] in one_line(error)
    assert not leftovers(tmp_path)


def test_an_unwritable_folder_is_an_error_before_any_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(preparing, "_probe", pytest.fail)
    with pytest.raises(InputError) as error:
        prepare("mnist", file / "data")
    assert str(file / "data") in one_line(error)
    assert not isinstance(error.value, DatasetUnavailableError)


@pytest.mark.parametrize(
    "problem",
    [
        OSError(28, "No space left on device"),
        RuntimeError("write() failed: No space left on device"),
    ],
)
def test_a_full_disk_names_the_folder(
    problem: Exception, tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> np.ndarray:
        raise problem

    publish("mnist", source_files("mnist", random_splits("mnist")))
    monkeypatch.setattr(preparing, "_idx", fail)
    with pytest.raises(InputError) as error:
        prepare("mnist", tmp_path)
    assert str(tmp_path) in one_line(error)
    assert "can't be written to (No space left on device)" in str(error.value)
    assert not leftovers(tmp_path)


def test_unfinished_files_of_killed_processes_are_removed_when_old(
    tmp_path: Path, publish: Publish
) -> None:
    publish("mnist", source_files("mnist", random_splits("mnist")))
    downloads = tmp_path / "downloads" / "mnist"
    # An old folder with new files is still in use.
    old, in_use = downloads / "file.tmp.0123", downloads / "incomplete.4567"
    aborted = tmp_path / "mnist" / "3.0.1.incomplete_89AB"
    for folder in (old, in_use, aborted):
        folder.mkdir(parents=True)
        (folder / "half").touch()
    two_days_ago = time.time() - 48 * 3600
    for path in (old / "half", old, in_use, aborted / "half", aborted):
        os.utime(path, (two_days_ago, two_days_ago))
    prepare("mnist", tmp_path)
    assert not old.exists()
    assert not aborted.exists()
    assert in_use.exists()


def test_an_unknown_dataset_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'imagenet' can't be prepared; choose one of mnist, "):
        prepare("imagenet", tmp_path)


def test_without_tfds_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    preparing._builder_class.cache_clear()
    with pytest.raises(DatasetUnavailableError, match="pip install tensorflow-datasets") as error:
        prepare("mnist", tmp_path)
    one_line(error)


def test_importing_is_cheap() -> None:
    heavy = {"tensorflow_datasets", "requests", "PIL", "tensorflow"}
    code = f"import sys, dlc_jax.data.tfds_prepare; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
