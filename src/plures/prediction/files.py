"""What predictions are written to: one file, or a folder of parts that a killed run continues with.

A folder holds `part-00000.parquet`, ... (with shards `part-2of8-00000.parquet`), each a fixed stretch of the images in
their order, written atomically; beside a part, `part-00000.bad.csv` with the images of that stretch that could
not be read, if any; and `prediction.json`, the settings that all parts share.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from plures.data.formats.safe_cells import guarded
from plures.data.formats.table_layout import RESERVED
from plures.data.paths import paths_from
from plures.data.photos import is_address
from plures.errors import PluresError, WorkFailed
from plures.files import clear_left, parse_json, refuse_folder, writing

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SETTINGS = "prediction.json"


@dataclass(frozen=True, eq=False)
class Rows:
    """n predictions. names: of the images; scores: probabilities [n, K]; called: which tags are given, bool [n, K]."""

    names: list[str]
    scores: NDArray[np.floating[Any]]
    called: NDArray[np.bool_]

    def tags(self, classes: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The tags of every row, the surest first."""
        order = np.argsort(-self.scores, axis=1, kind="stable").tolist()
        called = self.called.tolist()
        return [tuple(classes[k] for k in ranked if given[k]) for ranked, given in zip(order, called, strict=True)]


def columns_of(classes: tuple[str, ...]) -> list[str]:
    """The columns of the classes; one that is called as a column with a meaning in a table gets a longer name."""
    return [f"score of {c}" if c in RESERVED else c for c in classes]


def names_from(folder: str | Path, here: str | None) -> Callable[[str], str]:
    """How images are called in files of this folder: a path that is relative to the folder `here` starts from `folder`
    instead, so that it is found from there; absolute paths and addresses stay. here None: every name stays, as those
    of images in memory."""
    spelt = paths_from(folder)

    def name(image: str) -> str:
        if here is None or is_address(image) or os.path.isabs(image):
            return image
        return spelt(os.path.join(here, image))

    return name


def schema_of(classes: tuple[str, ...]) -> Any:
    """image, tags (joined by ";"), and a float32 column per class."""
    scores = [(name, pa.float32()) for name in columns_of(classes)]
    return pa.schema([("image", pa.string()), ("tags", pa.string()), *scores])


def table_of(rows: Rows, classes: tuple[str, ...]) -> Any:
    """The rows as a pyarrow table of `schema_of`; scores to six digits."""
    tags = [";".join(given) for given in rows.tags(classes)]
    columns = np.ascontiguousarray(np.round(rows.scores, 6).astype(np.float32).T)  # [K, n]
    return pa.table([pa.array(rows.names, pa.string()), pa.array(tags, pa.string()), *map(pa.array, columns)],
                    schema=schema_of(classes))  # fmt: skip


# --------------------------------------------------------------------------------------------------------- one file


class Write(Protocol):
    def __call__(self, rows: Rows) -> None: ...


@contextmanager
def writer(path: Path, suffix: str, classes: tuple[str, ...], safe_csv: bool = True) -> Iterator[Write]:
    """A function that appends predictions to a file of this kind; safe_csv: no cell of text is a formula."""
    if suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as handle:
            yield lambda rows: handle.writelines(_lines(rows, classes))
        return
    spell = str if suffix == ".parquet" else partial(guarded, formulas=safe_csv)
    classes = tuple(map(spell, classes))
    schema = schema_of(classes)
    if suffix == ".parquet":
        sink: Any = pa.parquet.ParquetWriter(path, schema)
    else:
        options = pa.csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",", quoting_style="needed")
        sink = pa.csv.CSVWriter(path, schema, write_options=options)
    with sink:
        yield lambda rows: sink.write_table(table_of(replace(rows, names=list(map(spell, rows.names))), classes))


