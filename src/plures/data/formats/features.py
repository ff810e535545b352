"""Features that somebody else computed (CLIP, DINO, FiftyOne, ...), a row per image, with labels: no image is opened.

    .npz      features (or X, embeddings) [N, D]; labels (or Y) [N, K] in {1, 0, -1}; classes [K]; names (or images,
              filepaths) [N]; split [N]. Everything but the features may be missing.
    .npy      features [N, D], and a table of the same stem beside it (or data.table=FILE) with a row per feature row.
    .parquet  a column of lists of numbers, beside the columns of a table.

An .npz without labels takes them from data.table=FILE, by image name where the file holds names, else row by row.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plures.data.dataset import Dataset, distinct, formats
from plures.data.formats.split_names import split_name
from plures.data.formats.table import SUFFIXES, Table
from plures.errors import BadData, PluresError, Problem
from plures.labels import Labels

FEATURES, LABELS, CLASSES = ("features", "X", "embeddings"), ("labels", "Y"), ("classes",)
NAMES, SPLITS = ("names", "images", "filepaths"), ("split", "splits")
COLUMNS = (*FEATURES, "embedding", "feature", "vector")  # of a Parquet file, the likeliest first
ROWS = "a row of numbers per image: [N, D]"


@formats.register("features", title="Features (embeddings) computed elsewhere: .npz, .npy with a table, or Parquet")
class Features:
    """table: the table with the labels, where it is not in the file itself or beside it under the same stem.
    embedding: the column of a Parquet file that holds the features, if there are several.
    complete: a tag that the table does not give is absent, not unknown. separator: between tags in a cell.
    """

    def __init__(self, *, table: str = "", embedding: str = "", complete: bool = False, separator: str = ";") -> None:
        self.table, self.embedding, self.complete, self.separator = table, embedding, complete, separator

    def recognises(self, path: str) -> bool:
        return path.lower().endswith((".npz", ".npy")) and os.path.isfile(path)

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        file = Path(path)
        read = {".npz": self._npz, ".npy": self._npy, ".parquet": self._parquet}.get(file.suffix.lower())
        if read is None or not file.is_file():
            raise PluresError(f"{path}: features are read from a file that ends in .npz, .npy or .parquet")
        problems: list[Problem] = []
        dataset = replace(read(file, problems), name=file.name)
        assert dataset.features is not None
        unsound = ~np.isfinite(dataset.features).all(1)
        if unsound.any():
            rows = np.flatnonzero(unsound)
            what = f"nan or an infinite number in the features of {len(rows):,} images, the first in row {rows[0]}"
            problems.append(Problem(path, None, what, "finite numbers", times=len(rows)))
            dataset = dataset.take(~unsound)
        return dataset, problems

    # --------------------------------------------------------------------------------------------- the kinds of file

    def _npz(self, file: Path, problems: list[Problem]) -> Dataset:
        arrays = arrays_of(file)
        features = _features(file, one_of(arrays, FEATURES))
        n, names = len(features), one_of(arrays, NAMES)
        images = [str(row) for row in range(n)] if names is None else texts_of(file, names, n, "names")
        labels = one_of(arrays, LABELS)
        if labels is None:
            alone = Dataset(images, Labels(np.empty((n, 0), np.int8)), (), features=features)
            return self._with_table(file, alone, problems, by_name=names is not None) if self.table else alone
        if self.table:
            raise PluresError(f"{file}: it holds labels itself; leave data.table={self.table} out")
        values = _codes(file, labels, n)
        given = one_of(arrays, CLASSES)
        k = values.shape[1]
        classes = [str(c) for c in range(k)] if given is None else texts_of(file, given, k, "classes")
        split = one_of(arrays, SPLITS)
        splits = None if split is None else _splits(file, texts_of(file, split, n, "split"))
        return Dataset(images, Labels(values), distinct(classes, file), splits, features=features)

    def _npy(self, file: Path, problems: list[Problem]) -> Dataset:
        features = _features(file, arrays_of(file)["features"])
        images = [str(row) for row in range(len(features))]
        alone = Dataset(images, Labels(np.empty((len(features), 0), np.int8)), (), features=features)
        beside = [str(file.with_suffix(s)) for s in SUFFIXES if file.with_suffix(s).is_file()]
        if not self.table and not beside:
            return alone
        return self._with_table(file, alone, problems, table=self.table or beside[0])

    def _parquet(self, file: Path, problems: list[Problem]) -> Dataset:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise _bad(file, f"not a Parquet file ({error})", "a Parquet file") from None
        column = self._embedding_column(file, table.schema)
        cells = table[column].combine_chunks()
        width = set(pc.list_value_length(cells).to_pylist())
        if len(width) != 1 or None in width:
            raise _bad(file, f"column '{column}' has cells of {len(width)} lengths or empty ones", ROWS)
        numbers = cells.flatten().to_numpy(zero_copy_only=False).reshape(len(cells), -1)
        features, rest = _features(file, numbers), table.drop_columns([column])
        images = [str(row) for row in range(len(features))]
        alone = Dataset(images, Labels(np.empty((len(features), 0), np.int8)), (), features=features)
        if self.table:
            return self._with_table(file, alone, problems)
        with tempfile.TemporaryDirectory() as folder:  # the table reader takes a file, without the lists
            plain = Path(folder) / file.name
            pq.write_table(rest, plain)
            found: list[Problem] = []
            dataset = self._with_table(file, alone, found, table=str(plain), images=str(file.parent))
        problems += [replace(p, file=str(file)) if p.file == str(plain) else p for p in found]
        return dataset

    def _embedding_column(self, file: Path, schema: pa.Schema) -> str:
        lists = [f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)
                 or pa.types.is_large_list(f.type)]  # fmt: skip
        lists = [name for name in lists if _of_numbers(schema.field(name).type.value_type)]
        if self.embedding:
            if self.embedding not in lists:
                raise PluresError(
                    f"{file}: no column '{self.embedding}' of lists of numbers; choose from: {', '.join(lists) or '-'}"
                )
            return self.embedding
        known = [name for name in COLUMNS if name in lists]
        if not known and len(lists) != 1:
            what = f"{len(lists)} columns of lists of numbers" + (f" ({', '.join(lists)})" if lists else "")
            raise _bad(file, what, "one column with the features; or name it as in data.embedding=COLUMN")
        return known[0] if known else lists[0]

    def _with_table(
        self,
        file: Path,
        alone: Dataset,
        problems: list[Problem],
        *,
        table: str = "",
        by_name: bool = False,
        images: str = "",
    ) -> Dataset:
        """The features with the labels, splits and image names of a table."""
        table = table or self.table
        if not os.path.isfile(table):
            raise PluresError(f"no table '{table}' with the labels of {file}")
        reader = Table(complete=self.complete, separator=self.separator, exist=False, images=images)
        labelled, found = reader.read(table)
        problems += found
        assert alone.features is not None
        if not by_name:
            if len(labelled) != len(alone):
                what = f"{len(alone):,} rows of features, and {len(labelled):,} images in {table}"
                fitting = "the same images in the same order, each once (or an .npz with names)"
                raise BadData([*found, Problem(str(file), None, what, fitting)], skippable=False)
            return replace(labelled, features=alone.features)
        rows = places_of([str(name) for name in labelled.images], [str(name) for name in alone.images])
        if (rows < 0).any():
            first = str(labelled.images[int(np.flatnonzero(rows < 0)[0])])
            count = int((rows < 0).sum())
            problems.append(Problem(table, None, f"{count:,} images without features, the first: {first}",
                                    f"their names in {file}", times=count))  # fmt: skip
        unused = len(alone) - len(np.unique(rows[rows >= 0]))
        if unused:
            problems.append(Problem(str(file), None, f"{unused:,} rows of features are of no image in {table}",
                                    severity="notice"))  # fmt: skip
        kept = labelled.take(rows >= 0)
        return replace(kept, features=alone.features[rows[rows >= 0]])


# --------------------------------------------------------------------------------------------------------- the arrays


def arrays_of(file: Path) -> dict[str, NDArray[Any]]:
    """What a .npz or .npy holds; nothing in it is unpickled."""
    try:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"features": found}
        with found:
            return {name: found[name] for name in found.files}
    except Exception as error:  # numpy and zipfile raise many kinds on a damaged file
        if "Object arrays" in str(error):
            raise _bad(
                file, "an array of Python objects", "text as np.array(names, str), numbers as they are"
            ) from None
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise _bad(file, f"not a NumPy file ({line})", ".npz of np.savez, or .npy of np.save") from None


def one_of(arrays: dict[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[Any] | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _features(file: Path, found: NDArray[Any] | None) -> NDArray[np.float32]:
    if found is None:
        raise _bad(file, "no array 'features'", f"{ROWS}, called features, X or embeddings")
    if found.ndim != 2 or not found.shape[1] or found.dtype.kind not in "fiu":
        raise _bad(file, f"features of shape {list(found.shape)} and type {found.dtype}", ROWS)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite then, and told
        return np.ascontiguousarray(found, np.float32)


def _of_numbers(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _codes(file: Path, labels: NDArray[Any], n: int) -> NDArray[np.int8]:
    expected = "[N, K] of 1 (present), 0 (absent) and -1 (unknown)"
    if labels.ndim != 2 or len(labels) != n or labels.dtype.kind not in "biuf":
        what = f"labels of shape {list(labels.shape)} and type {labels.dtype} for {n:,} rows of features"
        raise _bad(file, what, expected)
    wrong = ~np.isin(labels, (1, 0, -1))
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        raise _bad(file, f"a label {labels[row, column]} in row {row}, column {column}", expected)
    return labels.astype(np.int8)


def texts_of(file: Path, found: NDArray[Any], n: int, what: str) -> list[str]:
    if found.shape != (n,) or found.dtype.kind not in "USiu":
        raise _bad(file, f"{what} of shape {list(found.shape)} and type {found.dtype}", f"{n:,} texts")
    return [cell.decode() if isinstance(cell, bytes) else str(cell) for cell in found.tolist()]


def _splits(file: Path, words: list[str]) -> NDArray[np.str_]:
    meant = {word: "" if not word else split_name(word) for word in dict.fromkeys(words)}
    strange = [word for word, split in meant.items() if split is None]
    if strange:
        raise _bad(file, f"split '{strange[0]}'", "train, val or test")
    return np.array([meant[word] for word in words], np.str_)


def places_of(paths: list[str], names: list[str]) -> NDArray[np.int64]:
    """For each path the row [n] of its name, which may lack leading folders or have others (then its last word must be
    of one row alone); -1 where there is none."""
    row_of = {name.replace("\\", "/"): row for row, name in enumerate(names)}
    times = Counter(name.rpartition("/")[2] for name in row_of)
    last = {end: row for name, row in row_of.items() if times[end := name.rpartition("/")[2]] == 1}
    found = np.full(len(paths), -1, np.int64)
    for place, path in enumerate(paths):
        words = path.replace("\\", "/").split("/")
        ends = ("/".join(words[start:]) for start in range(len(words)))
        found[place] = next((row_of[end] for end in ends if end in row_of), last.get(words[-1], -1))
    return found


def _bad(file: Path, what: str, expected: str) -> BadData:
    return BadData([Problem(str(file), None, what, expected)], skippable=False)
