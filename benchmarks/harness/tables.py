"""Tables of text."""

from collections.abc import Mapping, Sequence


def text_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns rows with the same keys as aligned lines under a header.

    The first column is aligned to the left, the others to the right.
    """
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [
        "  ".join([name.ljust(first), *(c.rjust(n) for c, n in zip(cells, rest, strict=True))])
        for name, *cells in lines
    ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns rows with the same keys as lines of Markdown.

    The columns of tables with more than five columns are aligned to the right, except the first.
    """
    header = list(rows[0])
    ruler = ["---", *("---:" if len(header) > 5 else "---" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruler, *(r.values() for r in rows))]
