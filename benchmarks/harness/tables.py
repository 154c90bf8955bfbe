"""Tables of text."""

from collections.abc import Mapping, Sequence


def text_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows of the same keys as aligned lines under a header; the first column to the left."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [
        "  ".join([name.ljust(first), *(c.rjust(n) for c, n in zip(cells, rest, strict=True))])
        for name, *cells in lines
    ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows of the same keys as lines of Markdown; columns of wide tables to the right."""
    header = list(rows[0])
    ruler = ["---", *("---:" if len(header) > 5 else "---" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruler, *(r.values() for r in rows))]
