"""The command `dlc-jax explain`, its pictures and its report."""

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
from dlc_jax.data import Dataset, Normalize
from dlc_jax.errors import InputError
from dlc_jax.explain import ImageClassifier, adversarial
from dlc_jax.explain.report import html, methods, pictures, robustness, write_report
from dlc_jax.explain.report.context import ExplainContext, first_image_of_each_class
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run

# A fixture: a run with an untrained network.
untrained = test_explain_examples.untrained


@pytest.fixture
def untrained_folder(untrained: Run, tmp_path: Path) -> str:
    """Copy of an untrained run, to which pictures can be written."""
    return str(shutil.copytree(untrained.folder, tmp_path / "digits"))


@pytest.fixture
def trained_folder(lecture_run: Run, tmp_path: Path) -> str:
    """Copy of a trained run, to which pictures can be written."""
    return str(shutil.copytree(lecture_run.folder, tmp_path / "digits"))


def pixel_values(figure: Figure, path: Path) -> np.ndarray:
    plots.save(figure, path)
    return np.asarray(Image.open(path).convert("L"))


def test_zero_is_mid_gray_in_signed_images(tmp_path: Path) -> None:
    values = np.zeros((8, 8, 1), np.float32)
    values[:4] = 0.25
    values[6:] = -0.5
    figure = pictures.image_grid([[pictures.ImageCell(values, "signed")]], "some")
    drawn = pixel_values(figure, tmp_path / "signed.png")
    for gray in (127, 191, 0):
        assert (abs(drawn.astype(int) - gray) <= 1).sum() > 500, gray
    (axes,) = figure.axes
    assert axes.get_title() == "±0.5"


def test_html_report_is_self_contained(tmp_path: Path) -> None:
    figure = pictures.image_grid([[pictures.ImageCell(np.ones((4, 4)))]], "one")
    picture = html.Picture("one", figure, "A caption with <b>&")
    table = html.Table("two", ("a", "b"), [("<", "1")], "Numbers")
    sections = [html.Section("first", "what it is", [picture, table])]
    html.write_html(tmp_path / "report.html", "A title", "a subtitle", sections)
    page = (tmp_path / "report.html").read_text()
    assert "A caption with &lt;b&gt;&amp;" in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "<td>&lt;</td><td>1</td>" in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("saliences", "RUN"), "'saliences'.*saliency"),
        (("saliency", "nowhere"), "'nowhere' is not the folder of a run"),
        (("saliency", "RUN", "no.png"), "'no.png'"),
        (("adversarial", "RUN", "--transfer", "nowhere"), "'nowhere' is not the folder of a run"),
    ],
)
def test_errors_are_one_line(
    dlc_jax: Command, untrained_folder: str, arguments: tuple[str, ...], message: str
) -> None:
    done = dlc_jax("explain", *(untrained_folder if part == "RUN" else part for part in arguments))
    assert done.code == 2
    assert re.search(message, done.err)
    assert len(done.err.splitlines()) == 1


def test_explaining_an_image_file(dlc_jax: Command, untrained_folder: str, tmp_path: Path) -> None:
    digit = np.full((50, 40), 255, np.uint8)
    digit[10:40, 18:24] = 20
    Image.fromarray(digit).save(tmp_path / "one.png")
    done = dlc_jax("explain", "saliency", untrained_folder, "one.png", "--json")
    assert done.code == 0, done.err
    assert list(done.json["images"]) == ["one.png"]
    assert done.json["files"] == [f"{untrained_folder}/explain/saliency.png"]
    with Image.open(tmp_path / done.json["files"][0]) as picture:
        assert picture.size[0] > 200


def test_as_is_only_scales_image_files(
    dlc_jax: Command, untrained_folder: str, tmp_path: Path
) -> None:
    Image.new("L", (40, 40), 255).save(tmp_path / "blank.png")
    done = dlc_jax("explain", "saliency", untrained_folder, "blank.png")
    assert done.code == 2
    assert "no ink" in done.err
    done = dlc_jax("explain", "saliency", untrained_folder, "blank.png", "--as-is")
    assert done.code == 0, done.err


def test_many_images_fill_several_pictures(
    dlc_jax: Command, untrained_folder: str, tmp_path: Path
) -> None:
    for number in range(11):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[4:24, 8 + number : 12 + number] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    paths = [f"{number}.png" for number in range(11)]
    done = dlc_jax("explain", "grad-cam", untrained_folder, *paths, "--output-dir", "pictures")
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["pictures/grad-cam-1.png", "pictures/grad-cam-2.png"]


def test_methods_that_do_not_suit_the_network_are_skipped(digits: Dataset, tmp_path: Path) -> None:
    model = models.create("perceptron", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    classifier = ImageClassifier.from_model(model, Normalize.fit(digits.train.images))
    pixels, names = first_image_of_each_class(digits)
    context = ExplainContext.create(classifier, digits, pixels, names, jax.random.key(0))
    write = partial(write_report, context, output_dir=tmp_path, title="A perceptron", subtitle="")
    result = write(["filters", "saliency"])
    assert [file.name for file in result.files] == ["saliency.png", "report.html"]
    assert list(result.skipped) == ["filters"]
    assert "no convolution" in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError, match="no convolution"):
        write(["filters"])


def check_attacks(tables: Any) -> None:
    """Checks the tables of attacks that are transferred to the same network."""
    attacks = {row["attack"]: row["success"] for row in tables["adversarial"]}
    assert attacks["L-BFGS"] == "100 %"
    unchanged, *sets = tables["adversarial-transfer"]
    assert list(unchanged.values())[1:] == ["0 %", "0 %"]
    for row in sets:
        name, error, transfer_error = row.values()
        assert error == transfer_error == attacks[name.split(", made")[0]]


@pytest.mark.slow
def test_report_has_all_methods_and_pictures(
    dlc_jax: Command,
    trained_folder: str,
    lecture_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Shorter, since the contents of the pictures do not matter here.
    monkeypatch.setattr(robustness, "_MAX_ATTACKED", 4)
    monkeypatch.setattr(robustness, "_BATCH_SIZE", 4)
    monkeypatch.setattr(robustness, "_GENERATIONS", 20)
    attack = partial(adversarial.lbfgs_attack, iterations=15, search_steps=3)
    monkeypatch.setattr(adversarial, "lbfgs_attack", attack)
    done = dlc_jax("explain", "all", trained_folder, "--transfer", lecture_run.folder, "--json")
    assert done.code == 0, done.err
    check_attacks(done.json["tables"])
    page = tmp_path / trained_folder / "explain" / "report.html"
    text = page.read_text()
    for name in methods.METHODS:
        assert f'id="{name}"' in text
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt install chromium")
    # A copy with a script that sets the title to whether all images have been drawn.
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
