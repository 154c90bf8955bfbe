"""Training in two processes, connected over loopback."""

import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import Command
from PIL import Image
from safetensors.numpy import load_file
from test_resume import results, steps_if_any

from dlc_jax import cli, data
from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.sharding import processes

# 24 steps. A batch of 51 is padded for two processes, and the epoch's last one has 45 examples.
# At the lecture's learning rate of 0.1, rounding would change the results.
SHORT = ("--dataset", "mnist", "--epochs", 4, "--batch-size", 51, "--learning-rate", 0.01)
OFTEN = ("--checkpoint-steps", 2, "--checkpoint-seconds", 0)
LAST_STEP = 24


def digits_builder(digits: Dataset) -> Any:
    """A builder of 300 and 90 digits in the form that MNIST has in TFDS."""
    splits = {"train": (digits.train, 300), "test": (digits.test, 90)}

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("3.0.1")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            dictionary = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=dictionary)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            return {name: self._generate_examples(name) for name in splits}

        def _generate_examples(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
            (images, labels), count = splits[name]
            for index in range(count):
                file = io.BytesIO()
                Image.fromarray(np.asarray(images[index])[..., 0]).save(file, "PNG")
                file.seek(0)
                yield index, {"image": file, "label": int(labels[index])}

    return Mnist


def prepare_digits(digits: Dataset, folder: Path) -> None:
    """Prepares a small MNIST in a data folder."""
    tfds.disable_progress_bar()
    digits_builder(digits)(data_dir=folder, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


@pytest.fixture(scope="module")
def prepared(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small MNIST."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare_digits(digits, folder)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Pair:
    """Two processes, with their output in `out0.txt` and `out1.txt` in a folder."""

    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def check_exit_codes(self, expected: list[int]) -> None:
        """Waits until they end, and checks their exit codes."""
        codes = [process.wait(300) for process in self.processes]
        assert codes == expected, "".join(map(self.output, range(len(codes))))

    def output(self, rank: int) -> str:
        return (self.folder / f"out{rank}.txt").read_text()

    def errors(self, rank: int) -> list[str]:
        lines = self.output(rank).splitlines()
        return [line for line in lines if line.startswith(("dlc-jax: ", "Traceback"))]

    def checkpoint(self) -> int:
        """The step of the newest checkpoint."""
        run = self.folder / "runs" / "run"
        return max(steps_if_any(run), default=0) if (run / "checkpoints").exists() else 0

    def wait_for_checkpoint(self) -> None:
        """Waits for a new checkpoint."""
        before, deadline = self.checkpoint(), time.monotonic() + 300
        while self.checkpoint() <= before:
            assert all(process.poll() is None for process in self.processes), self.output(0)
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


Start = Callable[..., Pair]


@pytest.fixture(scope="module")
def launch(prepared: Path) -> Iterator[Start]:
    """Runs Python commands in a folder, in processes with one device each."""
    pairs: list[Pair] = []

    def launch(folder: Path, commands: list[tuple[object, ...]], *each: dict[str, str]) -> Pair:
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "TFDS_DATA_DIR": str(prepared)}
        pair = Pair(folder, [])
        pairs.append(pair)
        for rank, command in enumerate(commands):
            with (folder / f"out{rank}.txt").open("w") as out:
                process = subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    cwd=folder,
                    env=environment | (each[rank] if each else {}),
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            pair.processes.append(process)
        return pair

    yield launch
    for pair in pairs:
        pair.kill()


def caches(folder: Path) -> list[dict[str, str]]:
    """A cache folder for each of two processes."""
    return [{"DLC_JAX_CACHE_DIR": str(folder / f"cache{rank}")} for rank in range(2)]


@pytest.fixture(scope="module")
def start(launch: Start) -> Start:
    """Starts `dlc-jax train` in two connected processes."""

    def start(folder: Path, *arguments: object) -> Pair:
        address = f"127.0.0.1:{free_port()}"
        train = ("-m", "dlc_jax", "train", *arguments, "--distributed")
        connection = ("--coordinator-address", address, "--num-processes", 2, "--process-id")
        return launch(folder, [(*train, *connection, rank) for rank in range(2)], *caches(folder))

    return start


def resume(start: Start, folder: Path) -> Pair:
    return start(folder, "--resume", "runs/run", "--checkpoint-seconds", 0)


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of this process, on a single device."""
    folder = tmp_path_factory.mktemp("alone")
    where = ("--devices", 1, "--data-dir", prepared, "--output-dir", folder, "--name", "run")
    with pytest.raises(SystemExit) as ending:
        cli.main([str(argument) for argument in ("train", *SHORT, *where)])
    assert ending.value.code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def uninterrupted(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    start(folder, *SHORT, *OFTEN, "--name", "run").check_exit_codes([0, 0])
    return folder / "runs" / "run"


def check_equal(run: Path, expected: Path) -> None:
    """Compares the parameters and losses of two runs, up to 1e-5."""
    ours, theirs = (load_file(each / "parameters.safetensors") for each in (run, expected))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-5, err_msg=name)
    metrics, expected_metrics = (
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
        for each in (run, expected)
    )
    losses = [line["train_loss"] for line in expected_metrics]
    assert [line["step"] for line in metrics] == [6, 12, 18, LAST_STEP]
    # The networks have learned something.
    assert losses[-1] < losses[0] - 0.05
    np.testing.assert_allclose([line["train_loss"] for line in metrics], losses, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(uninterrupted: Path, alone: Path) -> None:
    check_equal(uninterrupted, alone)


@pytest.mark.slow
def test_each_process_reads_half_of_the_data(uninterrupted: Path, prepared: Path) -> None:
    whole = data.load("mnist", prepared)
    for rank, half in enumerate((slice(0, 150), slice(150, 300))):
        # The cache has what this process has decoded.
        (file,) = (uninterrupted.parents[1] / f"cache{rank}").glob("*.safetensors")
        decoded = load_file(file)
        np.testing.assert_array_equal(decoded["train_images"], whole.train.images[half])
        np.testing.assert_array_equal(decoded["train_labels"], whole.train.labels[half])


def slurm(rank: int, port: int) -> dict[str, str]:
    """The environment of a SLURM task."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.slow
def test_two_processes_of_slurm_with_a_stream_give_the_results_of_one(
    launch: Start, tmp_path: Path, alone: Path
) -> None:
    port = free_port()
    train = ("-m", "dlc_jax", "train", *SHORT, "--stream", "--name", "run", "--distributed")
    launch(tmp_path, [train, train], *(slurm(rank, port) for rank in range(2))).check_exit_codes(
        [0, 0]
    )
    check_equal(tmp_path / "runs" / "run", alone)


@pytest.mark.slow
def test_a_pair_of_which_one_is_terminated_or_killed_resumes_to_the_same_results(
    start: Start, tmp_path: Path, uninterrupted: Path
) -> None:
    pair = start(tmp_path, *SHORT, *OFTEN, "--name", "run")
    pair.wait_for_checkpoint()
    pair.processes[1].send_signal(signal.SIGTERM)
    pair.check_exit_codes([0, 0])
    (message,) = pair.errors(0)
    assert message.endswith("resume it with dlc-jax train --resume runs/run")
    assert pair.errors(1) == []

    pair = resume(start, tmp_path)
    pair.wait_for_checkpoint()
    pair.processes[1].kill()
    assert pair.processes[0].wait(60) == 1
    (message,) = pair.errors(0)
    assert "if a process has died, start all of them again and resume the run" in message

    pair = resume(start, tmp_path)
    pair.wait_for_checkpoint()
    pair.processes[0].kill()
    assert pair.processes[1].wait(60) == 1
    (message,) = pair.errors(1)
    assert "start all of them again and resume the run (--resume RUN)" in message

    assert pair.checkpoint() < LAST_STEP
    resume(start, tmp_path).check_exit_codes([0, 0])
    assert results(tmp_path / "runs" / "run") == results(uninterrupted)


def test_sigterm_ends_a_connected_process_before_training() -> None:
    script = (
        "import os, signal, sys; from dlc_jax.sharding import processes\n"
        "processes.initialize(sys.argv[1], 1, 0)\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    address = f"127.0.0.1:{free_port()}"
    done = subprocess.run([sys.executable, "-c", script, address], capture_output=True)
    assert done.returncode == -signal.SIGTERM, done.stderr.decode()


@pytest.mark.slow
def test_ctrl_c_in_one_process_ends_both_and_a_stopped_process_ends_the_other(
    start: Start, tmp_path: Path
) -> None:
    pair = start(tmp_path, *SHORT, *OFTEN, "--name", "run")
    pair.wait_for_checkpoint()
    pair.processes[1].send_signal(signal.SIGINT)
    pair.check_exit_codes([130, 130])
    assert pair.checkpoint() < LAST_STEP

    pair = resume(start, tmp_path)
    pair.wait_for_checkpoint()
    pair.processes[1].send_signal(signal.SIGSTOP)
    assert pair.processes[0].wait(60) != 0


@pytest.mark.slow
def test_an_error_of_both_processes_gives_one_line_in_each(start: Start, tmp_path: Path) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "config.json").touch()
    pair = start(tmp_path, *SHORT, "--name", "run")
    pair.check_exit_codes([2, 2])
    for rank in range(2):
        (message,) = pair.errors(rank)
        assert "there is already a run in 'runs/run'; choose another --name" in message


@pytest.mark.slow
def test_processes_with_different_seeds_and_data_give_one_line_in_each(
    launch: Start, tmp_path: Path
) -> None:
    train: tuple[object, ...] = ("-m", "dlc_jax", "train", "--distributed")
    train += (
        "--num-processes",
        2,
        "--name",
        "run",
        "--coordinator-address",
        f"127.0.0.1:{free_port()}",
        "--process-id",
    )
    others = ("--seed", 1, "--dataset", "mnist-5k", "--epochs", 2)
    pair = launch(tmp_path, [(*train, 0, *SHORT), (*train, 1, *others)])
    pair.check_exit_codes([2, 2])
    for rank in range(2):
        (message,) = pair.errors(rank)
        assert "seed 0 (process 0), 1 (process 1)" in message
        assert "dataset 'mnist' (process 0), 'mnist-5k' (process 1)" in message
    assert not (tmp_path / "runs" / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_processes_give_an_error_after_the_timeout(
    dlc_jax_process: Command, rank: int
) -> None:
    where = ("--coordinator-address", f"127.0.0.1:{free_port()}", "--join-timeout", 1)
    done = dlc_jax_process(
        "train", "--distributed", *where, "--num-processes", 2, "--process-id", rank
    )
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert "not all processes connected within 1 s" in line


def test_missing_options_give_a_one_line_error(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise JAX refuses first because it has been used already.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    done = dlc_jax("train", "--distributed", "--num-processes", 2)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert "coordinator_address should be defined" in line
    assert (
        "give the coordinator's address, the number of processes, and the number of this one"
        in line
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("here", 2, 0), "'here' is not the address of a process; give HOST:PORT, such as"),
        (("here:70000", 2, 0), "'here:70000' is not the address"),
        ((":1234", 2, 0), "':1234' is not the address"),
        (("here:1234", 2, 2), "process_id=2 is out of range for 2 processes; use 0 to 1"),
    ],
)
def test_a_wrong_address_or_process_number_is_refused(
    arguments: tuple[str, int, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        processes.initialize(*arguments)


def test_options_for_several_processes_need_distributed(dlc_jax: Command) -> None:
    done = dlc_jax("train", "--process-id", 0)
    assert done.code == 2
    assert done.err == "dlc-jax: --process-id is for several processes; add --distributed\n"


@pytest.mark.slow
def test_the_example_gives_the_results_of_one_process_in_two(
    launch: Start,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Path(__file__).parents[1] / "examples" / "many_hosts.py"
    address = f"127.0.0.1:{free_port()}"
    pair = launch(tmp_path, [(script, "mnist", 2, address, 2, rank) for rank in range(2)])
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setattr(sys, "argv", [str(script), "mnist", "2"])
    runpy.run_path(str(script), run_name="__main__")
    alone = capsys.readouterr().out
    pair.check_exit_codes([0, 0])
    pattern = r"^epoch +\d+  loss (\d\.\d{6})  test error \d+\.\d\d %$"
    ours, theirs = (
        [float(loss) for loss in re.findall(pattern, printed, re.M)]
        for printed in (pair.output(0), alone)
    )
    assert len(theirs) == 2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert "epoch" not in pair.output(1)