def _lines(rows: Rows, classes: tuple[str, ...]) -> Iterator[str]:
    for name, scores, tags in zip(rows.names, np.round(rows.scores, 6).tolist(), rows.tags(classes), strict=True):
        entry = {"image": name, "tags": tags, "scores": dict(zip(classes, scores, strict=True))}
        yield json.dumps(entry, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------------------- a folder of parts

Bad = tuple[str, str]  # an image's name and why it cannot be used


@dataclass(frozen=True)
class PartRecord:
    """What a part says of itself. first, last: the first and last image it was asked for; images: how many it holds;
    bad: how many could not be read; tags: how many were given in all."""

    first: str
    last: str
    asked: int
    images: int
    bad: int
    tags: int


class Parts:
    """A folder of parts, local or at any address that fsspec knows (s3://, gs://, memory://, ...)."""

    def __init__(
        self, folder: str | Path, classes: tuple[str, ...], shard: tuple[int, int] = (1, 1), here: str | None = None
    ) -> None:
        """here: the folder that relative paths of images start from, see `names_from`."""
        self.classes, self.shard = classes, shard
        self.fs, self.root = fsspec.core.url_to_fs(str(folder))
        self.folder = str(folder)
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.named = names_from(self.root, here if self.local else None)
        self.stem = "part-" if shard[1] == 1 else f"part-{shard[0]}of{shard[1]}-"

    @staticmethod
    def refuse_other(folder: str) -> None:
        """Raise PluresError if a folder on this machine holds files, but no predictions of plures."""
        if "://" not in folder and not (Path(folder) / SETTINGS).is_file():
            refuse_folder(folder)

    def begin(self, settings: dict[str, Any], resume: bool) -> None:
        """Make the folder, or continue one. Raises PluresError if that would mix predictions of two kinds."""
        self.refuse_other(self.folder)
        known = self._read(SETTINGS)
        if known is None:
            self._write(SETTINGS, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
        else:
            before = self._settings(known)
            different = [key for key in settings if before.get(key) != settings[key]]
            if different:
                key = different[0]
                raise PluresError(
                    f"{self.folder} was begun with {key}={_short(before.get(key))}, now it is {_short(settings[key])};"
                    " use the same settings, or another --out"
                )
        if not resume and self.numbers():
            raise PluresError(f"{self.folder} already holds parts; continue with --resume, or choose another --out")
        if self.local:
            clear_left(self.root)  # of a run that was killed while writing

    def _settings(self, text: bytes) -> dict[str, Any]:
        try:
            settings = parse_json(text)
            if not isinstance(settings, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise PluresError(f"{self.folder}/{SETTINGS}: damaged ({error}); choose another --out") from None
        return settings

    def numbers(self) -> list[int]:
        """The parts of this shard that are there, in order."""
        self.fs.invalidate_cache()
        if not self.fs.isdir(self.root):
            return []
        names = (str(path).rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False))
        middles = (n.removeprefix(self.stem).removesuffix(".parquet") for n in names if n.endswith(".parquet"))
        return sorted(int(middle) for middle in middles if middle.isdigit())

    def name(self, number: int) -> str:
        return f"{self.stem}{number:05d}"

    def record(self, number: int) -> PartRecord:
        """What a finished part says of itself. Raises PluresError if the file is damaged."""
        path = f"{self.root}/{self.name(number)}.parquet"
        try:
            with self.fs.open(path, "rb") as file:
                stored = pa.parquet.read_schema(file).metadata[b"plures"]
            return PartRecord(**json.loads(stored))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise PluresError(f"{path}: not a part that plures wrote ({error}); remove it and use --resume") from None

    def write(self, number: int, asked: list[str], rows: list[Rows], bad: list[Bad]) -> PartRecord:
        """Write a part, and the list of its unreadable images first: a part that is there is complete."""
        classes = self.classes
        rows = [replace(r, names=[self.named(name) for name in r.names]) for r in rows]
        bad = [(self.named(name), reason) for name, reason in bad]
        tables = [table_of(r, classes) for r in rows] or [schema_of(classes).empty_table()]
        table = pa.concat_tables(tables).combine_chunks()
        tags = sum(int(r.called.sum()) for r in rows)
        record = PartRecord(asked[0], asked[-1], len(asked), table.num_rows, len(bad), tags)
        if bad:
            text = io.StringIO()
            lines = csv.writer(text, lineterminator="\n")
            lines.writerows([("image", "problem"), *((guarded(name), guarded(reason)) for name, reason in bad)])
            self._write(f"{self.name(number)}.bad.csv", text.getvalue().encode())
        sink = pa.BufferOutputStream()
        described = table.replace_schema_metadata({b"plures": json.dumps(vars(record)).encode()})
        pa.parquet.write_table(described, sink)
        self._write(f"{self.name(number)}.parquet", sink.getvalue().to_pybytes())
        return record

    def _read(self, name: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: bytes) -> None:
        """Whole or not at all: by renaming on a disk; an object store shows an object when it is complete."""
        path = f"{self.root}/{name}"
        if self.local:
            with writing(path) as temporary:
                temporary.write_bytes(content)
            return
        try:
            self.fs.pipe_file(path, content)
        except OSError as error:
            raise WorkFailed(f"{self.folder}/{name}: cannot be written ({error})") from None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
