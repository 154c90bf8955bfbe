import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from dlc_jax.benchmark import lecture, machine, operations, startup
from dlc_jax.data import Dataset
from dlc_jax.errors import InputError


@pytest.fixture
def arrays(few_digits: Dataset, tmp_path: Path) -> Path:
    """The 230 training and 50 test digits as a file; the test split twice, to have enough."""
    path = tmp_path / "digits.npz"
    images, labels = (np.concatenate([array] * 2) for array in few_digits.test)
    train = few_digits.train
    np.savez(path, x_train=train.images, y_train=train.labels, x_test=images, y_test=labels)
    return path


@pytest.mark.parametrize("rivals", ["torch,flax", "flax"])
def test_the_lectures_epoch_is_measured_and_kept(
    dlc_jax: Command, arrays: Path, rivals: str, tmp_path: Path
) -> None:
    if "torch" in rivals:
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    command = ("bench", "lecture", "--arrays", arrays, "--epochs", 2, "--rivals", rivals)
    done = dlc_jax(*command, "--seeds", 3, "--output-dir", tmp_path / "results", "--json")
    assert done.code == 0, done.err
    result = done.json
    for name in ("dlc_jax", *rivals.split(",")):
        measured = result[name]
        assert len(measured["epoch_s"]) == 2
        assert measured["median"] == pytest.approx(np.median(measured["epoch_s"]))
        assert measured["compile_s"] > 0
        assert measured["test_error_percent"] < 91
    ours = result["dlc_jax"]["median"]
    for name in ("torch", "flax"):
        ratio = result[f"ratio_vs_{name}"]
        if name in rivals:
            assert ratio == pytest.approx(result[name]["median"] / ours, rel=1e-2)
        else:
            assert ratio is None
    assert result["ten_epochs_s"] == pytest.approx(10 * ours, rel=1e-2, abs=1e-3)
    direct = lecture.OPERATIONS_AN_IMAGE * 230 / ours / result["dot_gflops"] / 1e9
    assert result["fraction_of_dot"] == pytest.approx(direct, rel=0.05, abs=1e-3)
    assert result["seeds"]["count"] == 3
    assert {"device", "date", "commit", "versions", "ratio_vs_gtx1080"} <= result.keys()
    (kept,) = (tmp_path / "results").glob("*.json")
    assert json.loads(kept.read_text())["lecture"] == result
    assert list((tmp_path / "results").glob("*-lecture.png"))


def test_the_operations_counted_are_the_layers_own() -> None:
    # Forward 2.67 million an image, backward 4.41: the first layer needs no gradient of images.
    assert lecture.OPERATIONS_AN_IMAGE == 2_666_400 + 4_411_200


def test_operations_are_measured_against_xlas() -> None:
    some = [
        operations.Operation("small", 8, 4, 8),
        operations.Operation("small", 8, 4, 8, window=1, stride=2),
        operations.Operation("small", 8, 4, 0, window=2, stride=2),
    ]
    result = operations.run(rounds=1, batch_size=2, rivals=["xla", "one-device"], operations=some)
    names = [row["operation"] for row in result["operations"]]
    assert names == ["conv3x3 8x8x4 to 8", "conv1x1 / 2 8x8x4 to 8", "pool2x2 / 2 8x8x4"]
    for row in result["operations"]:
        medians = row["median_ms"]
        assert row["ratio"]["xla"] == pytest.approx(medians["xla"] / medians["dlc_jax"], rel=0.01)
    ratios = [row["ratio"]["xla"] for row in result["operations"]]
    mean = np.exp(np.mean(np.log(ratios)))
    assert result["geometric_mean_ratio"]["xla"] == pytest.approx(mean, rel=0.01)


@pytest.mark.slow
def test_importing_costs_little_and_the_first_step_comes_soon() -> None:
    result = startup.run(rounds=3)
    assert result["import_extra_s"] < 0.8
    assert result["first_step_cached_s"] < result["first_step_cold_s"]


def damaged(path: Path, change: dict[str, Any]) -> None:
    with np.load(path) as file:
        entries = {name: file[name] for name in file.files} | change
    np.savez(path, **{name: value for name, value in entries.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"y_test": None}, "y_test"),
        ({"x_train": np.zeros((200, 32, 32, 3), np.uint8)}, "32, 32, 3"),
        ({"x_train": np.zeros((200, 28, 28, 1), np.float32)}, "float32"),
        ({"y_train": np.zeros(7, np.int32)}, "7"),
        ({"x_train": np.array([None] * 200)}, "digits.npz"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    dlc_jax: Command, arrays: Path, change: dict[str, Any], named: str
) -> None:
    damaged(arrays, change)
    done = dlc_jax("bench", "lecture", "--arrays", arrays)
    assert done.code == 2
    assert named in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no more"])
