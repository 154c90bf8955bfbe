"""Unusual file systems and environments: everything works, or fails with one line."""

import errno
import fcntl
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from conftest import Command

from dlc_jax import cli, runs
from dlc_jax.cli import stdio
from dlc_jax.cli.commands import commands
from dlc_jax.cli.types import PathType
from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.runs.folder import Run
from dlc_jax.utils import environment, files, progress_bar

UNSUPPORTED = ("ENOTSUP", "EPERM", "EINVAL", "ENOSYS", "ENOLCK")


def failing_call(name: str) -> Callable[..., NoReturn]:
    """A system call that fails with an error."""
    number = getattr(errno, name)

    def fail(*args: Any, **options: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("error", UNSUPPORTED)
@pytest.mark.parametrize("call", ["fsync", "chmod", "fchmod", "replace", "rename", "link", "utime"])
def test_files_are_replaced_where_a_call_is_not_supported(
    call: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, failing_call(error))
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_errors_of_the_disk_are_raised(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing_call(error))
    with pytest.raises(OSError, match=os.strerror(getattr(errno, error))) as raised:
        files.write_atomically(path, b"new")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", UNSUPPORTED)
def test_a_file_system_without_locks_is_a_warning(
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing_call(error))
    for _ in range(2):  # also with an existing lock file
        caplog.clear()
        with files.lock(tmp_path, "lock", "taken"):
            pass
        assert [record.name for record in caplog.records] == ["dlc_jax"]
        assert "has no locks" in caplog.text


def test_a_locked_folder_is_refused(tmp_path: Path) -> None:
    with (
        files.lock(tmp_path, "lock", "taken"),
        pytest.raises(InputError, match="taken"),
        files.lock(tmp_path, "lock", "taken"),
    ):
        pass


def test_training_and_resuming_on_a_limited_file_system(
    few_digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing_call("ENOSYS"))
    for call in ("chmod", "fchmod", "fsync", "utime", "link"):
        monkeypatch.setattr(os, call, failing_call("ENOTSUP"))
    config = runs.configure(few_digits, epochs=1, batch_size=50, seed=0)
    run = runs.train(config, few_digits, tmp_path, "run").run
    assert run is not None
    assert len(caplog.records) == 1
    before = json.loads((run.folder / "summary.json").read_bytes())
    (run.folder / "summary.json").unlink()
    again = runs.resume(Run.open(run.folder), few_digits)
    assert again.summary["test_loss"] == before["test_loss"]


def test_every_path_option_expands_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    metavars = ("FILE", "DIR", "RUN", "IMAGE")

    def check(command: click.Command) -> int:
        found = 0
        for parameter in command.params:
            metavar = parameter.make_metavar(click.Context(command))
            if any(word in metavar for word in metavars):
                assert isinstance(parameter.type, PathType), (command.name, parameter.name)
                value = ("~/x",) if parameter.nargs == -1 else "~/x"
                converted = parameter.type_cast_value(click.Context(command), value)
                assert converted in (str(tmp_path / "x"), (str(tmp_path / "x"),))
                found += 1
        subcommands = command.commands.values() if isinstance(command, click.Group) else ()
        return found + sum(map(check, subcommands))

    assert check(commands) > 10


def test_an_unknown_home_folder_is_an_error(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = dlc_jax("eval", "~nobody-has-this-name/run")
    assert finished.code == 2
    assert "~nobody-has-this-name" in finished.err
    assert finished.err.count("\n") == 1


@pytest.mark.parametrize("name", ["DLC_JAX_CACHE_DIR", "TFDS_DATA_DIR"])
def test_environment_variables_expand_the_home_folder(
    name: str, dlc_jax: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(name, "~/x")
    listed = dlc_jax("data", "--json").json
    key = {"DLC_JAX_CACHE_DIR": "cache_folder", "TFDS_DATA_DIR": "data_folder"}[name]
    assert listed[key] == str(tmp_path / "home" / "x")
    assert not Path("~").exists()


def test_without_a_home_folder_there_is_no_cache(
    dlc_jax: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "DLC_JAX_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    finished = dlc_jax("data", "--json")
    assert (finished.code, finished.err) == (0, "")
    assert finished.json["cache_folder"] is None
    monkeypatch.delenv("TFDS_DATA_DIR")
    finished = dlc_jax("data")
    assert finished.code == 2
    assert "no home folder" in finished.err
    assert not Path("~").exists()


@pytest.mark.parametrize(
    "missing", [("stdin",), ("stdout",), ("stderr",), ("stdin", "stdout", "stderr")]
)
def test_standard_streams_may_be_missing(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setattr(sys, name, None)
    for arguments, code in ((["recipes"], 0), (["train", "no-such-recipe"], 2)):
        with pytest.raises(SystemExit) as ending:
            cli.main(arguments)
        assert ending.value.code == code
    assert all(getattr(sys, name) is None for name in missing)


@pytest.mark.parametrize("arguments", [["recipes"], ["--help"], ["recipes", "--json"]])
def test_a_full_standard_output_is_one_line(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ending:
            cli.main(arguments)
    assert ending.value.code == 2
    assert capfd.readouterr().err == (
        "dlc-jax: No space left on device: standard output; make room, and try again\n"
    )


@pytest.mark.parametrize("arguments", [[], ["train", "no-such-recipe"]])
def test_a_full_standard_error_changes_no_exit_code(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        with pytest.raises(SystemExit) as ending:
            cli.main(arguments)
    assert ending.value.code == 2


def test_an_ascii_output_escapes_other_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = (io.TextIOWrapper(io.BytesIO(), "ascii", "strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    with pytest.raises(SystemExit) as ending:
        cli.main(["eval", os.fsdecode("猫-".encode() + b"\xff")])
    assert ending.value.code == 2
    with stdio.usable():
        print("é \udcff")
    assert out.buffer.getvalue() == b"\\xe9 \xff\n"
    assert error.buffer.getvalue().startswith(b"dlc-jax: '\\u732b-\\udcff'")
    assert (out.errors, error.errors) == ("strict", "strict")


def test_a_run_folder_needs_a_name_in_utf8(
    few_digits: Dataset, dlc_jax: Command, tmp_path: Path
) -> None:
    folder = os.fsdecode(b"runs-\xff")
    finished = dlc_jax(
        "train", "--dataset", "mnist-5k", "--num-examples", "200", "--output-dir", folder
    )
    assert finished.code == 2
    assert "not UTF-8" in finished.err
    assert finished.err.count("\n") == 1
    assert not Path(folder).exists()


@pytest.mark.parametrize("value", ["abc", "0", "-2", "1.5", ""])
def test_invalid_numbers_of_devices_are_one_line(
    value: str, dlc_jax: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", value)
    finished = dlc_jax("recipes")
    assert finished.code == 2
    assert f"JAX_NUM_CPU_DEVICES is {value!r}" in finished.err
    assert finished.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_PLATFORMS", "nonsense"), ("JAX_ENABLE_X64", "maybe")]
)
def test_settings_that_jax_refuses_are_one_line(
    name: str, value: str, dlc_jax_process: Command, tmp_path: Path
) -> None:
    command = ("train", "--dataset", "mnist-5k", "--num-examples", "200", "--epochs", "1")
    finished = dlc_jax_process(*command, **{name: value})
    assert finished.code == 2
    assert f"{name}={value}" in finished.err
    assert finished.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_unwritable_cache_folder_disables_the_compilation_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DLC_JAX_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    environment.prepare_jax()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_system_errors_are_one_line(dlc_jax: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Callable[..., NoReturn]:
        def fail(*args: Any) -> NoReturn:
            raise error

        return fail

    for error, message in (
        (MemoryError(), "too little memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), b"x\xff"), "ulimit -n"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), "not UTF-8"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ):
        monkeypatch.setattr("dlc_jax.cli.listings.print_line", failing(error))
        finished = dlc_jax("recipes")
        assert finished.code == 2
        assert message in finished.err
        assert finished.err.count("\n") == 1


def test_progress_bars_need_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar.counting("pictures") as update:
        update(1, 2)
