"""Hugging Face's imagefolder with `metadata.jsonl`: an object a line, with `file_name` and the tags of that photograph.

The labels are a list or a word (`labels`, `tags`, `label`, ...; and perhaps `absent`), or a key per class with 1, 0 or
null, as in a table, whose options hold here too. `metadata.csv` and `.parquet` are read as tables, and numbers in
Parquet by the class names in its schema. One file in each of the folders train, validation, test is one data set.

Present: a tag that is given, a 1. Absent: what `absent` names, a 0. Unknown: everything else, unless `complete`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plures.data.dataset import formats
from plures.data.formats.annotations import exports_at
from plures.data.formats.table import LOOKED_AT, Rows, Table, rows_of
from plures.data.formats.table_layout import Layout, image_column
from plures.errors import BadData, Problem
from plures.files import parse_json

EXPECTED = 'a JSON object a line, as in {"file_name": "1.jpg", "labels": ["cat"]}'


@formats.register("huggingface", title="Hugging Face's imagefolder with metadata.jsonl")
class HuggingFace(Table):
    """The options are those of a table; `file_name` is the image column."""

    def files(self, path: str) -> list[tuple[str, Path]]:
        """The files of JSON lines at this path, each with the split of its folder."""
        return exports_at(path, (".jsonl", ".ndjson"), _is_metadata)

    def reason(self, path: str) -> str:
        """Why this path is read as Hugging Face's metadata."""
        files = self.files(path)
        where = f"{len(files)} files in split folders" if len(files) > 1 else files[0][1].name
        return f"{where}: a JSON object a line; {self.layout(files[0][1]).in_words()}"

    def _open(self, file: Path, problems: list[Problem]) -> tuple[Layout, Iterator[Rows]]:
        numbers, records = _records(file, problems)
        names = list(dict.fromkeys(key for record in records for key in record))
        held = {name: [record.get(name) for record in records] for name in names}
        nested = [name for name in names if any(map(_is_nested, held[name]))]
        cells = {name: _cells(held[name]) for name in names if name not in nested}
        text = {name: [_word(cell) for cell in column[:LOOKED_AT].to_pylist()] for name, column in cells.items()}
        layout = self._lay_out(list(cells), file, lambda wanted: text)
        if nested:
            what = f"what {', '.join(map(repr, nested))} holds are objects, no tags; not used"
            problems.append(Problem(str(file), None, what, severity="notice"))
        return layout, iter([rows_of(numbers, pa.table(cells), layout)])


def _is_metadata(file: Path) -> bool:
    """Whether the first line is an object with a key that may name an image."""
    with file.open("rb") as opened:
        line = opened.readline(1_000_000)
    try:
        record = parse_json(line.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return False
    return isinstance(record, dict) and bool(image_column(list(record)))


def _records(file: Path, problems: list[Problem]) -> tuple[Any, list[dict[str, Any]]]:
    """The objects, and the lines that they stand in; other lines become problems."""
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise BadData([Problem(str(file), None, f"cannot be read ({error.strerror})", EXPECTED)], False) from None
    numbers, records = list[int](), list[dict[str, Any]]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            if not isinstance(record, dict):
                raise ValueError(f"{type(record).__name__}, no object")
        except ValueError as error:
            problems.append(Problem(str(file), number, f"a line that cannot be read ({error})", EXPECTED))
            continue
        numbers.append(number)
        records.append(record)
    if not records:
        raise BadData([*problems, Problem(str(file), None, "no line can be read", EXPECTED)], False)
    return np.array(numbers, np.int64), records


def _is_nested(cell: Any) -> bool:
    """Whether a cell is an object or a list of more than words and numbers, such as boxes."""
    return isinstance(cell, dict) or (isinstance(cell, list) and any(isinstance(one, dict | list) for one in cell))


def _cells(column: list[Any]) -> Any:
    """A pyarrow array of text, or of lists of text where a cell is one."""
    try:
        if any(isinstance(cell, list) for cell in column):
            lists = [
                cell if isinstance(cell, list) else [] if cell is None or cell == "" else [cell] for cell in column
            ]
            return pa.array([[_word(one) for one in cell] for cell in lists], pa.list_(pa.string()))
        return pa.array([_word(cell) for cell in column], pa.string())
    except UnicodeEncodeError as error:  # half a surrogate
        raise BadData([Problem("metadata", None, f"{error.object[:50]!r} is no text", "UTF-8")], False) from None


def _word(cell: Any) -> str:
    return "" if cell is None else str(cell)
