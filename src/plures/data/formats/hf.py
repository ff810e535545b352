"""Data sets of the Hugging Face hub, by `datasets` (`pip install "plures[hf]"`), and its objects in hand.

The label column is a ClassLabel, a word, or a list of either, by its usual names; or a column per class with 1 and 0;
as in a table, whose options hold here too. Present: what is given, a 1. Absent: what `absent` names, a 0. Unknown:
everything else, unless `complete`. The photographs are files where the data say so, else in memory.
"""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from plures.data.dataset import Dataset, formats
from plures.data.formats.joined import joined
from plures.data.formats.split_names import split_name
from plures.data.formats.table import Table
from plures.data.formats.table_layout import normal_name
from plures.data.pairs import stacked
from plures.data.photos import decoded
from plures.errors import BadData, PluresError, Problem, require
from plures.labels import ABSENT, UNKNOWN, Labels

HUB = "hf://datasets/"
ROW = "image"  # the column that stands for the photographs while labels are read


@formats.register("hf", title="A data set of the Hugging Face hub, or one that datasets saved to a folder")
class Hub(Table):
    """The options are those of a table; hf:USER/NAME:CONFIG names a configuration, as in hf:nyu/glue:cola."""

    def recognises(self, path: str) -> bool:
        """A folder that `save_to_disk` wrote; the hub is named, as in hf:USER/NAME."""
        return bool(path) and os.path.isdir(path) and any(
            os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json")
        )  # fmt: skip

    def reason(self, path: str) -> str:
        """Where it is from."""
        return f"{path.removeprefix(HUB)}, by datasets" if path.startswith(HUB) else "a data set that datasets saved"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        require(f"data=hf:{path.removeprefix(HUB)}", "hf", ("datasets",))
        import datasets  # type: ignore[import-not-found,unused-ignore]

        name, _, config = path.removeprefix(HUB).partition(":") if path.startswith(HUB) else (path, "", "")
        try:
            hub = path.startswith(HUB)
            found = datasets.load_dataset(name, config or None) if hub else datasets.load_from_disk(path)
        except Exception as error:  # offline, no such name, a broken file: datasets raises many kinds
            line = " ".join(str(error).split())[:300]
            raise PluresError(
                f"hf:{name} could not be loaded ({type(error).__name__}: {line}); expected a data set of the hub, and a"
                " network or a copy in the cache of datasets"
            ) from None
        return self.take(found, name)

    def take(self, found: Any, name: str = "datasets") -> tuple[Dataset, list[Problem]]:
        """An object of `datasets`: a Dataset, or a DatasetDict with a Dataset per split."""
        problems: list[Problem] = []
        self.exist = False
        if not hasattr(found, "keys"):
            if not hasattr(found, "__len__"):
                raise PluresError(
                    f"{name or 'the data'} are streamed; expected a Dataset with a length (streaming=False)"
                )
            return self._one(found, name, problems), problems
        parts = {key: split_name(key) for key in found if split_name(key)} or dict.fromkeys(found, "")
        left_out = [key for key in found if key not in parts]
        if left_out:
            what = f"splits that are neither train, val nor test are left out: {', '.join(left_out)}"
            problems.append(Problem(name, None, what, severity="notice"))
        made = [(self._one(found[key], f"{name} {key}".strip(), problems), split or "") for key, split in parts.items()]
        dataset = joined([(replace(one, images=list(map(str, range(len(one))))), split) for one, split in made], name)
        photos: list[Any] = [photo for one, _ in made for photo in one.images]
        files = [isinstance(photo, str) for photo in photos]
        if any(files) and not all(files):
            raise BadData(
                [Problem(name, None, "the images of one split are files, of another not", "one of the two")], False
            )
        return replace(dataset, images=photos if all(files) else stacked(photos)), problems

    def _one(self, found: Any, name: str, problems: list[Problem]) -> Dataset:
        features = found.features
        kinds = {column: type(feature).__name__ for column, feature in features.items()}
        images = [column for column, kind in kinds.items() if kind == "Image"]
        if self.chosen.image:
            images = [column for column in images if column == self.chosen.image]
        if len(images) != 1:
            what = f"{len(images)} columns of images" + (f" ({', '.join(images)})" if images else "")
            columns = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
            raise BadData([Problem(name, None, what, f"one; data.image_column=NAME; choose from: {columns}")], False)
        labels = [c for c, kind in kinds.items() if kind not in ("Image", "Audio", "Video") and normal_name(c) != ROW]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "labels.parquet"
            cells = {column: _words(found.select_columns([column])[:][column], features[column]) for column in labels}
            pq.write_table(pa.table({ROW: list(map(str, range(len(found)))), **cells}), file)
            self.chosen = replace(self.chosen, image=ROW)
            before: list[Problem] = []
            made = self._read(file, before)
            tags = self.layout(file).tags
        problems += [replace(problem, file=name) for problem in before]
        rows = [int(os.path.basename(str(image))) for image in made.images]
        self.chosen = replace(self.chosen, image="")
        made = self._declared(made, _names(features[tags]) if tags else [])
        return replace(made, images=_photos(found, images[0], rows, name), name=name)

    def _declared(self, made: Dataset, names: list[str]) -> Dataset:
        """The data with the classes that a ClassLabel names and no photograph carries, too."""
        more = [] if self.rules.only else [name for name in names if name not in made.classes]
        code = ABSENT if self.complete else UNKNOWN
        values = np.concatenate([made.labels.values, np.full((len(made), len(more)), code, np.int8)], 1)
        return replace(made, labels=Labels(values), classes=(*made.classes, *more))


def _names(feature: Any) -> list[str]:
    """The names of a ClassLabel, or of a list of them, which datasets once had as a list of one."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return [str(name) for name in getattr(inner, "names", None) or []]


def _words(cells: list[Any], feature: Any) -> Any:
    """A column as pyarrow has it, ClassLabels by their names."""
    if names := _names(feature):
        table = dict(enumerate(names))  # -1 stands for no label
        cells = [[table.get(n) for n in cell] if isinstance(cell, list) else table.get(cell) for cell in cells]
    return pa.array(cells)


def _photos(found: Any, column: str, rows: list[int], name: str) -> Any:
    """The paths of the photographs where all are files here, else their pixels."""
    stored = found.select_columns([column]).cast_column(column, type(found.features[column])(decode=False))
    paths, pixels = list[str](), list[NDArray[np.uint8]]()
    for row in rows:
        cell = stored[row][column] or {}
        path, content = cell.get("path"), cell.get("bytes")
        if content is None and path and os.path.isfile(path):
            paths.append(path)
            continue
        try:
            with Image.open(io.BytesIO(content or b"")) as opened:
                pixels.append(np.array(decoded(opened)))
        except Exception as error:
            raise BadData(
                [Problem(name, row, f"image {path or row} cannot be read ({type(error).__name__})")], False
            ) from None
    if not pixels:
        return paths
    if paths:
        raise BadData([Problem(name, None, "some images are files and some are not", "one of the two")], False)
    return stacked(pixels)
