"""The examples that explain a run, as a user would start them."""

import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlc_jax import runs
from dlc_jax.data import Dataset
from dlc_jax.explain import adversarial, fooling
from dlc_jax.explain.report.methods import METHODS
from dlc_jax.runs.folder import Run

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def untrained(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the lecture's network: what it has learnt does not matter here."""
    config = runs.configure(digits, epochs=1, seed=0)
    run = Run.create(tmp_path_factory.mktemp("runs"), "untrained", config)
    run.save_model(config.create_model())
    return run


SHORT = ("filters", "saliency")


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.slow]) for name in METHODS],
)
def test_each_method_has_an_example_that_draws_it(
    method: str,
    untrained: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # How far these go does not matter either.
    for module, name, shorter in (
        (fooling, "by_evolution", {"generations": 3, "population": 10}),
        (fooling, "by_gradient", {"steps": 5}),
        (adversarial, "smallest_perturbation", {"iterations": 2, "rounds": 2}),
    ):
        monkeypatch.setattr(module, name, partial(getattr(module, name), **shorter))
    example = EXAMPLES / f"explain_{method.replace('-', '_')}.py"
    picture = tmp_path / "picture.png"
    runpy.run_path(str(example))["main"](str(untrained.folder), str(picture))
    assert capsys.readouterr().out.splitlines()[-1] == str(picture)
    with Image.open(picture) as image:
        drawn = np.asarray(image.convert("L"))
    assert 0.05 < (drawn < 250).mean() < 0.95