def test_a_file_without_arrays_is_named(
    dlc_jax: Command, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "none.npz"
    if content is not None:
        path.write_bytes(content)
    done = dlc_jax("bench", "lecture", "--arrays", path)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "none.npz" in done.err


@pytest.mark.parametrize("what", ["lecture", "ops"])
def test_an_unknown_rival_is_named_with_the_choice(
    dlc_jax: Command, arrays: Path, what: str
) -> None:
    options = ["--arrays", arrays] if what == "lecture" else []
    done = dlc_jax("bench", what, "--rivals", "torch,tensorflow", *options)
    assert done.code == 2
    assert "'tensorflow'; choose from torch" in done.err


def test_without_a_command_the_lectures_epoch_is_measured(
    dlc_jax: Command, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(splits: Any, **options: Any) -> None:
        raise InputError(f"{len(splits[0].labels)} images, {options['epochs']} epochs")

    monkeypatch.setattr(lecture, "run", run)
    monkeypatch.setattr("dlc_jax.cli._load", lambda name, data_dir: digits)
    done = dlc_jax("bench")
    assert (done.code, done.err) == (2, "dlc-jax: 4000 images, 5 epochs\n")


def test_a_rival_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operations.RIVALS, "torch", ("no_such_package",))
    with pytest.raises(InputError, match="'operation_pytorch' needs no_such_package"):
        operations.run(rounds=1, batch_size=2, rivals=["torch"], operations=[])


def test_time_to_an_accuracy_is_measured_over_seeds(dlc_jax: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "colours.npz"
    # Bright and dark images, which any network tells apart.
    labels = rng.integers(0, 2, 400)
    images = (rng.integers(0, 60, (400, 32, 32, 3)) + 190 * labels[:, None, None, None]).astype(
        np.uint8
    )
    np.savez(
        path, x_train=images[:300], y_train=labels[:300], x_test=images[300:], y_test=labels[300:]
    )
    command = ("bench", "cifar10", "--recipe", "cifar10-lecture", "--arrays", path)
    done = dlc_jax(*command, "--seeds", 2, "--epochs", 3, "--target", 80, "--json")
    assert done.code == 0, done.err
    result = done.json
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    accuracies = [run["accuracy_percent"] for run in result["runs"]]
    assert result["accuracy_percent"]["mean"] == pytest.approx(np.mean(accuracies))
    assert result["seconds_to_target"] == pytest.approx(
        np.median([run["train_s"] for run in result["runs"]])
    )
    assert all(len(run["accuracy_percent_by_epoch"]) == 3 for run in result["runs"])
    assert all(run["compile_s"] > 0 for run in result["runs"])
    missed = dlc_jax(*command, "--seeds", 1, "--epochs", 1, "--target", 100.0, "--json").json
    reached = missed["accuracy_percent"]["mean"] == 100
    assert (missed["seconds_to_target"] is not None) == reached


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--recipe", "mnist-lecture"), "mnist-lecture"),
        (("--recipe", "cifar10-quick"), "cifar10-quick"),
        (("--target", 101), "101"),
        (("--target", -1), "-1"),
    ],
)
def test_time_to_an_accuracy_refuses_what_makes_no_sense(
    dlc_jax: Command, options: tuple[Any, ...], named: str, tmp_path: Path
) -> None:
    images, labels = np.zeros((100, 32, 32, 3), np.uint8), np.zeros(100, np.int32)
    path = tmp_path / "black.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    done = dlc_jax("bench", "cifar10", "--arrays", path, *options)
    assert done.code == 2
    assert named in done.err
    assert len(done.err.splitlines()) == 1


def test_results_of_one_benchmark_leave_those_of_another(tmp_path: Path) -> None:
    path = machine.keep(tmp_path, "ops", {"device": "A B (C), 2 cores", "value": 1})
    assert path.name == "a-b-c-2-cores.json"
    machine.keep(tmp_path, "lecture", {"device": "A B (C), 2 cores", "value": 2})
    kept = json.loads(path.read_text())
    assert {name: section["value"] for name, section in kept.items()} == {"ops": 1, "lecture": 2}
