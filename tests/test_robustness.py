"""DivergedError runs, late signals, lost metrics, memory, and agreement of processes."""

import dataclasses
import gc
import json
import math
import os
import re
import shutil
import signal
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import Command

import dlc_jax as package
from dlc_jax import runs, training
from dlc_jax.data import ArraySource, Dataset
from dlc_jax.data.distributed import dataset_fingerprint
from dlc_jax.errors import InputError
from dlc_jax.runs import CheckpointManager, callbacks
from dlc_jax.runs.callbacks import LastEvaluated
from dlc_jax.runs.folder import Run
from dlc_jax.sharding import processes
from dlc_jax.training import EpochRecord
from dlc_jax.utils import strict_json


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("vmapped", [False, True])
def test_a_run_that_diverges_in_its_last_step_raises_diverged(
    few_digits: Dataset, tmp_path: Path, vmapped: bool
) -> None:
    # A single step, whose loss is that of the network before it.
    options: dict[str, Any] = {"epochs": 1, "batch_size": 230, "learning_rate": 1e30}
    configs = [runs.configure(few_digits, seed=seed, **options) for seed in range(2)]
    with pytest.raises(training.DivergedError, match="try a smaller learning rate"):
        if vmapped:
            runs.train_vmapped(configs, few_digits, tmp_path, ["a", "b"])
        else:
            runs.train(configs[0], few_digits, tmp_path, "a")
    for name in ("summary.json", "config.json"):
        strict((tmp_path / "a" / name).read_text())
    assert strict((tmp_path / "a" / "summary.json").read_text())["epochs"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_is_named(
    run: Run, few_digits: Dataset, value: float
) -> None:
    model: Any = run.load_model()
    model.fc2.bias[...] = model.fc2.bias[...].at[3].set(value)
    task = training.classification(lambda key: model, optax.sgd(0.1), run.config.normalize)
    progress = training.Progress(training.create_state(model, task.optimizer))
    source = ArraySource(few_digits.train, batch_size=230)
    with pytest.raises(training.DivergedError, match=rf"fc2\.bias is {value} before training"):
        training.train(task, source, num_epochs=1, progress=progress)


def test_a_diverged_network_makes_no_predictions(
    run: Run, few_digits: Dataset, tmp_path: Path
) -> None:
    broken = Run(shutil.copytree(run.folder, tmp_path / "run"), run.config)
    model: Any = run.load_model()
    model.fc2.bias[...] = model.fc2.bias[...].at[3].set(math.nan)
    broken.save_model(model)
    with pytest.raises(training.DivergedError, match="outputs that are not finite"):
        runs.evaluate([run, broken], few_digits)
    picture = str(run.folder / "curves.png")
    with pytest.raises(training.DivergedError, match="outputs that are not finite"):
        runs.predict(broken, broken.load_model(), [picture], as_is=True)


def test_numbers_that_are_not_finite_become_null() -> None:
    values = {"a": [1.5, math.nan, (np.float64(math.inf), None)], "b": {"c": -math.inf, "d": "NaN"}}
    expected = {"a": [1.5, None, [None, None]], "b": {"c": None, "d": "NaN"}}
    assert strict(strict_json.dumps(values)) == expected
    assert strict(strict_json.dumps(values, indent=2)) == expected


def test_all_json_is_written_by_strict_json() -> None:
    folder = Path(package.__file__).parent
    others = [path for path in folder.rglob("*.py") if path.name != "strict_json.py"]
    assert not [path for path in others if re.search(r"\bjson\.dumps?\(", path.read_text())]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_only_the_last_of_all_epochs_networks_stays_in_memory(
    few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.configure(few_digits, epochs=5, batch_size=50, seed=0)
    networks: list[Any] = []
    alive: list[int] = []

    on_epoch_end = LastEvaluated.on_epoch_end

    def watch(self: LastEvaluated, progress: training.Progress, record: EpochRecord) -> None:
        on_epoch_end(self, progress, record)
        gc.collect()
        networks.append(weakref.ref(jax.tree.leaves(progress.state.params)[0]))
        alive.append(sum(network() is not None for network in networks))

    monkeypatch.setattr(LastEvaluated, "on_epoch_end", watch)
    options = runs.RunOptions(runs.CheckpointOptions(interval_seconds=1e9))
    runs.train(config, few_digits, tmp_path, "run", options=options)
    # The initial network and the newest one.
    assert max(alive) <= 2
    assert len(alive) == 6


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "content", [None, b"", b'{"epoch": 1, "test_l', b"\xff\x00garbage\n[1]\n5\n{}\n"]
)
def test_a_run_whose_metrics_are_lost_resumes_with_a_warning(
    run: Run, few_digits: Dataset, tmp_path: Path, content: bytes | None
) -> None:
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"), run.config)
    path = copy.folder / "metrics.jsonl"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    warnings: list[str] = []
    result = runs.resume(copy, few_digits, warn=warnings.append)
    assert len(warnings) == 1
    assert "has no metrics of 1 of the 1 finished epochs" in warnings[0]
    expected = json.loads((run.folder / "summary.json").read_text())
    for name in ("epochs", "test_error_percent", "parameters_sha256"):
        assert result.summary[name] == expected[name]
    assert [line["epoch"] for line in copy.read_metrics()] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("target", "name"), [(callbacks, "draw"), (CheckpointManager, "save")])
def test_a_signal_while_results_are_written_loses_no_result(
    dlc_jax: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    target: Any,
    name: str,
    number: int,
    code: int,
) -> None:
    write = getattr(target, name)

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return write(*arguments)

    monkeypatch.setattr(target, name, interrupted)
    options = ("--num-examples", 100, "--epochs", 1, "--name", "run", "--json")
    done = dlc_jax("train", "--dataset", "mnist-5k", *options)
    assert done.code == code, done.err
    assert done.json["epochs"] == 1
    assert "test error" in done.out
    run = tmp_path / "runs" / "run"
    assert (run / "training.png").exists()
    assert (run / "checkpoints" / "1").exists()


def test_processes_with_different_values_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[dict[str, Any]] = [
        {"seed": 0, "rate": 0.1, "shuffle": None},
        {"seed": 1, "rate": 0.1, "shuffle": True},
    ]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        processes, "_all_gather", lambda _: [json.dumps(each).encode() for each in values]
    )
    with pytest.raises(InputError) as refusal:
        processes.check_agreement(values[0])
    assert "seed 0 (process 0), 1 (process 1)" in str(refusal.value)
    assert "shuffle None (process 0), True (process 1)" in str(refusal.value)
    assert "rate" not in str(refusal.value)
    assert refusal.value.raised_on_all_processes
    values[1] = values[0]
    processes.check_agreement(values[0])


def test_fingerprints_change_with_examples_and_labels(few_digits: Dataset) -> None:
    whole = dataset_fingerprint(few_digits)
    fewer = dataset_fingerprint(few_digits.take(229))
    assert fewer["training examples"] != whole["training examples"]
    labels = np.array(few_digits.test.labels)
    labels[0] += 1
    other = few_digits.test._replace(labels=labels)
    changed = dataset_fingerprint(dataclasses.replace(few_digits, test=other))
    assert {name for name in whole if whole[name] != changed[name]} == {"test examples"}
