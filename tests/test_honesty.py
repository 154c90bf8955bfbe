"""Runs that diverge, are stopped late or lose their notes say so; nothing piles up in memory."""

import gc
import json
import math
import os
import re
import shutil
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import Command

import dlc_jax as package
from dlc_jax import runs, training
from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.runs import keeping, results
from dlc_jax.runs.folder import Run
from dlc_jax.sharding import processes
from dlc_jax.training import EpochReport
from dlc_jax.utils import strict_json


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("together", [False, True])
def test_a_run_that_diverges_in_its_last_step_has_diverged(
    few_digits: Dataset, tmp_path: Path, together: bool
) -> None:
    # A single step, whose loss is that of the network before it.
    how: dict[str, Any] = {"epochs": 1, "batch_size": 230, "learning_rate": 1e30}
    configs = [runs.configure(few_digits, seed=seed, **how) for seed in range(2)]
    with pytest.raises(training.Diverged, match="try a smaller learning rate"):
        if together:
            runs.train_together(configs, few_digits, tmp_path, ["a", "b"])
        else:
            runs.train(configs[0], few_digits, tmp_path, "a")
    for name in ("summary.json", "config.json"):
        strict((tmp_path / "a" / name).read_text())
    assert strict((tmp_path / "a" / "summary.json").read_text())["epochs"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_is_told_by_its_name(
    run: Run, few_digits: Dataset, value: float
) -> None:
    model: Any = run.model()
    # Of a class that no test image is taken for, the test loss alone would not tell it.
    model.fc2.bias[...] = model.fc2.bias[...].at[3].set(value)
    state = training.create_state(model, optax.sgd(0.1))
    how: dict[str, Any] = {"epochs": 1, "batch_size": 230}
    with pytest.raises(training.Diverged, match=f"parameter fc2.bias is {value} before training"):
        next(training.fit(state, few_digits, run.config.normalise, **how))


def test_a_network_that_diverged_gives_no_answers(
    run: Run, few_digits: Dataset, tmp_path: Path
) -> None:
    broken = Run(shutil.copytree(run.folder, tmp_path / "run"), run.config)
    model: Any = run.model()
    model.fc2.bias[...] = model.fc2.bias[...].at[3].set(math.nan)
    broken.save_model(model)
    with pytest.raises(training.Diverged, match="outputs that are not finite"):
        runs.evaluate([run, broken], few_digits)
    picture = str(run.folder / "curves.png")
    with pytest.raises(training.Diverged, match="outputs that are not finite"):
        runs.predict(broken, broken.model(), [picture], as_is=True)


def test_numbers_that_are_not_finite_become_null() -> None:
    values = {"a": [1.5, math.nan, (np.float64(math.inf), None)], "b": {"c": -math.inf, "d": "NaN"}}
    expected = {"a": [1.5, None, [None, None]], "b": {"c": None, "d": "NaN"}}
    assert strict(strict_json.dumps(values)) == expected
    assert strict(strict_json.dumps(values, indent=2)) == expected


def test_all_json_is_written_by_the_writer_that_knows_of_such_numbers() -> None:
    folder = Path(package.__file__).parent
    others = [path for path in folder.rglob("*.py") if path.name != "json_text.py"]
    assert not [path for path in others if re.search(r"\bjson\.dumps?\(", path.read_text())]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_of_all_epochs_only_the_last_network_stays_in_memory(
    few_digits: Dataset, tmp_path: Path
) -> None:
    config = runs.configure(few_digits, epochs=5, batch_size=50, seed=0)
    networks: list[Any] = []
    alive: list[int] = []

    def watch(run: Run, report: EpochReport) -> None:
        gc.collect()
        networks.append(weakref.ref(jax.tree.leaves(report.state.params)[0]))
        alive.append(sum(each() is not None for each in networks))

    saving = runs.Saving(every=1e9)
    runs.train(config, few_digits, tmp_path, "run", watch, saving)
    # The first one, the newest, and the one before, which the iterator has just let go of.
    assert max(alive) <= 3


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "content", [None, b"", b'{"epoch": 1, "test_l', b"\xff\x00garbage\n[1]\n5\n{}\n"]
)
def test_a_run_whose_metrics_are_lost_goes_on_and_says_so(
    run: Run, few_digits: Dataset, tmp_path: Path, content: bytes | None
) -> None:
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"), run.config)
    path = copy.folder / "metrics.jsonl"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    told: list[str] = []
    outcome = runs.resume(copy, few_digits, complain=told.append)
    assert len(told) == 1
    assert "no longer tells of 1 of the 1 epochs" in told[0]
    expected = json.loads((run.folder / "summary.json").read_text())
    for name in ("epochs", "test_error_percent", "parameters_sha256"):
        assert outcome.summary[name] == expected[name]
    assert [line["epoch"] for line in copy.read_metrics()] == [2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_the_last_pictures_are_drawn_loses_no_result(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, code: int
) -> None:
    draw: Callable[..., Any] = results.draw

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return draw(*arguments)

    monkeypatch.setattr(keeping, "draw", interrupted)
    how = ("--dataset", "mnist-5k", "--examples", 100, "--epochs", 1, "--name", "run", "--json")
    done = dlc_jax("train", *how)
    assert done.code == code, done.err
    assert done.json["epochs"] == 1
    assert "test error" in done.out
    assert (tmp_path / "runs" / "run" / "training.png").exists()


def test_processes_that_were_told_different_things_name_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[dict[str, Any]] = [
        {"seed": 0, "rate": 0.1, "shuffle": None},
        {"seed": 1, "rate": 0.1, "shuffle": True},
    ]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        processes, "_from_all", lambda _: [json.dumps(each).encode() for each in told]
    )
    with pytest.raises(InputError) as refusal:
        processes.check_agreement(told[0])
    assert "seed 0 (process 0), 1 (process 1)" in str(refusal.value)
    assert "shuffle None (process 0), True (process 1)" in str(refusal.value)
    assert "rate" not in str(refusal.value)
    assert refusal.value.common
    told[1] = told[0]
    processes.check_agreement(told[0])


def test_another_example_or_label_makes_another_dataset(few_digits: Dataset) -> None:
    whole = processes.identity(few_digits)
    assert (
        processes.identity(few_digits.first(229))["training examples"] != whole["training examples"]
    )
    labels = np.array(few_digits.test.labels)
    labels[0] += 1
    other = few_digits.test._replace(labels=labels)
    changed = processes.identity(Dataset("few", "1", few_digits.train, other, whole["classes"], ""))
    assert {name for name in whole if whole[name] != changed[name]} == {"test examples"}
