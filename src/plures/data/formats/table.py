"""Tables: CSV, TSV or Parquet with an image a row, and its tags in one column or one column per class.

Forms: `image` + `tags` ("cat;sofa") [+ `absent` (the same way)], or `image` + one column per class with 1, 0 or
blank. Either may have a `split` column; usual other names of these columns are known (`table_layout.py`). Several rows
of an image are merged. One table in each of the folders train, valid, test (Roboflow's `_classes.csv`) is one data set.

Present: a tag that is given, a 1. Absent: what the column `absent` names, a 0. Unknown: anything else (a tag that is
not given, a blank), unless `complete` says it is absent. Options say what other words mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plures.data.checks.verify import missing_images
from plures.data.dataset import Dataset, formats
from plures.data.formats import delimited
from plures.data.formats.cells import BAD, NULLS, Meaning, TagPairs, codes, is_nested
from plures.data.formats.class_label import label_names, with_names
from plures.data.formats.class_rules import ClassRules, doubtful
from plures.data.formats.faults import LABELS, NESTED, SPLITS, Faults
from plures.data.formats.joined import joined
from plures.data.formats.repeated_rows import merge_duplicates
from plures.data.formats.safe_cells import bare
from plures.data.formats.split_names import VALID, split_name
from plures.data.formats.table_layout import PLAIN, Cells, Chosen, Layout, image_column, lay_out
from plures.data.paths import Found, Search, find_files
from plures.data.photos import is_junk
from plures.errors import BadData, PluresError, Problem
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels

SUFFIXES = (".csv", ".tsv", ".parquet")
SHOWN = 3  # missing images; more become one line
MOST_IN_SMALL_FILES = 1_000_000  # rows of a Parquet file that need no byte each
ROWS_AT_ONCE = 8192  # of a Parquet file
LOOKED_AT = 500  # rows, to see what a column holds


@dataclass(frozen=True)
class Rows:
    """A batch of n rows: their numbers in the file, image and split cells, and the labels in one of the two forms."""

    numbers: NDArray[np.int64]
    images: list[str]
    splits: list[str] | None
    codes: NDArray[np.int8] | None = None  # [n, K], a column per class
    tags: Any = None  # a pyarrow column of n cells
    absent: Any = None
    bad: dict[str, list[str]] = field(
        default_factory=dict
    )  # of each class column the cells whose code is BAD, in order
    groups: list[str] | None = None


@dataclass
class Gathered:
    """Everything read so far."""

    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    splits: list[NDArray[np.str_]] = field(default_factory=list)
    groups: list[NDArray[np.str_]] = field(default_factory=list)
    codes: list[NDArray[np.int8]] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)


@formats.register("table", title="CSV, TSV or Parquet: tags in one column, or one column per class")
class Table:
    """complete: a tag that is not given is absent, not unknown. separator: between tags in a cell (\\t is a tab).
    delimiter: between cells (guessed if empty). encoding: of the text, such as cp1252 (UTF-8 or UTF-16 if empty).
    images: the folder that image paths start from (the table's own, or images/ in it). exist: leave out rows whose
    image is missing (one look at each folder). image_column, tags_column, split_column: their names, if unusual;
    group: the column that names the burst or album of an image, if it is not `group`.
    classes: names of the classes to use, separated by commas; in a table with a column per class, the class columns.
    present, absent, unknown: further words for these in class columns, of all (`-1`) or of one (`Edema:-1`).
    nothing: the class that means that no other is present. rename: `Cat:cat, ...`, classes that are one.
    """

    def __init__(
        self,
        *,
        complete: bool = False,
        separator: str = ";",
        delimiter: str = "",
        encoding: str = "",
        images: str = "",
        exist: bool = True,
        image_column: str = "",
        tags_column: str = "",
        split_column: str = "",
        group: str = "",
        classes: str = "",
        present: str = "",
        absent: str = "",
        unknown: str = "",
        nothing: str = "",
        rename: str = "",
    ) -> None:
        separator, delimiter = separator.replace("\\t", "\t"), delimiter.replace("\\t", "\t")
        if not separator or len(delimiter) > 1:
            raise PluresError(f"a separator has a character or more, a delimiter one; got {separator!r}, {delimiter!r}")
        self.complete, self.separator, self.delimiter, self.encoding = complete, separator, delimiter, encoding
        self.images, self.exist = images, exist
        self.chosen = Chosen(image_column, tags_column, split_column, group=group)
        self.meaning = Meaning.parse(present, absent, unknown)
        self.rules = ClassRules.parse(rename, nothing, classes)

    def files(self, path: str) -> list[tuple[str, Path]]:
        """The tables at this path, see `tables_of`."""
        return tables_of(path)

    def recognises(self, path: str) -> bool:
        return bool(self.files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as a table, and what is taken from it."""
        tables = self.files(path)
        where = f"{len(tables)} tables in split folders" if len(tables) > 1 else tables[0][1].name
        return f"{where}: {self.layout(tables[0][1]).in_words()}"

    def layout(self, file: Path) -> Layout:
        """What the columns of a table are, as `read` takes them."""
        return self._open(file, [])[0]

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = self.files(path)
        if not files:
            raise PluresError(f"no table at '{path}'; expected a file that ends in {', '.join(SUFFIXES)}")
        problems: list[Problem] = []
        read = [(split, self._read(file, problems)) for split, file in files]
        if len(read) == 1 and not read[0][0]:
            return read[0][1], problems
        name = Path(path).resolve().name
        return joined([(one, split) for split, one in read], name, complete=self.complete), problems

    def _read(self, file: Path, problems: list[Problem]) -> Dataset:
        layout, batches = self._open(file, problems)
        problems += [notice for notice in layout.notices if notice.what not in {known.what for known in problems}]
        gathered, values, classes = gather(batches, layout, self.separator, file, problems)
        return self._finish(file, gathered, values, classes, problems, "" if layout.classes else self.separator)

    # ------------------------------------------------------------------------------------------------- the two files

    def _open(self, file: Path, problems: list[Problem]) -> tuple[Layout, Iterator[Rows]]:
        if file.suffix.lower() == ".parquet":
            try:
                parquet = pq.ParquetFile(file)
                names = parquet.schema_arrow.names
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise BadData([Problem(str(file), None, f"not a Parquet file ({error})")], False) from error
            layout = self._lay_out(names, file, lambda wanted: first_cells(parquet, wanted, file))
            return layout, _parquet_rows(parquet, layout, file)
        header = delimited.read_header(file, self.delimiter, self.encoding)
        layout = self._lay_out(header.names, file, lambda wanted: self._first_lines(file, header, wanted))
        return layout, _text_rows(file, header, layout, problems, self.encoding)

    def _lay_out(self, names: list[str], file: Path, look: Callable[[list[str]], Cells]) -> Layout:
        # in the tags form the names are tags; what a column is called before it is renamed
        old = [before for wanted in self.rules.only for before, new in self.rules.rename if new == wanted]
        by_column = set(self.rules.only) <= {*names, *(new for _, new in self.rules.rename)}
        extra = [self.rules.nothing] if self.rules.nothing in names else []
        classes = [name for name in dict.fromkeys([*self.rules.only, *old, *extra]) if name in names]
        chosen = replace(self.chosen, classes=tuple(classes) if by_column and classes and self.rules.only else ())
        return lay_out(names, file, chosen, self.meaning, look)

    def _first_lines(self, file: Path, header: delimited.Header, wanted: list[str]) -> Cells:
        lines: list[bytes] = []
        for _, block in delimited.blocks(file, header.length, self.encoding):
            lines += block.splitlines(keepends=True)[: LOOKED_AT - len(lines)]
            if len(lines) == LOOKED_AT:
                break
        if not lines:
            return {}
        _, table, _ = delimited.parse(b"".join(lines), 2, header, wanted, file)
        return {name: table.column(name).to_pylist() for name in wanted}

    # ------------------------------------------------------------------------------------------------ what comes out

    def _finish(
        self,
        file: Path,
        gathered: Gathered,
        values: NDArray[np.int8],
        classes: tuple[str, ...],
        problems: list[Problem],
        separator: str,
    ) -> Dataset:
        splits = np.concatenate(gathered.splits) if gathered.splits else None
        groups = np.concatenate(gathered.groups) if gathered.groups else None
        numbers = np.concatenate(gathered.numbers) if gathered.numbers else np.empty(0, np.int64)
        values, classes = self.rules.apply(values, classes, numbers, str(file), problems)
        problems += doubtful(classes, separator, str(file))
        if self.complete:
            np.maximum(values, ABSENT, out=values)  # unknown (-1) becomes absent (0), in place
        folder = self._folder(file, gathered.images)
        images = [image.removeprefix("./") for image in gathered.images]
        paths, found_otherwise = _below(folder, images), Found()
        missing = missing_images(paths) if self.exist else []
        if missing:
            found_otherwise = find_files(folder, images, missing)
            for row, path in found_otherwise.files.items():  # as on the disk, so that rows of one image are seen
                images[row], paths[row] = path, os.path.join(folder, path)
            missing = [row for row in missing if row not in found_otherwise.files]
        keep, found = merge_duplicates(images, values, splits, classes, numbers, str(file))
        problems += found
        missing = [row for row in missing if keep[row]]
        problems += _about(found_otherwise, missing, file, folder, gathered.images, numbers)
        keep[missing] = False
        if not keep.all():
            paths = [path for path, good in zip(paths, keep.tolist(), strict=True) if good]
            values, splits = values[keep], None if splits is None else splits[keep]
            groups = None if groups is None else groups[keep]
        return Dataset(paths, Labels(values), classes, splits, name=file.stem, groups=groups)

    def _folder(self, file: Path, images: list[str]) -> str:
        if self.images:
            return self.images
        beside = os.path.join(file.parent, "images")
        if images and not Search(str(file.parent)).file(images[0]) and Search(beside).file(images[0]):
            return beside
        return str(file.parent)


def image_paths(file: Path, images: list[str]) -> list[str]:
    """The path of each image of a table, given as its cells say it, as `Table` finds it."""
    folder = Table()._folder(file, images)
    paths = _below(folder, images)
    for row, path in find_files(folder, images, missing_images(paths)).files.items():
        paths[row] = os.path.join(folder, path)
    return paths


def gather(
    batches: Iterator[Rows], layout: Layout, separator: str, file: Path, problems: list[Problem]
) -> tuple[Gathered, NDArray[np.int8], tuple[str, ...]]:
    """The usable rows of a table, their labels int8 [N, K] and the classes; the other rows become problems. A row that
    contradicts itself is marked with a code above 1, see `merge_duplicates`."""
    gathered = Gathered()
    text = file.suffix.lower() != ".parquet"
    tags, absent = TagPairs(separator, text), TagPairs(separator, text)
    for rows in batches:
        first = len(gathered.images)
        keep = _usable(rows, layout, file, problems, gathered.faults)
        if rows.codes is not None:
            gathered.codes.append(rows.codes[keep] if not keep.all() else rows.codes)
        else:
            for pairs, column in ((tags, rows.tags), (absent, rows.absent)):
                if column is not None:
                    _add(pairs, column.filter(pa.array(keep)), first, file)
        gathered.numbers.append(rows.numbers[keep])
        gathered.images += [image for image, good in zip(rows.images, keep.tolist(), strict=True) if good]
        if rows.splits is not None:
            gathered.splits.append(np.array([split or "" for split in _splits(rows.splits, layout)], np.str_)[keep])
        if rows.groups is not None:
            named = ["" if group in NULLS else group for group in rows.groups]
            gathered.groups.append(np.array(named, np.str_)[keep])
    rows_read = sum(len(numbers) for numbers in gathered.numbers)
    problems += gathered.faults.problems(file, layout, rows_read)
    if tags.nulls or absent.nulls:
        what = f"{tags.nulls + absent.nulls:,} cells or tags say nan, None or the like, and are read as blank"
        problems.append(Problem(str(file), None, what, severity="notice"))
    if tags.is_one_hot():
        what = f"column '{layout.tags}' holds lists of 1 and 0, a place for each class, without the classes' names"
        raise BadData([Problem(str(file), None, what, "lists of names, or a column for each class")], False)
    if not gathered.images and not problems:
        problems.append(Problem(str(file), None, "the table has no rows", "one image per row"))
    if layout.classes:
        return gathered, _stack(gathered.codes, len(layout.classes)), tuple(layout.classes)
    return gathered, *_scatter(tags, absent, gathered, file, problems)


def _about(
    found: Found, missing: list[int], file: Path, folder: str, images: list[str], numbers: NDArray[np.int64]
) -> list[Problem]:
    """What is to be said of images whose path names no file: one line for many."""
    problems = []
    if found.files:
        row, path = next(iter(found.files.items()))
        what = f"{len(found.files):,} images were found {found.way}, such as '{images[row]}' as '{path}'"
        problems.append(Problem(str(file), None, what, severity="notice"))
    lost = []
    for row in missing:
        if row in found.unclear:
            what = f"image '{images[row]}' may be '{found.unclear[row][0]}' or '{found.unclear[row][1]}'"
            problems.append(Problem(str(file), int(numbers[row]), what, "the path of one file"))
        else:
            lost.append(row)
    hint = f"; {found.hint}" if found.hint else ""
    if len(lost) > SHOWN:
        names = ", ".join(f"'{images[row]}' (row {numbers[row]})" for row in lost[:SHOWN])
        what = f"{len(lost):,} of {len(images):,} images are missing, such as {names}"
        return [*problems, Problem(str(file), None, what, f"files below {folder}{hint}", times=len(lost))]
    for row in lost:
        expected = f"a file {os.path.join(folder, images[row])}{hint}"
        problems.append(Problem(str(file), int(numbers[row]), f"image '{images[row]}' is missing", expected))
    return problems


def _below(folder: str, images: list[str]) -> list[str]:
    """Paths of the images, those that are not absolute below the folder (os.path.join, much faster for a million)."""
    start = os.path.join(folder, "")
    return [os.path.join(folder, i) if i[0] in "/\\" or i[1:2] == ":" else start + i for i in images]


def tables_of(path: str) -> list[tuple[str, Path]]:
    """The tables at this path, each with the split that its folder names ("" if none): the file itself, the only table
    in a folder, the tables train.csv, val.csv, ... in it, or the only tables in its folders train, valid, test."""
    at = Path(path)
    if not path:
        return []
    if not at.is_dir():
        return [("", at)] if at.is_file() and (at.suffix.lower() in SUFFIXES or _is_text_table(at)) else []
    inside = _tables_in(at)
    if inside:
        splits = [split_name(re.split(r"[-_.]", file.stem)[0]) or split_name(file.stem) or "" for file in inside]
        whole = len(inside) > 1 and all(splits) and len({*splits}) == len(inside)
        return [("", inside[0])] if len(inside) == 1 else list(zip(splits, inside, strict=True)) if whole else []
    found = [(split_name(folder.name) or "", _tables_in(folder)) for folder in sorted(at.iterdir()) if folder.is_dir()]
    found = [(split, tables) for split, tables in found if split and tables]
    return [(split, tables[0]) for split, tables in found] if all(len(tables) == 1 for _, tables in found) else []


def _tables_in(folder: Path) -> list[Path]:
    files = [f for f in sorted(folder.iterdir()) if not is_junk(f.name) and not f.name.startswith(".") and f.is_file()]
    return [f for f in files if f.suffix.lower() in SUFFIXES] or list(filter(_is_text_table, files))


def _is_text_table(file: Path) -> bool:
    """Whether a .txt, as Excel writes Unicode text, has a first line with names of columns."""
    if file.suffix.lower() not in (".txt", ".tab"):
        return False
    try:
        names = delimited.read_header(file).names
    except (BadData, OSError):
        return False
    return len(names) > 1 and len({*names}) == len(names) and bool(image_column(names))


def _text_rows(
    file: Path, header: delimited.Header, layout: Layout, problems: list[Problem], encoding: str
) -> Iterator[Rows]:
    image = layout.names.index(layout.image)
    split = layout.names.index(layout.split) if layout.split else None
    group = layout.names.index(layout.group) if layout.group else None
    run = layout.class_run()
    for line, block in delimited.blocks(file, header.length, encoding):
        cells = delimited.single_cells(block, header.delimiter, len(layout.names), *run) if run else None
        try:
            images = cells.text(image) if cells else []
            splits = cells.text(split) if cells and split is not None else None
            groups = cells.text(group) if cells and group is not None else None
        except UnicodeDecodeError:
            cells = None  # the parser below says which line it is
        if cells and all(images):
            yield Rows(np.arange(line, line + len(images)), images, splits, codes=cells.codes, groups=groups)
            continue
        numbers, table, found = delimited.parse(block, line, header, layout.wanted, file)
        problems += found
        rows = rows_of(numbers, table, layout)
        yield replace(rows, images=list(map(bare, rows.images)))


def parquet_batches(parquet: Any, columns: list[str], file: Path) -> Iterator[Any]:
    """The rows of a Parquet file in pyarrow batches. Raises BadData where a page is damaged, or where there are more
    rows than a table with a name in each can hold in so few bytes."""
    rows = parquet.metadata.num_rows
    size = file.stat().st_size if rows > MOST_IN_SMALL_FILES and file.is_file() else rows  # an address has no size here
    if rows > size:
        what = f"{rows:,} rows in {size / 1e6:.1f} MB, which no table with an image in each row is small enough for"
        raise BadData(
            [Problem(str(file), None, what, "rows that differ; a file like this only fills the memory")], False
        )
    names, first = label_names(parquet.schema_arrow), 1
    try:
        for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            batch.validate(full=True)  # text that is not UTF-8 would fail far from here
            yield with_names(batch, names, first, file) if names else batch
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        line = " ".join(str(error).split())
        raise BadData([Problem(str(file), None, f"a damaged Parquet file ({line})")], False) from error


def first_cells(parquet: Any, wanted: list[str], file: Path) -> Cells:
    """The first cells of the columns as text, lists in brackets; a column of images or boxes has none."""
    columns = [name for name in wanted if _is_plain(parquet.schema_arrow.field(name).type)]
    batch = next(parquet_batches(parquet, columns, file), None) if columns else None
    if batch is None:
        return {}
    first = batch.slice(0, LOOKED_AT)
    return {name: _words(first.column(place)) for place, name in enumerate(first.schema.names)}


def _is_plain(kind: Any) -> bool:
    """Whether a column's cells, or their lists, are words or numbers."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    binary = pa.types.is_binary(inner) or pa.types.is_large_binary(inner)
    return not (pa.types.is_nested(inner) or binary)


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

    images = _words(column(layout.image))
    splits = _words(column(layout.split)) if layout.split else None
    groups = _words(column(layout.group)) if layout.group else None
    if not layout.classes:
        tags, absent = column(layout.tags), column(layout.absent) if layout.absent else None
        if layout.verdict:
            said = codes(column(layout.verdict).cast(pa.string()), PLAIN.of(""))
            tags, absent = (pc.if_else(pa.array(said == code), tags, None) for code in (PRESENT, ABSENT))
        return Rows(numbers, images, splits, tags=tags, absent=absent, groups=groups)
    values = np.empty((len(layout.classes), len(images)), np.int8)  # [K, n]: a column's cells side by side
    bad = {}
    for place, name in enumerate(layout.classes):
        cells = column(name)
        values[place] = codes(cells, layout.meaning.of(name) if layout.meaning else None)
        if values[place].size and values[place].max() == BAD:
            bad[name] = _words(cells.take(pa.array(np.flatnonzero(values[place] == BAD))))
    return Rows(numbers, images, splits, codes=np.ascontiguousarray(values.T), bad=bad, groups=groups)  # [n, K]


def _add(pairs: TagPairs, column: Any, first: int, file: Path) -> None:
    try:
        pairs.add(column, first)
    except pa.ArrowException:
        what = f"the column of tags is of type {column.type}"
        raise BadData([Problem(str(file), None, what, "text or lists of text")], False) from None


def _words(column: Any) -> list[str]:
    return ["" if cell is None else str(cell).strip() for cell in column.to_pylist()]


# --------------------------------------------------------------------------------------------------------- the labels


def _usable(rows: Rows, layout: Layout, file: Path, problems: list[Problem], faults: Faults) -> NDArray[np.bool_]:
    """[n] which rows of a batch can be used; the others become problems, except lines that are wholly blank."""
    keep = np.ones(len(rows.images), np.bool_)
    for row in [row for row, image in enumerate(rows.images) if not image]:
        keep[row] = False
        blank = bool((rows.codes[row] == UNKNOWN).all()) if rows.codes is not None else not rows.tags[row].as_py()
        if not blank:
            problems.append(Problem(str(file), int(rows.numbers[row]), "no image in this row", "a path"))
    for column, cells in rows.bad.items():
        assert rows.codes is not None
        wrong = rows.codes[:, layout.classes.index(column)] == BAD
        faults.add(LABELS, column, cells, rows.numbers[wrong])
        faults.zeros |= bool((rows.codes[:, layout.classes.index(column)] == ABSENT).any())
        keep &= ~wrong
    for column, tags in ((layout.tags, rows.tags), (layout.absent, rows.absent)):
        if tags is not None and (nested := is_nested(tags)).any():
            faults.add(NESTED, column, _words(tags.filter(pa.array(nested))), rows.numbers[nested])
            keep &= ~nested
    if rows.splits is not None:
        strange = np.array([split is None for split in _splits(rows.splits, layout)], np.bool_) & keep
        if strange.any():
            words = [rows.splits[row] for row in np.flatnonzero(strange).tolist()]
            faults.add(SPLITS, layout.split, words, rows.numbers[strange])
            keep &= ~strange
    return keep


def _splits(cells: list[str], layout: Layout) -> list[str | None]:
    """The split that each cell of a split column means, "" for a blank one, None where it is no word for a split."""
    meant = {
        cell: "" if not cell else VALID.get(cell.casefold()) if layout.valid else split_name(cell)
        for cell in dict.fromkeys(cells)
    }
    return [meant[cell] for cell in cells]


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
