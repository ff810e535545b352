"""Which photographs are copies of each other, and which look like a given one: by content, small pictures and the
features of a backbone."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plures.config import AUTO, Component, Experiment
from plures.data.dataset import Dataset
from plures.data.loading import default_workers
from plures.data.near_copies import NEAR_EXACT, joined_groups, near_groups, small_pictures, unit
from plures.data.paths import paths_from
from plures.errors import PluresError, Problem, did_you_mean
from plures.files import writing
from plures.metrics.thresholds import Thresholds
from plures.models.model import Model, build_model, load
from plures.runs.photos import contents, copies
from plures.runs.run import Run
from plures.scoring.device import make_fabric
from plures.scoring.features import frozen_features
from plures.scoring.predictor import Predictor
from plures.training.auto import choose_model

Kind = Literal["exact", "near-exact", "near"]
SIMILARITY = 0.85  # cosine of features from which photographs are near; measured on MobileNetV2's: docs/copies.md
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Member:
    """A photograph of a group. kind: what it is of the group's first, or "" for the first and for what is near another
    member only; similarity: the cosine of their vectors."""

    row: int
    kind: Kind | Literal[""]
    similarity: float


Group = tuple[Member, ...]


@dataclass(frozen=True, eq=False)
class Space:
    """Where photographs are compared: the features of a backbone. vectors: of the data, [N, D] of length 1."""

    model: Model
    vectors: Vectors

    def place(self, images: Any) -> Vectors:
        """Unit vectors [n, D] of other images, given as `plures.load(run).predict` takes them."""
        model = Predictor(self.model, Thresholds.constant(self.model.classes, 0.5))
        return unit(model.embed(images))


def space_of(dataset: Dataset, *, run: Run | None = None, experiment: Experiment | None = None) -> Space:
    """The vectors of a dataset's photographs, by the backbone of a run, or by the one that an experiment names (auto:
    as for training on photographs). Features are kept where training keeps them, and computed once.

    Needs 4 bytes per image and number. Raises PluresError if there is no backbone, Unreadable on a broken image.
    """
    if run is not None:
        model, e = load(run.path), run.experiment
    else:
        e = experiment or Experiment()
        if e.backbone.name == AUTO and not e.backbone.options:
            e = e.model_copy(update={"backbone": Component(name=AUTO, options={"pretrained": True})})  # however small
        e, _ = choose_model(e, lambda: dataset)
        model = build_model(
            e.backbone.name, "linear", dataset.classes or ("none",), e.backbone.options, {}, e.image_size
        )
    workers = default_workers(dataset) if e.workers is None else e.workers
    device = make_fabric(e).device
    table = frozen_features(model.to(device), dataset, pooled=True, device=device, workers=workers)
    return Space(model, unit(table[:, 0]))


# --------------------------------------------------------------------------------------------------------- duplicates


def find_copies(
    dataset: Dataset, kind: Kind = "near-exact", *, vectors: Vectors | None = None, similarity: float = SIMILARITY
) -> list[Group]:
    """Groups of photographs that are copies of each other, the largest first.

    Args:
        dataset: N photographs.
        kind: exact: files with the same bytes; near-exact: and those that differ in size, encoding or a touch of light;
            near: and those whose vectors are alike, such as crops or the next one of a series.
        vectors: for near: unit vectors [N, D], such as `space_of(dataset).vectors`.
        similarity: for near: the cosine from which two are alike, in (0, 1).

    Returns:
        Groups of two members or more, the members in the order of the data.

    Example:
        >>> groups = find_copies(plures.read("tags.csv"))  # doctest: +SKIP
    """
    if kind not in get_args(Kind):
        raise PluresError(f"no kind of copies '{kind}'{did_you_mean(kind, get_args(Kind))}")
    if not 0 < similarity < 1:
        raise PluresError(f"similarity {similarity:g}: expected a cosine in (0, 1), such as {SIMILARITY}")
    content = contents(dataset)
    equal = copies(content)
    first = np.arange(len(dataset)) if equal is None else equal
    small = None
    if kind != "exact" and dataset.features is None:
        small = small_pictures(dataset)
        first = joined_groups(first, [_pairs(near_groups(small, NEAR_EXACT))])
    if kind == "near":
        if vectors is None:
            raise PluresError("kind=near requires vectors, such as space_of(dataset).vectors")
        first = joined_groups(first, [_pairs(near_groups(vectors, similarity))])
    order = np.argsort(first, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(first[order])) + 1)
    groups = []
    for rows in (part.tolist() for part in parts if len(part) > 1):
        group = [Member(rows[0], "", 1.0)]
        for row in rows[1:]:
            alike = float(vectors[rows[0]] @ vectors[row]) if vectors is not None else float("nan")
            if content[row] == content[rows[0]]:
                found: Kind | Literal[""] = "exact"
            elif small is not None and float(small[rows[0]] @ small[row]) >= NEAR_EXACT:
                found = "near-exact"
            else:
                found = "near" if alike >= similarity else ""
            group.append(Member(row, found, alike))
        groups.append(tuple(group))
    return sorted(groups, key=lambda group: -len(group))


def _pairs(first: NDArray[np.int64]) -> NDArray[np.int64]:
    rows = np.flatnonzero(first != np.arange(len(first)))
    return np.stack([rows, first[rows]], 1)


def across_splits(dataset: Dataset, groups: Sequence[Group]) -> list[Problem]:
    """A notice for each group with photographs in several splits."""
    found = []
    for group in groups:
        rows = [member.row for member in group]
        splits = sorted({str(dataset.splits[row]) for row in rows} - {""}) if dataset.splits is not None else []
        if len(splits) > 1:
            others = ", ".join(Path(str(dataset.images[row])).name for row in rows[1:4]) + ", ..." * (len(rows) > 4)
            what = f"and {others} are nearly the same, in {' and '.join(splits)}"
            file = str(dataset.images[rows[0]])
            found.append(Problem(file, None, what, "each photograph in one split", "notice"))
    return found


def write_groups(groups: Sequence[Group], dataset: Dataset, path: Path) -> None:
    """Write .csv or .tsv: image, group (from 1), kind, similarity, split and tags."""
    rows = [(m.row, number, m.kind, m.similarity) for number, group in enumerate(groups, 1) for m in group]
    _write(rows, ("group", "kind"), dataset, path)


def write_similar_rows(
    asked: Sequence[str], found: Sequence[Sequence[tuple[int, float]]], dataset: Dataset, path: Path
) -> None:
    """Write .csv or .tsv: image, the photograph asked for, rank (from 1), similarity, split and tags."""
    rows = [
        (row, name, rank, alike)
        for name, those in zip(asked, found, strict=True)
        for rank, (row, alike) in enumerate(those, 1)
    ]
    _write(rows, ("like", "rank"), dataset, path)


def _write(rows: list[tuple[int, Any, Any, float]], columns: tuple[str, str], dataset: Dataset, path: Path) -> None:
    spelt = paths_from(path.parent)
    with writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", lineterminator="\n")
        writer.writerow(["image", *columns, "similarity", "split", "tags"])
        for row, first, second, alike in rows:
            image = f"row {row}" if dataset.in_memory else spelt(str(dataset.images[row]))
            shown = "" if np.isnan(alike) else f"{alike:.4f}"
            split = "" if dataset.splits is None else dataset.splits[row]
            writer.writerow([image, first, second, shown, split, ";".join(tags_of(dataset, row))])


def tags_of(dataset: Dataset, row: int) -> list[str]:
    """The tags of a photograph."""
    return [dataset.classes[k] for k in np.flatnonzero(dataset.labels.values[row] == 1)]


# ------------------------------------------------------------------------------------------------------------ similar


def most_similar(vectors: Vectors, query: Vectors, top: int) -> list[tuple[int, float]]:
    """The rows of the vectors [N, D] that are most like the query [D], best first, each with its cosine."""
    alike = vectors @ query
    some = np.argpartition(-alike, min(top, len(alike) - 1))[:top] if top < len(alike) else np.arange(len(alike))
    best = some[np.argsort(-alike[some], kind="stable")]
    return [(int(row), float(alike[row])) for row in best]
