"""The GPU benchmark, rehearsed on a CPU."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import benchmark_command
import gpu
import numpy as np
import pytest
from conftest import Command
from gpu_parts import exported, report
from harness import machine
from PIL import Image

from dlc_jax.errors import InputError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Packages that machines with a GPU often lack; the benchmark does not need them.
MISSING_ON_GPU_MACHINES = (
    "array_record",
    "grain",
    "importlib_resources",
    "mlxtend",
    "platformdirs",
    "tensorboardX",
    "tensorflow_datasets",
)


@pytest.fixture
def benchmark(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a benchmark by the name of its script."""
    return benchmark_command.in_folder(tmp_path, capfd)


def export(folder: Path, name: str, images: np.ndarray, test: list[bool]) -> None:
    """Writes one file of an exported dataset."""
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    np.savez(
        folder / f"{name}.npz",
        blob=np.frombuffer(b"".join(files), np.uint8),
        offset=np.cumsum([0, *map(len, files)]),
        label=np.arange(len(images), dtype=np.int32),
        test=np.array(test),
    )


def test_exported_images_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (5, 32, 32, 3), np.uint8)
    export(tmp_path, "cifar10-00", images[:2], [False, False])
    export(tmp_path, "cifar10-01", images[2:], [False, True, True])
    dataset = exported.read("cifar10", tmp_path)
    np.testing.assert_array_equal(dataset.train.images, images[:3])
    np.testing.assert_array_equal(dataset.test.images, images[3:])
    np.testing.assert_array_equal(dataset.train.labels, [0, 1, 0])


def test_missing_and_damaged_files_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="holds no files mnist"):
        exported.read("mnist", tmp_path)
    export(tmp_path, "mnist-00", rng.integers(0, 256, (2, 28, 28), np.uint8), [False, False])
    with pytest.raises(InputError, match=r"only training images .* a part is missing"):
        exported.read("mnist", tmp_path)
    (tmp_path / "mnist-00.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="mnist can't be read"):
        exported.read("mnist", tmp_path)


@pytest.mark.slow
def test_rehearsal_measures_all_parts_without_data_libraries(tmp_path: Path) -> None:
    hide = f"import sys\nsys.modules |= dict.fromkeys({MISSING_ON_GPU_MACHINES!r})\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    command_line = [sys.executable, gpu.__file__, "--rehearse", "--output-dir", str(tmp_path)]
    done = subprocess.run(
        command_line,
        env=os.environ
        | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*-gpu-rehearsal.json")
    parts = json.loads(file.read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert {name: part["failed"] for name, part in parts.items() if "failed" in part} == {}
    assert max(parts["correctness"]["gradients"]["highest"].values()) < 1e-5
    assert "gradients against float64" in file.with_suffix(".md").read_text()
    assert list(tmp_path.glob("*-gpu-rehearsal-lecture.png"))


def test_parts_are_added_to_earlier_ones(
    benchmark: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {"machine": machine.describe()}
    for part in ("seeds", "correctness"):
        measured = described | {"results": {"part": part}}
        monkeypatch.setattr(gpu, "_measure", lambda *_, measured=measured: measured)
        done = benchmark("gpu", "--rehearse", "--only", part, "--json")
        assert done.code == 0, done.err
    (file,) = tmp_path.glob("*-gpu-rehearsal.json")
    parts = json.loads(file.read_text())["parts"]
    assert parts == done.json["parts"]
    assert {name: part["part"] for name, part in parts.items()} == {
        "seeds": "seeds",
        "correctness": "correctness",
    }


def test_unknown_part(benchmark: Command) -> None:
    done = benchmark("gpu", "--only", "lectures")
    assert done.code == 2
    assert "no part 'lectures'; choose from lecture, cifar10" in done.err


def test_a_first_part_that_can_not_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_measure", lambda *_: {"results": {"failed": "no device"}})
    with pytest.raises(InputError, match="ten epochs against PyTorch: no device"):
        gpu.run(budget=100, output_dir=tmp_path)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*-gpu.json")), ids=lambda file: file.stem)
def test_saved_tables_have_the_numbers_of_saved_results(file: Path) -> None:
    table = report.markdown(json.loads(file.read_text()))
    assert file.with_suffix(".md").read_text() == table
