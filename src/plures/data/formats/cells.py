"""Cells of a table: columns of text or numbers into label codes, and cells of tags into (row, class) pairs.

1, 0 and blank are present, absent and unknown; so are the spellings that programs give them (1.0, True, nan, None)."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from plures.data.formats.safe_cells import bare
from plures.labels import ABSENT, PRESENT, UNKNOWN

BAD = 2  # a cell that is none of 1, 0 and blank

_OF_BYTE = np.full(256, BAD, np.int8)
_OF_BYTE[ord("1")], _OF_BYTE[ord("0")], _OF_BYTE[ord(" ")] = PRESENT, ABSENT, UNKNOWN
_OF_NUMBER = np.full(256, BAD, np.int8)
_OF_NUMBER[1], _OF_NUMBER[0] = PRESENT, ABSENT


_WORDS = {"1": PRESENT, "true": PRESENT, "0": ABSENT, "false": ABSENT} | dict.fromkeys(
    ("", "nan", "none", "null", "na", "n/a", "<na>"), UNKNOWN
)
LABEL_LIKE = frozenset(
    [
        "1",
        "0",
        "-1",
        "true",
        "false",
        "t",
        "f",
        "yes",
        "no",
        "y",
        "n",
        "x",
        "present",
        "absent",
        "positive",
        "negative",
        "pos",
        "neg",
    ]
)


def normal(cell: str) -> str:
    """A cell without blanks around it and case; a number in its shortest spelling (-1.0 is -1)."""
    word = cell.strip().casefold()
    try:
        return f"{float(word):g}"
    except ValueError:
        return word


@dataclass(frozen=True)
class Meaning:
    """What cells of class columns mean besides 1, 0 and blank: words, as `normal` has them, of every column and of one.

    Example:
        >>> Meaning.parse(absent="no", unknown="-1, Edema:u").of("Edema")["u"]
        -1
    """

    every: tuple[tuple[str, int], ...] = ()
    single: tuple[tuple[str, str, int], ...] = ()  # column, word, code

    @classmethod
    def parse(cls, present: str = "", absent: str = "", unknown: str = "") -> Meaning:
        """From options: words separated by commas, each WORD or COLUMN:WORD."""
        every, single = list[tuple[str, int]](), list[tuple[str, str, int]]()
        for text, code in ((present, PRESENT), (absent, ABSENT), (unknown, UNKNOWN)):
            for item in listed(text):
                column, colon, word = item.rpartition(":")
                if colon and column:
                    single.append((column, normal(word), code))
                else:
                    every.append((normal(item), code))
        return cls(tuple(every), tuple(single))

    def __bool__(self) -> bool:
        return bool(self.every or self.single)

    @property
    def columns(self) -> list[str]:
        """The columns that have words of their own."""
        return [column for column, _, _ in self.single]

    def of(self, column: str) -> dict[str, int]:
        """The code of every word that a cell of this column may hold."""
        return {**_WORDS, **dict(self.every), **{word: code for name, word, code in self.single if name == column}}


def listed(text: str) -> list[str]:
    """The items of an option's text, separated by commas; one that holds a comma stands in double quotes."""
    return [item.strip() for item in next(csv.reader([text], skipinitialspace=True), []) if item.strip()]


def codes(column: Any, words: dict[str, int] | None = None) -> NDArray[np.int8]:
    """Labels of a column of cells.

    Args:
        column: a pyarrow array of N cells.
        words: the code of each word, see `Meaning.of`; None: 1, 0, blank and their usual spellings.

    Returns:
        int8 [N]: 1, 0, -1 for unknown, BAD for a word that means nothing.
    """
    if not len(column):
        return np.empty(0, np.int8)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if words is not None:
        return _codes_of_words(column, words)
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


def _codes_of_words(column: Any, words: dict[str, int]) -> NDArray[np.int8]:
    """Any cells, each distinct one looked up once."""
    try:
        distinct = column.cast(pa.string()).fill_null("").dictionary_encode()
    except pa.ArrowException:  # no text, as a list
        return np.where(column.is_null().to_numpy(zero_copy_only=False), np.int8(UNKNOWN), np.int8(BAD))
    table = np.array([words.get(normal(word), BAD) for word in distinct.dictionary.to_pylist()], np.int8)
    return np.asarray(table[distinct.indices.to_numpy()], np.int8)


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
        return _codes_of_words(column, _WORDS)
    if lengths.min() == 1:
        return _OF_BYTE[data[offsets[0] : offsets[-1]]]
    found = _OF_BYTE[data[np.minimum(offsets[:-1], len(data) - 1)]]
    found[lengths == 0] = UNKNOWN
    return found


# --------------------------------------------------------------------------------------------------- cells of tags

