"""Tables: CSV, TSV or Parquet with an image a row, and its tags in one column or one column per class.

Forms: `image` + `tags` ("cat;sofa") [+ `absent` (the same way)], or `image` + one column per class with 1, 0 or
blank. Either may have a `split` column. A tag that is not given is unknown, unless `complete` says it is absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plures.data import delimited
from plures.data.cells import BAD, TagPairs, codes
from plures.data.dataset import Dataset, formats
from plures.data.duplicates import merge_duplicates
from plures.data.table_layout import Layout, lay_out
from plures.data.verify import missing_images
from plures.errors import BadData, PluresError, Problem, did_you_mean
from plures.labels import ABSENT, UNKNOWN, Labels

SUFFIXES = (".csv", ".tsv", ".parquet")
MOST_IN_SMALL_FILES = 1_000_000  # rows of a Parquet file that need no byte each
ROWS_AT_ONCE = 8192  # of a Parquet file


@dataclass(frozen=True)
class Rows:
    """A batch of n rows: their numbers in the file, image and split cells, and the labels in one of the two forms."""

    numbers: NDArray[np.int64]
    images: list[str]
    splits: list[str] | None
    codes: NDArray[np.int8] | None = None  # [n, K], a column per class
    tags: Any = None  # a pyarrow column of n cells
    absent: Any = None


@dataclass
class Gathered:
    """Everything read so far."""

    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    splits: list[NDArray[np.str_]] = field(default_factory=list)
    codes: list[NDArray[np.int8]] = field(default_factory=list)


@formats.part("table", title="CSV, TSV or Parquet: tags in one column, or one column per class")
class Table:
    """complete: a tag that is not given is absent, not unknown. separator: between tags in a cell. delimiter: between
    cells (guessed if empty). images: the folder that image paths start from (the table's own, or images/ in it).
    exist: leave out rows whose image is missing (one look at each folder)."""

    def __init__(
        self,
        *,
        complete: bool = False,
        separator: str = ";",
        delimiter: str = "",
        images: str = "",
        exist: bool = True,
    ) -> None:
        if not separator or len(delimiter) > 1:
            raise PluresError(f"a separator has a character or more, a delimiter one; got {separator!r}, {delimiter!r}")
        self.complete, self.separator, self.delimiter = complete, separator, delimiter
        self.images, self.exist = images, exist

    def recognises(self, path: str) -> bool:
        return _table_of(path) is not None

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        file = _table_of(path)
        if file is None:
            raise PluresError(f"no table at '{path}'; expected a file that ends in {', '.join(SUFFIXES)}")
        problems: list[Problem] = []
        layout, batches = self._open(file, problems)
        problems[:0] = layout.notices
        gathered, values, classes = gather(batches, layout, self.separator, file, problems)
        return self._finish(file, gathered, values, classes, problems)

    # ------------------------------------------------------------------------------------------------- the two files

    def _open(self, file: Path, problems: list[Problem]) -> tuple[Layout, Iterator[Rows]]:
        if file.suffix.lower() == ".parquet":
            try:
                parquet = pq.ParquetFile(file)
                names = parquet.schema_arrow.names
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise BadData([Problem(str(file), None, f"not a Parquet file ({error})")], False) from error
            layout = lay_out(names, file)
            return layout, _parquet_rows(parquet, layout, file)
        header = delimited.read_header(file, self.delimiter)
        layout = lay_out(header.names, file)
        return layout, _text_rows(file, header, layout, problems)

    # ------------------------------------------------------------------------------------------------ what comes out

    def _finish(
        self,
        file: Path,
        gathered: Gathered,
        values: NDArray[np.int8],
        classes: tuple[str, ...],
        problems: list[Problem],
    ) -> tuple[Dataset, list[Problem]]:
        if self.complete:
            np.maximum(values, ABSENT, out=values)  # unknown (-1) becomes absent (0), in place
        splits = np.concatenate(gathered.splits) if gathered.splits else None
        numbers = np.concatenate(gathered.numbers) if gathered.numbers else np.empty(0, np.int64)
        keep, found = merge_duplicates(gathered.images, values, splits, classes, numbers, str(file))
        problems += found
        folder = self._folder(file, gathered.images)
        paths = _below(folder, gathered.images)
        if self.exist:
            for row in missing_images(paths):
                if keep[row]:
                    what = f"image '{gathered.images[row]}' is missing"
                    problems.append(Problem(str(file), int(numbers[row]), what, f"a file {paths[row]}"))
                keep[row] = False
        if not keep.all():
            paths = [path for path, good in zip(paths, keep.tolist(), strict=True) if good]
            values, splits = values[keep], None if splits is None else splits[keep]
        return Dataset(paths, Labels(values), classes, splits, name=file.stem), problems

    def _folder(self, file: Path, images: list[str]) -> str:
        if self.images:
            return self.images
        beside = os.path.join(file.parent, "images")
        if images and not os.path.exists(file.parent / images[0]) and os.path.exists(os.path.join(beside, images[0])):
            return beside
        return str(file.parent)


def gather(
    batches: Iterator[Rows], layout: Layout, separator: str, file: Path, problems: list[Problem]
) -> tuple[Gathered, NDArray[np.int8], tuple[str, ...]]:
    """The usable rows of a table, their labels int8 [N, K] and the classes; the other rows become problems. A row that
    contradicts itself is marked with a code above 1, see `merge_duplicates`."""
    gathered = Gathered()
    tags, absent = TagPairs(separator), TagPairs(separator)
    for rows in batches:
        first = len(gathered.images)
        keep = _usable(rows, layout, file, problems)
        if rows.codes is not None:
            gathered.codes.append(rows.codes[keep] if not keep.all() else rows.codes)
        else:
            for pairs, column in ((tags, rows.tags), (absent, rows.absent)):
                if column is not None:
                    _add(pairs, column.filter(pa.array(keep)), first, file)
        gathered.numbers.append(rows.numbers[keep])
        gathered.images += [image for image, good in zip(rows.images, keep.tolist(), strict=True) if good]
        if rows.splits is not None:
            gathered.splits.append(np.array(rows.splits, np.str_)[keep])
    if not gathered.images and not problems:
        problems.append(Problem(str(file), None, "the table has no rows", "an image a row"))
    if layout.classes:
        return gathered, _stack(gathered.codes, len(layout.classes)), tuple(layout.classes)
    return gathered, *_scatter(tags, absent, gathered, file, problems)


def _below(folder: str, images: list[str]) -> list[str]:
    """Paths of the images, those that are not absolute below the folder (os.path.join, much faster for a million)."""
    start = os.path.join(folder, "")
    return [os.path.join(folder, i) if i[0] in "/\\" or i[1:2] == ":" else start + i for i in images]


def _table_of(path: str) -> Path | None:
    """The table at this path: the file itself, or the only table in a folder."""
    at = Path(path)
    if not path:
        return None
    if at.is_dir():
        inside = [file for suffix in SUFFIXES for file in at.glob(f"*{suffix}")]
        return inside[0] if len(inside) == 1 else None
    return at if at.suffix.lower() in SUFFIXES and at.is_file() else None


def _text_rows(file: Path, header: delimited.Header, layout: Layout, problems: list[Problem]) -> Iterator[Rows]:
    image = layout.names.index("image")
    split = layout.names.index("split") if layout.split else None
    run = layout.class_run()
    for line, block in delimited.blocks(file, header.length):
        cells = delimited.single_cells(block, header.delimiter, len(layout.names), *run) if run else None
        try:
            images = cells.text(image) if cells else []
            splits = cells.text(split) if cells and split is not None else None
        except UnicodeDecodeError:
            cells = None  # the parser below says which line it is
        if cells and all(images):
            yield Rows(np.arange(line, line + len(images)), images, splits, codes=cells.codes)
            continue
        numbers, table, found = delimited.parse(block, line, header, layout.wanted, file)
        problems += found
        yield rows_of(numbers, table, layout)


def parquet_batches(parquet: Any, columns: list[str], file: Path) -> Iterator[Any]:
    """The rows of a Parquet file in pyarrow batches. Raises BadData where a page is damaged, or where there are more
    rows than a table with a name in each can hold in so few bytes."""
    rows, size = parquet.metadata.num_rows, file.stat().st_size
    if rows > MOST_IN_SMALL_FILES and rows > size:
        what = f"{rows:,} rows in {size / 1e6:.1f} MB, which no table with an image in each row is small enough for"
        raise BadData(
            [Problem(str(file), None, what, "rows that differ; a file like this only fills the memory")], False
        )
    try:
        for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            batch.validate(full=True)  # text that is not UTF-8 would fail far from here
            yield batch
    except (pa.ArrowException, OSError) as error:
        line = " ".join(str(error).split())
        raise BadData([Problem(str(file), None, f"a damaged Parquet file ({line})")], False) from error


def _parquet_rows(parquet: Any, layout: Layout, file: Path) -> Iterator[Rows]:
    first = 1
    for batch in parquet_batches(parquet, layout.wanted, file):
        numbers = np.arange(first, first + batch.num_rows)
        first += batch.num_rows
        yield rows_of(numbers, pa.Table.from_batches([batch]).combine_chunks(), layout)


def rows_of(numbers: NDArray[np.int64], table: Any, layout: Layout) -> Rows:
    """A batch from a pyarrow table with the layout's columns."""

    def column(name: str) -> Any:
        return table.column(name).combine_chunks()

    images = _words(column("image"))
    splits = _words(column("split")) if layout.split else None
    if not layout.classes:
        absent = column("absent") if layout.absent else None
        return Rows(numbers, images, splits, tags=column("tags"), absent=absent)
    values = np.empty((len(layout.classes), len(images)), np.int8)  # [K, n]: a column's cells side by side
    for place, name in enumerate(layout.classes):
        values[place] = codes(column(name))
    return Rows(numbers, images, splits, codes=np.ascontiguousarray(values.T))  # [n, K]


def _add(pairs: TagPairs, column: Any, first: int, file: Path) -> None:
    try:
        pairs.add(column, first)
    except pa.ArrowException:
        what = f"the column of tags is of type {column.type}"
        raise BadData([Problem(str(file), None, what, "text or lists of text")], False) from None


def _words(column: Any) -> list[str]:
    return ["" if cell is None else str(cell).strip() for cell in column.to_pylist()]


# --------------------------------------------------------------------------------------------------------- the labels


def _usable(rows: Rows, layout: Layout, file: Path, problems: list[Problem]) -> NDArray[np.bool_]:
    """[n] which rows of a batch can be used; the others become problems, except lines that are wholly blank."""
    keep = np.ones(len(rows.images), np.bool_)
    for row in [row for row, image in enumerate(rows.images) if not image]:
        keep[row] = False
        blank = bool((rows.codes[row] == UNKNOWN).all()) if rows.codes is not None else not rows.tags[row].as_py()
        if not blank:
            problems.append(Problem(str(file), int(rows.numbers[row]), "no image in this row", "a path"))
    if rows.codes is not None and (rows.codes == BAD).any():
        for row, column in np.argwhere(rows.codes == BAD).tolist():
            what = f"column '{layout.classes[column]}' is none of the label values{_meant(layout.classes[column])}"
            problems.append(Problem(str(file), int(rows.numbers[row]), what, "1, 0 or blank"))
            keep[row] = False
    return keep


def _meant(name: str) -> str:
    """A hint where a column looks like a misspelt `tags`, `absent` or `split`."""
    if name.lower() in ("label", "labels", "classes"):
        return "; did you mean 'tags'?"
    hint = did_you_mean(name.lower(), ["tags", "absent", "split"])
    return hint if "did you mean" in hint else ""


def _stack(chunks: list[NDArray[np.int8]], classes: int) -> NDArray[np.int8]:
    """One array [N, K] from the batches, letting go of each as it is copied (half the peak of np.concatenate)."""
    values = np.empty((sum(len(chunk) for chunk in chunks), classes), np.int8)
    start = 0
    chunks.reverse()
    while chunks:
        chunk = chunks.pop()
        values[start : start + len(chunk)] = chunk
        start += len(chunk)
    return values


def _scatter(
    tags: TagPairs, absent: TagPairs, gathered: Gathered, file: Path, problems: list[Problem]
) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """The label array of the tags form, and its classes in alphabetical order."""
    classes = tuple(sorted({*tags.numbers, *absent.numbers}))
    values = np.full((len(gathered.images), len(classes)), UNKNOWN, np.int8)
    values[absent.pairs(classes)] = ABSENT
    rows, columns = tags.pairs(classes)
    both = values[rows, columns] == ABSENT
    values[rows, columns] = 1
    if both.any():
        numbers = np.concatenate(gathered.numbers)
        for row, column in zip(rows[both].tolist(), columns[both].tolist(), strict=True):
            what = f"'{classes[column]}' is among the tags and among the absent"
            problems.append(Problem(str(file), int(numbers[row]), what, "one of the two"))
            values[row] = BAD  # left out with the duplicates that disagree
    return values, classes
