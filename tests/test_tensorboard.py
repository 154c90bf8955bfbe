"""Event files, read by TensorBoard."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlc_jax import runs
from dlc_jax.data import Dataset
from dlc_jax.runs import callbacks
from dlc_jax.runs.folder import Run
from dlc_jax.training import EpochRecord

STEPS, EPOCHS = 5, 3


def events(run: Path) -> EventAccumulator:
    read = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0})
    return read.Reload()


def scalars(run: Path, tag: str) -> dict[int, float]:
    """Values by step; each step has one."""
    values = events(run).Scalars(tag)
    assert len({value.step for value in values}) == len(values)
    return {value.step: value.value for value in values}


@pytest.fixture(scope="module")
def trained(
    few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, list[EpochRecord]]:
    """A run with event files and a checkpoint after each epoch, and its records."""
    config = runs.configure(few_digits, epochs=EPOCHS, batch_size=50, seed=0)
    records: list[EpochRecord] = []
    result = runs.train(
        config,
        few_digits,
        tmp_path_factory.mktemp("runs"),
        "run",
        on_epoch_end=lambda run, record: records.append(record),
        options=runs.RunOptions(runs.CheckpointOptions(interval_seconds=0), tensorboard=True),
    )
    assert result.run is not None
    return result.run, records


def assert_complete(run: Path, records: list[EpochRecord]) -> None:
    losses = np.concatenate([record.losses for record in records])
    ours = scalars(run, "train/loss")
    assert sorted(ours) == list(range(1, STEPS * EPOCHS + 1))
    np.testing.assert_array_equal([ours[step] for step in sorted(ours)], losses)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    error = scalars(run, "test/error_percent")
    assert sorted(error) == [0, *(line["step"] for line in lines)]
    for line in lines:
        assert error[line["step"]] == pytest.approx(line["test_error_percent"], abs=1e-4)
    assert sorted(scalars(run, "test/loss")) == [0, 5, 10, 15]


def test_event_files_have_the_losses_of_steps_and_the_errors_of_epochs(
    trained: tuple[Run, list[EpochRecord]],
) -> None:
    run, records = trained
    assert_complete(run.folder, records)
    assert sorted(scalars(run.folder, "train/images_per_second")) == [5, 10, 15]


def test_event_files_have_the_pictures_of_the_run(trained: tuple[Run, list[EpochRecord]]) -> None:
    folder = trained[0].folder
    read = events(folder)
    assert set(read.Tags()["images"]) == {path.stem for path in folder.glob("*.png")}
    [picture] = read.Images("confusion")
    assert picture.step == STEPS * EPOCHS
    with (
        Image.open(io.BytesIO(picture.encoded_image_string)) as ours,
        Image.open(folder / "confusion.png") as drawn,
    ):
        np.testing.assert_array_equal(ours.convert("RGB"), drawn.convert("RGB"))


def test_a_resumed_run_continues_its_event_files_without_duplicates(
    trained: tuple[Run, list[EpochRecord]],
    few_digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, records = trained
    folder = shutil.copytree(run.folder, tmp_path / "run")
    for later in (folder / "checkpoints").iterdir():
        if int(later.name) > STEPS:
            shutil.rmtree(later)
    # Pictures take longer than the training.
    monkeypatch.setattr(callbacks, "draw", lambda *_: [])
    runs.resume(Run.open(folder), few_digits)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert_complete(folder, records)


def test_without_tensorboardx_nothing_is_trained_and_the_error_names_the_package(
    dlc_jax: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    done = dlc_jax("train", "--dataset", "mnist-5k", "--tensorboard", "--name", "run")
    assert done.code == 2
    assert "pip install 'dlc-jax[tensorboard]'" in done.err
    assert not (tmp_path / "runs").exists()