NULLS = ("nan", "NaN", "None", "null", "NULL", "<NA>", "N/A")  # how programs write a cell in which nothing stands
_SPELLED = r"^\s*(\[.*\]|\(.*\)|\{[^:]*\}|set\(.*\))\s*$"  # a list, tuple or set, as Python, numpy or JSON writes it
_WORD_IN_LIST = re.compile(r"""'[^']*'|"[^"]*"|[^,\s'"][^,'"]*""")
_NESTED = r"^\s*(\{.*:.*\}|\[.*[\[{(].*\])\s*$"
_ONE_HOT = re.compile(r"[01]\.?([\s,|/]+[01]\.?)+")
_IN_BRACKETS = re.compile(r"set\([\[({](.*)[\])}]\)|set\(\)|[\[({](.*)[\])}]", re.DOTALL)


def is_nested(column: Any) -> NDArray[np.bool_]:
    """[N] which cells of tags spell a mapping, or a list of lists or mappings: no tags that can be read."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return np.zeros(len(column), np.bool_)
    found = pc.match_substring_regex(column.fill_null(""), _NESTED)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)


def _spelled(cell: str, separator: str) -> list[str]:
    """The tags of a cell, which may spell a list: ['a', 'b'], ["a", "b"], ['a' 'b'], [a, b], ('a', 'b'), {'a', 'b'}.

    (a) without a quotation mark or a comma is a word in brackets, no tuple.
    """
    text = cell.strip()
    inside = _IN_BRACKETS.fullmatch(text)
    if inside is None or (text[0] == "(" and text != "()" and not re.search("[,'\"]", text)):
        return cell.split(separator)
    return [
        word.strip("'\"") for word in _WORD_IN_LIST.findall(inside[1] or inside[2] or "") if word.strip() not in NULLS
    ]


def _is_one_hot(rows: NDArray[np.int64], words: NDArray[np.int64], kinds: list[str]) -> bool:
    """Whether the words of cells are places of classes: 1 and 0 alone, as many in each cell, and one of them twice."""
    if len(words) < 2 or not {normal(kinds[k]) for k in np.unique(words).tolist()} <= {"1", "0"}:
        return False
    times = np.unique(rows, return_counts=True)[1]
    twice = len(np.unique(np.stack([rows, words]), axis=1).T) < len(words)
    return bool(times[0] > 1 and (times == times[0]).all() and twice)


@dataclass
class TagPairs:
    """The tags of a table, gathered batch by batch as pairs (row, number of the tag)."""

    separator: str
    text: bool = False  # of a text file, where a spreadsheet's apostrophe is no part of a tag
    nulls: int = 0  # cells, or tags in them, that say that nothing stands there
    one_hot: bool = False  # a cell has a 1 or 0 for each class, whose names nobody knows
    numbers: dict[str, int] = field(default_factory=dict)
    _rows: list[NDArray[np.int64]] = field(default_factory=list)
    _tags: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, column: Any, first_row: int) -> None:
        """Take a batch: cells of text ("cat;sofa") or lists of text. `first_row`: the row of its first cell."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            column = self._split(column.cast(pa.string()).fill_null(""))
        words = pc.utf8_trim_whitespace(pc.list_flatten(column).cast(pa.string()).fill_null("")).dictionary_encode()
        spelt = words.dictionary.to_pylist()
        spelt = list(map(bare, spelt)) if self.text else spelt
        table = np.array([self._number(word) for word in spelt] or [-1], np.int32)
        numbers = words.indices.to_numpy()
        tags = table[numbers]
        rows = pc.list_parent_indices(column).to_numpy().astype(np.int64) + first_row
        blank = np.array([word in NULLS for word in spelt], np.bool_)
        if blank.any():
            tags = np.where(blank[numbers], np.int32(-1), tags)
            self.nulls += int(blank[numbers].sum())
        self.one_hot |= _is_one_hot(rows, numbers.astype(np.int64), spelt)
        real = tags >= 0  # an empty cell, or the end of "cat;", is no tag
        self._rows.append(rows[real])
        self._tags.append(tags[real])

    def _split(self, cells: Any) -> Any:
        """Cells of text as lists of words."""
        blank = pc.is_in(pc.utf8_trim_whitespace(cells), value_set=pa.array(NULLS))
        if pc.any(blank).as_py():
            self.nulls += pc.sum(blank).as_py()
            cells = pc.if_else(blank, "", cells)
        if pc.any(pc.match_substring_regex(cells, _SPELLED)).as_py():
            return pa.array([_spelled(cell, self.separator) for cell in cells.to_pylist()], pa.list_(pa.string()))
        return pc.split_pattern(cells, self.separator)

    def _number(self, word: str) -> int:
        return self.numbers.setdefault(word, len(self.numbers)) if word and word not in NULLS else -1

    def is_one_hot(self) -> bool:
        """Whether cells hold a 1 or 0 for each class, be it as lists or as words such as 0 1 0."""
        return self.one_hot or bool(self.numbers and all(map(_ONE_HOT.fullmatch, self.numbers)))

    def pairs(self, classes: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs as (row, column), the columns in the order of `classes`, which holds every tag."""
        place = {name: column for column, name in enumerate(classes)}
        column = np.array([place[word] for word in self.numbers] or [0], np.int64)
        rows = np.concatenate(self._rows) if self._rows else np.empty(0, np.int64)
        tags = np.concatenate(self._tags) if self._tags else np.empty(0, np.int32)
        return rows, column[tags]
