"""What the lecture promises, measured as a user would: by the command.

`test_readme.py` measures it on mnist-5k, by README's first command.
"""

import pytest
from conftest import Command

from dlc_jax.data import Dataset


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_ten_epochs_on_mnist_reach_about_1_percent(dlc_jax: Command, mnist: Dataset) -> None:
    result = dlc_jax("train", "--dataset", mnist.name, "--epochs", 10, "--json").json
    assert result["dataset"] == "mnist"
    assert result["test_error_percent"] <= 1.1
