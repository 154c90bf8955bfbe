"""Training on images that are read while it goes on."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from conftest import Command
from safetensors.numpy import load_file
from test_processes import prepare_digits
from test_streaming import prepared  # noqa: F401
from tiny import Coupled, assert_close, task, train

from dlc_jax import sharding, training
from dlc_jax.data import Dataset, Records, StreamingSource
from dlc_jax.data.augmentation import Augmentation

# Of 230 digits each epoch has 11 batches of 20, and one of 10.
BATCH_SIZE = 20
KEY = jax.random.key(3)
TASK = task(Coupled, optax.sgd(0.005, momentum=0.9), Augmentation("alternating", 2, cutout=4))


@pytest.mark.parametrize("devices", [1, 2])
def test_training_on_a_stream_equals_training_in_memory(few_digits: Dataset, devices: int) -> None:
    mesh = sharding.device_mesh(BATCH_SIZE, jax.devices()[:devices])
    records = Records.from_arrays(few_digits.train)
    source = StreamingSource(records, BATCH_SIZE, key=KEY, mesh=mesh)
    streamed, ours = train(TASK, few_digits, BATCH_SIZE, source=source, mesh=mesh, key=KEY)
    in_memory, expected = train(TASK, few_digits, BATCH_SIZE, key=KEY)
    assert_close(streamed.state, in_memory.state)
    for one, other in zip(ours, expected, strict=True):
        assert one.epoch == other.epoch
        assert_close((one.train, one.test), (other.train, other.test))
        np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)


def test_training_on_a_stream_continues_within_an_epoch_bit_by_bit(few_digits: Dataset) -> None:
    saved: list[training.Progress] = []

    class Save(training.Callback):
        def on_chunk_end(self, progress: training.Progress) -> None:
            saved.append(training.Progress(progress.state, progress.metrics, progress.seconds))

    source = StreamingSource(Records.from_arrays(few_digits.train), BATCH_SIZE, key=KEY)
    whole, _ = train(
        TASK, few_digits, 20, source=source, key=KEY, max_chunk_steps=5, callbacks=[Save()]
    )
    progress = saved[4]
    assert progress.step == 12 + 10
    training.train(TASK, source, num_epochs=2, progress=progress, key=KEY, max_chunk_steps=5)
    for ours, theirs in zip(
        *(jax.tree.leaves(each.state.params) for each in (progress, whole)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, progress.metrics, whole.metrics)


@pytest.mark.slow
def test_the_command_gives_the_same_with_stream_as_without(
    dlc_jax: Command, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_digits(digits, tmp_path / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    how = ("--dataset", "mnist", "--num-examples", 250, "--epochs", 1)
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


@pytest.mark.slow
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


def test_networks_trained_by_vmap_need_the_data_in_memory(dlc_jax: Command) -> None:
    done = dlc_jax("train", "--dataset", "mnist-5k", "--stream", "--seeds", 2, "--vmap-seeds")
    assert done.code == 2
    assert "--vmap-seeds is for one device and images in memory" in done.err
