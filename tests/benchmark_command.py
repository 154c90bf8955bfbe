"""Runs the scripts in benchmarks/ in the process of the tests."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Finished
from harness import command


def in_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """What runs a script by its name, with results in a folder."""

    def run(name: str, *arguments: Any) -> Finished:
        script = importlib.import_module(name)
        options = [*map(str, arguments), "--output-dir", str(folder)]
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            command.run(str(script.__file__), script.main, *options)
        out, err = capfd.readouterr()
        assert isinstance(exit_.value.code, int)
        return Finished(exit_.value.code, out, err)

    return run
