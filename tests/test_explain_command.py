"""`dlc-jax explain`: pictures and the report."""

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import test_explain_examples
from conftest import Command
from flax import nnx
from matplotlib.figure import Figure
from PIL import Image

from dlc_jax import models
from dlc_jax.data import Dataset, Normalise
from dlc_jax.errors import InputError
from dlc_jax.explain import View, adversarial
from dlc_jax.explain import report as gallery
from dlc_jax.explain.report import html as report
from dlc_jax.explain.report import methods, pictures
from dlc_jax.explain.report import robustness as failing
from dlc_jax.explain.report.context import Subject, first_of_each_class
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run

# A run of the lecture's network whose weights are as they were drawn.
untrained = test_explain_examples.untrained


@pytest.fixture
def untaught(untrained: Run, tmp_path: Path) -> str:
    """A copy of a run that has learnt nothing, which is enough to draw what it sees."""
    return str(shutil.copytree(untrained.folder, tmp_path / "digits"))


@pytest.fixture
def trained(lecture_run: Run, tmp_path: Path) -> str:
    """A copy of a run, into which pictures can be written."""
    return str(shutil.copytree(lecture_run.folder, tmp_path / "digits"))


def pixel_values(figure: Figure, path: Path) -> np.ndarray:
    plots.save(figure, path)
    return np.asarray(Image.open(path).convert("L"))


def test_a_signed_images_zero_is_mid_grey_and_its_range_is_told(tmp_path: Path) -> None:
    values = np.zeros((8, 8, 1), np.float32)
    values[:4] = 0.25
    values[6:] = -0.5
    figure = pictures.rows_of_images([[pictures.Cell(values, "signed")]], "some")
    drawn = pixel_values(figure, tmp_path / "signed.png")
    for grey in (127, 191, 0):
        assert (abs(drawn.astype(int) - grey) <= 1).sum() > 500, grey
    (axes,) = figure.axes
    assert axes.get_title() == "±0.5"


def test_a_report_needs_no_other_file(tmp_path: Path) -> None:
    figure = pictures.rows_of_images([[pictures.Cell(np.ones((4, 4)))]], "one")
    picture = report.Picture("one", figure, "A caption with <b>&")
    table = report.Table("two", ("a", "b"), [("<", "1")], "Numbers")
    sections = [report.Section("first", "what it is", [picture, table])]
    report.write(tmp_path / "report.html", "A title", "facts", sections)
    page = (tmp_path / "report.html").read_text()
    assert "A caption with &lt;b&gt;&amp;" in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "<td>&lt;</td><td>1</td>" in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("saliences", "RUN"), "'saliences'.*saliency"),
        (("saliency", "nowhere"), "'nowhere' is not the folder of a run"),
        (("saliency", "RUN", "no.png"), "'no.png'"),
        (("adversarial", "RUN", "--transfer", "nowhere"), "'nowhere' is not the folder of a run"),
    ],
)
def test_what_can_not_be_explained_is_told_in_one_line(
    dlc_jax: Command, untaught: str, arguments: tuple[str, ...], named: str
) -> None:
    done = dlc_jax("explain", *(untaught if part == "RUN" else part for part in arguments))
    assert done.code == 2
    assert re.search(named, done.err)
    assert len(done.err.splitlines()) == 1


def test_a_method_draws_pictures_of_a_users_own_image(
    dlc_jax: Command, untaught: str, tmp_path: Path
) -> None:
    digit = np.full((50, 40), 255, np.uint8)
    digit[10:40, 18:24] = 20
    Image.fromarray(digit).save(tmp_path / "one.png")
    done = dlc_jax("explain", "saliency", untaught, "one.png", "--json")
    assert done.code == 0, done.err
    assert list(done.json["images"]) == ["one.png"]
    assert done.json["files"] == [f"{untaught}/explain/saliency.png"]
    with Image.open(tmp_path / done.json["files"][0]) as picture:
        assert picture.size[0] > 200


def test_pictures_are_only_scaled_where_that_is_asked_for(
    dlc_jax: Command, untaught: str, tmp_path: Path
) -> None:
    Image.new("L", (40, 40), 255).save(tmp_path / "blank.png")
    done = dlc_jax("explain", "saliency", untaught, "blank.png")
    assert done.code == 2
    assert "no ink" in done.err
    done = dlc_jax("explain", "saliency", untaught, "blank.png", "--as-is")
    assert done.code == 0, done.err


def test_more_images_than_fit_abreast_fill_more_pictures(
    dlc_jax: Command, untaught: str, tmp_path: Path
) -> None:
    for number in range(11):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[4:24, 8 + number : 12 + number] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    paths = [f"{number}.png" for number in range(11)]
    done = dlc_jax("explain", "grad-cam", untaught, *paths, "--output-dir", "pictures")
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["pictures/grad-cam-1.png", "pictures/grad-cam-2.png"]


def test_a_method_that_does_not_suit_a_network_is_left_out_of_many_and_told(
    digits: Dataset, tmp_path: Path
) -> None:
    model = models.create("perceptron", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    view = View.of(model, Normalise.fit(digits.train.images))
    pixels, names = first_of_each_class(digits)
    subject = Subject.of(view, digits, pixels, names, jax.random.key(0))
    make = partial(gallery.make, subject, folder=tmp_path, title="A perceptron", facts="")
    made = make(["filters", "saliency"])
    assert [file.name for file in made.files] == ["saliency.png", "report.html"]
    assert list(made.refusals) == ["filters"]
    assert "no convolution" in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError, match="no convolution"):
        make(["filters"])


def check_attacks(tables: Any) -> None:
    """Compares what misleads a network with what misleads a second one, which is the same."""
    attacks = {row["attack"]: row["success"] for row in tables["adversarial"]}
    assert attacks["L-BFGS"] == "100 %"
    unchanged, *made = tables["adversarial-transfer"]
    assert list(unchanged.values())[1:] == ["0 %", "0 %"]
    for row in made:
        name, ours, theirs = row.values()
        assert ours == theirs == attacks[name.split(", made")[0]]


@pytest.mark.slow
def test_the_report_has_every_method_and_shows_every_picture(
    dlc_jax: Command,
    trained: str,
    lecture_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # How much the pictures show does not matter here.
    monkeypatch.setattr(failing, "_ATTACKED", 4)
    monkeypatch.setattr(failing, "_AT_ONCE", 4)
    monkeypatch.setattr(failing, "_GENERATIONS", 20)
    searching = partial(adversarial.smallest_perturbation, iterations=15, rounds=3)
    monkeypatch.setattr(adversarial, "smallest_perturbation", searching)
    done = dlc_jax("explain", "all", trained, "--transfer", lecture_run.folder, "--json")
    assert done.code == 0, done.err
    check_attacks(done.json["tables"])
    page = tmp_path / trained / "explain" / "report.html"
    text = page.read_text()
    for name in methods.METHODS:
        assert f'id="{name}"' in text
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt install chromium")
    # A copy whose script writes down whether each image has been drawn.
    check = tmp_path / "check.html"
    script = "document.title = [...document.images].every(i => i.naturalWidth > 100)"
    check.write_text(text + f"<script>addEventListener('load', () => {{ {script} }})</script>")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu"]
    subprocess.run(
        [
            *command,
            f"--screenshot={tmp_path / 'report.png'}",
            "--window-size=1100,3000",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    shot = np.asarray(Image.open(tmp_path / "report.png").convert("L"))
    assert (shot < 128).mean() > 0.05
    dom = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", check.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert "<title>true</title>" in dom
