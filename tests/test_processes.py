"""Trainings that two real processes share, over loopback."""

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

# 24 steps. At the lecture's rate of 0.1 rounding would decide what becomes of them.
SHORT = ("--dataset", "mnist", "--epochs", 4, "--batch-size", 50, "--learning-rate", 0.01)
OFTEN = ("--checkpoint-steps", 2, "--checkpoint-seconds", 0)
LAST_STEP = 24


def of_digits(digits: Dataset) -> Any:
    """A builder of a dataset as TFDS has MNIST, of 300 and 90 of the digits."""
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
    """Prepares them in a data folder."""
    tfds.disable_progress_bar()
    of_digits(digits)(data_dir=folder, file_format="array_record").download_and_prepare(
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
    """Two processes, in a folder in which what they print is `out0.txt` and `out1.txt`."""

    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def ends(self, expected: list[int]) -> None:
        """Waits for their end, with these exit codes."""
        codes = [process.wait(120) for process in self.processes]
        assert codes == expected, "".join(map(self.printed, range(len(codes))))

    def printed(self, rank: int) -> str:
        return (self.folder / f"out{rank}.txt").read_text()

    def complaints(self, rank: int) -> list[str]:
        lines = self.printed(rank).splitlines()
        return [line for line in lines if line.startswith(("dlc-jax: ", "Traceback"))]

    def checkpoint(self) -> int:
        """The step of the newest one."""
        run = self.folder / "runs" / "run"
        return max(steps_if_any(run), default=0) if (run / "checkpoints").exists() else 0

    def advances(self) -> None:
        """Waits for a checkpoint that was not there."""
        before, deadline = self.checkpoint(), time.monotonic() + 60
        while self.checkpoint() <= before:
            assert all(process.poll() is None for process in self.processes), self.printed(0)
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


Start = Callable[..., Pair]


@pytest.fixture(scope="module")
def begin(prepared: Path) -> Iterator[Start]:
    """Starts a program in two processes of one device each, or another one alone, in a folder."""
    begun: list[Pair] = []

    def begin(folder: Path, commands: list[tuple[object, ...]], *each: dict[str, str]) -> Pair:
        known = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "TFDS_DATA_DIR": str(prepared)}
        pair = Pair(folder, [])
        begun.append(pair)
        for rank, command in enumerate(commands):
            with (folder / f"out{rank}.txt").open("w") as out:
                process = subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    cwd=folder,
                    env=known | (each[rank] if each else {}),
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            pair.processes.append(process)
        return pair

    yield begin
    for pair in begun:
        pair.kill()


def caches(folder: Path) -> list[dict[str, str]]:
    """For each of two processes a cache folder of its own."""
    return [{"DLC_JAX_CACHE_DIR": str(folder / f"cache{rank}")} for rank in range(2)]


@pytest.fixture(scope="module")
def start(begin: Start) -> Start:
    """Starts `dlc-jax train` in two processes that are told of each other."""

    def start(folder: Path, *arguments: object) -> Pair:
        address = f"127.0.0.1:{free_port()}"
        train = ("-m", "dlc_jax", "train", *arguments, "--distributed")
        named = ("--coordinator-address", address, "--num-processes", 2, "--process-id")
        return begin(folder, [(*train, *named, rank) for rank in range(2)], *caches(folder))

    return start


def resume(start: Start, folder: Path) -> Pair:
    return start(folder, "--resume", "runs/run", "--checkpoint-seconds", 0)


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process with a single device, which is this one."""
    folder = tmp_path_factory.mktemp("alone")
    where = ("--devices", 1, "--data-dir", prepared, "--output-dir", folder, "--name", "run")
    with pytest.raises(SystemExit) as ending:
        cli.main([str(argument) for argument in ("train", *SHORT, *where)])
    assert ending.value.code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def never_stopped(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a pair that nothing stopped."""
    folder = tmp_path_factory.mktemp("pair")
    start(folder, *SHORT, *OFTEN, "--name", "run").ends([0, 0])
    return folder / "runs" / "run"


