"""Interruption and resumption of runs."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import Command, OneLayer
from flax import nnx

from dlc_jax import cli, runs, training
from dlc_jax.data import ArraySource, Dataset, Normalize
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.runs import callbacks
from dlc_jax.runs.folder import Run

# A short run: three epochs of 16 steps, and a checkpoint every five.
SHORT = ("--dataset", "mnist-5k", "--num-examples", 800, "--epochs", 3, "--batch-size", 50)
OFTEN = ("--checkpoint-steps", 5, "--checkpoint-seconds", 0)
RESULTS = ("parameters.safetensors", "metrics.jsonl", "summary.json")


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no pictures, which take longer than these trainings."""
    # They are among the files that a full disk refuses.
    if "small_disk" not in request.fixturenames:
        monkeypatch.setattr(callbacks, "draw", lambda *_: [])


def run_command(folder: str, arguments: tuple[object, ...], draws: bool) -> None:
    """Runs `dlc-jax` with the given arguments in a folder; called in another process."""
    os.chdir(folder)
    if not draws:
        vars(callbacks)["draw"] = lambda *_: []
    with open("out.txt", "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        cli.main([str(argument) for argument in arguments])


Start = Callable[..., Any]


@pytest.fixture(scope="module")
def start(digits: Dataset) -> Start:
    """Starts `dlc-jax` in a folder, in a process forked after the imports."""
    del digits  # is in the cache now
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "dlc_jax.runs.folder",
            "dlc_jax.runs.plots",
            "dlc_jax.utils.progress_bar",
            "dlc_jax.runs.checkpoint_arrays",
            "hypothesis",
            "pytest",
        ]
    )

    def start(folder: Path, *arguments: object, draws: bool = False) -> Any:
        process = context.Process(target=run_command, args=(str(folder), arguments, draws))
        process.start()
        return process

    return start


def finish(process: Any) -> int:
    process.join(120)
    assert process.exitcode is not None
    return int(process.exitcode)


def results(run: Path) -> tuple[bytes, list[dict[str, Any]], dict[str, Any]]:
    """The results of a run, without its duration and folder."""
    timed = {"train_seconds", "images_per_second", "compile_seconds", "run"}
    parameters, metrics, summary = (run / name for name in RESULTS)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    whole = json.loads(summary.read_text())
    return (
        parameters.read_bytes(),
        [{key: line[key] for key in line.keys() - timed} for line in lines],
        {key: whole[key] for key in whole.keys() - timed},
    )


