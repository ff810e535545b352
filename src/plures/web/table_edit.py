"""Changing single cells of a table on the disk: everything else in it, other columns included, stays as it is."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plures.data import delimited
from plures.data.table import image_paths
from plures.data.table_layout import Layout, lay_out
from plures.errors import PluresError
from plures.files import writing
from plures.labels import ABSENT, PRESENT

SEPARATOR = ";"
Key = str  # an image, as its path from the table's folder


@dataclass
class Changes:
    """What to change: codes (1, 0, -1) of cells by image and tag; split names by image."""

    labels: dict[Key, dict[str, int]] = field(default_factory=dict)
    splits: dict[Key, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.labels or self.splits)


def key_of(image: str, table: Path) -> Key:
    """The image's path as seen from the table's folder: the name under which decisions are kept."""
    return Path(os.path.relpath(image, table.parent)).as_posix()


def edit_table(table: Path, changes: Changes) -> None:
    """Apply the changes and write the table in its place, whole or not at all.

    A table without a split column gets one if a split changes: every other row is "train" then. Rows of an image that
    stands in several rows are all changed. Raises PluresError if a class has no column in a table of class columns.
    """
    if table.suffix.lower() == ".parquet":
        _edit_parquet(table, changes)
    else:
        _edit_text(table, changes)


class _Keys:
    """The key of each image cell: of the file that the reader finds for it."""

    def __init__(self, table: Path, cells: Iterable[str]) -> None:
        self.table, named = table, [cell for cell in cells if cell]
        self.paths = dict(zip(named, image_paths(table, named), strict=True))

    def __call__(self, cell: str) -> Key:
        return key_of(self.paths[cell], self.table)


def _edit_text(table: Path, changes: Changes) -> None:
    delimiter = delimited.read_header(table, "").delimiter
    with table.open(newline="", encoding="utf-8-sig") as handle:
        rows = list(csv.reader(handle, delimiter=delimiter))
    names = [name.strip() for name in rows[0]]
    layout = lay_out(names, table)
    editor = _Editor(layout, changes)
    rows[0] += [name for name in editor.columns if name not in names]
    place = {name: i for i, name in enumerate(rows[0])}
    at = place["image"]
    keys = _Keys(table, (row[at].strip() for row in rows[1:] if len(row) > at))
    for row in rows[1:]:
        if len(row) <= at or not row[at].strip():
            continue
        key = keys(row[at].strip())
        row += [""] * (len(rows[0]) - len(row))
        cells = {name: row[place[name]] for name in editor.columns}
        for name, value in editor.edit(key, cells).items():
            row[place[name]] = value
    with writing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, delimiter=delimiter, lineterminator="\n").writerows(rows)


def _edit_parquet(table: Path, changes: Changes) -> None:
    content = pq.read_table(table)
    editor = _Editor(lay_out(content.column_names, table), changes)
    names = [str(image or "").strip() for image in content.column("image").to_pylist()]
    key_of_cell = _Keys(table, names)
    keys = [key_of_cell(name) if name else "" for name in names]
    columns: dict[str, list[Any]] = {
        name: content.column(name).to_pylist() if name in content.column_names else [None] * len(keys)
        for name in editor.columns
    }
    for row, key in enumerate(keys):
        cells = {name: "" if column[row] is None else str(column[row]) for name, column in columns.items()}
        for name, value in editor.edit(key, cells).items():
            columns[name][row] = value
    for name, column in columns.items():
        if name not in content.column_names:
            content = content.append_column(name, pa.array(column, pa.string()))
            continue
        kind = content.schema.field(name).type
        if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            column = [_typed(value, kind) for value in column]
        content = content.set_column(content.column_names.index(name), name, pa.array(column, kind))
    with writing(table) as temporary:
        pq.write_table(content, temporary)


def _typed(value: Any, kind: Any) -> Any:
    """A cell for a class column that is not text: 1, 0 or null as a number or a truth value."""
    if value in ("", None):
        return None
    if pa.types.is_boolean(kind):
        return value if isinstance(value, bool) else value == "1"
    number = float(value)
    return number if pa.types.is_floating(kind) else int(number)


class _Editor:
    """Edits the cells of one row after another, in either form of table."""

    def __init__(self, layout: Layout, changes: Changes) -> None:
        self.changes, self.by_class = changes, bool(layout.classes)
        self.every_row = bool(changes.splits) and not layout.split  # a new column is filled everywhere
        touched = {tag for tags in changes.labels.values() for tag in tags}
        if self.by_class:
            unknown = touched - set(layout.classes)
            if unknown:
                raise PluresError(f"class '{min(unknown)}' has no column in the table; add one and start again")
            self.columns = sorted(touched)
        else:
            absent = layout.absent or any(ABSENT in tags.values() for tags in changes.labels.values())
            self.columns = ["tags", *(["absent"] if absent else [])]
        if changes.splits:
            self.columns.append("split")

    def edit(self, key: Key, cells: dict[str, str]) -> dict[str, str]:
        """The cells of a row that change."""
        new: dict[str, str] = {}
        if self.every_row:
            new["split"] = "train"
        if key in self.changes.splits:
            new["split"] = self.changes.splits[key]
        wanted = self.changes.labels.get(key, {})
        if self.by_class:
            return new | {tag: {PRESENT: "1", ABSENT: "0"}.get(code, "") for tag, code in wanted.items()}
        for name, code in (("tags", PRESENT), ("absent", ABSENT)):
            if name in cells and wanted:
                kept = [w for w in (word.strip() for word in cells[name].split(SEPARATOR)) if w and w not in wanted]
                kept += [tag for tag, value in wanted.items() if value == code]
                new[name] = SEPARATOR.join(dict.fromkeys(kept))
        return new