def check_equal(run: Path, expected: Path) -> None:
    """Compares what two runs learned, up to 1e-5."""
    ours, theirs = (load_file(each / "parameters.safetensors") for each in (run, expected))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-5, err_msg=name)
    mine, others = (
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
        for each in (run, expected)
    )
    losses = [line["train_loss"] for line in others]
    assert [line["step"] for line in mine] == [6, 12, 18, LAST_STEP]
    # Something was learned, so that the networks compared are no longer those that began.
    assert losses[-1] < losses[0] - 0.05
    np.testing.assert_allclose([line["train_loss"] for line in mine], losses, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(never_stopped: Path, alone: Path) -> None:
    check_equal(never_stopped, alone)


@pytest.mark.slow
def test_each_process_reads_its_own_half_of_the_data(never_stopped: Path, prepared: Path) -> None:
    whole = data.load("mnist", prepared)
    for rank, places in enumerate((slice(0, 150), slice(150, 300))):
        # What a process has decoded it keeps in its cache, and nothing else.
        (file,) = (never_stopped.parents[1] / f"cache{rank}").glob("*.safetensors")
        decoded = load_file(file)
        np.testing.assert_array_equal(decoded["train_images"], whole.train.images[places])
        np.testing.assert_array_equal(decoded["train_labels"], whole.train.labels[places])


def slurm(rank: int, port: int) -> dict[str, str]:
    """What SLURM tells a task."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.slow
def test_two_processes_that_slurm_tells_of_each_other_learn_from_a_stream_what_one_learns(
    begin: Start, tmp_path: Path, alone: Path
) -> None:
    port = free_port()
    train = ("-m", "dlc_jax", "train", *SHORT, "--stream", "--name", "run", "--distributed")
    begin(tmp_path, [train, train], *(slurm(rank, port) for rank in range(2))).ends([0, 0])
    check_equal(tmp_path / "runs" / "run", alone)


@pytest.mark.slow
def test_a_pair_of_which_one_is_ended_or_killed_goes_on_as_if_it_had_not_been(
    start: Start, tmp_path: Path, never_stopped: Path
) -> None:
    pair = start(tmp_path, *SHORT, *OFTEN, "--name", "run")
    pair.advances()
    pair.processes[1].send_signal(signal.SIGTERM)
    pair.ends([0, 0])
    (told,) = pair.complaints(0)
    assert told.endswith("to go on: dlc-jax train --resume runs/run")
    assert pair.complaints(1) == []

    pair = resume(start, tmp_path)
    pair.advances()
    pair.processes[1].kill()
    assert pair.processes[0].wait(60) == 1
    (told,) = pair.complaints(0)
    assert "if one of them has died, start all of them again, with --resume RUN" in told

    pair = resume(start, tmp_path)
    pair.advances()
    pair.processes[0].kill()
    # By its own complaint, or where JAX's runtime notices it first.
    assert pair.processes[1].wait(60) == 1
    (told,) = pair.complaints(1)
    assert "start all of them again, with --resume RUN" in told

    assert pair.checkpoint() < LAST_STEP
    resume(start, tmp_path).ends([0, 0])
    assert results(tmp_path / "runs" / "run") == results(never_stopped)


def test_sigterm_ends_a_process_that_has_joined_others_and_does_not_train_yet() -> None:
    script = (
        "import os, signal, sys; from dlc_jax.sharding import processes; processes.initialize(sys.argv[1], 1, 0)\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    address = f"127.0.0.1:{free_port()}"
    done = subprocess.run([sys.executable, "-c", script, address], capture_output=True)
    assert done.returncode == -signal.SIGTERM, done.stderr.decode()


@pytest.mark.slow
def test_ctrl_c_at_one_process_ends_both_and_so_does_one_that_no_longer_answers(
    start: Start, tmp_path: Path
) -> None:
    pair = start(tmp_path, *SHORT, *OFTEN, "--name", "run")
    pair.advances()
    pair.processes[1].send_signal(signal.SIGINT)
    pair.ends([130, 130])
    assert pair.checkpoint() < LAST_STEP

    pair = resume(start, tmp_path)
    pair.advances()
    pair.processes[1].send_signal(signal.SIGSTOP)
    assert pair.processes[0].wait(60) != 0


@pytest.mark.slow
def test_what_is_wrong_for_both_processes_ends_both_in_one_line_each(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "config.json").touch()
    pair = start(tmp_path, *SHORT, "--name", "run")
    pair.ends([2, 2])
    for rank in range(2):
        (complaint,) = pair.complaints(rank)
        assert "there is already a run in 'runs/run'; choose another --name" in complaint


@pytest.mark.slow
def test_processes_with_other_seeds_and_data_are_refused_in_one_line_each(
    begin: Start, tmp_path: Path
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
    pair = begin(tmp_path, [(*train, 0, *SHORT), (*train, 1, *others)])
    pair.ends([2, 2])
    for rank in range(2):
        (complaint,) = pair.complaints(rank)
        assert "seed 0 (process 0), 1 (process 1)" in complaint
        assert "dataset 'mnist' (process 0), 'mnist-5k' (process 1)" in complaint
    assert not (tmp_path / "runs" / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_others_do_not_come_says_so_after_a_while(
    dlc_jax_process: Command, rank: int
) -> None:
    where = ("--coordinator-address", f"127.0.0.1:{free_port()}", "--join-seconds", 1)
    done = dlc_jax_process(
        "train", "--distributed", *where, "--num-processes", 2, "--process-id", rank
    )
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert "not all processes came within 1 s" in line


def test_options_that_are_not_enough_are_refused_in_one_line(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Past what JAX asks first of a process: that it has not computed yet.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    done = dlc_jax("train", "--distributed", "--num-processes", 2)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert "coordinator_address should be defined" in line
    assert "tell the address of the first one, how many there are, and which one this is" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("here", 2, 0), "'here' is not the address of a process; give one such as"),
        (("here:70000", 2, 0), "'here:70000' is not the address"),
        ((":1234", 2, 0), "':1234' is not the address"),
        (("here:1234", 2, 2), "there is no process 2 of 2; give 0 to 1"),
    ],
)
def test_an_address_or_a_number_that_can_not_be_is_refused(
    arguments: tuple[str, int, int], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        processes.initialize(*arguments)


def test_what_is_told_of_other_processes_needs_distributed(dlc_jax: Command) -> None:
    done = dlc_jax("train", "--process-id", 0)
    assert done.code == 2
    assert done.err == "dlc-jax: --process-id is for several processes; add --distributed\n"


@pytest.mark.slow
def test_the_example_learns_by_two_processes_what_it_learns_by_one(
    begin: Start,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Path(__file__).parents[1] / "examples" / "many_hosts.py"
    address = f"127.0.0.1:{free_port()}"
    pair = begin(tmp_path, [(script, "mnist", 2, address, 2, rank) for rank in range(2)])
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setattr(sys, "argv", [str(script), "mnist", "2"])
    runpy.run_path(str(script), run_name="__main__")
    alone = capsys.readouterr().out
    pair.ends([0, 0])
    pattern = r"^epoch +\d+  loss (\d\.\d{6})  test error \d+\.\d\d %$"
    ours, theirs = (
        [float(loss) for loss in re.findall(pattern, printed, re.M)]
        for printed in (pair.printed(0), alone)
    )
    assert len(theirs) == 2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert "epoch" not in pair.printed(1)
