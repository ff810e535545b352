"""Cells of a table: columns of text or numbers into label codes, and cells of tags into (row, class) pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from plures.labels import ABSENT, PRESENT, UNKNOWN

BAD = 2  # a cell that is none of 1, 0 and blank

_OF_BYTE = np.full(256, BAD, np.int8)
_OF_BYTE[ord("1")], _OF_BYTE[ord("0")], _OF_BYTE[ord(" ")] = PRESENT, ABSENT, UNKNOWN
_OF_NUMBER = np.full(256, BAD, np.int8)
_OF_NUMBER[1], _OF_NUMBER[0] = PRESENT, ABSENT


def codes(column: Any) -> NDArray[np.int8]:
    """A pyarrow column of N cells -> int8 [N]: 1, 0, -1 for a blank cell, BAD for anything else."""
    if not len(column):
        return np.empty(0, np.int8)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _codes_of_text(column.cast(pa.string()))
    if pa.types.is_null(column.type):
        return np.full(len(column), UNKNOWN, np.int8)
    if pa.types.is_boolean(column.type) or column.type in (pa.int8(), pa.uint8()):
        return _codes_of_bytes(column.cast(pa.int8(), safe=False))
    try:
        numbers = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.where(column.is_null().to_numpy(zero_copy_only=False), np.int8(UNKNOWN), np.int8(BAD))
    known = np.where(numbers == 1, np.int8(PRESENT), np.where(numbers == 0, np.int8(ABSENT), np.int8(BAD)))
    return np.where(np.isnan(numbers), np.int8(UNKNOWN), known)


def _codes_of_bytes(column: Any) -> NDArray[np.int8]:
    """Cells of one byte, read straight from Arrow's buffers."""
    validity, data = column.buffers()
    cells = slice(column.offset, column.offset + len(column))
    found: NDArray[np.int8] = _OF_NUMBER.take(np.frombuffer(data, np.uint8)[cells])
    if validity is not None:
        known = np.unpackbits(np.frombuffer(validity, np.uint8), count=cells.stop, bitorder="little")
        np.putmask(found, known[cells] == 0, UNKNOWN)
    return found


def _codes_of_text(column: Any) -> NDArray[np.int8]:
    """Text cells; the common case of at most one character a cell is read straight from Arrow's buffers."""
    if column.null_count:
        column = column.fill_null("")
    _, offset_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(offsets)
    longest = lengths.max()
    if longest == 0:
        return np.full(len(column), UNKNOWN, np.int8)
    data = np.frombuffer(data_buffer, np.uint8)
    if longest > 1:
        distinct = column.dictionary_encode()
        table = np.array([_code_of_word(word) for word in distinct.dictionary.to_pylist()], np.int8)
        return np.asarray(table[distinct.indices.to_numpy()], np.int8)
    if lengths.min() == 1:
        return _OF_BYTE[data[offsets[0] : offsets[-1]]]
    found = _OF_BYTE[data[np.minimum(offsets[:-1], len(data) - 1)]]
    found[lengths == 0] = UNKNOWN
    return found


def _code_of_word(word: str) -> int:
    """Also takes "1.0" and "0.0", which programs write when a column of numbers has gaps."""
    word = word.strip()
    if not word:
        return UNKNOWN
    return {"1": PRESENT, "1.0": PRESENT, "0": ABSENT, "0.0": ABSENT}.get(word, BAD)


@dataclass
class TagPairs:
    """The tags of a table, gathered batch by batch as pairs (row, number of the tag)."""

    separator: str
    numbers: dict[str, int] = field(default_factory=dict)
    _rows: list[NDArray[np.int64]] = field(default_factory=list)
    _tags: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, column: Any, first_row: int) -> None:
        """Take a batch: cells of text ("cat;sofa") or lists of text. `first_row`: the row of its first cell."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            column = pc.split_pattern(column.cast(pa.string()).fill_null(""), self.separator)
        words = pc.utf8_trim_whitespace(pc.list_flatten(column).cast(pa.string()).fill_null("")).dictionary_encode()
        table = np.array([self._number(word) for word in words.dictionary.to_pylist()] or [-1], np.int32)
        tags = table[words.indices.to_numpy()]
        rows = pc.list_parent_indices(column).to_numpy().astype(np.int64) + first_row
        real = tags >= 0  # an empty cell, or the end of "cat;", is no tag
        self._rows.append(rows[real])
        self._tags.append(tags[real])

    def _number(self, word: str) -> int:
        return self.numbers.setdefault(word, len(self.numbers)) if word else -1

    def pairs(self, classes: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs as (row, column), the columns in the order of `classes`, which holds every tag."""
        place = {name: column for column, name in enumerate(classes)}
        column = np.array([place[word] for word in self.numbers] or [0], np.int64)
        rows = np.concatenate(self._rows) if self._rows else np.empty(0, np.int64)
        tags = np.concatenate(self._tags) if self._tags else np.empty(0, np.int32)
        return rows, column[tags]
