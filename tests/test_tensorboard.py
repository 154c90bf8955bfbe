"""Event files, as TensorBoard itself reads them."""

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
from dlc_jax.runs import keeping
from dlc_jax.runs.folder import Run
from dlc_jax.training import EpochReport

STEPS, EPOCHS = 5, 3


def events(run: Path) -> EventAccumulator:
    read = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0})
    return read.Reload()


def scalars(run: Path, tag: str) -> dict[int, float]:
    """Values by their steps, no two of one step."""
    values = events(run).Scalars(tag)
    assert len({value.step for value in values}) == len(values)
    return {value.step: value.value for value in values}


@pytest.fixture(scope="module")
def trained(
    few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, list[EpochReport]]:
    """A run with event files and a checkpoint after each epoch, and its reports."""
    config = runs.configure(few_digits, epochs=EPOCHS, batch_size=50, seed=0)
    reports: list[EpochReport] = []
    outcome = runs.train(
        config,
        few_digits,
        tmp_path_factory.mktemp("runs"),
        "run",
        lambda run, report: reports.append(report),
        runs.Saving(every=0, tensorboard=True),
    )
    return outcome.run, reports


def assert_whole(run: Path, reports: list[EpochReport]) -> None:
    losses = np.concatenate([report.losses for report in reports])
    ours = scalars(run, "train/loss")
    assert sorted(ours) == list(range(1, STEPS * EPOCHS + 1))
    np.testing.assert_array_equal([ours[step] for step in sorted(ours)], losses)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    error = scalars(run, "test/error_percent")
    assert sorted(error) == [0, *(line["step"] for line in lines)]
    for line in lines:
        assert error[line["step"]] == pytest.approx(line["test_error_percent"], abs=1e-4)
    assert sorted(scalars(run, "test/loss")) == [0, 5, 10, 15]


def test_event_files_tell_the_losses_of_steps_and_the_errors_of_epochs(
    trained: tuple[Run, list[EpochReport]],
) -> None:
    run, reports = trained
    assert_whole(run.folder, reports)
    assert sorted(scalars(run.folder, "train/images_per_second")) == [5, 10, 15]


def test_event_files_hold_the_pictures_of_the_run(trained: tuple[Run, list[EpochReport]]) -> None:
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


def test_a_resumed_run_goes_on_with_its_event_files_and_tells_nothing_twice(
    trained: tuple[Run, list[EpochReport]],
    few_digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, reports = trained
    folder = shutil.copytree(run.folder, tmp_path / "run")
    for later in (folder / "checkpoints").iterdir():
        if int(later.name) > STEPS:
            shutil.rmtree(later)
    # The pictures, which take longer than the training, are looked at in another test.
    monkeypatch.setattr(keeping, "draw", lambda *_: [])
    runs.resume(Run.open(folder), few_digits)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert_whole(folder, reports)


def test_without_the_library_nothing_is_begun_and_its_command_is_told(
    dlc_jax: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    done = dlc_jax("train", "--dataset", "mnist-5k", "--tensorboard", "--name", "run")
    assert done.code == 2
    assert "pip install 'dlc-jax[tensorboard]'" in done.err
    assert not (tmp_path / "runs").exists()
