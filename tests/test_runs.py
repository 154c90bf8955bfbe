import dataclasses
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dlc_jax import runs
from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.models import parameters
from dlc_jax.runs.folder import Run
from dlc_jax.training import EpochRecord
from dlc_jax.utils import files


def test_a_run_folder_has_configuration_metrics_parameters_and_pictures(run: Run) -> None:
    assert {path.name for path in run.folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "parameters.safetensors",
        "summary.json",
        "curves.png",
        "confusion.png",
        "mistakes.png",
        "training.png",
        "checkpoints",
        "lock",
    }
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["step"] for line in lines] == [5, 10]
    for name in ("curves", "confusion", "mistakes"):
        with Image.open(run.folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").tobytes())) > 10  # not blank


def test_the_saved_network_is_bit_identical(run: Run) -> None:
    summary = json.loads((run.folder / "summary.json").read_text())
    params = nnx.state(Run.open(run.folder).load_model(), nnx.Param)
    assert parameters.fingerprint(params) == summary["parameters_sha256"]


def test_the_fingerprint_changes_with_a_single_bit(run: Run) -> None:
    params: Any = nnx.state(run.load_model(), nnx.Param)
    changed: Any = jax.tree.map(lambda leaf: leaf, params)
    bias = np.array(params["fc2"]["bias"][...])
    bias[0] = np.nextafter(bias[0], np.float32(np.inf))
    changed["fc2"]["bias"] = params["fc2"]["bias"].replace(bias)
    assert parameters.fingerprint(changed) != parameters.fingerprint(params)


def test_evaluate_gives_the_test_error_of_the_summary(run: Run, few_digits: Dataset) -> None:
    summary = json.loads((run.folder / "summary.json").read_text())
    evaluation = runs.evaluate([run], few_digits)
    for name in ("test_error_percent", "error_percent_by_class"):
        assert evaluation[name] == summary[name]


def test_a_dataset_with_other_classes_is_refused(run: Run, few_digits: Dataset) -> None:
    other = dataclasses.replace(few_digits, class_names=tuple("abcdefghij"))
    with pytest.raises(InputError, match=r"the dataset few has .a. as class 0"):
        runs.evaluate([run], other)


@pytest.mark.usefixtures("undrawn")
def test_two_runs_with_the_same_seed_are_bit_identical(
    run: Run, few_digits: Dataset, tmp_path: Path
) -> None:
    again = runs.train(run.config, few_digits, tmp_path).summary
    first = json.loads((run.folder / "summary.json").read_text())
    assert again["parameters_sha256"] == first["parameters_sha256"]


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_run_leaves_a_usable_folder(
    run: Run, few_digits: Dataset, tmp_path: Path, epoch: int
) -> None:
    def interrupt(_: Run, record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise KeyboardInterrupt

    result = runs.train(run.config, few_digits, tmp_path, "half", on_epoch_end=interrupt)
    assert result.interrupted
    assert result.summary["epochs"] == epoch
    opened = Run.open(tmp_path / "half")
    params = nnx.state(opened.load_model(), nnx.Param)
    assert parameters.fingerprint(params) == result.summary["parameters_sha256"]
    assert (tmp_path / "half" / "mistakes.png").exists()


def test_runs_without_a_name_never_share_a_folder(
    run: Run, few_digits: Dataset, tmp_path: Path
) -> None:
    folders = {Run.create(tmp_path, None, run.config).folder for _ in range(3)}
    assert len(folders) == 3


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def halve(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        os.truncate(path, path.stat().st_size // 2)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "not the folder of a run"),
        (halve("config.json"), "config.json' is damaged"),
        (overwrite("config.json", b"[]"), "config.json' is damaged"),
        (overwrite("config.json", b"{}"), "config.json' is damaged"),
        (overwrite("config.json", b"\xff"), "config.json' is damaged"),
        (remove("parameters.safetensors"), "parameters.safetensors"),
        (halve("parameters.safetensors"), "parameters.safetensors"),
        (overwrite("parameters.safetensors", b"pickle"), "parameters.safetensors"),
    ],
)
def test_a_damaged_run_folder_is_named(
    run: Run, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(InputError, match=message):
        Run.open(folder).load_model()


def test_parameters_of_another_network_are_refused(run: Run) -> None:
    config = dataclasses.replace(run.config, class_names=("a", "b"))
    with pytest.raises(InputError, match="belong to another network"):
        Run(run.folder, config).load_model()


def test_a_file_keeps_its_content_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"before")
    with pytest.raises(RuntimeError), files.atomic_writer(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["/dev/null/folder", "/proc/folder"])
def test_a_folder_that_is_not_writable_is_named(path: str) -> None:
    with pytest.raises(InputError, match=path):
        files.make_folder(Path(path))


@pytest.mark.usefixtures("undrawn")
def test_a_profile_traces_the_training_steps(few_digits: Dataset, tmp_path: Path) -> None:
    config = runs.configure(few_digits, epochs=1, batch_size=50, seed=0)
    runs.train(config, few_digits, tmp_path, "run", options=runs.RunOptions(profile=True))
    [trace] = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("while" in event.get("name", "") for event in events)
