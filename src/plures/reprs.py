"""How results show themselves: a few lines of text, and the same as tables in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

NAMES = 6  # class names in a line


def as_text(title: str, rows: dict[str, str]) -> str:
    """The title, and below it a line per row.

    Example:
        >>> print(as_text("Labels", {"images": "3"}))
        Labels
          images  3
    """
    width = max(map(len, rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def as_html(title: str, rows: dict[str, str], header: Sequence[str] = (), body: Iterable[Sequence[str]] = ()) -> str:
    """The title with a table of the rows; header and body: a second table below it."""
    lines = [f"<b>{escape(title)}</b>", _table((), rows.items())]
    return "<div>" + "".join([*lines, *([_table(header, body)] if header else [])]) + "</div>"


def some_names(names: Sequence[str]) -> str:
    """How many, and the first of them: `4 (cat, dog, sofa, tree)`."""
    return f"{len(names):,} ({', '.join(names[:NAMES])}{', ...' if len(names) > NAMES else ''})"


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    head = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>" if header else ""
    cells = (f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in body)
    return f"<table>{head}{''.join(cells)}</table>"
