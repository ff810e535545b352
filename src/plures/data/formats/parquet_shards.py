"""Parquet shards: files whose rows hold a photo's bytes beside its tags, as photo collections are passed around.

The column `image` holds the bytes of an image file, or a struct {bytes, path} as Hugging Face `datasets` writes it; the
other columns are those of a table (`data/formats/table.py`): `tags` [, `absent`] or a column per class, and `split`.
At the beginning these are read alone. A photo is called FILE.parquet#GROUP/ROW; when its batch comes, that row group is
read from the disk or address and kept for its neighbours, so small row groups (about 100 photos) make shuffling cheap.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plures.data.dataset import Dataset
from plures.data.formats.joined import joined
from plures.data.formats.repeated_rows import merge_duplicates
from plures.data.formats.table import Rows, first_cells, gather, parquet_batches, rows_of
from plures.data.formats.table_layout import Layout, lay_out
from plures.errors import BadData, Problem
from plures.labels import ABSENT, UNKNOWN, Labels

FILES_OPEN, GROUPS_KEPT = 16, 2  # a process
_lock = Lock()


def holds_images(path: str | Path) -> bool:
    """Whether this is a Parquet file whose column `image` holds images, not their paths (reads the end of the file)."""
    try:
        return os.path.isfile(path) and _of_bytes(pq.read_schema(path).field("image").type)
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError):
        return False


def _of_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _of_bytes(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_parquet(files: list[str], separator: str, complete: bool, name: str) -> tuple[Dataset, list[Problem]]:
    """The photos of all files, in order. A class that one file names and another does not is unknown there, or absent
    if `complete`."""
    _group.cache_clear()  # files may have been written anew
    _opened.cache_clear()
    problems: list[Problem] = []
    read = [_read(file, separator, problems) for file in files]
    made = joined([(one, "") for one in read], name, complete=complete)
    order = sorted(range(len(made.classes)), key=made.classes.__getitem__)
    labels = Labels(np.maximum(made.labels.values[:, order], ABSENT if complete else UNKNOWN))
    return replace(made, labels=labels, classes=tuple(made.classes[k] for k in order)), problems


def _read(file: str, separator: str, problems: list[Problem]) -> Dataset:
    """The photos of one file."""
    try:
        parquet = _opened(file, os.getpid())
        layout = lay_out(
            parquet.schema_arrow.names, Path(file), look=lambda wanted: first_cells(parquet, wanted, Path(file))
        )
        if layout.image != "image":
            what = f"no column 'image'; rename '{layout.image}' to 'image'"
            raise BadData([Problem(file, None, what, "the bytes of image files, or a struct with bytes")], False)
        kind = parquet.schema_arrow.field("image").type
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadData([Problem(file, None, f"not a Parquet file ({error})")], False) from None
    if not _of_bytes(kind):
        what = f"column 'image' is of type {kind}"
        raise BadData([Problem(file, None, what, "the bytes of image files, or a struct with bytes")], False)
    problems += [notice for notice in layout.notices if notice.what not in {known.what for known in problems}]
    gathered, values, classes = gather(_batches(parquet, layout, file), layout, separator, Path(file), problems)
    splits = np.concatenate(gathered.splits) if gathered.splits else None
    numbers = np.concatenate(gathered.numbers) if gathered.numbers else np.empty(0, np.int64)
    keep, found = merge_duplicates(gathered.images, values, splits, classes, numbers, file)
    problems += found
    images = [image for image, good in zip(gathered.images, keep.tolist(), strict=True) if good]
    groups = np.concatenate(gathered.groups)[keep] if gathered.groups else None
    return Dataset(images, Labels(values[keep]), classes, None if splits is None else splits[keep], groups=groups)


def _batches(parquet: Any, layout: Layout, file: str) -> Iterator[Rows]:
    """The table of a file with the photos' places in the column `image`, whose bytes are not read."""
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    places = (f"{file}#{group}/{row}" for group, size in enumerate(sizes) for row in range(size))
    wanted, first = [column for column in layout.wanted if column != "image"], 1
    for batch in parquet_batches(parquet, wanted, Path(file)):
        images = pa.array([next(places) for _ in range(batch.num_rows)], pa.string())
        table = pa.Table.from_batches([batch]).append_column("image", images)
        yield rows_of(np.arange(first, first + batch.num_rows), table, layout)
        first += batch.num_rows


# ------------------------------------------------------------------------------------------------------------- photos


def photo(file: str, place: str) -> BytesIO:
    """The image file at GROUP/ROW. Raises ValueError if there is none, OSError or ArrowException if it is gone."""
    group, row = map(int, place.split("/"))
    with _lock:  # a Parquet file is read by one thread at a time
        column = _group(file, group, os.getpid())
    cell = column[row].as_py()
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not content:
        raise ValueError("no image in this row")
    return BytesIO(content)


@lru_cache(maxsize=FILES_OPEN)
def _opened(file: str, process: int) -> Any:
    """An open Parquet file, each process its own: a copy that a fork made would share its place in the file."""
    if "://" in file:
        return pq.ParquetFile(fsspec.open(file, "rb").open(), pre_buffer=False)
    return pq.ParquetFile(file, pre_buffer=False)


@lru_cache(maxsize=GROUPS_KEPT)
def _group(file: str, group: int, process: int) -> Any:
    """The column `image` of a row group; of a struct only the bytes."""
    parquet = _opened(file, process)
    column = "image.bytes" if pa.types.is_struct(parquet.schema_arrow.field("image").type) else "image"
    return parquet.read_row_group(group, columns=[column], use_threads=False).column(0)
