"""The lecture's test error, with the command."""

import pytest
from conftest import Command

from dlc_jax.data import Dataset


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_ten_epochs_on_mnist_reach_about_1_percent(dlc_jax: Command, mnist: Dataset) -> None:
    result = dlc_jax("train", "--dataset", mnist.name, "--epochs", 10, "--json").json
    assert result["dataset"] == "mnist"
    assert result["test_error_percent"] <= 1.1


@pytest.mark.slow
@pytest.mark.usefixtures("optimised", "undrawn")
def test_ten_epochs_on_the_bundled_digits_reach_3_5_percent_on_average(dlc_jax: Command) -> None:
    result = dlc_jax("train", "--dataset", "mnist-5k", "--seeds", 3, "--json").json
    assert result["test_error_percent"]["mean"] <= 3.5
