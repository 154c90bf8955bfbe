"""Explanations of a classifier as pictures, tables and an HTML report."""

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlc_jax.errors import InputError
from dlc_jax.explain.report import html
from dlc_jax.explain.report.context import ExplainContext, ProgressFn
from dlc_jax.explain.report.html import Picture, Section, Table
from dlc_jax.explain.report.methods import METHODS
from dlc_jax.utils.files import make_folder, write_atomically

HTML_NAME = "report.html"


@dataclass(frozen=True)
class ExplainResult:
    """Files and tables of a report.

    Attributes:
      files: Pictures and tables; the HTML report is the last, if there is one.
      tables: Tables.
      skipped: Methods that can't be applied to the network, each with the reason.
    """

    files: list[Path]
    tables: list[Table]
    skipped: dict[str, str]


def write_report(
    context: ExplainContext,
    methods: Sequence[str],
    output_dir: Path,
    *,
    title: str,
    subtitle: str,
    progress: Callable[[str, float, int], None] = lambda method, done, total: None,
) -> ExplainResult:
    """Writes the pictures and tables of methods and, if there are several, an HTML report.

    Args:
      context: Classifier and images.
      methods: Names from `METHODS`.
      output_dir: Folder to write to, which is created if it is missing. Files of earlier
        explanations are replaced.
      title: Title of the report.
      subtitle: Line below the title.
      progress: Called with the name of the current method, and the numbers of methods that are
        done and of all methods.

    Raises:
      InputError: The folder can't be written to, or the only method can't be applied to the
        network.
    """
    make_folder(output_dir)
    files: list[Path] = []
    sections: list[Section] = []
    for done, name in enumerate(methods):

        def method_progress(fraction: float, name: str = name, done: int = done) -> None:
            progress(name, done + fraction, len(methods))

        method_progress(0)
        section = _draw_section(name, context, method_progress, skip=len(methods) > 1)
        for item in section.items:
            files.append(output_dir / _unique_file_name(item, {file.name for file in files}))
            write_atomically(files[-1], item.content)
        sections.append(section)
    progress("", len(methods), len(methods))
    if len(methods) > 1:
        files.append(output_dir / HTML_NAME)
        html.write_html(files[-1], title, subtitle, sections)
    tables = [item for section in sections for item in section.items if isinstance(item, Table)]
    skipped = {section.name: section.skipped for section in sections if section.skipped}
    return ExplainResult(files, tables, skipped)


def _unique_file_name(item: Picture | Table, used: Collection[str]) -> str:
    """File name of a picture or table; its name may contain any name of a stage."""
    stem = re.sub(r"[^\w.-]", "_", item.name)[:100]
    numbered = (f"{stem}-{number}{item.suffix}" for number in itertools.count(2))
    candidates = itertools.chain([f"{stem}{item.suffix}"], numbered)
    return next(name for name in candidates if name not in used)


def _draw_section(
    name: str, context: ExplainContext, progress: ProgressFn, *, skip: bool
) -> Section:
    method = METHODS[name]
    try:
        return Section(name, method.summary, list(method.draw(context, progress)))
    except InputError as error:
        if not skip:
            raise
        return Section(name, method.summary, [], str(error))
