"""Several networks trained at once."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import Command
from flax import nnx
from tiny import OneLayer, assert_close, task, train

from dlc_jax import models, runs, training
from dlc_jax.data import ArraySource, Dataset
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.models import parameters
from dlc_jax.runs.folder import PARAMETERS, Run

# How well digits are learned does not matter, so that a few are enough.
TRAIN = ("train", "--dataset", "mnist-5k", "--epochs", 1, "--num-examples", 300)


def lecture(key: jax.Array) -> nnx.Module:
    """The lecture's network, whose operations have batching rules of their own."""
    return models.create("lecture", rngs=nnx.Rngs(key))


@pytest.mark.parametrize("model", [OneLayer, pytest.param(lecture, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shuffled", [True, False])
def test_an_ensemble_trains_each_network_as_if_alone(
    few_digits: Dataset, model: Any, shuffled: bool
) -> None:
    own = task(
        model,
        optax.sgd(0.01, 0.9),
        Augmentation("random", 1) if shuffled else None,
        label_smoothing=0.1,
        tta_translate=1,
    )
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.vmap(own.init)(keys)
    run_keys = keys if shuffled else None
    source = ArraySource(few_digits.train, 46, key=run_keys)
    options: dict[str, Any] = {"state": states, "source": source, "key": run_keys}
    together, records = train(training.Ensemble(own), few_digits, 46, **options)
    for i, (key, state) in enumerate(zip(keys, training.unstack(states), strict=True)):
        alone, expected = train(own, few_digits, 46, state=state, key=key if shuffled else None)
        assert_close(training.unstack(together.state)[i].params, alone.state.params)
        for ours, other in zip(records, expected, strict=True):
            test = {name: values[i] for name, values in ours.test.items()}
            assert_close(test, dict(other.test))
            if ours.epoch:
                np.testing.assert_allclose(ours.losses[:, i], other.losses, rtol=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_runs_are_tested_as_one(dlc_jax: Command) -> None:
    command = (*TRAIN, "--seeds", 2, "--name", "some")
    assert dlc_jax(*command).code == 0
    runs = ("runs/some-seed0", "runs/some-seed1")
    alone = [dlc_jax("eval", run, "--json").json["test_loss"] for run in runs]
    together = dlc_jax("eval", *runs, "--json").json
    assert together["runs"] == list(runs)
    # By Jensen's inequality.
    assert together["test_loss"] < np.mean(alone)
    twice = dlc_jax("eval", runs[0], runs[0], "--json").json
    assert twice["test_loss"] == pytest.approx(alone[0], rel=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_seeds_trained_together_have_folders_of_their_own(dlc_jax: Command) -> None:
    command = (*TRAIN, "--seeds", 2, "--seed", 4)
    done = dlc_jax(*command, "--vmap-seeds", "--name", "some", "--json")
    assert done.code == 0, done.err
    result = done.json
    assert result["seeds"] == [4, 5]
    errors = [run["test_error_percent"] for run in result["runs"]]
    assert result["test_error_percent"]["mean"] == pytest.approx(np.mean(errors), abs=1e-3)
    for run in result["runs"]:
        again = dlc_jax("eval", run["run"], "--json").json
        assert again["test_error_percent"] == run["test_error_percent"]
    assert [run["run"] for run in result["runs"]] == ["runs/some-seed4", "runs/some-seed5"]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_networks_trained_together_go_on_one_by_one(few_digits: Dataset, tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch_size": 50, "learning_rate": 0.01, "shuffle": True, "epochs": 3}
    configs = [runs.configure(few_digits, seed=seed, **how) for seed in (0, 1)]
    names = ("run0", "run1")
    options = runs.RunOptions(runs.CheckpointOptions(interval_seconds=0))
    outcomes = runs.train_vmapped(configs, few_digits, tmp_path, names, options=options)
    whole = parameters.load(tmp_path / "run1" / PARAMETERS, configs[1].create_model())
    run = outcomes[1].run
    assert run is not None
    stopped = run.folder / "checkpoints"
    assert sorted(int(path.name) for path in stopped.iterdir()) == [5, 10, 15]
    for later in ("10", "15"):
        shutil.rmtree(stopped / later)
    resumed = runs.resume(run, few_digits)
    assert_close(nnx.state(run.load_model(), nnx.Param), nnx.state(whole, nnx.Param))
    assert resumed.summary["test_error_percent"] == outcomes[1].summary["test_error_percent"]
    assert [line["step"] for line in run.read_metrics()] == [5, 10, 15]


def test_no_folder_is_left_where_one_of_several_runs_has_none(
    dlc_jax: Command, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "some-seed1").mkdir(parents=True)
    (tmp_path / "runs" / "some-seed1" / "config.json").touch()
    command = (*TRAIN, "--seeds", 2, "--name", "some")
    done = dlc_jax(*command, "--vmap-seeds")
    assert done.code == 2
    assert "some-seed1" in done.err
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["some-seed1"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("how", ["--vmap-seeds", "--no-vmap-seeds"])
def test_seeds_that_were_interrupted_have_no_mean(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    append = Run.append_metrics

    def interrupted(self: Run, metrics: dict[str, Any]) -> None:
        append(self, metrics)
        if self.config.seed == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "append_metrics", interrupted)
    done = dlc_jax(*TRAIN[:3], "--epochs", 2, "--num-examples", 300, "--seeds", 2, how, "--json")
    assert done.code == 130, done.err
    assert "over 2 seeds" not in done.out
    assert [run["seed"] for run in done.json["runs"]] == [0, 1]


@pytest.mark.usefixtures("undrawn")
def test_seeds_that_were_interrupted_before_any_test_end_without_a_traceback(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt)
    done = dlc_jax(*TRAIN, "--seeds", 2, "--vmap-seeds", "--json")
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