@pytest.fixture(scope="module")
def uninterrupted(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another process, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    many = (*OFTEN, "--max-to-keep", 20)
    assert finish(start(folder, "train", *SHORT, *many, "--name", "run")) == 0
    return folder / "runs" / "run"


@pytest.mark.parametrize("step", [16, 21, 48])
def test_it_resumes_within_an_epoch_and_between_epochs(
    uninterrupted: Path, tmp_path: Path, step: int, dlc_jax: Command
) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    for later in (each for each in steps(run) if each > step):
        shutil.rmtree(run / "checkpoints" / str(later))
    assert max(steps(run)) == step
    done = dlc_jax("train", "--resume", run)
    assert done.code == 0, done.err
    assert results(run) == results(uninterrupted)


@pytest.fixture
def interrupted(uninterrupted: Path, tmp_path: Path) -> Path:
    """A run that was killed in its third epoch, with two checkpoints of that epoch."""
    run = shutil.copytree(uninterrupted, tmp_path / "runs" / "run")
    for step in steps(run):
        if step not in (42, 47):
            shutil.rmtree(run / "checkpoints" / str(step))
    (run / "summary.json").unlink()
    return run


def steps(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


@pytest.mark.versions
def test_a_resumed_run_gives_the_results_of_an_uninterrupted_one(
    dlc_jax: Command, interrupted: Path, uninterrupted: Path
) -> None:
    done = dlc_jax("train", "--resume", interrupted, "--json")
    assert done.code == 0, done.err
    assert results(interrupted) == results(uninterrupted)
    assert done.json["epochs"] == 3
    again = dlc_jax("train", "--resume", interrupted, "--json")
    assert again.code == 0, again.err
    assert results(interrupted) == results(uninterrupted)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 4, len(content), max(1, len(content) // 50)):
        content[position] ^= 255
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "part"),
    [(_truncate, "arrays"), (_flip, "arrays"), (Path.unlink, "arrays"), (_flip, "metadata")],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    dlc_jax: Command,
    interrupted: Path,
    uninterrupted: Path,
    damage: Callable[[Path], None],
    part: str,
) -> None:
    *_, newest = steps(interrupted)
    files = list((interrupted / "checkpoints" / str(newest) / part).rglob("*"))
    for path in files:
        if path.is_file() and path.stat().st_size:
            damage(path)
    done = dlc_jax("train", "--resume", interrupted)
    assert done.code == 0, done.err
    warnings = [line for line in done.err.splitlines() if "damaged" in line]
    assert len(warnings) == 1
    assert f"the checkpoint of step {newest} is damaged" in warnings[0]
    assert "Traceback" not in done.err
    assert results(interrupted) == results(uninterrupted)


@pytest.mark.slow
def test_with_only_damaged_checkpoints_it_starts_again_with_a_warning(
    dlc_jax: Command, interrupted: Path, uninterrupted: Path
) -> None:
    for path in (interrupted / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size:
            _truncate(path)
    done = dlc_jax("train", "--resume", interrupted)
    assert done.code == 0, done.err
    assert done.err.count("using the previous one") == 1
    assert done.err.count("there is no other: starting again") == 1
    assert results(interrupted) == results(uninterrupted)


def test_a_run_whose_metrics_were_deleted_resumes_without_them(
    dlc_jax: Command, interrupted: Path, uninterrupted: Path
) -> None:
    (interrupted / "metrics.jsonl").unlink()
    done = dlc_jax("train", "--resume", interrupted, "--json")
    assert done.code == 0, done.err
    parameters, metrics, summary = results(interrupted)
    expected = results(uninterrupted)
    assert (parameters, summary) == (expected[0], expected[2])
    assert metrics == expected[1][-len(metrics) :]


def test_another_version_of_the_dataset_is_a_warning(
    interrupted: Path, uninterrupted: Path, digits: Dataset
) -> None:
    warnings: list[str] = []
    other = dataclasses.replace(digits, version="0.1")
    runs.resume(Run.open(interrupted), other, warn=warnings.append)
    assert warnings == [
        f"the run was trained on version {digits.version} of mnist-5k, and continues with version "
        "0.1, whose images may differ"
    ]
    assert results(interrupted)[0] == results(uninterrupted)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--learning-rate", 0.2), "learning_rate 0.1, not 0.2"),
        (("cifar10-cpu",), "recipe 'mnist-lecture', not 'cifar10-cpu'"),
        (("--seed", 3), "seed 0, not 3"),
        (("--checkpoint-steps", 7), "checkpoint_steps 5, not 7"),
        (("--name", "other"), "--name"),
        (("--seeds", 2), "--seeds"),
    ],
)
def test_resuming_with_other_options_is_refused(
    dlc_jax: Command, interrupted: Path, arguments: tuple[object, ...], message: str
) -> None:
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    done = dlc_jax("train", *arguments, "--resume", interrupted)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before


def test_a_second_process_is_refused(
    dlc_jax: Command, interrupted: Path, uninterrupted: Path
) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from dlc_jax.runs.folder import Run\n"
        "with Run.open(Path(sys.argv[1])).locked(): print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(interrupted)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        refused = dlc_jax("train", "--resume", interrupted)
        holder.kill()
    assert refused.code == 2
    assert "another process is training in" in refused.err
    # A killed process holds no lock.
    assert dlc_jax("train", "--resume", interrupted).code == 0
    assert results(interrupted) == results(uninterrupted)


