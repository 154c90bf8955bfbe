"""Batches shared by eight devices, evenly or not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import Command
from eight_devices import dropping, lecture, normalised
from flax import nnx
from safetensors.numpy import load_file

from dlc_jax import models, sharding, training
from dlc_jax.errors import InputError

Results = dict[str, dict[str, Any]]
EPOCHS = {"uneven": 8, "normalised": 5, "dropping": 8}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What `eight_devices.py` computed: by task, for one device and for many."""
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
            task, *which = name.split("/", 2)
            place = nested.setdefault(task, {})
            if len(which) == 2:
                place = place.setdefault(which[0], {})
            place[which[-1]] = file[name]
    return nested


def check_equal(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert ours.keys() == expected.keys()
    for name in expected.keys() - {"compiled"}:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("task", EPOCHS)
def test_epochs_over_many_devices_are_those_of_one(results: Results, task: str) -> None:
    result = results[task]
    assert result["devices"] == EPOCHS[task]
    losses = result["one"]["losses"]
    # Something was learned, so that the networks compared are no longer those that began.
    assert losses[-1].mean() < 0.98 * losses[0].mean()
    check_equal(result["many"], result["one"])


@pytest.mark.slow
@pytest.mark.parametrize("task", EPOCHS)
def test_only_the_first_epoch_compiles(results: Results, task: str) -> None:
    first, *later = results[task]["many"]["compiled"]
    assert first > 0
    assert later == [0, 0]


@pytest.mark.slow
def test_a_step_needs_nothing_but_a_batch_that_lies_on_the_devices(results: Results) -> None:
    check_equal(results["plain jit"]["many"], results["plain jit"]["one"])


@pytest.mark.slow
def test_evaluation_in_batches_that_do_not_fit_the_devices_is_that_of_one(
    results: Results,
) -> None:
    check_equal(results["evaluation"]["many"], results["evaluation"]["one"])


@pytest.mark.parametrize(
    ("create", "coupled"), [(lecture, False), (normalised, True), (dropping, True)]
)
def test_examples_are_coupled_by_normalisation_and_by_dropout(create: Any, coupled: bool) -> None:
    state = training.create_state(create(), optax.sgd(0.1))
    assert training.couples_examples(state) is coupled


@pytest.mark.parametrize(
    ("name", "coupled"),
    [
        ("threshold-logic-unit", False),
        ("perceptron", False),
        ("neocognitron", False),
        ("lenet5", False),
        ("lecture", False),
        ("airbench", True),
        ("alexnet", True),
        ("resnet20", True),
    ],
)
def test_networks_with_fixed_parts_alone_do_not_couple_examples(name: str, coupled: bool) -> None:
    state = jax.eval_shape(
        lambda: training.create_state(models.create(name, rngs=nnx.Rngs(0)), optax.set_to_zero())
    )
    assert training.couples_examples(state) is coupled


def hosts_of(devices: int, processes: int) -> list[Any]:
    each = devices // processes
    return [SimpleNamespace(process_index=number // each) for number in range(devices)]


def test_a_batch_that_several_processes_must_share_evenly_is_refused_with_sizes_that_do() -> None:
    with pytest.raises(InputError, match=r"size of 100 does not .* 8 devices .* choose 96 or 104$"):
        sharding.device_mesh(100, hosts_of(8, 2), even=True)
    with pytest.raises(InputError, match=r"choose 8$"):
        sharding.device_mesh(5, hosts_of(8, 2))


def test_a_mesh_takes_no_more_devices_than_share_the_batch() -> None:
    two = jax.devices()[:2]
    meshes = {
        (size, even): sharding.device_mesh(size, two, even=even)
        for size in (1, 2, 3)
        for even in (False, True)
    }
    spread = {how: mesh.size for how, mesh in meshes.items() if mesh}
    assert spread == {(2, False): 2, (2, True): 2, (3, False): 2}


@pytest.mark.parametrize(
    ("devices", "named"),
    [
        ("0", "0 is not possible; give all, or a whole number from 1"),
        ("-1", "-1 is not possible"),
        ("x", "x is not possible"),
        ("3", "there are 2 devices, not 3; ask for fewer"),
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
    short = ("--dataset", "mnist-5k", "--model", "perceptron", "--examples", 192, "--epochs", 2)
    exact = ("--batch-size", 64, "--learning-rate", 1 / 64)
    often = (*exact, "--checkpoint-steps", 2, "--checkpoint-seconds", 0)
    named = ("--devices", "all", "--name", "run")
    done = dlc_jax_process("train", *short, *often, *named, JAX_NUM_CPU_DEVICES="8")
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "run"
    assert json.loads((run / "config.json").read_text())["devices"] == 8
    expected = load_file(run / "parameters.safetensors")
    shutil.rmtree(run / "checkpoints" / "6")
    resumed = dlc_jax("train", "--resume", run)
    assert resumed.code == 0, resumed.err
    assert "spread over 8 devices, and now are over 2" in resumed.err
    assert "up to rounding" in resumed.err
    check_equal(load_file(run / "parameters.safetensors"), expected)
