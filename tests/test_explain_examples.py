"""The examples that explain a run, as a user would start them."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlc_jax.explain.gallery.methods import METHODS
from dlc_jax.runs import Run

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_an_example_that_draws_it(
    method: str, lecture_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = EXAMPLES / f"explain_{method.replace('-', '_')}.py"
    picture = tmp_path / "picture.png"
    runpy.run_path(str(example))["main"](str(lecture_run.folder), str(picture))
    assert capsys.readouterr().out.splitlines()[-1] == str(picture)
    with Image.open(picture) as image:
        drawn = np.asarray(image.convert("L"))
    assert 0.05 < (drawn < 250).mean() < 0.95
