"""What a review asks: suggested cells one at a time, or every class of a sample of images."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.formats.safe_cells import bare
from plures.data.splits import stratified_split
from plures.errors import BadData, PluresError, Problem
from plures.web.table_edit import Key, key_of

HEADER = ("image", "tag", "kind", "score", "rank", "method", "heatmap")
MAX_SUGGESTIONS = 1_000_000


@dataclass(frozen=True)
class Question:
    """Is this tag in this photo? number: its place among the questions; row: of the photo in the dataset."""

    number: int
    row: int
    image: Key
    tag: str
    kind: str
    score: float
    heatmap: str = ""


def read_suggestions(path: Path, dataset: Dataset, table: Path) -> list[Question]:
    """The questions that a file of suggestions asks, in its order; image and heat map paths start from its folder.

    Raises BadData with every line that is no suggestion for this table, PluresError if the file is none at all.
    """
    rows = {os.path.abspath(str(image)): row for row, image in enumerate(dataset.images)}
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    questions: list[Question] = []
    problems: list[Problem] = []
    seen: set[tuple[int, str]] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter)
            missing = [name for name in ("image", "tag") if name not in (reader.fieldnames or ())]
            if missing:
                raise PluresError(f"{path}: no column '{missing[0]}'; expected what `plures suggest` writes")
            for line in reader:
                if len(questions) >= MAX_SUGGESTIONS:
                    raise PluresError(f"{path}: more than {MAX_SUGGESTIONS:,} suggestions; use --top")
                row = rows.get(os.path.abspath(path.parent / bare(line["image"] or "")))
                tag, kind = bare((line["tag"] or "").strip()), line.get("kind") or "missing"
                if row is None or not tag or kind not in ("missing", "wrong"):
                    what = (
                        f"image '{line['image']}' is not in {table.name}" if row is None else "no tag, or another kind"
                    )
                    problems.append(Problem(str(path), reader.line_num, what, "an image, a tag, missing or wrong"))
                    continue
                if (row, tag) in seen:
                    continue
                seen.add((row, tag))
                key = key_of(str(dataset.images[row]), table)
                heat = bare(line.get("heatmap") or "")
                questions.append(Question(len(questions), row, key, tag, kind, _number(line.get("score")), heat))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PluresError(f"{path}: cannot be read ({error})") from None
    if problems:
        raise BadData(problems, skippable=False)
    return questions


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def draw_sample(dataset: Dataset, size: int, seed: int = 0, without: Collection[int] = ()) -> list[int]:
    """At most `size` rows of images with something unknown, for a clean validation set, in random order.

    They come from the table's validation split as far as it goes, then from the training rows, never from test, and
    not from `without`. Within each they are drawn at random, shared out evenly over the known tags, so that rates in
    the sample are those of the data. Raises PluresError if there is nothing to draw from.
    """
    splits = np.full(len(dataset), "") if dataset.splits is None else dataset.splits
    free = np.asarray(dataset.labels.unknown.any(1))
    free[list(without)] = False
    chosen: list[int] = []
    for names in (["val"], ["train", ""]):
        pool = np.flatnonzero(free & np.isin(splits, names))
        chosen += _draw(dataset, pool, min(size - len(chosen), len(pool)), seed)
    if not chosen and not without:
        raise PluresError(f"{dataset.name}: every label of the training and validation images is known; nothing to ask")
    return chosen


def _draw(dataset: Dataset, pool: NDArray[np.int64], size: int, seed: int) -> list[int]:
    """`size` rows of the pool, stratified by known tags."""
    generator = np.random.default_rng(seed)
    if size in (0, len(pool)):
        return [int(row) for row in generator.permutation(pool)[:size]]
    share = size / len(pool)
    part = stratified_split(dataset.labels.take(pool), {"sample": share, "rest": 1 - share}, seed=seed)
    # rounding by class leaves a few too many or too few
    order = np.concatenate([generator.permutation(pool[part == name]) for name in ("sample", "rest")])
    return [int(row) for row in order[:size]]
