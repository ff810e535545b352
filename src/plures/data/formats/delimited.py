"""Delimited text (CSV, TSV) in blocks of whole lines: fast where cells are single characters, exact everywhere.

A table with a column per class is hundreds of cells a line, nearly all of them one character or none. `single_cells`
reads such a block with a handful of numpy passes over its bytes (about three times as fast as a CSV parser on two
cores); any block that is not of that kind goes through pyarrow's parser (`parse`). Cells must not contain line ends.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from plures.data.formats.cells import BAD
from plures.data.formats.safe_cells import bare
from plures.data.formats.table_layout import named
from plures.errors import BadData, PluresError, Problem
from plures.labels import ABSENT, PRESENT, UNKNOWN

BLOCK = 1 << 20  # bytes: small enough for the caches

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Header:
    """names of the columns, the delimiter between them, and the first line's length in bytes."""

    names: list[str]
    delimiter: str
    length: int


def read_header(path: Path, delimiter: str = "", encoding: str = "") -> Header:
    """The first line. An empty delimiter is guessed: tab for .tsv, else what the line has most of; an empty encoding is
    UTF-8, or UTF-16 where the file begins so. A nameless column is called as pandas does. Raises BadData."""
    with _opened(path, encoding) as file:
        line = file.readline()
    try:
        text = line.removeprefix(_BOM).decode().strip("\r\n")
    except UnicodeDecodeError:
        raise _not_utf8(path, 1) from None
    if not text.strip():
        raise BadData([Problem(str(path), None, "the table is empty", "a first line that names the columns")], False)
    if not delimiter:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=text.count)
    try:
        names = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:  # a name of more than 131,072 characters
        raise BadData([Problem(str(path), 1, f"not a table ({error})", "delimited text")], False) from None
    return Header(named([bare(name.strip()) for name in names]), delimiter, len(line))


def _opened(path: Path, encoding: str) -> BinaryIO:
    """The bytes of the table as UTF-8."""
    file = path.open("rb")
    if not encoding:
        start = file.read(2)
        file.seek(0)
        if start not in (b"\xff\xfe", b"\xfe\xff"):
            return file
        encoding = "utf-16"
    with file:
        try:
            return BytesIO(file.read().decode(encoding).encode())
        except LookupError:
            raise PluresError(f"there is no encoding '{encoding}'; use cp1252, latin-1, utf-16, ...") from None
        except UnicodeError as error:
            raise BadData([Problem(str(path), None, f"not {encoding} text ({error})", "text")], False) from None


def blocks(path: Path, start: int, encoding: str = "") -> Iterator[tuple[int, bytes]]:
    """The bytes after the header in blocks of whole lines, each with the 1-based number of its first line."""
    line, rest = 2, b""
    with _opened(path, encoding) as file:
        file.seek(start)
        while True:
            read = file.read(BLOCK)
            if read:
                end = read.rfind(b"\n") + 1
                if not end:
                    rest += read
                    continue
                block, rest = rest + read[:end], read[end:]
            else:
                block, rest = rest + b"\n" if rest else b"", b""
            if b"\r" in block:
                block = block.replace(b"\r\n", b"\n")
            if block:
                yield line, block
                line += block.count(b"\n")
            if not read:
                return


# ------------------------------------------------------------------------------------------- cells of one character

_OF_BYTE = np.full(256, BAD, np.int8)
_OF_BYTE[ord("1")], _OF_BYTE[ord("0")] = PRESENT, ABSENT


@dataclass(frozen=True)
class SingleCells:
    """A block of n lines: codes int8 [n, C] of C neighbouring columns, and where every cell of the others lies."""

    codes: NDArray[np.int8]
    block: bytes
    ends: NDArray[np.int64]  # [n, columns]: place of the delimiter after each cell

    def text(self, column: int) -> list[str]:
        """The cells of a column as text, stripped."""
        starts = self.ends[:, column - 1] + 1 if column else np.concatenate([[0], self.ends[:-1, -1] + 1])
        pairs = zip(starts.tolist(), self.ends[:, column].tolist(), strict=True)
        return [bare(self.block[start:end].decode().strip()) for start, end in pairs]


def single_cells(block: bytes, delimiter: str, columns: int, first: int, last: int) -> SingleCells | None:
    """Read columns first..last (first > 0) of a block as cells of 1, 0 or nothing; None if it is not so."""
    if b'"' in block:
        return None
    data = np.frombuffer(block, np.uint8)
    marks = data == ord(delimiter)
    marks |= data == ord("\n")
    places = np.flatnonzero(marks)
    if len(places) % columns or len(places) != columns * block.count(b"\n"):
        return None
    ends = places.reshape(-1, columns)  # [n, columns]
    if (data[ends[:, -1]] != ord("\n")).any():
        return None
    table = _OF_BYTE.copy()
    table[ord(delimiter)] = table[ord("\n")] = UNKNOWN  # the delimiter stands where the cell's text would
    starts = ends[:, first - 1 : last]  # [n, C]
    codes = table.take(data.take(starts.ravel() + 1)).reshape(starts.shape)  # [n, C]
    if codes.size and codes.max() == BAD:  # a mistake, or a blank that a space fills
        return None
    filled = (codes != UNKNOWN).sum(1)
    if (ends[:, last] - ends[:, first - 1] != filled + starts.shape[1]).any():  # some cell is longer
        return None
    return SingleCells(codes, block, ends)


# -------------------------------------------------------------------------------------------------- any other block


def parse(
    block: bytes, line: int, header: Header, wanted: list[str], path: Path
) -> tuple[NDArray[np.int64], Any, list[Problem]]:
    """Parse a block that starts at this line. Returns line numbers [n], a pyarrow table of text [n, wanted] and the
    lines with too few or too many cells. Raises BadData if the text is not UTF-8."""
    _refuse_other_encodings(block, line, path)
    count = block.count(b"\n")
    skipped: list[int] = []
    problems: list[Problem] = []

    def skip(row: Any) -> str:
        skipped.append(row.number - 1)
        expected = f"{row.expected_columns}, as in the first line"
        problems.append(Problem(str(path), line + row.number - 1, f"{row.actual_columns} cells", expected))
        return "skip"

    try:
        table = pacsv.read_csv(
            pa.BufferReader(block),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=header.names),
            parse_options=pacsv.ParseOptions(
                delimiter=header.delimiter, ignore_empty_lines=False, invalid_row_handler=skip
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted
            ),
        )
    except pa.ArrowInvalid as error:
        raise BadData([Problem(str(path), None, f"not a table ({error})", "delimited text")], False) from error
    if count != table.num_rows + len(skipped):
        broken = Problem(str(path), None, "a cell contains a line end or a carriage return", "one line per row")
        raise BadData([broken], False)
    numbers = np.delete(np.arange(line, line + count), skipped)
    return numbers, table.combine_chunks(), problems


def _refuse_other_encodings(block: bytes, line: int, path: Path) -> None:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(path, line + block.count(b"\n", 0, error.start)) from None


def _not_utf8(path: Path, line: int) -> BadData:
    expected = "UTF-8 (save it as CSV UTF-8), or data.encoding=cp1252 for what Excel wrote on Windows"
    return BadData([Problem(str(path), line, "the text is not UTF-8", expected)], False)
