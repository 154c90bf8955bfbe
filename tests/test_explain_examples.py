"""The examples `explain_*.py`."""

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
    """A run with an untrained network."""
    config = runs.configure(digits, epochs=1, seed=0)
    run = Run.create(tmp_path_factory.mktemp("runs"), "untrained", config)
    run.save_model(config.create_model())
    return run


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_an_example(
    method: str,
    untrained: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Shorter, since the contents of the pictures do not matter here.
    for module, name, options in (
        (fooling, "fooling_images_by_evolution", {"generations": 3, "population_size": 10}),
        (fooling, "fooling_images_by_gradient", {"steps": 5}),
        (adversarial, "lbfgs_attack", {"iterations": 2, "search_steps": 2}),
    ):
        monkeypatch.setattr(module, name, partial(getattr(module, name), **options))
    example = EXAMPLES / f"explain_{method.replace('-', '_')}.py"
    picture = tmp_path / "picture.png"
    runpy.run_path(str(example))["main"](str(untrained.folder), str(picture))
    assert capsys.readouterr().out.splitlines()[-1] == str(picture)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    assert 0.05 < (pixels < 250).mean() < 0.95
