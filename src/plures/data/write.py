"""Writing a dataset as a table of images and tags, to edit and to train from; adding to one that was edited."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plures.data.checks.verify import missing_images
from plures.data.dataset import Dataset
from plures.data.formats import delimited
from plures.data.formats.cells import NULLS
from plures.data.formats.safe_cells import bare, guarded
from plures.data.formats.table import SUFFIXES, Table
from plures.data.formats.table_layout import Layout, lay_out
from plures.data.paths import Search, find_files, paths_from
from plures.data.read import read
from plures.errors import BadData, PluresError, Problem, printable
from plures.files import refuse_replacing, writing

NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of a file's name that are no UTF-8


@dataclass(frozen=True)
class Listed:
    """What `init_table` did. dataset: what was read; added: rows written; kept: rows that were in the table before."""

    dataset: Dataset
    added: int
    kept: int


def init_table(
    source: str,
    out: str | Path,
    *,
    complete: bool = False,
    skip_bad: bool = False,
    force: bool = False,
    safe_csv: bool = True,
) -> Listed:
    """Read `source` (any known format, or a plain folder of photos without tags) and write it as the table `out`.

    A table that is there already keeps every byte; the images that it does not list yet are added at its end.

    Args:
        source: the data.
        out: the table: .csv, .tsv or .parquet.
        complete: a tag that is not given is absent, not unknown.
        skip_bad: leave unusable rows of the source out.
        force: replace a table that is there already, with all that was written in it.
        safe_csv: see `write_table`.

    Returns:
        The dataset that was read, and how many rows were added and were there before.

    Raises:
        PluresError: if `out` cannot be extended (Parquet, no column `image`, ...) or is the source itself; and what
            `plures.data.read.read` and `write_table` raise.

    Example:
        >>> init_table("photos/", "tags.csv").added  # doctest: +SKIP
        900
    """
    out = Path(out)
    _refuse_other_suffix(out)
    if not os.path.isdir(source):
        refuse_replacing(out, force=True, inputs=[source])
    if os.path.lexists(out) and not force:
        refuse_extending(out)  # before any work
    photos = os.path.isdir(source) and _is_in(out, source)  # then the folder would be read as this very table
    dataset = read(f"folder:{source}" if photos else source, skip_bad=skip_bad, labelled=False)
    if skip_bad:
        dataset = _only_text(dataset)
    if os.path.lexists(out) and not force:
        return Listed(dataset, *extend_table(dataset, out, complete=complete, folder=source, safe_csv=safe_csv))
    write_table(dataset, out, complete=complete, safe_csv=safe_csv)
    return Listed(dataset, len(dataset), 0)


def _only_text(dataset: Dataset) -> Dataset:
    """Without the images whose name no file of text can hold."""
    strange = [row for row, image in enumerate(dataset.images) if NO_TEXT.search(str(image))]
    if not strange:
        return dataset
    what = "its name is not UTF-8; rename the file, for example with `convmv -f latin1 -t utf8`"
    problems = tuple(Problem(printable(str(dataset.images[row])), None, what) for row in strange)
    kept = dataset.take(np.delete(np.arange(len(dataset)), strange))
    return replace(kept, problems=(*dataset.problems, *problems))


def _is_in(file: Path, folder: str) -> bool:
    return file.exists() and os.path.samefile(file.parent, folder)


def write_table(
    dataset: Dataset,
    path: str | Path,
    complete: bool = False,
    separator: str = ";",
    extra: Mapping[str, Sequence[str]] | None = None,
    safe_csv: bool = False,
) -> None:
    """Write columns image, tags, absent (only where something is known to be absent), split and group (if the data have
    them).

    Image paths are relative to the table's folder where that is possible. A tag that is not given is unknown, unless
    `complete`: then every class that is not among an image's tags is written as absent. A class of which nothing is
    known anywhere leaves no trace. extra: further columns, one cell per row, which readers pass over. safe_csv: in .csv
    and .tsv, an apostrophe before names that a spreadsheet would take for a formula (`=1+1`), which readers of tables
    know. The kind of table follows from the suffix; the file is complete or absent, never half written. Raises
    PluresError for names that a table cannot hold, WorkFailed where the file cannot be written.
    """
    path = Path(path)
    _refuse_other_suffix(path)
    if dataset.in_memory:
        raise PluresError(
            f"{dataset.name or 'the data'}: the images are in memory, not files, so no table can list them"
        )
    _refuse_names(dataset, path, separator)
    spell = str if path.suffix.lower() == ".parquet" else partial(guarded, formulas=safe_csv)
    columns = _columns(dataset, paths_from(path.parent), complete, separator, spell)
    columns |= {name: list(map(spell, cells)) for name, cells in (extra or {}).items()}
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
    _write_whole(table, path)


def _columns(
    dataset: Dataset, spelt: Callable[[str], str], complete: bool, separator: str, spell: Callable[[str], str]
) -> dict[str, list[str]]:
    """The cells of each column; spelt: a path as the table says it; spell: any name."""
    labels, classes = dataset.labels, tuple(map(spell, dataset.classes))
    absent = ~labels.present if complete else labels.absent
    images = [spell(spelt(str(image))) for image in dataset.images]
    columns = {"image": images, "tags": _cells(labels.present, classes, separator)}
    if absent.any():
        columns["absent"] = _cells(absent, classes, separator)
    if dataset.splits is not None:
        columns["split"] = dataset.splits.tolist()
    if dataset.groups is not None and any(dataset.groups):
        columns["group"] = [spell(group) for group in dataset.groups.tolist()]
    return columns


def _cells(mask: NDArray[np.bool_], classes: tuple[str, ...], separator: str) -> list[str]:
    """For each row the names of its classes, joined."""
    rows, columns = np.nonzero(mask)
    ends = np.searchsorted(rows, np.arange(1, len(mask) + 1)).tolist()
    words = [classes[column] for column in columns.tolist()]
    return [separator.join(words[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _refuse_names(dataset: Dataset, path: Path, separator: str) -> None:
    for name in dataset.classes:
        if separator in name:
            raise PluresError(f"class '{name}' contains '{separator}', which separates tags; rename the class")
        if not name or name != name.strip() or any(mark in name for mark in "\r\n\0"):
            raise PluresError(f"class {name!r} is empty, has blanks at its ends or a line end; rename the class")
        if name in NULLS or name.startswith(("[", "{")):
            raise PluresError(f"class '{name}' would be read as a blank cell or a list; rename the class")
    for image in dataset.images:
        name = str(image)
        if any(mark in name for mark in "\r\n\0") or name != name.strip():
            raise PluresError(f"{path.name}: image {name!r} has a line end in its name, or blanks around it; rename it")


def _refuse_other_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise PluresError(f"'{path}' is not a table; expected a name that ends in {', '.join(SUFFIXES)}")


def _write_whole(table: Any, path: Path) -> None:
    """Write the table in the form that its suffix names, atomically."""
    with writing(path) as place:
        if path.suffix.lower() == ".parquet":
            pq.write_table(table, place)
        else:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            pacsv.write_csv(table, place, pacsv.WriteOptions(delimiter=delimiter, quoting_style="needed"))


# ---------------------------------------------------------------------------------------- a table that is there already


def extend_table(dataset: Dataset, table: Path, *, complete: bool, folder: str, safe_csv: bool) -> tuple[int, int]:
    """Add the images that the table does not list yet at its end; every byte of it stays, and so do its mode, its owner
    and a link that leads to it.

    folder: where the images lie; a table whose paths start from there (read with data.images=FOLDER) is added to so.
    Returns how many rows were added and how many were there. Raises PluresError if the table cannot hold them.
    """
    head, layout, cells, content = _text_table(table)
    base = _base(table, cells, folder)
    places = [os.path.join(base, cell) for cell in cells]
    found = find_files(base, cells, missing_images(places)).files
    known = {_same(os.path.join(base, found[row]) if row in found else place) for row, place in enumerate(places)}
    new = [row for row, image in enumerate(dataset.images) if _same(str(image)) not in known]
    if not new:
        return 0, len(cells)
    rows = dataset.take(np.array(new))
    _refuse_names(rows, table, ";")
    columns = _columns(rows, paths_from(base), complete, ";", partial(guarded, formulas=safe_csv))
    if not any(columns["tags"]) and "absent" not in columns:
        del columns["tags"]  # a column per class will do as well
    called = {"image": layout.image, "tags": layout.tags, "absent": layout.absent, "split": layout.split}
    called["group"] = layout.group
    lost = [name for name in columns if not called[name]]
    columns = {called[name]: cells for name, cells in columns.items() if called[name]}
    if lost:
        raise PluresError(
            f"{table} has no column '{lost[0]}' for what is known of the new images; add it, or choose another --out"
        )
    header, newline = content.partition(b"\n")[0], "\n"
    if header.endswith(b"\r"):
        newline = "\r\n"
    text = io.StringIO()
    writer = csv.writer(text, delimiter=head.delimiter, lineterminator=newline)
    blank = [""] * len(new)
    writer.writerows(zip(*(columns.get(name, blank) for name in head.names), strict=True))
    added = text.getvalue()
    if not content.endswith(b"\n"):  # no line end after the last row: none after the new last row
        added = newline + added.removesuffix(newline)
    place = Path(os.path.realpath(table))
    with writing(place) as temporary:
        temporary.write_bytes(content + added.encode())
        copy_rights(place, temporary)
        if place.read_bytes() != content:
            raise PluresError(f"{table} was changed by another program meanwhile; start again")
    return len(new), len(cells)


def refuse_extending(table: Path) -> None:
    """Raise PluresError, in one line, if rows cannot be added to this file."""
    _text_table(table)


def _text_table(table: Path) -> tuple[delimited.Header, Layout, list[str], bytes]:
    """A delimited table's header, what its columns are, the cells that name images, and its bytes."""
    way_out = "choose another --out, or replace it with --force"
    if table.suffix.lower() == ".parquet":
        raise PluresError(f"{table} is there already, and rows can be added to .csv and .tsv only; {way_out}")
    try:
        content = table.read_bytes()
        header = delimited.read_header(table)
        try:
            layout = Table().layout(table)
        except BadData:  # of rows that are no concern here, or of the columns, which the names alone tell then
            layout = lay_out(header.names, table)
        lines = _lines(content.decode(), header.delimiter)
    except OSError as error:
        raise PluresError(f"{table} cannot be read ({error.strerror}); {way_out}") from None
    except (BadData, UnicodeDecodeError, csv.Error) as error:
        reason = error.problems[0].what if isinstance(error, BadData) else "not a table of UTF-8 text"
        raise PluresError(f"{table} is there already, and no rows can be added to it ({reason}); {way_out}") from None
    at = header.names.index(layout.image)
    cells = [bare(line[at].strip()) for line in lines[1:] if len(line) > at]
    return header, layout, [cell for cell in cells if cell], content


def _lines(text: str, delimiter: str) -> list[list[str]]:
    limit = csv.field_size_limit(len(text) + 1)  # a cell may be of any length
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(limit)


def _base(table: Path, cells: list[str], folder: str) -> str:
    """The folder that the paths in a table start from: its own, images/ in it, or the one where the images lie."""
    choices = [str(table.parent), os.path.join(table.parent, "images"), *([folder] if os.path.isdir(folder) else [])]
    looked = cells[:: max(1, len(cells) // 100)]

    def found(base: str) -> int:
        search = Search(base)
        return sum(search.file(cell) is not None for cell in looked)

    return max(choices, key=found)


def _same(path: str) -> str:
    """What two spellings of one path have in common."""
    return unicodedata.normalize("NFC", os.path.abspath(path))


def copy_rights(old: Path, new: Path) -> None:
    """Mode and, where that is allowed, owner."""
    stat = old.stat()
    with suppress(OSError):
        os.chown(new, stat.st_uid, stat.st_gid)
    new.chmod(stat.st_mode & 0o7777)
