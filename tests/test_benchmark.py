import functools
import importlib.util
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_command
import jax
import lecture
import numpy as np
import ops
import pytest
import scaling
import startup
from conftest import Command
from flax import nnx
from harness import machine
from harness.workers import Worker, running
from hypothesis import given
from hypothesis import strategies as st
from scaling_parts import report
from scaling_parts.interconnect import (
    BACKWARD,
    LINKS,
    estimate,
    first_bound,
    ring_all_reduce_seconds,
    strong_bound,
    weak_bound,
)
from scaling_parts.networks import NETWORKS

from dlc_jax.data import Dataset
from dlc_jax.errors import InputError

PAGE = Path(__file__).parents[1] / "benchmarks" / "README.md"
SECONDS = st.floats(1e-6, 1e3)
SIZES = st.floats(1e3, 1e10)
RATES = st.floats(1e7, 1e13)
LATENCIES = st.just(0.0) | st.floats(1e-8, 1e-3)


@pytest.fixture
def benchmark(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs a benchmark by the name of its script, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return benchmark_command.in_folder(tmp_path / "results", capfd)


@pytest.fixture
def arrays(few_digits: Dataset, tmp_path: Path) -> Path:
    """230 training and 50 test digits as a file; the test split twice, to have enough."""
    path = tmp_path / "digits.npz"
    images, labels = (np.concatenate([array] * 2) for array in few_digits.test)
    train = few_digits.train
    np.savez(path, x_train=train.images, y_train=train.labels, x_test=images, y_test=labels)
    return path


@pytest.mark.slow
def test_lecture_measures_and_saves(benchmark: Command, arrays: Path, tmp_path: Path) -> None:
    rivals = ["flax"] + ["torch"] * bool(importlib.util.find_spec("torch"))
    options = ("--arrays", arrays, "--epochs", 2, "--rivals", ",".join(rivals), "--seeds", 3)
    done = benchmark("lecture", *options, "--json")
    assert done.code == 0, done.err
    result = done.json
    for name in ("dlc_jax", *rivals):
        measured = result[name]
        assert len(measured["epoch_s"]) == 2
        assert measured["median"] == pytest.approx(np.median(measured["epoch_s"]))
        assert measured["compile_s"] > 0
        assert measured["test_error_percent"] < 91
    ours = result["dlc_jax"]["median"]
    for rival in rivals:
        ratio = result[f"ratio_vs_{rival}"]
        assert ratio == pytest.approx(result[rival]["median"] / ours, rel=1e-2)
    assert result["ratio_vs_torch_compile"] is None
    assert result["ten_epochs_s"] == pytest.approx(10 * ours, rel=1e-2, abs=1e-3)
    direct = lecture.OPERATIONS_PER_IMAGE * 230 / ours / result["dot_gflops"] / 1e9
    assert result["fraction_of_dot"] == pytest.approx(direct, rel=0.05, abs=1e-3)
    assert result["seeds"]["count"] == 3
    assert {"device", "date", "commit", "versions", "ratio_vs_gtx1080"} <= result.keys()
    (file,) = (tmp_path / "results").glob("*.json")
    assert json.loads(file.read_text())["lecture"] == result
    assert list((tmp_path / "results").glob("*-lecture.png"))


def test_operations_per_image() -> None:
    # 2.67 million forward and 4.41 backward; the first layer needs no gradient of images.
    assert lecture.OPERATIONS_PER_IMAGE == 2_666_400 + 4_411_200


@pytest.mark.slow
def test_ops_measures_xla() -> None:
    operations = [
        ops.Operation("small", 8, 4, 8, window=1, stride=2, batch_size=2),
        ops.Operation("small", 8, 4, 8, window=3, batch_size=2),
        ops.Operation("small", 8, 4, 0, window=2, stride=2, batch_size=2),
        ops.Operation("small", 8, 4, 8, window=3, batch_size=2, groups=4),
        ops.Operation("small", 8, 4, 8, window=4, stride=2, batch_size=2, transposed=True),
    ]
    result = ops.run(rounds=1, rivals=["xla"], operations=operations)
    names = [row["operation"] for row in result["operations"]]
    assert names == [
        "conv1x1 / 2 8x8x4 to 8",
        "conv3x3 8x8x4 to 8",
        "pool2x2 / 2 8x8x4",
        "conv3x3 8x8x4 to 8 in 4 groups",
        "transposed4x4 / 2 8x8x4 to 8",
    ]
    for row in result["operations"]:
        medians = row["median_ms"]
        assert row["ratio"]["xla"] == pytest.approx(medians["xla"] / medians["dlc_jax"], rel=0.01)
    *ratios, pooling, grouped, transposed = [row["ratio"]["xla"] for row in result["operations"]]
    summary = result["summary"]["convolution"]["xla"]
    assert summary["geometric_mean"] == pytest.approx(np.sqrt(ratios[0] * ratios[1]), rel=0.01)
    assert summary["minimum"] == min(ratios)
    for kind, ratio in (
        ("pooling", pooling),
        ("grouped convolution", grouped),
        ("transposed convolution", transposed),
    ):
        assert result["summary"][kind]["xla"]["minimum"] == ratio


@pytest.mark.slow
def test_networks_measures_a_training_step(benchmark: Command, tmp_path: Path) -> None:
    options = ["--networks", "lenet5", "--rivals", "torch", "--rounds", 1, "--json"]
    done = benchmark("networks", *options)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    [row] = result["networks"]
    medians = row["median_ms"]
    assert row["ratio"]["torch"] == pytest.approx(medians["torch"] / medians["dlc_jax"], rel=0.01)
    assert result["summary"]["torch"]["minimum"] == row["ratio"]["torch"]
    [saved] = tmp_path.glob("*.json")
    assert json.loads(saved.read_text())["networks"]["networks"] == [row]


def test_random_convolutions_are_the_same_for_a_seed() -> None:
    first = ops.random_convolutions(12, seed=3)
    assert first == ops.random_convolutions(12, seed=3) != ops.random_convolutions(12, seed=4)
    assert all(operation.window <= operation.size for operation in first)


@pytest.mark.slow
def test_startup_measures_imports_and_first_step() -> None:
    result = startup.run(rounds=1)
    assert result["import_extra_s"] < 0.8
    assert result["first_step_cached_s"] < result["first_step_cold_s"]


def replace_arrays(path: Path, change: dict[str, Any]) -> None:
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
def test_lecture_rejects_wrong_arrays(
    benchmark: Command, arrays: Path, change: dict[str, Any], named: str
) -> None:
    replace_arrays(arrays, change)
    done = benchmark("lecture", "--arrays", arrays)
    assert done.code == 2
    assert named in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no more"])
def test_lecture_rejects_file_without_arrays(
    benchmark: Command, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "none.npz"
    if content is not None:
        path.write_bytes(content)
    done = benchmark("lecture", "--arrays", path)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert done.err.startswith("lecture.py: ")
    assert "none.npz" in done.err


@pytest.mark.parametrize("script", ["lecture", "ops"])
def test_unknown_rival(benchmark: Command, arrays: Path, script: str) -> None:
    options = ["--arrays", arrays] if script == "lecture" else []
    done = benchmark(script, "--rivals", "torch,tensorflow", *options)
    assert done.code == 2
    assert "'tensorflow'; choose from torch" in done.err


def test_lecture_loads_mnist_by_default(
    benchmark: Command, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(splits: Any, **options: Any) -> None:
        raise InputError(f"{len(splits[0].labels)} images, {options['epochs']} epochs")

    monkeypatch.setattr(lecture, "run", run)
    monkeypatch.setattr("dlc_jax.data.load", lambda name, data_dir: digits)
    done = benchmark("lecture")
    assert (done.code, done.err) == (2, "lecture.py: 4000 images, 5 epochs\n")


@pytest.mark.parametrize(
    "script", ["lecture", "ops", "networks", "cifar10", "startup", "scaling", "gpu"]
)
def test_help_has_an_example(benchmark: Command, script: str) -> None:
    done = benchmark(script, "--help")
    assert done.code == 0
    assert f"python benchmarks/{script}.py" in done.out
    bad = benchmark(script, "--nonsense")
    assert (bad.code, len(bad.err.splitlines())) == (2, 1)
    assert bad.err.startswith(f"{script}.py: ")


def test_rival_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops.RIVALS, "torch", ("no_such_package",))
    with pytest.raises(InputError, match="'operation_pytorch' needs no_such_package"):
        ops.run(rounds=1, rivals=["torch"], operations=[])


@pytest.mark.slow
def test_cifar10_measures_seeds(benchmark: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "colours.npz"
    # Bright and dark images, which any network can classify.
    labels = rng.integers(0, 2, 400)
    images = (rng.integers(0, 60, (400, 32, 32, 3)) + 190 * labels[:, None, None, None]).astype(
        np.uint8
    )
    np.savez(
        path, x_train=images[:300], y_train=labels[:300], x_test=images[300:], y_test=labels[300:]
    )
    command = ("cifar10", "--recipe", "cifar10-lecture", "--arrays", path, "--json")
    done = benchmark(*command, "--seeds", 2, "--epochs", 3, "--target", 80)
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
    missed = benchmark(*command, "--seeds", 1, "--epochs", 1, "--target", 100.0).json
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
def test_cifar10_rejects_bad_options(
    benchmark: Command, options: tuple[Any, ...], named: str, tmp_path: Path
) -> None:
    images, labels = np.zeros((100, 32, 32, 3), np.uint8), np.zeros(100, np.int32)
    path = tmp_path / "black.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    done = benchmark("cifar10", "--arrays", path, *options)
    assert done.code == 2
    assert named in done.err
    assert len(done.err.splitlines()) == 1


def test_save_section_keeps_other_sections(tmp_path: Path) -> None:
    path = machine.save_section(tmp_path, "ops", {"device": "A B (C), 2 cores", "value": 1})
    assert path.name == "a-b-c-2-cores.json"
    machine.save_section(tmp_path, "lecture", {"device": "A B (C), 2 cores", "value": 2})
    sections = json.loads(path.read_text())
    assert {name: section["value"] for name, section in sections.items()} == {
        "ops": 1,
        "lecture": 2,
    }


def ring_all_reduce(arrays: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The result on each device, and the number of messages and of numbers that each sent."""
    devices = len(arrays)
    parts = [list(np.split(array.copy(), devices)) for array in arrays]
    messages = numbers = 0
    for adding, first in ((True, 0), (False, 1)):
        for step in range(devices - 1):
            sent = [(d, (d + first - step) % devices) for d in range(devices)]
            for (device, part), values in [(s, parts[s[0]][s[1]].copy()) for s in sent]:
                receiver = parts[(device + 1) % devices]
                receiver[part] = receiver[part] + values if adding else values
            messages += 1
            numbers += len(parts[0][0])
    return np.array([np.concatenate(part) for part in parts]), messages, numbers


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_ring_all_reduce_seconds_matches_a_simulation(
    devices: int, rng: np.random.Generator
) -> None:
    arrays = rng.normal(size=(devices, 24))
    sums, messages, numbers = ring_all_reduce(arrays)
    np.testing.assert_allclose(sums, np.tile(arrays.sum(0), (devices, 1)))
    seconds = ring_all_reduce_seconds(24 * 8, devices, bytes_per_second=100, latency=7)
    assert seconds == pytest.approx(numbers * 8 / 100 + messages * 7)


def test_ring_all_reduce_seconds_of_two_devices() -> None:
    assert ring_all_reduce_seconds(1000, 2, bytes_per_second=10) == 100


@given(SECONDS, SIZES, RATES, LATENCIES)
def test_strong_bound_solves_its_equation(
    seconds: float, size: float, rate: float, latency: float
) -> None:
    devices = strong_bound(seconds, size, rate, latency)
    assert devices >= 1
    both = ring_all_reduce_seconds(size, devices, rate, latency), seconds / devices
    # Close to a single device, the difference is rounding.
    assert both[0] == pytest.approx(both[1], rel=1e-6, abs=1e-9 * (size / rate + latency))


@given(SECONDS, SIZES, RATES, LATENCIES)
def test_weak_bound_solves_its_equation_or_is_infinite(
    seconds: float, size: float, rate: float, latency: float
) -> None:
    devices = weak_bound(seconds, size, rate, latency)
    if latency == 0 and 2 * size / rate <= seconds:
        assert devices == math.inf
        return
    reached = ring_all_reduce_seconds(size, devices, rate, latency)
    assert reached == pytest.approx(seconds, rel=1e-5, abs=1e-9 * (size / rate + latency))


@pytest.mark.parametrize(
    ("seconds", "strong", "weak"),
    [(200, 11, None), (190, 11, None), (20, 2, None), (19, 2, 20), (15, 2, 4), (1, 2, 2)],
)
def test_bounds_without_latency_match_closed_forms(
    seconds: float, strong: int, weak: int | None
) -> None:
    # The all-reduce tends to 20 s: n = 1 + seconds / 20, and n = 20 / (20 - seconds).
    assert first_bound(strong_bound(seconds, size=100, bytes_per_second=10)) == strong
    assert first_bound(weak_bound(seconds, size=100, bytes_per_second=10)) == weak


@functools.cache
def fake_results() -> dict[str, Any]:
    """Results of an invented machine."""
    steps = {"lecture": 0.004, "resnet18": 4.0, "resnet50": 3.0}
    networks = {
        name: {
            **network.describe(),
            "batch_size": network.batch_size,
            "step_images": network.step_images // 2,
            "step_s": steps[name],
        }
        for name, network in NETWORKS.items()
    }
    return {"device": "Abacus, 2 cores", "networks": networks}


def test_estimate_gives_the_smallest_number_of_bound_devices() -> None:
    rows = estimate(fake_results())
    assert {row["network"] for row in rows} == set(NETWORKS)
    for row in rows:
        link = LINKS[row["link"]]
        size = fake_results()["networks"][row["network"]]["bytes"]

        def reduce(devices: int, size: int = size, link: Any = link) -> float:
            return ring_all_reduce_seconds(size, devices, link.bytes_per_second, link.latency)

        for suffix, part in (("", 1), ("_overlapped", BACKWARD)):
            seconds = part * row["batch_s"]
            strong, weak = row[f"strong{suffix}"], row[f"weak{suffix}"]
            assert reduce(strong) * strong >= seconds
            assert strong == 2 or reduce(strong - 1) * (strong - 1) < seconds
            assert reduce(weak) >= seconds * (1 - 1e-9)
            assert weak == 2 or reduce(weak - 1) < seconds


def test_estimate_scales_the_measured_step_to_the_batch() -> None:
    row = next(row for row in estimate(fake_results()) if row["network"] == "resnet50")
    assert row["batch_s"] == pytest.approx(3.0 * 256 / 8)
    assert not row["estimated"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lecture", 105_506), ("resnet18", 11_173_962), ("resnet50", 25_557_032)],
)
def test_workload_counts_the_bytes_of_all_parameters(name: str, parameters: int) -> None:
    network = NETWORKS[name]
    state = nnx.eval_shape(lambda: nnx.state(network.create(nnx.Rngs(0)), nnx.Param))
    leaves = jax.tree.leaves(state)
    described = network.describe()
    assert described["bytes"] == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert described["parameters"] == parameters


def page_with_markers(folder: Path) -> Path:
    page = folder / "page.md"
    text = "".join(f"<!-- scaling: {n} -->\n<!-- end -->\n{n} end\n" for n in ("measured", "paper"))
    page.write_text(f"# Title\n{text}<!-- scaling: sources -->\nold\n<!-- end -->\nlast\n")
    return page


@pytest.mark.slow
def test_scaling_measures_saves_and_updates_page(
    benchmark: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_with_markers(tmp_path)
    small = ("--batch-size", 8, "--images", 20, "--rounds", 2, "--networks", "lecture")
    counts = ("--devices", "2", "--processes", "1,2")
    done = benchmark("scaling", *small, *counts, "--page", page, "--json")
    assert done.code == 0, done.err
    result = done.json
    devices = [(row["kind"], row["count"]) for row in result["measured"]]
    assert devices == [("devices", 1), ("devices", 2), ("processes", 2)]
    # The smallest multiple of batches of 8 and of 16 from 20.
    assert result["images"] == 32
    single = result["measured"][0]["weak"]["images_per_s"]
    for row in result["measured"]:
        for name, size in (("weak", 8 * row["count"]), ("strong", 8)):
            case = row[name]
            assert case["batch_size"] == size
            rate = 32 / np.median(case["all_s"])
            assert case["images_per_s"] == pytest.approx(rate, rel=1e-2)
            assert case["efficiency"] == pytest.approx(rate / single / row["count"], abs=1e-3)
    step = result["networks"]["lecture"]
    assert step["step_s"] == pytest.approx(np.median(step["all_s"]))
    # Within the variation of a busy machine.
    assert 0.1 < 100 / step["step_s"] / single < 10
    assert {"device", "date", "commit", "cores"} <= result.keys()
    (file,) = (tmp_path / "results").glob("*-scaling.json")
    assert json.loads(file.read_text()) == result
    assert len(list((tmp_path / "results").glob("*.png"))) == 2
    text = page.read_text()
    assert text == report.with_tables(text, result)
    assert "old" not in text
    assert "measured end" in text
    assert text.endswith("\nlast\n")

    def start(self: Worker, *arguments: Any, **options: Any) -> None:
        raise AssertionError("it measures")

    monkeypatch.setattr(Worker, "__init__", start)
    again = benchmark("scaling", "--on-paper", file, "--json")
    assert again.code == 0, again.err
    assert again.json == result


def test_readme_has_the_tables_of_its_results() -> None:
    text = PAGE.read_text()
    (file,) = {file for file in PAGE.parent.glob("results/*-scaling.json") if file.name in text}
    assert report.with_tables(text, scaling.read(file)) == text


def test_request_does_not_wait_if_a_process_ended() -> None:
    arguments = ["--network", "lecture"]
    with running(partial(Worker, "data_parallel", (), arguments, processes=2)) as (worker,):
        worker._processes[1].kill()
        start = time.monotonic()
        with pytest.raises(InputError, match="'data_parallel' ended"):
            worker.request(batch_size=2, images=2)
        assert time.monotonic() - start < 20


def test_data_parallel_rejects_missing_devices() -> None:
    arguments = ["--network", "lecture", "--devices", "3"]
    with (
        running(partial(Worker, "data_parallel", (), arguments, devices=2)) as (worker,),
        pytest.raises(InputError, match="there are 2 devices, not 3"),
    ):
        worker.request(batch_size=6, images=6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--devices", "1,0"), "1,0 are not whole numbers from 1"),
        (("--processes", "two"), "two are not whole numbers from 1"),
        (("--devices", "5"), "evenly among 5 devices; choose a batch size such as"),
        (("--processes", "7"), "evenly among 7 processes; choose a batch size such as 98"),
        (("--networks", "lecture,vgg16"), "'vgg16'; choose from lecture, resnet18, resnet50"),
        (("--networks", ""), "choose from lecture"),
        (("--on-paper", "missing.json"), "'missing.json' does not hold the results"),
        (("--on-paper", "other.json"), "'other.json' does not hold the results"),
        (("--page", "missing.md"), "'missing.md'"),
        (("--page", "page.md"), "no lines '<!-- scaling: paper -->' and '<!-- end -->'"),
    ],
)
def test_scaling_rejects_bad_options(
    benchmark: Command, tmp_path: Path, options: tuple[str, str], named: str
) -> None:
    (tmp_path / "other.json").write_text('{"lecture": {"device": "none"}}')
    (tmp_path / "page.md").write_text("<!-- scaling: measured -->\n<!-- end -->\n")
    done = benchmark("scaling", *options)
    assert done.code == 2
    assert named in done.err
    assert len(done.err.splitlines()) == 1
