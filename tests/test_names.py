"""Names that others chose are shown as they are, and never taken for anything else."""

import html
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from dlc_jax.runs.results import error_by_class
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dlc_jax.cli import progress
from dlc_jax.explain.report import html as report
from dlc_jax.explain.report import pictures
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run
from dlc_jax.utils.drawing import displayed, png
from dlc_jax.utils.text import class_names_told_apart, printable, shortened, told_apart, width

NAMES = [
    "cost $5", "$x^2$", "a_b", r"\frac{", "{}", "%s", "猫", "고양이", "ねこ", "[bold]x[/bold]",
    "<b>x</b>", "\x1b[31mred", "two\nlines", "\udcff.png", "\u202eabc", "a" * 200,
]  # fmt: skip


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def test_names_are_drawn_without_formulas_and_warnings() -> None:
    count = len(NAMES)
    labels = np.arange(count)
    predictions = np.roll(labels, 1)
    probabilities = np.eye(count, dtype=np.float32)[predictions]
    images = np.zeros((count, 4, 4, 1), np.uint8)
    answer = {"image": NAMES[0], "probabilities": dict.fromkeys(NAMES, 1 / count)}
    cell = pictures.Cell(images[0], "pixels", "cost $5 $")
    x = np.arange(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            plots.confusion(labels, predictions, NAMES),
            plots.mistakes(images, labels, probabilities, NAMES),
            plots.curves([np.ones(2)], [0.5], " ".join(NAMES)),
            plots.grid(images, NAMES[1]),
            plots.answers([(images[0], images[0])], [answer]),
            pictures.rows_of_images([[cell]], NAMES[1], row_titles=NAMES[1:2]),
            pictures.curves(x, np.stack([x, x], 1), NAMES[:2], title=NAMES[1], xlabel="x"),
        ):
            assert png(figure).startswith(b"\x89PNG")
            for text in figure.findobj(Text):
                assert isinstance(text, Text)
                own = "mathdefault" in text.get_text()  # a number on a logarithmic axis
                assert own or not ("$" in text.get_text() and text.get_parse_math()), text
    shown = texts(plots.confusion(labels, predictions, NAMES))
    assert {"cost $5", "$x^2$", "a_b", r"\frac{", "[bold]x[/bold]", "<b>x</b>"} < {*shown}


def test_legends_have_every_curve_by_its_name() -> None:
    names = ["_hidden", "$x^2$", "a"]
    x = np.arange(2.0)
    figure = pictures.curves(x, np.ones((2, 3)), names, title="t")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == names


def test_characters_that_no_font_has_are_escaped() -> None:
    assert displayed("\U0010fffd", 30) == "\\U0010fffd"
    assert displayed("é", 30) == "é"


@pytest.mark.parametrize("name", NAMES)
def test_a_printable_name_is_one_line_that_moves_no_cursor(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()
    assert width(shortened(name, 20)) <= 20


def test_tables_are_aligned_whatever_the_width_of_characters() -> None:
    rows = [{"class": name, "error": "1.00 %"} for name in ("猫猫", "ab", "e\u0301", "[red]")]
    lines = progress.table(rows).splitlines()
    assert {width(line) for line in lines} == {5 + 2 + 6}
    assert "[red]" in lines[-1]


def test_classes_of_one_name_are_told_apart_by_their_labels() -> None:
    names = class_names_told_apart(["crane", "heron", "crane"])
    assert names == ["crane (class 0)", "heron", "crane (class 2)"]
    errors = error_by_class(np.eye(3), np.array([0, 1, 0]), ["crane", "heron", "crane"])
    assert errors == {"crane (class 0)": 50, "heron": 0, "crane (class 2)": None}


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    assert told_apart(["a/x.png", "b/x.png", "c/y.png"]) == ["a/x.png", "b/x.png", "y.png"]
    assert told_apart(["r/1/x.png", "r/2/x.png"]) == ["1/x.png", "2/x.png"]
    assert told_apart(["x.png", "a/x.png"]) == ["x.png", "a/x.png"]
    assert told_apart(["a/x.png", "a/x.png"]) == ["x.png", "x.png"]
    assert told_apart([]) == []


def test_reports_show_names_as_text(tmp_path: Path) -> None:
    table = report.Table("t", ("name",), [(name,) for name in NAMES], "<i>caption</i>")
    section = report.Section("s", "", [table])
    report.write(tmp_path / "r.html", "<script>", "facts \udcff", [section])
    page = (tmp_path / "r.html").read_text("utf-8")
    assert not re.search("<script>|<b>|<i>|\x1b", page)
    cells = [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", page)]
    assert cells == [printable(name) for name in NAMES]
    assert "cost $5" in table.content.decode()


def test_predictions_tell_which_picture_they_are_of(
    dlc_jax: Command, run: Run, tmp_path: Path
) -> None:
    paths = ["a/x.png", "b/x.png", "[bold]x$.png", "猫.png", "two\nlines.png"]
    if os.name == "posix":
        paths.append(os.fsdecode(b"\xff.png"))
    pixels = np.zeros((28, 28), np.uint8)
    pixels[8:20, 12:16] = 255
    for path in paths:
        Path(path).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, "PNG")
    shown = dlc_jax("predict", run.folder, *paths, "--show", "shown.png", "--json").json
    assert [prediction["image"] for prediction in shown["predictions"]] == paths
    assert Path("shown.png").read_bytes().startswith(b"\x89PNG")
    finished = dlc_jax("predict", run.folder, *paths[:-1])
    assert (finished.code, finished.err) == (0, "")
    starts = [line.split(":")[0] for line in finished.out.splitlines()]
    assert starts == ["a/x.png", "b/x.png", "[bold]x$.png", "猫.png", "two\\x0alines.png"]


def test_explanations_name_two_pictures_of_one_name(
    dlc_jax: Command, run: Run, few_digits: object, tmp_path: Path
) -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[8:20, 12:16] = 255
    for name in ("a", "b"):
        Path(name).mkdir()
        Image.fromarray(pixels).save(f"{name}/x_$.png")
    from dlc_jax import runs

    result = runs.explain(
        run,
        few_digits,  # type: ignore[arg-type]
        ["saliency"],
        ["a/x_$.png", "b/x_$.png"],
        folder=tmp_path / "out",
    )
    assert [*result["images"]] == ["a/x_$.png", "b/x_$.png"]
