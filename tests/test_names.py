"""Names of files and classes are shown as text, never as markup or escape codes."""

import html
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dlc_jax.cli.output import format_table
from dlc_jax.explain import explain_run
from dlc_jax.explain.report import html as report
from dlc_jax.explain.report import pictures
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run
from dlc_jax.runs.summary import error_by_class
from dlc_jax.utils.drawing import drawable, to_png
from dlc_jax.utils.text import (
    display_width,
    printable,
    truncate,
    unique_class_names,
    unique_path_names,
)

NAMES = [
    "cost $5", "$x^2$", "a_b", r"\frac{", "{}", "%s", "猫", "고양이", "ねこ", "[bold]x[/bold]",
    "<b>x</b>", "\x1b[31mred", "two\nlines", "\udcff.png", "\u202eabc", "a" * 200,
]  # fmt: skip


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def test_names_in_figures_are_not_parsed_as_formulas() -> None:
    count = len(NAMES)
    labels = np.arange(count)
    predictions = np.roll(labels, 1)
    probabilities = np.eye(count, dtype=np.float32)[predictions]
    images = np.zeros((count, 4, 4, 1), np.uint8)
    answer = {"image": NAMES[0], "probabilities": dict.fromkeys(NAMES, 1 / count)}
    cell = pictures.ImageCell(images[0], "pixels", "cost $5 $")
    x = np.arange(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            plots.confusion(labels, predictions, NAMES),
            plots.mistakes(images, labels, probabilities, NAMES),
            plots.curves([np.ones(2)], [0.5], " ".join(NAMES)),
            plots.grid(images, NAMES[1]),
            plots.predictions([(images[0], images[0])], [answer]),
            pictures.image_grid([[cell]], NAMES[1], row_titles=NAMES[1:2]),
            pictures.line_plot(
                x, np.stack([x, x], 1), NAMES[:2], title=NAMES[1], xlabel="x", ylabel="y"
            ),
        ):
            assert to_png(figure).startswith(b"\x89PNG")
            for text in figure.findobj(Text):
                assert isinstance(text, Text)
                is_tick = "mathdefault" in text.get_text()  # of a logarithmic axis
                assert is_tick or not ("$" in text.get_text() and text.get_parse_math()), text
    shown = texts(plots.confusion(labels, predictions, NAMES))
    assert {"cost $5", "$x^2$", "a_b", r"\frac{", "[bold]x[/bold]", "<b>x</b>"} < {*shown}


def test_legends_name_every_curve() -> None:
    names = ["_hidden", "$x^2$", "a"]
    x = np.arange(2.0)
    figure = pictures.line_plot(x, np.ones((2, 3)), names, title="t", xlabel="x", ylabel="y")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == names


def test_characters_missing_from_all_fonts_are_escaped() -> None:
    assert drawable("\U0010fffd", 30) == "\\U0010fffd"
    assert drawable("é", 30) == "é"


@pytest.mark.parametrize("name", NAMES)
def test_a_printable_name_is_one_line_without_control_characters(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()
    assert display_width(truncate(name, 20)) <= 20


def test_tables_with_wide_characters_are_aligned() -> None:
    rows = [{"class": name, "error": "1.00 %"} for name in ("猫猫", "ab", "e\u0301", "[red]")]
    lines = format_table(rows).splitlines()
    assert {display_width(line) for line in lines} == {5 + 2 + 6}
    assert "[red]" in lines[-1]


def test_classes_with_the_same_name_get_their_labels_added() -> None:
    names = unique_class_names(["crane", "heron", "crane"])
    assert names == ["crane (class 0)", "heron", "crane (class 2)"]
    errors = error_by_class(np.eye(3), np.array([0, 1, 0]), ["crane", "heron", "crane"])
    assert errors == {"crane (class 0)": 50, "heron": 0, "crane (class 2)": None}


def test_files_with_the_same_name_get_their_folders_added() -> None:
    assert unique_path_names(["a/x.png", "b/x.png", "c/y.png"]) == ["a/x.png", "b/x.png", "y.png"]
    assert unique_path_names(["r/1/x.png", "r/2/x.png"]) == ["1/x.png", "2/x.png"]
    assert unique_path_names(["x.png", "a/x.png"]) == ["x.png", "a/x.png"]
    assert unique_path_names(["a/x.png", "a/x.png"]) == ["x.png", "x.png"]
    assert unique_path_names([]) == []


def test_reports_escape_names(tmp_path: Path) -> None:
    table = report.Table("t", ("name",), [(name,) for name in NAMES], "<i>caption</i>")
    section = report.Section("s", "", [table])
    report.write_html(tmp_path / "r.html", "<script>", "facts \udcff", [section])
    page = (tmp_path / "r.html").read_text("utf-8")
    assert not re.search("<script>|<b>|<i>|\x1b", page)
    cells = [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", page)]
    assert cells == [printable(name) for name in NAMES]
    assert "cost $5" in table.content.decode()


def test_predictions_name_their_pictures(dlc_jax: Command, run: Run, tmp_path: Path) -> None:
    paths = ["a/x.png", "b/x.png", "[bold]x$.png", "猫.png", "two\nlines.png"]
    if os.name == "posix":
        paths.append(os.fsdecode(b"\xff.png"))
    pixels = np.zeros((28, 28), np.uint8)
    pixels[8:20, 12:16] = 255
    for path in paths:
        Path(path).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, "PNG")
    result = dlc_jax("predict", run.folder, *paths, "--show", "shown.png", "--json").json
    assert [prediction["image"] for prediction in result["predictions"]] == paths
    assert Path("shown.png").read_bytes().startswith(b"\x89PNG")
    finished = dlc_jax("predict", run.folder, *paths[:-1])
    assert (finished.code, finished.err) == (0, "")
    starts = [line.split(":")[0] for line in finished.out.splitlines()]
    assert starts == ["a/x.png", "b/x.png", "[bold]x$.png", "猫.png", "two\\x0alines.png"]


def test_explanations_name_pictures_with_the_same_file_name(
    dlc_jax: Command, run: Run, few_digits: object, tmp_path: Path
) -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[8:20, 12:16] = 255
    for name in ("a", "b"):
        Path(name).mkdir()
        Image.fromarray(pixels).save(f"{name}/x_$.png")
    result = explain_run(
        run,
        few_digits,  # type: ignore[arg-type]
        ["saliency"],
        ["a/x_$.png", "b/x_$.png"],
        output_dir=tmp_path / "out",
    )
    assert [*result["images"]] == ["a/x_$.png", "b/x_$.png"]
