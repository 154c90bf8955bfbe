"""Several networks trained at once."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import Command, new_state
from flax import nnx

from dlc_jax import models, runs, training
from dlc_jax.data import Dataset, Normalise
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.models import parameters
from dlc_jax.runs.folder import PARAMETERS, Run

# On so few digits, since how well they are learnt does not matter.
TRAIN = ("train", "--dataset", "mnist-5k", "--epochs", 1, "--examples", 300)
HOW: dict[str, Any] = {
    "batch_size": 46,
    "augmentation": Augmentation("random", 1),
    "label_smoothing": 0.1,
}


OPTIMIZER = optax.sgd(0.01, 0.9)


def new_states(networks: int) -> list[training.TrainState]:
    return [new_state(seed, OPTIMIZER) for seed in range(networks)]


def assert_near(ours: Any, expected: Any) -> None:
    for one, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def lecture_states(networks: int) -> list[training.TrainState]:
    """Of the lecture's network, whose operations have rules of their own for several at once."""
    rngs = [nnx.Rngs(seed) for seed in range(networks)]
    return [training.create_state(models.create("lecture", rngs=r), OPTIMIZER) for r in rngs]


@pytest.mark.parametrize(
    "create", [new_states, pytest.param(lecture_states, marks=pytest.mark.slow)]
)
def test_an_ensembles_epoch_equals_epochs_of_its_networks_alone(
    few_digits: Dataset, create: Any
) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    states = create(2)
    keys = jax.random.split(jax.random.key(0), 2)
    together, metrics = training.train_ensemble(
        training.stack(states), few_digits.train, normalise, keys=keys, **HOW
    )
    assert metrics.loss.shape == (2, 5)
    for i, (state, key) in enumerate(zip(states, keys, strict=True)):
        alone, expected = training.train_epoch(state, few_digits.train, normalise, key=key, **HOW)
        assert_near(metrics.loss[i], expected.loss)
        assert_near(training.unstack(together)[i].params, alone.params)


def test_an_ensemble_is_evaluated_by_the_mean_of_its_networks_probabilities(
    few_digits: Dataset,
) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    states = new_states(3)
    together, metrics = training.evaluate_ensemble(
        training.stack(states), few_digits.test, normalise, batch_size=20
    )
    every = [training.evaluate(state, few_digits.test, normalise)[0] for state in states]
    expected = np.mean([jax.nn.softmax(np.asarray(logits, np.float64)) for logits in every], 0)
    np.testing.assert_allclose(np.exp(together), expected, rtol=1e-4)
    labels = few_digits.test.labels
    assert float(metrics.error) == pytest.approx((expected.argmax(1) != labels).mean())
    own = -np.log(expected[np.arange(len(labels)), labels]).mean()
    assert float(metrics.loss) == pytest.approx(own, rel=1e-4)


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


def test_reports_of_an_ensemble_are_those_of_its_networks(few_digits: Dataset) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    states, keys = new_states(2), jax.random.split(jax.random.key(0), 2)
    how: dict[str, Any] = {"epochs": 2, "translated": 1, **HOW}
    together = list(
        training.fit_ensemble(training.stack(states), few_digits, normalise, keys=keys, **how)
    )
    for i, (state, key) in enumerate(zip(states, keys, strict=True)):
        alone = list(training.fit(state, few_digits, normalise, key=key, **how))
        assert [reports[i].epoch for reports in together] == [0, 1, 2]
        for reports, report in zip(together, alone, strict=True):
            assert_near(reports[i].losses, report.losses)
            assert_near(reports[i].test_logits, report.test_logits)
            assert_near(reports[i].test, report.test)


def test_without_room_for_an_ensemble_the_memory_that_it_needs_is_told(
    few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 2**10}

    monkeypatch.setattr(jax, "local_devices", lambda: [Small()])
    normalise = Normalise.fit(few_digits.train.images)
    states = training.stack(new_states(2))
    with pytest.raises(training.NoRoom, match=r"need .* GiB on a device of 0\.0 GiB.*one by one"):
        training.fit_ensemble(states, few_digits, normalise, epochs=1, batch_size=50)


@pytest.mark.usefixtures("undrawn")
def test_seeds_trained_together_have_folders_of_their_own(dlc_jax: Command) -> None:
    command = (*TRAIN, "--seeds", 2, "--seed", 4)
    done = dlc_jax(*command, "--together", "--name", "some", "--json")
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
    names, saving = ("run0", "run1"), runs.Saving(every=0)
    outcomes = runs.train_together(configs, few_digits, tmp_path, names, saving=saving)
    whole = parameters.load(tmp_path / "run1" / PARAMETERS, configs[1].create_model())
    run = outcomes[1].run
    stopped = run.folder / "checkpoints"
    assert sorted(int(path.name) for path in stopped.iterdir()) == [5, 10, 15]
    for later in ("10", "15"):
        shutil.rmtree(stopped / later)
    resumed = runs.resume(run, few_digits)
    assert_near(nnx.state(resumed.run.model(), nnx.Param), nnx.state(whole, nnx.Param))
    assert resumed.summary["test_error_percent"] == outcomes[1].summary["test_error_percent"]
    assert [line["step"] for line in run.read_metrics()] == [5, 10, 15]


def test_no_folder_is_left_where_one_of_several_runs_has_none(
    dlc_jax: Command, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "some-seed1").mkdir(parents=True)
    (tmp_path / "runs" / "some-seed1" / "config.json").touch()
    command = (*TRAIN, "--seeds", 2, "--name", "some")
    done = dlc_jax(*command, "--together")
    assert done.code == 2
    assert "some-seed1" in done.err
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["some-seed1"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("how", ["--together", "--one-by-one"])
def test_seeds_that_were_interrupted_have_no_mean(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    append = Run.append_metrics

    def interrupted(self: Run, metrics: dict[str, Any]) -> None:
        append(self, metrics)
        if self.config.seed == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "append_metrics", interrupted)
    done = dlc_jax(*TRAIN[:3], "--epochs", 2, "--examples", 300, "--seeds", 2, how, "--json")
    assert done.code == 130, done.err
    assert "over 2 seeds" not in done.out
    assert [run["seed"] for run in done.json["runs"]] == [0, 1]


@pytest.mark.usefixtures("undrawn")
def test_seeds_that_were_interrupted_before_any_test_end_without_a_traceback(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit_ensemble", lambda *_, **__: map(interrupt, [0]))
    done = dlc_jax(*TRAIN, "--seeds", 2, "--together", "--json")
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
