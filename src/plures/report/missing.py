"""Probable missing tags of a report: unknown cells of training images that the model is surest of, and where.

By the run's own scores, which have seen these labels: a first look. `plures suggest` scores by cross-fitting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plures.analysis.missing import Suggestion, rank_missing
from plures.data.photos import to_image
from plures.labels import UNKNOWN
from plures.metrics.thresholds import Thresholds
from plures.models.model import Model
from plures.report.photos import Photo, Picture, data_uri, look_at
from plures.runs.data import Prepared
from plures.runs.run import Run
from plures.scoring.device import make_fabric
from plures.scoring.heatmaps import overlay
from plures.scoring.logits import logits_of_dataset

SHOWN, JUDGED = 6, 100  # photos on the page; suggestions that are checked where the hidden labels are known
ROWS = 500  # training images looked at where each costs a pass through the whole model


@dataclass(frozen=True)
class Missing:
    """What was looked at, in a sentence, and the first suggestions."""

    words: str
    photos: tuple[Photo, ...]


def missing_tags(run: Run, prepared: Prepared | None, model: Model, thresholds: Thresholds) -> Missing | None:
    """None where nothing about the training images is unknown."""
    if prepared is None or prepared.train.labels.complete:
        return None
    train = prepared.train
    rows = np.arange(len(train))
    if not run.experiment.frozen and len(train) > ROWS:
        rows = np.sort(np.random.default_rng(run.experiment.seed).permutation(len(train))[:ROWS])
        train = train.take(rows)
    fabric = make_fabric(run.experiment)
    logits = logits_of_dataset(model.to(fabric.device), train, run.experiment, fabric)
    found = rank_missing(thresholds.probabilities(logits), train.labels, classes=train.classes, top=JUDGED)
    words = f"Unknown tags of {len(train):,} training images, the model surest of first."
    known = None if prepared.train_known is None else prepared.train_known.take(rows)
    codes = [] if known is None else [int(known.values[s.row, s.column]) for s in found]
    judged = [code for code in codes if code != UNKNOWN]
    if judged:
        words += f" Of the first {len(judged)}, {sum(c == 1 for c in judged)} are right: these labels are known here."
    shown = found[:SHOWN]
    chosen = train.take([s.row for s in shown])
    seen = look_at(model, chosen, run.experiment)
    photos = []
    for n, s in enumerate(shown):
        image = None if chosen.features is not None else to_image(chosen.images[n])
        pictures = [] if image is None else [Picture(data_uri(image), "the photo")]
        if seen is not None and image is not None:
            pictures.append(Picture(data_uri(overlay(image, seen[n].heat(s.column))), f"{s.tag}? {s.score:.2f}"))
        tags = ", ".join(chosen.classes[k] for k in np.flatnonzero(chosen.labels.present[n])) or "no tag"
        photos.append(Photo(_name(chosen.images[n], s), f"has {tags}; perhaps {s.tag}", tuple(pictures)))
    return Missing(words, tuple(photos))


def _name(image: object, suggestion: Suggestion) -> str:
    return image.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(image, str) else f"row {suggestion.row}"