def wait_for_checkpoint(run: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if (run / "checkpoints").exists() and steps_if_any(run):
            return
        time.sleep(0.01)


def steps_if_any(run: Path) -> list[int]:
    return [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]


def test_sigterm_saves_a_checkpoint_and_exits_with_code_0(
    start: Start, dlc_jax: Command, tmp_path: Path
) -> None:
    long = (*SHORT[:5], 200, *SHORT[6:])
    process = start(tmp_path, "train", *long, *OFTEN, "--name", "run")
    run = tmp_path / "runs" / "run"
    wait_for_checkpoint(run, process)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 0
    assert "resume it with dlc-jax train --resume runs/run" in (tmp_path / "out.txt").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] < 200
    assert max(steps(run)) >= 16 * summary["epochs"]


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 1500 kB, or the size given as the parameter."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = f"size={getattr(request, 'param', 1500)}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# The first three disks are full within a checkpoint's arrays, at one of its folders, and after
# several checkpoints.
@pytest.mark.parametrize(
    ("small_disk", "more", "message"),
    [
        pytest.param(900, (), "can't write a checkpoint", marks=pytest.mark.slow),
        pytest.param(1190, (), "can't write a checkpoint", marks=pytest.mark.slow),
        pytest.param(1700, (), "can't write a checkpoint", marks=pytest.mark.slow),
        (420, ("--tensorboard", "--checkpoint-seconds", 1000), "run/tensorboard"),
        pytest.param(
            1100,
            ("--profile", "--checkpoint-seconds", 1000),
            "can't write the trace",
            marks=pytest.mark.slow,
        ),
    ],
    indirect=["small_disk"],
)
def test_a_full_disk_gives_a_one_line_error_and_a_run_that_can_be_resumed(
    dlc_jax: Command,
    small_disk: Path,
    more: tuple[object, ...],
    message: str,
    tmp_path: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = ("--name", "run", "--output-dir", small_disk)
    done = dlc_jax("train", *SHORT, *OFTEN, *where, *more)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert done.err.count("dlc-jax: ") == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("dlc-jax: ")
    assert "No space left on device" in last
    assert f"{small_disk}/run" in last
    assert message in last
    run = Run.open(small_disk / "run")
    run.load_model()
    # With more space, it resumes to the same result.
    roomy = shutil.copytree(run.folder, tmp_path / "run")
    monkeypatch.setattr(callbacks, "draw", lambda *_: [])
    assert dlc_jax("train", "--resume", roomy).code == 0
    assert results(roomy)[0] == results(uninterrupted)[0]


def test_a_read_only_folder_gives_a_one_line_error(
    dlc_jax: Command, small_disk: Path, interrupted: Path
) -> None:
    shutil.rmtree(interrupted / "checkpoints")
    run = shutil.copytree(interrupted, small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for arguments in (("--resume", run), (*SHORT, "--output-dir", small_disk)):
        done = dlc_jax("train", *arguments)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert "can't write to the folder" in done.err
        assert "Read-only file system" in done.err


@pytest.fixture(scope="module")
def run_seconds(
    start: Start, uninterrupted: Path, tmp_path_factory: pytest.TempPathFactory
) -> float:
    """Duration of a run whose programs are compiled."""
    del uninterrupted
    folder, began = tmp_path_factory.mktemp("timed"), time.monotonic()
    assert finish(start(folder, "train", *SHORT, *OFTEN, draws=True)) == 0
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kills"), [pytest.param(0, 1, marks=pytest.mark.versions), (1, 3), (2, 4), (3, 4)]
)
def test_runs_killed_at_12_moments_resume_to_the_same_results(
    start: Start, uninterrupted: Path, run_seconds: float, tmp_path: Path, seed: int, kills: int
) -> None:
    moments = random.Random(seed)
    expected = results(uninterrupted)
    for trial in range(kills):
        name = f"run{trial}"
        run = tmp_path / "runs" / name
        begin = ("train", *SHORT, *OFTEN, "--name", name)
        process = start(tmp_path, *begin, draws=True)
        process.join(moments.uniform(0, run_seconds))
        process.kill()
        process.join()
        # Before the configuration is written, it can only be started again.
        known = (run / "config.json").exists()
        if known:
            opened = Run.open(run)
            opened.read_metrics()
            # The initial network is saved before anything else is written.
            if (run / "metrics.jsonl").exists():
                opened.load_model()
        again = ("train", "--resume", run) if known else begin
        assert finish(start(tmp_path, *again, "--checkpoint-seconds", 0)) == 0, trial
        assert results(run) == expected, trial
        left = [path.name for path in run.iterdir() if path.name.startswith(".")]
        assert not left
        assert all(path.name.isdigit() for path in (run / "checkpoints").iterdir())
        shutil.rmtree(run)


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_epoch_in_chunks_equals_the_epoch(few_digits: Dataset, shuffled: bool) -> None:
    task = training.classification(
        lambda key: OneLayer(nnx.Rngs(key)),
        optax.sgd(0.01, 0.9),
        Normalize.fit(few_digits.train.images),
        augmentation=Augmentation(translate=2),
    )
    key = jax.random.key(3) if shuffled else None
    # 230 digits are eight batches, the last of 20.
    source = ArraySource(few_digits.train, batch_size=30, key=key)

    def train(max_chunk_steps: int | None) -> training.Progress:
        progress = training.Progress(task.init(jax.random.key(0)))
        training.train(
            task,
            source,
            num_epochs=2,
            progress=progress,
            key=key,
            max_chunk_steps=max_chunk_steps,
        )
        return progress

    ours, expected = train(3), train(None)
    assert len(ours.metrics["loss"].total) == 16
    for name in ("state", "metrics"):
        for one, other in zip(
            *(jax.tree.leaves(getattr(each, name)) for each in (ours, expected)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
