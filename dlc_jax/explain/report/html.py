"""HTML reports of pictures and tables, as one self-contained file."""

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_jax.utils.drawing import to_png
from dlc_jax.utils.files import write_atomically
from dlc_jax.utils.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
nav a { margin-right: 1rem; } figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; } figcaption { color: #444; max-width: 46rem; }
table { border-collapse: collapse; } td, th { padding: 0.2rem 0.9rem; text-align: right; }
th { border-bottom: 1px solid #999; font-weight: 600; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) td { background: #f6f6f6; }
.subtitle { color: #666; }
"""


@dataclass(frozen=True)
class Picture:
    """A figure with a caption.

    Attributes:
      name: File name, without its extension.
      figure: The figure.
      caption: Caption in the HTML report.
    """

    name: str
    figure: "Figure"
    caption: str
    suffix = ".png"

    @property
    def content(self) -> bytes:
        """The figure as PNG."""
        return to_png(self.figure)

    @property
    def element(self) -> str:
        """HTML element, without the caption."""
        data = base64.b64encode(self.content).decode()
        return f'<img alt="{_escape(self.name)}" src="data:image/png;base64,{data}">'


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes:
      name: File name, without its extension.
      columns: Names of the columns.
      rows: Formatted cells; the first of each row is its name.
      caption: Caption in the HTML report.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    suffix = ".csv"

    @property
    def content(self) -> bytes:
        """The table as CSV."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue().encode("utf-8", "backslashreplace")

    @property
    def element(self) -> str:
        """HTML element, without the caption."""
        lines = [_row("th", self.columns), *(_row("td", row) for row in self.rows)]
        return "<table>\n" + "\n".join(lines) + "\n</table>"


@dataclass(frozen=True)
class Section:
    """Section of a report.

    Attributes:
      name: Name of the method.
      summary: Description of the method.
      items: Pictures and tables.
      skipped: Reason why the method can't be applied to the network, or "".
    """

    name: str
    summary: str
    items: Sequence[Picture | Table]
    skipped: str = ""


def write_html(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Writes a report as an HTML file.

    Args:
      path: The file.
      title: Title.
      subtitle: Line below the title.
      sections: Sections.
    """
    names = [_escape(section.name) for section in sections]
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in names)
    body = "\n".join(map(_section, sections))
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_escape(title)}</h1>\n"
        f'<p class="subtitle">{_escape(subtitle)}</p>\n<nav>{links}</nav>\n{body}\n'
        "</body>\n</html>\n"
    )
    write_atomically(path, page.encode("utf-8", "backslashreplace"))


def _section(section: Section) -> str:
    parts = [f'<h2 id="{_escape(section.name)}">{_escape(section.name)}</h2>']
    parts.append(f"<p>{_escape(section.summary)}</p>")
    if section.skipped:
        parts.append(f"<p>Skipped: {_escape(section.skipped)}</p>")
    for item in section.items:
        caption = f"<figcaption>{_escape(item.caption)}</figcaption>"
        parts.append(f"<figure>{item.element}{caption}</figure>")
    return "\n".join(parts)


def _row(tag: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_escape(text)}</{tag}>" for text in texts) + "</tr>"


def _escape(text: str) -> str:
    return html.escape(printable(text))
