"""Writing a dataset as a table of images and tags, to edit and to train from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plures.data.cells import NULLS
from plures.data.dataset import Dataset
from plures.data.read import read
from plures.data.table import SUFFIXES
from plures.errors import PluresError
from plures.files import writing


def init_table(source: str, out: str | Path, *, complete: bool = False, skip_bad: bool = False) -> Dataset:
    """Read `source` (any known format, or a plain folder of photos without tags) and write it as the table `out`.

    Returns the dataset that was read. Raises what `plures.data.read.read` and `write_table` raise.
    """
    dataset = read(source, skip_bad=skip_bad, labelled=False)
    write_table(dataset, out, complete=complete)
    return dataset


def write_table(
    dataset: Dataset,
    path: str | Path,
    complete: bool = False,
    separator: str = ";",
    extra: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write columns image, tags, absent (only where something is known to be absent) and split (if the data have one).

    Image paths are relative to the table's folder where that is possible. A tag that is not given is unknown, unless
    `complete`: then every class that is not among an image's tags is written as absent. A class of which nothing is
    known anywhere leaves no trace. extra: further columns, a cell a row, which readers pass over. The kind of table
    follows from the suffix; the file is complete or absent, never half written. Raises PluresError for names that a
    table cannot hold, WorkFailed where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise PluresError(f"'{path}' is no table; expected a name that ends in {', '.join(SUFFIXES)}")
    if dataset.in_memory:
        raise PluresError(
            f"{dataset.name or 'the data'}: the images are in memory, not files, so no table can list them"
        )
    _refuse_names(dataset, path, separator)
    labels = dataset.labels
    absent = ~labels.present if complete else labels.absent
    columns = {"image": [_relative(str(image), path) for image in dataset.images]}
    columns["tags"] = _cells(labels.present, dataset.classes, separator)
    if absent.any():
        columns["absent"] = _cells(absent, dataset.classes, separator)
    if dataset.splits is not None:
        columns["split"] = dataset.splits.tolist()
    columns |= {name: list(cells) for name, cells in (extra or {}).items()}
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
    _write_whole(table, path)


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


def _relative(image: str, table: Path) -> str:
    try:
        return Path(os.path.relpath(image, table.parent)).as_posix()
    except ValueError:  # another drive
        return image


def _write_whole(table: Any, path: Path) -> None:
    """Write the table in the form that its suffix names: whole or not at all."""
    with writing(path) as place:
        if path.suffix.lower() == ".parquet":
            pq.write_table(table, place)
        else:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            pacsv.write_csv(table, place, pacsv.WriteOptions(delimiter=delimiter, quoting_style="needed"))
