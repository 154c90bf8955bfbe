"""The lecture's test error, with the command; `test_docs.py` has it for mnist-5k."""

import pytest
from conftest import Command

from dlc_jax.data import Dataset


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_ten_epochs_on_mnist_reach_about_1_percent(dlc_jax: Command, mnist: Dataset) -> None:
    result = dlc_jax("train", "--dataset", mnist.name, "--epochs", 10, "--json").json
    assert result["dataset"] == "mnist"
    assert result["test_error_percent"] <= 1.1
