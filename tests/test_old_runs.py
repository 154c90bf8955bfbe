"""Runs of dlc_jax 0.1, whose configurations have other names: tests/data/old_run is one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from PIL import Image

from dlc_jax import models
from dlc_jax.data import Dataset
from dlc_jax.runs import RunConfig
from dlc_jax.runs.folder import Run

FOLDER = Path(__file__).parent / "data" / "old_run"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A copy, so that nothing is written next to the tests."""
    return Path(shutil.copytree(FOLDER, tmp_path / "old"))


def test_old_names_are_read() -> None:
    config = Run.open(FOLDER).config
    expected: dict[str, Any] = {
        "format": 1,
        "num_examples": 2000,
        "bias_lr_multiplier": 2.0,
        "lookahead_period": 5,
        "ema_decay": 0.9,
        "freeze_after": {"whitening_bias": 1},
        "tta_flip": True,
        "tta_translate": 1,
        "num_devices": 2,
    }
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("googlenet", {"auxiliary": True}, {"aux_logits": True}),
        ("lenet5", {"rubbish": 4.0}, {"rubbish_penalty": 4.0}),
        ("tc", {"kinds": 3}, {"features": 3}),
    ],
)
def test_old_options_of_networks_are_read(
    model: str, old: dict[str, Any], new: dict[str, Any]
) -> None:
    values = json.loads((FOLDER / "config.json").read_text())
    config = RunConfig.from_json(json.dumps(values | {"model": model, "model_options": old}))
    assert config.model_options == new
    models.create_abstract(model, **config.model_options)


def test_an_old_run_evaluates_to_the_same_error(dlc_jax: Command, old_run: Path) -> None:
    summary = json.loads((old_run / "summary.json").read_text())
    result = dlc_jax("eval", old_run, "--json").json
    for name in ("test_error_percent", "error_percent_by_class"):
        assert result[name] == summary[name]
    assert result["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-5)


def test_an_old_run_predicts(
    dlc_jax: Command, old_run: Path, digits: Dataset, tmp_path: Path
) -> None:
    Image.fromarray(digits.test.images[0, ..., 0].__array__()).save(tmp_path / "digit.png")
    [prediction] = dlc_jax("predict", old_run, "digit.png", "--json").json["predictions"]
    assert prediction["class"] in digits.class_names


def test_an_old_run_is_explained(dlc_jax: Command, old_run: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28), 255).save(tmp_path / "white.png")
    done = dlc_jax("explain", "occlusion", old_run, "white.png", "--as-is", "--json")
    assert done.code == 0
    assert all(Path(file).exists() for file in done.json["files"])


def test_an_old_run_is_not_resumed(dlc_jax: Command, old_run: Path) -> None:
    done = dlc_jax("train", "--resume", old_run)
    assert done.code == 2
    [line] = done.err.splitlines()
    assert "was made by dlc_jax 0.1.0" in line
