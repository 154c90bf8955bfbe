"""Runs that are stopped, at any moment and in any way, and go on."""

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
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Command, new_state

from dlc_jax import cli, training
from dlc_jax.data import Dataset, Normalise
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.errors import InputError
from dlc_jax.runs import keeping
from dlc_jax.runs.folder import Run

# A short run: three epochs of 16 steps, and a checkpoint every five.
SHORT = ("--dataset", "mnist-5k", "--examples", 800, "--epochs", 3, "--batch-size", 50)
OFTEN = ("--checkpoint-steps", 5, "--checkpoint-seconds", 0)
RESULTS = ("parameters.safetensors", "metrics.jsonl", "summary.json")


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without pictures, which take longer than these trainings."""
    # On a full disk they are one more thing that can't be written.
    if "small_disk" not in request.fixturenames:
        monkeypatch.setattr(keeping, "draw", lambda *_: [])


def run_command(folder: str, arguments: tuple[object, ...], draws: bool) -> None:
    """Runs `dlc-jax` with the given arguments in `folder`, in a process of its own."""
    os.chdir(folder)
    if not draws:
        vars(keeping)["draw"] = lambda *_: []
    with open("out.txt", "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        cli.main([str(argument) for argument in arguments])


Start = Callable[..., Any]


@pytest.fixture(scope="module")
def start(digits: Dataset) -> Start:
    """Starts `dlc-jax` in a folder; what it imports has been imported."""
    del digits  # its cache is warm then
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "dlc_jax.runs.folder",
            "dlc_jax.runs.plots",
            "dlc_jax.cli.progress",
            "dlc_jax.runs.checkpoint_arrays",
            "hypothesis",
            "pytest",
        ]
    )

    def begin(folder: Path, *arguments: object, draws: bool = False) -> Any:
        process = context.Process(target=run_command, args=(str(folder), arguments, draws))
        process.start()
        return process

    return begin


def finish(process: Any) -> int:
    process.join(120)
    assert process.exitcode is not None
    return int(process.exitcode)


def results(run: Path) -> tuple[bytes, list[dict[str, Any]], dict[str, Any]]:
    """What came of a run, but for how long it took and where it is."""
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
def never_stopped(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another process, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("never_stopped")
    many = (*OFTEN, "--keep-checkpoints", 20)
    assert finish(start(folder, "train", *SHORT, *many, "--name", "run")) == 0
    return folder / "runs" / "run"


@pytest.mark.parametrize("step", [16, 21, 48])
def test_it_goes_on_from_within_an_epoch_and_from_between_two(
    never_stopped: Path, tmp_path: Path, step: int, dlc_jax: Command
) -> None:
    run = shutil.copytree(never_stopped, tmp_path / "run")
    for later in (each for each in steps(run) if each > step):
        shutil.rmtree(run / "checkpoints" / str(later))
    assert max(steps(run)) == step
    done = dlc_jax("train", "--resume", run)
    assert done.code == 0, done.err
    assert results(run) == results(never_stopped)


@pytest.fixture
def stopped(never_stopped: Path, tmp_path: Path) -> Path:
    """A run that was killed in its third epoch, with the checkpoints of two steps of it."""
    run = shutil.copytree(never_stopped, tmp_path / "runs" / "run")
    for step in steps(run):
        if step not in (42, 47):
            shutil.rmtree(run / "checkpoints" / str(step))
    (run / "summary.json").unlink()
    return run


def steps(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


@pytest.mark.versions
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    dlc_jax: Command, stopped: Path, never_stopped: Path
) -> None:
    done = dlc_jax("train", "--resume", stopped, "--json")
    assert done.code == 0, done.err
    assert results(stopped) == results(never_stopped)
    assert done.json["epochs"] == 3
    again = dlc_jax("train", "--resume", stopped, "--json")
    assert again.code == 0, again.err
    assert results(stopped) == results(never_stopped)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 4, len(content), max(1, len(content) // 50)):
        content[place] ^= 255
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "part"),
    [(_truncate, "arrays"), (_flip, "arrays"), (Path.unlink, "arrays"), (_flip, "facts")],
)
def test_a_damaged_checkpoint_is_told_and_an_earlier_one_taken(
    dlc_jax: Command,
    stopped: Path,
    never_stopped: Path,
    damage: Callable[[Path], None],
    part: str,
) -> None:
    *_, newest = steps(stopped)
    files = list((stopped / "checkpoints" / str(newest) / part).rglob("*"))
    for path in files:
        if path.is_file() and path.stat().st_size:
            damage(path)
    done = dlc_jax("train", "--resume", stopped)
    assert done.code == 0, done.err
    told = [line for line in done.err.splitlines() if "damaged" in line]
    assert len(told) == 1
    assert f"the checkpoint of step {newest} is damaged" in told[0]
    assert "Traceback" not in done.err
    assert results(stopped) == results(never_stopped)


def test_without_any_whole_checkpoint_it_begins_again_and_says_so(
    dlc_jax: Command, stopped: Path, never_stopped: Path
) -> None:
    for path in (stopped / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size:
            _truncate(path)
    done = dlc_jax("train", "--resume", stopped)
    assert done.code == 0, done.err
    assert done.err.count("taking the one before") == 1
    assert done.err.count("it is the last: beginning anew") == 1
    assert results(stopped) == results(never_stopped)


def test_a_run_whose_metrics_were_deleted_goes_on_without_them(
    dlc_jax: Command, stopped: Path, never_stopped: Path
) -> None:
    (stopped / "metrics.jsonl").unlink()
    done = dlc_jax("train", "--resume", stopped, "--json")
    assert done.code == 0, done.err
    parameters, metrics, summary = results(stopped)
    expected = results(never_stopped)
    assert (parameters, summary) == (expected[0], expected[2])
    assert metrics == expected[1][-len(metrics) :]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--learning-rate", 0.2), "learning_rate 0.1, not 0.2"),
        (("cifar10-cpu",), "recipe 'mnist-lecture', not 'cifar10-cpu'"),
        (("--seed", 3), "seed 0, not 3"),
        (("--checkpoint-steps", 7), "checkpoint_steps 5, not 7"),
        (("--name", "other"), "--name"),
        (("--seeds", 2), "--seeds"),
    ],
)
def test_a_run_of_another_recipe_is_refused_with_the_difference(
    dlc_jax: Command, stopped: Path, arguments: tuple[object, ...], named: str
) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    done = dlc_jax("train", *arguments, "--resume", stopped)
    assert done.code == 2
    assert named in done.err
    assert len(done.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_second_process_is_refused(dlc_jax: Command, stopped: Path, never_stopped: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from dlc_jax.runs.folder import Run\n"
        "with Run.open(Path(sys.argv[1])).locked(): print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(stopped)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        refused = dlc_jax("train", "--resume", stopped)
        holder.kill()
    assert refused.code == 2
    assert "another process is training in" in refused.err
    # The lock of a process that was killed holds nobody up.
    assert dlc_jax("train", "--resume", stopped).code == 0
    assert results(stopped) == results(never_stopped)


def wait_for_checkpoint(run: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if (run / "checkpoints").exists() and steps_if_any(run):
            return
        time.sleep(0.01)


def steps_if_any(run: Path) -> list[int]:
    return [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]


def test_sigterm_saves_tells_how_to_go_on_and_ends_well(
    start: Start, dlc_jax: Command, tmp_path: Path
) -> None:
    long = (*SHORT[:5], 200, *SHORT[6:])
    process = start(tmp_path, "train", *long, *OFTEN, "--name", "run")
    run = tmp_path / "runs" / "run"
    wait_for_checkpoint(run, process)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 0
    assert "to go on: dlc-jax train --resume runs/run" in (tmp_path / "out.txt").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] < 200
    assert max(steps(run)) >= 16 * summary["epochs"]


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of so many kB, by default 1500."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = f"size={getattr(request, 'param', 1500)}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# Full within a checkpoint's arrays, at one of its folders, with several of them, at an event file,
# and at a trace.
@pytest.mark.parametrize(
    ("small_disk", "more"),
    [
        pytest.param(900, (), marks=pytest.mark.slow),
        pytest.param(1190, (), marks=pytest.mark.slow),
        pytest.param(1700, (), marks=pytest.mark.slow),
        (715, ("--tensorboard", "--checkpoint-seconds", 1000)),
        pytest.param(1100, ("--profile", "--checkpoint-seconds", 1000), marks=pytest.mark.slow),
    ],
    indirect=["small_disk"],
)
def test_a_full_disk_is_told_in_one_line_and_what_was_written_stays_whole(
    dlc_jax: Command,
    small_disk: Path,
    more: tuple[object, ...],
    tmp_path: Path,
    never_stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = ("--name", "run", "--output-dir", small_disk)
    done = dlc_jax("train", *SHORT, *OFTEN, *where, *more)
    assert done.code == 2
    told = done.err
    assert "Traceback" not in told
    assert told.count("dlc-jax: ") == 1
    last = told.splitlines()[-1]
    assert last.startswith("dlc-jax: ")
    assert "No space left on device" in last
    assert f"{small_disk}/run" in last
    run = Run.open(small_disk / "run")
    run.model()
    # With room, it goes on to the same end.
    roomy = shutil.copytree(run.folder, tmp_path / "run")
    monkeypatch.setattr(keeping, "draw", lambda *_: [])
    assert dlc_jax("train", "--resume", roomy).code == 0
    assert results(roomy)[0] == results(never_stopped)[0]


def test_a_read_only_folder_is_told_in_one_line(
    dlc_jax: Command, small_disk: Path, stopped: Path
) -> None:
    shutil.rmtree(stopped / "checkpoints")
    run = shutil.copytree(stopped, small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for arguments in (("--resume", run), (*SHORT, "--output-dir", small_disk)):
        done = dlc_jax("train", *arguments)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert "can't write to the folder" in done.err
        assert "Read-only file system" in done.err


@pytest.fixture(scope="module")
def seconds(start: Start, never_stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long a run takes whose programs have been compiled."""
    del never_stopped
    folder, began = tmp_path_factory.mktemp("timed"), time.monotonic()
    assert finish(start(folder, "train", *SHORT, *OFTEN, draws=True)) == 0
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kills"), [pytest.param(0, 1, marks=pytest.mark.versions), (1, 3), (2, 4), (3, 4)]
)
def test_runs_killed_at_12_moments_end_as_if_they_had_not_been(
    start: Start, never_stopped: Path, seconds: float, tmp_path: Path, seed: int, kills: int
) -> None:
    moments = random.Random(seed)
    expected = results(never_stopped)
    for trial in range(kills):
        name = f"run{trial}"
        run = tmp_path / "runs" / name
        begin = ("train", *SHORT, *OFTEN, "--name", name)
        process = start(tmp_path, *begin, draws=True)
        process.join(moments.uniform(0, seconds))
        process.kill()
        process.join()
        # Killed before it had written down what to train, it can only be begun again.
        known = (run / "config.json").exists()
        if known:
            Run.open(run).read_metrics()
        again = ("train", "--resume", run) if known else begin
        assert finish(start(tmp_path, *again, "--checkpoint-seconds", 0)) == 0, trial
        assert results(run) == expected, trial
        left = [path.name for path in run.iterdir() if path.name.startswith(".")]
        assert not left
        assert all(path.name.isdigit() for path in (run / "checkpoints").iterdir())
        shutil.rmtree(run)


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_epoch_in_parts_is_the_epoch(few_digits: Dataset, shuffled: bool) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    state = new_state(optimizer=optax.sgd(0.01, 0.9))
    how: dict[str, Any] = {"batch_size": 30}
    if shuffled:
        how |= {"key": jax.random.key(3), "augmentation": Augmentation(translate=2)}
    whole, expected = training.train_epoch(state, few_digits.train, normalise, **how)
    losses = []
    # 230 digits are eight batches, of which the last has 20.
    for examples in (90, 90, 50):
        state, metrics = training.train_epoch(
            state, few_digits.train, normalise, examples=examples, **how
        )
        losses.append(metrics.loss)
    np.testing.assert_allclose(np.concatenate(losses), expected.loss, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_state_where_no_part_ends_is_refused(few_digits: Dataset) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    state = dataclasses.replace(new_state(), step=jnp.asarray(1))
    with pytest.raises(InputError, match="step 1 of an epoch, where no part of 2 steps ends"):
        training.fit(state, few_digits, normalise, epochs=1, batch_size=50, part_steps=2)
