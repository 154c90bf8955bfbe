"""Explanations of a trained network as pictures, tables and a report."""

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlc_jax.errors import InputError
from dlc_jax.explain.report import html as report
from dlc_jax.explain.report.context import Subject, Tick
from dlc_jax.explain.report.html import Picture, Section, Table
from dlc_jax.explain.report.methods import METHODS
from dlc_jax.utils.files import make_folder, write_atomically

HTML = "report.html"


@dataclass(frozen=True)
class Gallery:
    """What was made.

    Attributes:
      files: of pictures and tables; the report, if there is one, last.
      tables: the tables.
      refusals: for each method that does not suit the network, why.
    """

    files: list[Path]
    tables: list[Table]
    refusals: dict[str, str]


def make(
    subject: Subject,
    methods: Sequence[str],
    folder: Path,
    *,
    title: str,
    facts: str,
    progress: Callable[[str, float, int], None] = lambda what, done, total: None,
) -> Gallery:
    """Writes the pictures of some methods, and of several a report of them all.

    Args:
      subject: the network, and what it is explained on.
      methods: some of `METHODS`.
      folder: made where it is missing; files of earlier explanations are replaced.
      title: the report's.
      facts: a line below it.
      progress: called with what is made next, and how many methods are done of how many.

    Raises:
      InputError: the folder can't be written to, or the only method does not suit the network.
    """
    make_folder(folder)
    files: list[Path] = []
    sections: list[Section] = []
    for done, name in enumerate(methods):

        def tick(fraction: float, name: str = name, done: int = done) -> None:
            progress(name, done + fraction, len(methods))

        tick(0)
        section = _section(name, subject, tick, alone=len(methods) == 1)
        for item in section.items:
            files.append(folder / _file_name(item, {file.name for file in files}))
            write_atomically(files[-1], item.content)
        sections.append(section)
    progress("", len(methods), len(methods))
    if len(methods) > 1:
        files.append(folder / HTML)
        report.write(files[-1], title, facts, sections)
    tables = [item for section in sections for item in section.items if isinstance(item, Table)]
    refusals = {section.name: section.refusal for section in sections if section.refusal}
    return Gallery(files, tables, refusals)


def _file_name(item: Picture | Table, taken: Collection[str]) -> str:
    """The name of its file; stages, which may be called as their network likes, are part of it."""
    stem = re.sub(r"[^\w.-]", "_", item.name)[:100]
    numbered = (f"{stem}-{number}{item.suffix}" for number in itertools.count(2))
    names = itertools.chain([f"{stem}{item.suffix}"], numbered)
    return next(name for name in names if name not in taken)


def _section(name: str, subject: Subject, tick: Tick, *, alone: bool) -> Section:
    method = METHODS[name]
    try:
        return Section(name, method.summary, list(method.draw(subject, tick)))
    except InputError as error:
        # Of a network without feature maps the other methods have something to show.
        if alone:
            raise
        return Section(name, method.summary, [], str(error))
