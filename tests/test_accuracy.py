"""What the lecture promises, measured as a user would: by the command."""

import statistics

import pytest
from conftest import Command

from dlc_jax.data import Dataset

pytestmark = pytest.mark.slow


def mean_error(dlc_jax: Command, dataset: str, seeds: range) -> float:
    command = ("train", "--dataset", dataset, "--epochs", 10, "--json")
    runs = [dlc_jax(*command, "--seed", seed).json for seed in seeds]
    assert {run["dataset"] for run in runs} == {dataset}
    return statistics.mean(run["test_error_percent"] for run in runs)


def test_ten_epochs_on_mnist_reach_about_1_percent(dlc_jax: Command, mnist: Dataset) -> None:
    assert mean_error(dlc_jax, "mnist", range(1)) <= 1.1


def test_ten_epochs_on_mnist_5k_reach_3_5_percent(dlc_jax: Command) -> None:
    assert mean_error(dlc_jax, "mnist-5k", range(3)) <= 3.5
