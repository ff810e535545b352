"""Scores that some other model gave, in a table: a row per image, a column per class.

    .csv .tsv .parquet   a column `image` (or what else names images), and a column of numbers per class
    .npz                 scores [N, K]; classes [K]; names (or images, filepaths) [N]

Higher is likelier: probabilities, logits and cosines will do. Images are found by their paths, which may lack leading
folders. Scores in [0, 1] are taken as probabilities, and their log odds as evidence.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plures.data.formats.features import NAMES, arrays_of, one_of, places_of, texts_of
from plures.data.formats.table_layout import image_column
from plures.errors import PluresError
from plures.models.outputs import Tokens
from plures.models.priors.base import FILE, Given, priors

TABLES = (".csv", ".tsv", ".parquet", ".npz")
SCORES = ("scores", "probabilities", "logits")
LEAST = 1e-6  # a probability nearer to 0 or 1 counts as this near
EXPECTED = "a table of scores (.csv, .tsv, .parquet or .npz): a column `image`, and a column of numbers per class"


@priors.register(FILE, title="Scores [N, K] of another model, in a table")
class FromFile(nn.Module):
    """path: the table. It is kept with the model, which then scores the images of the table and no others.

    rows, letters: how large the table is, which `fill` finds out.
    """

    network = None
    said: Tensor
    evidence: Tensor
    names: Tensor

    def __init__(self, classes: tuple[str, ...], width: int, path: str = "", rows: int = 0, letters: int = 0) -> None:
        super().__init__()
        self.classes, self.path, self.options = classes, path, {"path": path, "rows": rows, "letters": letters}
        self.register_buffer("said", torch.zeros(len(classes), dtype=torch.bool))
        self.register_buffer("evidence", torch.zeros(rows, len(classes)))
        self.register_buffer("names", torch.zeros(letters, dtype=torch.uint8))

    def fill(self, backbone: Given) -> None:
        names, scores = read_scores(self.path, self.classes)
        evidence = evidence_of(scores)
        varied = np.ptp(evidence, axis=0) > 0 if len(evidence) else np.zeros(len(self.classes), np.bool_)
        text = "\n".join(names).encode(errors="surrogateescape")
        self.options |= {"rows": len(names), "letters": len(text)}
        self.said = torch.from_numpy(varied)
        self.evidence = torch.from_numpy(evidence)
        self.names = torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def of(self, images: Sequence[Any] | NDArray[Any]) -> Tensor:
        """The evidence [n, K] of these images. Raises PluresError, naming some, if the table lacks any."""
        known = bytes(self.names.cpu().numpy()).decode(errors="surrogateescape").split("\n")
        asked = [str(image) for image in images]
        rows = places_of(asked, known) if all(isinstance(image, str | os.PathLike) for image in images) else None
        if rows is None:
            raise PluresError(f"prior={self.path}: images in memory have no names to find their scores by; save them")
        if (rows < 0).any():
            lacking = [asked[row] for row in np.flatnonzero(rows < 0)]
            more = ", ..." if len(lacking) > 3 else ""
            raise PluresError(
                f"prior={self.path}: no scores of {len(lacking):,} of {len(asked):,} images ({', '.join(lacking[:3])}"
                f"{more}), and a run with a prior from a file scores only the images in that file; for others train"
                " with prior=imagenet, text or none"
            )
        return self.evidence[torch.from_numpy(rows).to(self.evidence.device)]

    def extra(self, images: Tensor, tokens: Tokens, backbone: Any) -> Tensor | None:
        return None

    def forward(self, features: Tensor) -> Tensor:
        raise PluresError(
            f"prior={self.path}: this run's prior is a file, so it scores only the images in that file, by name, with"
            " plures predict, evaluate, suggest and thresholds; for any photograph train with prior=imagenet, text or"
            " none"
        )


def is_scores(name: str) -> bool:
    """Whether this names a file of scores rather than a prior."""
    return name.lower().endswith(TABLES)


def evidence_of(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scores [N, K] as evidence: log odds where all of them are in [0, 1], else as they are."""
    if len(scores) and scores.min() >= 0 and scores.max() <= 1:
        p = np.clip(scores.astype(np.float64), LEAST, 1 - LEAST)
        return np.log(p / (1 - p)).astype(np.float32)
    return scores.astype(np.float32)


def read_scores(path: str, classes: tuple[str, ...]) -> tuple[list[str], NDArray[np.float32]]:
    """Names [N] and scores [N, K] in the order of these classes. Raises PluresError on anything else than such a table.

    A class that the file lacks has the score 0 for every image; other columns are left out.
    """
    file = Path(path)
    if not file.is_file():
        raise PluresError(f"prior={path}: no such file; expected {EXPECTED}")
    names, columns = _npz(file) if file.suffix.lower() == ".npz" else _table(file)
    found = [name for name in classes if name in columns]
    if not found:
        raise PluresError(
            f"prior={path}: none of the data's classes ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
            f" among its columns ({', '.join(list(columns)[:5])}{', ...' if len(columns) > 5 else ''})"
        )
    scores = np.zeros((len(names), len(classes)), np.float32)
    for k, name in enumerate(classes):
        if name in columns:
            scores[:, k] = columns[name]
    unsound = ~np.isfinite(scores)
    if unsound.any():
        row, k = (int(place[0]) for place in np.nonzero(unsound))
        raise PluresError(
            f"prior={path}: {int(unsound.sum()):,} scores are no finite numbers, the first: '{classes[k]}' of"
            f" {names[row]}; expected a number in every cell"
        )
    times = len(names) - len(set(names))
    if times:
        twice = next(name for name in names if names.count(name) > 1)
        raise PluresError(f"prior={path}: {times:,} images have several rows, such as {twice}; expected one each")
    return names, scores


def _npz(file: Path) -> tuple[list[str], dict[str, NDArray[Any]]]:
    arrays = arrays_of(file)
    scores, names, classes = one_of(arrays, SCORES), one_of(arrays, NAMES), one_of(arrays, ("classes",))
    if scores is None or names is None or classes is None:
        there = ", ".join(arrays) or "-"
        raise PluresError(f"prior={file}: arrays {there}; expected scores [N, K], names [N] and classes [K]")
    if scores.ndim != 2 or scores.dtype.kind not in "fiu":
        what = f"scores of shape {list(scores.shape)} and type {scores.dtype}"
        raise PluresError(f"prior={file}: {what}; expected numbers [N, K]")
    columns = texts_of(file, classes, scores.shape[1], "classes")
    return texts_of(file, names, len(scores), "names"), dict(zip(columns, scores.T, strict=True))


def _table(file: Path) -> tuple[list[str], dict[str, NDArray[Any]]]:
    try:
        if file.suffix.lower() == ".parquet":
            table = pq.read_table(file)
        else:
            apart = pa.csv.ParseOptions(delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            table = pa.csv.read_csv(file, parse_options=apart)
    except (pa.ArrowException, OSError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise PluresError(f"prior={file}: cannot be read ({line}); expected {EXPECTED}") from None
    column = image_column(table.column_names)
    if not column:
        there = ", ".join(table.column_names[:8])
        raise PluresError(f"prior={file}: no column 'image' among {there}; expected {EXPECTED}")
    columns = {}
    for name in table.column_names:
        cells, kind = table[name], table[name].type
        if name != column and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            columns[name] = cells.to_numpy(zero_copy_only=False).astype(np.float32)
        elif name != column and not pa.types.is_null(kind):
            columns[name] = np.full(len(table), np.nan, np.float32)
    return [str(cell) for cell in table[column].to_pylist()], columns
