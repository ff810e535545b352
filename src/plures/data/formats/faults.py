"""Cells of a table that cannot be read, gathered: many equal ones are one problem with examples and a count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plures.data.formats.cells import normal
from plures.data.formats.split_names import UNDERSTOOD
from plures.data.formats.table_layout import Layout
from plures.errors import BadData, Problem

LABELS, NESTED, SPLITS = "labels", "nested", "splits"
SLIPS = 0.05  # of the rows: a word that stands in more of them is no slip but another way of writing labels
SHOWN = 6  # columns or words in a line
_YES, _NO = (
    frozenset(["yes", "y", "t", "x", "present", "positive", "pos"]),
    frozenset(["no", "n", "f", "absent", "negative", "neg"]),
)


@dataclass
class _Cells:
    """The cells of one kind in one column: how often each word stands there, and the first row."""

    words: Counter[str] = field(default_factory=Counter)
    row: int = 0


@dataclass
class Faults:
    """What was found, by kind and column; zeros: whether a class column with faulty cells holds a 0 too."""

    zeros: bool = False
    found: dict[tuple[str, str], _Cells] = field(default_factory=dict)

    def add(self, kind: str, column: str, cells: list[str], rows: NDArray[np.int64]) -> None:
        """Take note of cells and the rows they stand in."""
        entry = self.found.setdefault((kind, column), _Cells(row=int(rows[0])))
        entry.words.update(cell[:100] for cell in cells)

    def problems(self, file: Path, layout: Layout, usable: int) -> list[Problem]:
        """One problem for columns with the same faulty words.

        Args:
            file: the table.
            layout: its columns.
            usable: how many rows there are besides the faulty ones.

        Raises:
            BadData: where a word is no slip, so that leaving its rows out would bend the data.
        """
        made: list[Problem] = []
        alike: dict[frozenset[str], list[str]] = {}
        systematic = False
        for (kind, column), entry in self.found.items():
            if kind == LABELS:
                alike.setdefault(frozenset(map(normal, entry.words)), []).append(column)
                most = max(2.0, SLIPS * (usable + entry.words.total()))
                systematic |= max(entry.words.values()) > most
            elif kind == NESTED:
                what = f"column '{column}' spells {_examples(entry.words)}"
                expected = "tags with the separator between them, or a list of tags"
                made.append(Problem(str(file), entry.row, what, expected))
            else:
                what = f"column '{column}' holds {_examples(entry.words)}, no words for a split"
                expected = "True, False, 1 or 0" if layout.valid else UNDERSTOOD
                made.append(
                    Problem(str(file), entry.row, what, f"{expected}; data.split_column=NAME names another column")
                )
        for words, columns in alike.items():
            entries = [self.found[LABELS, column] for column in columns]
            counted = [f"'{c}' ({e.words.total():,} rows)" for c, e in zip(columns, entries, strict=True)]
            more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
            which = "column" if len(columns) == 1 else "columns"
            verb = "holds" if len(columns) == 1 else "hold"
            total = sum((e.words for e in entries), Counter[str]())
            what = f"{which} {', '.join(counted[:SHOWN])}{more} {verb} {_examples(total)}"
            row = min(e.row for e in entries)
            made.append(Problem(str(file), row, what, f"1, 0 or blank{_way(words, self.zeros, columns[0])}"))
        if systematic:
            raise BadData(made, skippable=False)
        return made


def _examples(words: Counter[str]) -> str:
    shown = ", ".join(f"'{word}'" for word, _ in words.most_common(SHOWN))
    return shown + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def _way(words: frozenset[str], zeros: bool, column: str) -> str:
    """The option that says what the words mean."""
    if words == {"-1"} and not zeros:
        return "; values are -1 and 1: data.absent=-1 takes -1 for absent"
    if words == {"-1"}:
        return f"; data.unknown=-1 takes -1 for unknown, data.absent=-1 for absent; {column}:-1 is for one column"
    yes, no = sorted(words & _YES), sorted(words & _NO)
    if (yes or no) and words <= _YES | _NO:
        said = [f"data.present={','.join(yes)}"] * bool(yes) + [f"data.absent={','.join(no)}"] * bool(no)
        return f"; {' '.join(said)} says what they mean"
    return "; data.classes=A,B names the columns that are classes"
