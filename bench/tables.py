"""Tables as Markdown, for the pages of docs/."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

__all__ = ["markdown"]


def markdown(
    headings: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)
) -> str:
    """A table, without an end of line after it.

    Args:
        headings: One for each column.
        rows: Cells, as many as there are columns.
        left: Numbers of the columns that stand on the left: words, and no figures.
    """
    ruler = ["---" if index in left else "---:" for index in range(len(headings))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ruler, *rows))
