"""Batches on eight devices, whatever their size."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from safetensors.numpy import load_file

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What `eight_devices.py` computed: by network, for one device and for many."""
    path = tmp_path_factory.mktemp("eight") / "results.npz"
    script = Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    nested: Results = {}
    with np.load(path) as file:
        for name in file.files:
            network, devices, array = name.split("/", 2)
            nested.setdefault(f"{network}/{devices}", {})[array] = file[name]
    return nested


def check_equal(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert ours.keys() == expected.keys()
    for name in expected.keys() - {"compiled"}:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["plain", "coupled", "jit"])
def test_training_and_evaluation_on_eight_devices_equal_those_on_one(
    results: Results, network: str
) -> None:
    one = results[f"{network}/one"]
    if network != "jit":
        # Something was learned, so that the networks compared are no longer the initial ones.
        assert one["losses"][-1].mean() < 0.98 * one["losses"][0].mean()
    check_equal(results[f"{network}/many"], one)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["plain", "coupled"])
def test_only_the_first_epoch_compiles(results: Results, network: str) -> None:
    first, *later = results[f"{network}/many"]["compiled"]
    assert first > 0
    assert later == [0, 0]


@pytest.mark.parametrize(
    ("devices", "named"),
    [
        ("0", "0 is not a number of devices; give all or an integer"),
        ("-1", "-1 is not a number of devices"),
        ("x", "x is not a number of devices"),
        ("3", "there are 2 devices, not 3; use fewer"),
    ],
)
def test_devices_that_there_are_not_are_refused_in_one_line(
    dlc_jax: Command, tmp_path: Path, devices: str, named: str
) -> None:
    done = dlc_jax("train", "--dataset", "mnist-5k", "--devices", devices)
    assert done.code == 2
    assert named in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_a_run_over_all_devices_goes_on_over_fewer_to_the_same_end_up_to_rounding(
    dlc_jax: Command, dlc_jax_process: Command, tmp_path: Path
) -> None:
    # A network that is compiled quickly, and a rate and a batch whose quotient is exact, since
    # rounding would decide between its equal responses.
    short = ("--dataset", "mnist-5k", "--model", "perceptron", "--num-examples", 192, "--epochs", 2)
    exact = ("--batch-size", 64, "--learning-rate", 1 / 64)
    often = (*exact, "--checkpoint-steps", 2, "--checkpoint-seconds", 0)
    named = ("--devices", "all", "--name", "run")
    done = dlc_jax_process("train", *short, *often, *named, JAX_NUM_CPU_DEVICES="8")
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "run"
    assert json.loads((run / "config.json").read_text())["num_devices"] == 8
    expected = load_file(run / "parameters.safetensors")
    shutil.rmtree(run / "checkpoints" / "6")
    resumed = dlc_jax("train", "--resume", run)
    assert resumed.code == 0, resumed.err
    assert "used 8 devices, and now uses 2" in resumed.err
    assert "up to rounding" in resumed.err
    check_equal(load_file(run / "parameters.safetensors"), expected)
