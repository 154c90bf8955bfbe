"""Training on images that are read while it goes on."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import Command, new_state
from safetensors.numpy import load_file
from test_hosts import prepare_digits
from test_stream import prepared  # noqa: F401

from dlc_jax import sharding, training
from dlc_jax.data import Dataset, Normalise, RecordDataset
from dlc_jax.data.augmentation import Augmentation

# Of 230 digits each epoch has 11 batches of 20, and one of 10.
BATCH_SIZE, EPOCHS = 20, 2
AUGMENTATION = Augmentation(flip="alternating", translate=2, cutout=4)


def fit(dataset: Dataset | RecordDataset, state: training.TrainState, **how: Any) -> Any:
    """The reports of training by order and augmentation of their own in each epoch."""
    normalise = Normalise(np.full(1, 33.3, np.float32), np.full(1, 78.6, np.float32))
    how = {"key": jax.random.key(3), "augmentation": AUGMENTATION, **how}
    return list(
        training.fit(state, dataset, normalise, epochs=EPOCHS, batch_size=BATCH_SIZE, **how)
    )


def fresh() -> training.TrainState:
    return new_state(optimizer=optax.sgd(0.005, momentum=0.9))


@pytest.fixture(scope="module")
def in_memory(few_digits: Dataset) -> list[training.EpochReport]:
    reports: list[training.EpochReport] = fit(few_digits, fresh())
    return reports


def assert_same(report: training.EpochReport, expected: training.EpochReport) -> None:
    np.testing.assert_allclose(report.losses, expected.losses, rtol=1e-5)
    np.testing.assert_allclose(report.test_logits, expected.test_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(report.test_labels, expected.test_labels)
    np.testing.assert_allclose(report.test, expected.test, rtol=1e-5)
    params = (jax.tree.leaves(each.state.params) for each in (report, expected))
    for ours, theirs in zip(*params, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_recipe_comes_to_the_same_on_a_stream_as_in_memory(
    in_memory: list[training.EpochReport], few_digits: Dataset, devices: int
) -> None:
    mesh = sharding.device_mesh(BATCH_SIZE, jax.devices()[:devices])
    streamed = fit(RecordDataset.of(few_digits), fresh(), mesh=mesh)
    assert [report.epoch for report in streamed] == [0, 1, 2]
    for report, expected in zip(streamed, in_memory, strict=True):
        assert_same(report, expected)


def test_training_on_a_stream_goes_on_within_an_epoch_bit_by_bit(few_digits: Dataset) -> None:
    records = RecordDataset.of(few_digits)
    parts: list[tuple[training.TrainState, np.ndarray]] = []

    def note(state: training.TrainState, losses: np.ndarray, seconds: float) -> None:
        parts.append((state, losses))

    *_, whole = fit(records, fresh(), part_steps=5, after_part=note)
    state, losses = parts[4]
    assert int(state.step) == 12 + 10
    (resumed,) = fit(records, state, part_steps=5, losses=losses)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    for ours, theirs in zip(
        *(jax.tree.leaves(each.state.params) for each in (resumed, whole)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_the_command_comes_to_the_same_with_stream_as_without(
    dlc_jax: Command, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_digits(digits, tmp_path / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    how = ("--dataset", "mnist", "--examples", 250, "--epochs", 1)
    for name, stream in (("memory", ()), ("stream", ("--stream",))):
        done = dlc_jax("train", *how, *stream, "--name", name)
        assert done.code == 0, done.err
    runs = [tmp_path / "runs" / name for name in ("memory", "stream")]
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"stream"}
    ours, theirs = (load_file(run / "parameters.safetensors") for run in runs)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-6)
    pictures = {path.name for path in runs[1].glob("*.png")}
    assert pictures == {"curves.png", "confusion.png", "mistakes.png", "training.png"}
    again = dlc_jax("eval", runs[1], "--json")
    summary = json.loads((runs[1] / "summary.json").read_text())
    assert again.json["test_error_percent"] == summary["test_error_percent"]
    explained = dlc_jax("explain", "saliency", runs[1])
    assert explained.code == 0, explained.err


def test_any_prepared_dataset_is_learned_by_its_name(
    dlc_jax: Command,
    tmp_path: Path,
    prepared: Path,  # noqa: F811
) -> None:
    how = ("--dataset", "tiny_imagenet", "--data-dir", prepared, "--batch-size", 4)
    done = dlc_jax("train", *how, "--image-size", 28, "--epochs", 2, "--name", "run")
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    again = dlc_jax("train", "--resume", run, "--data-dir", prepared)
    assert again.code == 0, again.err
    assert dlc_jax("eval", run, "--data-dir", prepared).code == 0
    sizeless = dlc_jax("train", *how)
    assert sizeless.code == 2
    assert "differ in size" in sizeless.err
    unknown = dlc_jax("train", "--dataset", "imagenet2012", "--image-size", 224)
    assert unknown.code == 2
    assert "imagenet2012" in unknown.err


def test_networks_trained_together_need_the_data_in_memory(dlc_jax: Command) -> None:
    done = dlc_jax("train", "--dataset", "mnist-5k", "--stream", "--seeds", 2, "--together")
    assert done.code == 2
    assert "--together is for one device and images in memory" in done.err
