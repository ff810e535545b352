"""Finding tags that are probably missing, and tags that look wrong: cells of the label table, ranked for review.

`rank_missing` is a pure function of scores and labels; `suggest` finds the scores for a run and its data.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plures.data.dataset import Dataset
from plures.data.formats.safe_cells import guarded
from plures.data.paths import paths_from
from plures.data.photos import Unreadable, to_image
from plures.data.read import read
from plures.errors import PluresError, did_you_mean
from plures.files import writing
from plures.labels import Labels
from plures.metrics.thresholds import sigmoid
from plures.models.model import Model, load
from plures.runs.data import IN_MEMORY, mask_splits
from plures.runs.own_data import holds_training, match_classes, recalled
from plures.runs.photos import Photos, contents, with_contents
from plures.runs.run import Run
from plures.scoring import predictor
from plures.scoring.device import make_fabric
from plures.scoring.features import refuse_maps
from plures.scoring.heatmaps import overlay, paint
from plures.scoring.logits import logits_of_dataset
from plures.training.cross_fitting import out_of_fold
from plures.training.history import mean_logits
from plures.training.progress import Callback

Normalise = Literal["none", "prior"]
Kind = Literal["missing", "wrong"]
Floats = NDArray[np.float64]
COLUMNS = ("image", "tag", "kind", "score", "rank", "method", "heatmap")
TINY = 1e-15  # sure scores still differ there; ties would keep the order of the table


@dataclass(frozen=True)
class Suggestion:
    """One cell to look at. row, column: its place in the labels; rank: from 1, within its kind.

    kind "missing": unknown, probably present; "wrong": known, but the scores say the opposite. score in [0, 1]: how
    sure the ranking is, comparable within a kind and method only. heatmap: a picture of where the model saw it, or "".
    """

    row: int
    column: int
    image: str
    tag: str
    kind: Kind
    score: float
    rank: int
    method: str
    heatmap: str = ""


def rank_missing(
    probabilities: NDArray[np.floating],
    labels: Labels,
    *,
    images: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    normalise: Normalise = "none",
    top: int | None = None,
    with_wrong: bool = False,
    method: str = "scores",
) -> list[Suggestion]:
    """Rank the unknown cells by how probably the class is present; with_wrong: then the known ones that look wrong.

    probabilities [N, K] of presence. normalise "none": by probability as it is; "prior": see `against_prior`, which
    asks more evidence of frequent classes (measured to find fewer missing tags).
    Wrong cells are always ranked against the prior: by probability alone, every tag of a rare class looks wrong.
    top: at most so many of each kind. images, classes: names; numbers stand in. method: how the probabilities came
    about, for the file. Ties keep the order of the table.
    """
    if normalise not in get_args(Normalise):
        raise PluresError(f"unknown normalisation '{normalise}'{did_you_mean(str(normalise), get_args(Normalise))}")
    p = np.clip(np.asarray(probabilities, np.float64), TINY, 1 - TINY)  # [N, K]
    if p.shape != labels.values.shape:
        raise ValueError(f"probabilities {p.shape} for labels {labels.values.shape}")
    if np.isnan(p).any():
        raise ValueError("a probability is nan; only scored rows can be ranked")
    relative = against_prior(p)
    kinds: list[tuple[Kind, Floats, NDArray[np.bool_]]] = [
        ("missing", p if normalise == "none" else relative, labels.unknown)
    ]
    if with_wrong:
        opposite = np.where(labels.present, 1 - relative, relative)
        kinds.append(("wrong", opposite, ~labels.unknown & (opposite > 0.5)))
    return [
        Suggestion(
            row,
            column,
            str(row) if images is None else str(images[row]),
            str(column) if classes is None else classes[column],
            kind,
            float(scores[row, column]),
            rank,
            method,
        )
        for kind, scores, cells in kinds
        for rank, (row, column) in enumerate(_best(scores, cells, top), 1)
    ]


def against_prior(p: Floats) -> Floats:
    """Probabilities [N, K] with each class's usual odds taken out: p/(1-p) over m/(1-m), m its mean; in [0, 1]."""
    usual = p.mean(0)
    odds = p / (1 - p) * (1 - usual) / usual
    return np.asarray(odds / (1 + odds))


def _best(scores: Floats, cells: NDArray[np.bool_], top: int | None) -> list[tuple[int, int]]:
    """Row and column of the cells with the highest scores, best first."""
    places = np.flatnonzero(cells)
    values = scores.reshape(-1)[places]
    if top is not None and top < len(places):
        cut = np.partition(values, len(values) - top)[len(values) - top]
        places, values = places[values >= cut], values[values >= cut]
    order = places[np.argsort(-values, kind="stable")][:top]
    return [(int(place) // scores.shape[1], int(place) % scores.shape[1]) for place in order]


# ---------------------------------------------------------------------------------------------- for a run and its data


@dataclass(frozen=True, eq=False)
class Scored:
    """Rows with their observed labels and probabilities [N, K]; method: how these came about, by row kind."""

    dataset: Dataset
    probabilities: Floats
    method: str


def suggest(
    run: str | Path | Run,
    data: str | Dataset | None = None,
    *,
    top: int | None = 1000,
    cross_fit: int | None = None,
    with_wrong: bool = False,
    normalise: Normalise = "none",
    options: dict[str, Any] | None = None,
    skip_bad: bool = False,
    callback: Callback | None = None,
) -> tuple[list[Suggestion], Dataset]:
    """Tags that are probably missing in the run's own data, or in other data with the model's classes.

    cross_fit: folds in which the training rows are scored by models that did not see their labels; 0: by the run's
    own model. None: 5 for wrong tags where only a head is trained anew (no stage finetune), else 0: measured on frozen
    features, cross-fitting finds more wrong tags, and slightly fewer missing ones, as each model learns from less.
    Where the run has more to say of the rows it was trained on, that is averaged with their scores: the mean over its
    epochs (`history=true`), and, with the cross-fitted scores, what its loss thought of the labels (ROLE's estimates,
    pseudo-labels, running predictions).
    Returns the suggestions and the dataset whose rows they count.
    """
    run = run if isinstance(run, Run) else Run(run)
    if cross_fit is None:
        cross_fit = 5 if with_wrong and run.experiment.frozen else 0
    scored = score(run, data, cross_fit=cross_fit, options=options or {}, skip_bad=skip_bad, callback=callback)
    images = scored.dataset.images
    names = None if isinstance(images, np.ndarray) else [str(image) for image in images]
    found = rank_missing(
        scored.probabilities,
        scored.dataset.labels,
        images=names,
        classes=scored.dataset.classes,
        normalise=normalise,
        top=top,
        with_wrong=with_wrong,
        method=scored.method,
    )
    return found, scored.dataset


def score(
    run: Run,
    data: str | Dataset | None,
    *,
    cross_fit: int,
    options: dict[str, Any],
    skip_bad: bool,
    callback: Callback | None = None,
) -> Scored:
    """The probabilities that `suggest` ranks by."""
    e = run.experiment
    fabric = make_fabric(e)
    model = load(run.path).to(fabric.device)
    dataset, training, places = _rows(run, data, model, options, skip_bad)
    logits = np.asarray(logits_of_dataset(model, dataset, e, fabric), np.float64)
    words = ["model"]
    crossed = cross_fit > 0 and len(training) > 0
    if crossed:
        logits[training] = out_of_fold(run, dataset.take(training), cross_fit, seed=e.seed, callback=callback)
        words.append(f"cross-fit {cross_fit}")
    if places is not None:
        more = remembered(run, (places.of, len(dataset.classes)), with_state=crossed)
        if more:
            told = [of_training[places.rows] for of_training in more.values()]
            logits[training] = np.mean([logits[training], *told], axis=0)
            words += more
    return Scored(dataset, sigmoid(logits), " + ".join(words))


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows stood among the `of` images that the run was trained on, which its memory of labels is in order of."""

    rows: NDArray[np.int64]
    of: int


def _rows(
    run: Run, data: str | Dataset | None, model: Model, options: dict[str, Any], skip_bad: bool
) -> tuple[Dataset, NDArray[np.int64], Places | None]:
    """The rows to look at with the labels that training may see of them, which of them the run was trained on, and
    where those stood in its training (None: other data than its own)."""
    known = None if run.imported else Photos.load(run.path)
    given = data if isinstance(data, Dataset) else None
    if data is None or (given is not None and run.source.name == IN_MEMORY and holds_training(run, given)):
        whole, place = recalled(run, options, skip_bad, given)
        prepared = mask_splits(run.experiment, whole)
        assert whole.splits is not None
        values = whole.labels.values.copy()
        values[whole.splits == "train"] = prepared.train.labels.values
        if prepared.val_observed is not None:
            values[whole.splits == "val"] = prepared.val_observed.values
        trained = np.flatnonzero((whole.splits == "train") & (place >= 0))
        was_trained = whole.splits == "train" if known is None else known.splits == "train"
        places = Places((np.cumsum(was_trained) - 1)[place[trained]], int(was_trained.sum()))
        return match_classes(whole.with_labels(Labels(values)), model.classes, model.taxonomy), trained, places
    dataset = given or read(str(data), skip_bad=skip_bad, verify=True, **options)
    dataset = with_contents(match_classes(dataset, model.classes, model.taxonomy))
    if known is None:
        return dataset, np.empty(0, np.int64), None
    return dataset, np.flatnonzero(np.isin(contents(dataset), known.trained)), None


def remembered(run: Run, shape: tuple[int, int], with_state: bool) -> dict[str, Floats]:
    """What the run's checkpoint says of its training cells beside the model's scores, as logits [N, K], by name."""
    checkpoint = run.load_checkpoint() or {}
    found = {"history": mean_logits(checkpoint.get("history"))}
    if with_state:
        found["label state"] = label_state(checkpoint.get("memory"), run.experiment.loss.name)
    return {name: logits for name, logits in found.items() if logits is not None and logits.shape == shape}


def label_state(memory: dict[str, Any] | None, loss: str) -> Floats | None:
    """What a loss thought of the training labels at the end, as logits [N, K]; None where it kept nothing.

    ROLE learns logits; the other losses keep probabilities or codes, which are taken as logits of at most +-4.
    """
    if not memory:
        return None
    table = memory["table"].double().numpy()
    if loss == "role":
        return np.asarray(table)
    if not np.isfinite(table).all() or table.min() < 0 or table.max() > 1:
        return None  # codes of some other kind: not a belief about the label
    p = np.clip(table, 0.018, 0.982)
    return np.asarray(np.log(p / (1 - p)))


# --------------------------------------------------------------------------------------------------- file and pictures


def write_suggestions(
    suggestions: Sequence[Suggestion], path: str | Path, dataset: Dataset, safe_csv: bool = True
) -> None:
    """Write COLUMNS as .csv or .tsv; paths of images and heat maps start from the file's folder.

    safe_csv: an apostrophe before names that a spreadsheet would take for a formula; `plures review` knows it.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise PluresError(f"{path}: cannot tell the format from '{path.suffix}'; use .csv or .tsv")
    spelt, spell = paths_from(path.parent), partial(guarded, formulas=safe_csv)
    with writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", lineterminator="\n")
        writer.writerow(COLUMNS)
        for s in suggestions:
            image = s.image if dataset.in_memory else spelt(s.image)
            heat = spelt(s.heatmap) if s.heatmap else ""
            words = map(spell, (image, s.tag, s.kind, f"{s.score:.6f}", f"{s.rank}", s.method, heat))
            writer.writerow(words)


def draw_heatmaps(
    run: str | Path, suggestions: Sequence[Suggestion], dataset: Dataset, folder: Path
) -> list[Suggestion]:
    """A picture of each suggestion, RANK.KIND.IMAGE.TAG.jpg, at the photo's size; gives them back with `heatmap`."""
    draw = heat_drawer(run)
    drawn = []
    for s in suggestions:
        stem = re.sub(r"[^\w.-]+", "_", f"{s.rank:05d}.{s.kind}.{Path(s.image).stem}.{s.tag}")
        path = folder / f"{stem}.jpg"
        picture = draw(to_image(dataset.images[s.row]), s.tag, s.score)
        with writing(path) as temporary:
            picture.save(temporary, format="JPEG", quality=88)
        drawn.append(replace(s, heatmap=str(path)))
    return drawn


def heat_drawer(run: str | Path) -> Callable[[Image.Image, str, float | None], Image.Image]:
    """A function: photo, tag, score -> the photo with the heat of the run's model over it, and both words on top.

    The function raises Unreadable for a tag that the model does not know; PluresError if the head gives no heat maps.
    """
    model = predictor.load(run, device="cpu")
    refuse_maps(model)

    def draw(photo: Image.Image, tag: str, score: float | None = None) -> Image.Image:
        if tag not in model.classes:
            raise Unreadable(f"the model does not know '{tag}'")
        _, weights, boxes = model.look(model.transform(photo)[None])
        heat = paint(weights[0, model.classes.index(tag)], boxes, photo.height, photo.width)
        return overlay(photo, heat, tag, score)

    return draw
