"""Thresholds chosen from held-out logits and their labels: from full labels, or from observed positives alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plures.data.taxonomy import Taxonomy
from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.calibrating import Kind as Calibrating
from plures.metrics.calibrating import calibrate
from plures.metrics.choosing import Cuts, Objective, Pool, choose
from plures.metrics.thresholds import Calibration, Floats, Thresholds, probabilities_at
from plures.metrics.uniform_choice import ASSUMES, fit_uniform_choice, most_tags

Source = Literal["clean", "positives", "reviewed"]
FEW = 20  # positives of a class below which a choice of its own is mostly noise
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ClassChoice:
    """One class: its threshold; positives observed on the held-out images; the share of images that has it (known or
    estimated) and that is called; recall, precision and f1 there, as known or estimated; in [0, 1] or nan. pooled:
    why it took the threshold of all classes together, or nothing."""

    name: str
    threshold: float
    positives: int
    prior: float
    called: float
    precision: float
    recall: float
    f1: float
    pooled: str


@dataclass(frozen=True)
class Choice:
    """thresholds, already in the run folder; images they were chosen on; tags_called, tags_present: a image on
    average; estimated: whether the numbers rest on estimates of what was not observed; warning: for people, or
    nothing."""

    thresholds: Thresholds
    images: int
    tags_called: float
    tags_present: float
    estimated: bool
    per_class: tuple[ClassChoice, ...]
    warning: str


def source_of(labels: Labels) -> Source | None:
    """What held-out labels [N, K] allow a choice from, as a person would pick it; None where no tag is known.

    Known labels count where they say what is absent at least as often as what is present. Single tags with a few known
    absences are not such: by these alone nearly every call is right.
    """
    if not labels.present.any():
        return None
    return "clean" if labels.absent.sum() >= labels.present.sum() else "positives"


def from_logits(
    logits: Scores,
    labels: Labels,
    classes: tuple[str, ...],
    *,
    source: Source,
    objective: Objective,
    per_class: bool = True,
    calibrating: Calibrating = "none",
    taxonomy: Taxonomy | None = None,
) -> Choice:
    """Thresholds for held-out logits [N, K] and what is known of their labels [N, K].

    The options are those of `plures.analysis.thresholds.choose_thresholds`. taxonomy: of the classes, which decides
    with the thresholds on what is called.
    """
    logits = np.asarray(logits if taxonomy is None else taxonomy.highest(logits), np.float32)
    estimated = source == "positives"
    if not estimated:
        _refuse_positives_only(labels, source)
    presence = labels.present.astype(np.float64)
    known, weights = ~labels.unknown, None
    if estimated:
        if labels.complete:
            raise PluresError("every label of the held-out images is known: use --from clean, which needs no estimates")
        rows = labels.present.any(1)
        logits, labels = logits[rows], labels.take(rows)
        presence = fit_uniform_choice(logits, labels).presence(logits, labels)
        known, weights = np.ones(presence.shape, np.bool_), np.repeat(presence.sum(1)[:, None], len(classes), 1)
    calibration = calibrate(logits, presence, known, calibrating)
    scores = logits.astype(np.float64) if calibration is None else calibration.comparable(logits)
    pool = Pool(scores, presence, known, labels.present, weights)
    cuts = choose(pool, objective, per_class=per_class, match_priors=estimated)
    settled = settle(cuts.values, scores, logits, calibration)
    thresholds = Thresholds(
        classes,
        probabilities_at(settled, calibration),
        f"{source}, {'per class' if per_class else 'global'}",
        str(objective),
        assumption(source),
        guarantee(source, objective, per_class, len(labels)),
        calibration,
        settled,
        taxonomy,
    )
    warning = _warning(labels, objective, pool, estimated, logits)
    return _judged(thresholds, pool, thresholds.called(logits), cuts, estimated, warning)


def settle(chosen: Floats, scores: Floats, logits: Scores, calibration: Calibration | None) -> NDArray[np.float32]:
    """The cuts [K] on float32 logits [N, K] that call what `chosen` [K] calls by their comparable scores [N, K],
    whatever the way back from scores to logits rounds."""
    cuts = (chosen if calibration is None else calibration.logits_at(chosen)).astype(np.float32)
    called = scores >= chosen
    lowest = np.where(called, logits, np.inf).min(0, initial=np.inf)
    highest = np.where(called, -np.inf, logits).max(0, initial=-np.inf)
    outside = ~((cuts > highest) & (cuts <= lowest))
    return np.asarray(np.where(outside & np.isfinite(lowest), lowest, cuts), np.float32)


def assumption(source: Source) -> str:
    """What a choice takes for granted, in a sentence."""
    same = "The held-out images are like those to come, and the model was not trained on them"
    if source == "positives":
        return f"{same}; {ASSUMES}."
    return f"{same}; {'every' if source == 'clean' else 'and each'} label that counts here is right."


def guarantee(source: Source, objective: Objective, per_class: bool, images: int) -> str:
    """What a choice promises, in a sentence."""
    if objective.kind == "recall":
        of = "a new present label of each class" if per_class else "a new present label of any class"
        promise = f"{of.capitalize()} is called with a chance of {objective.value:.0%} or more, over held-out and new"
        promise += " images together (conformal), except for classes marked pooled"
        if source == "positives":
            return f"{promise}; exact for tags as people give them, for all labels as far as their weights are right."
        return f"{promise}."
    if objective.kind == "tags":
        return f"On these {images:,} images the average is as near to {objective.value:g} tags as ties allow."
    if source == "positives":
        return "None: the numbers are estimates; check them with `--from reviewed` and about 200 reviewed images."
    what = "the best F1" if objective.kind == "f1" else f"a precision of {objective.value:.0%} or more"
    return f"On these {images:,} images the thresholds reach {what}; new images differ by chance."


def _refuse_positives_only(labels: Labels, source: Source) -> None:
    if not labels.absent.any() or not labels.present.any():
        missing = "absent" if labels.present.any() else "present"
        raise PluresError(
            f"--from {source} needs images whose labels are known, but none of these {len(labels):,} has a label known"
            f" to be {missing}; use --from positives, or data.complete=true if untagged means absent"
        )


def _warning(labels: Labels, objective: Objective, pool: Pool, estimated: bool, logits: Scores) -> str:
    few = int((labels.present.sum(0) < FEW).sum())
    parts = []
    if few and objective.kind != "tags":
        parts.append(f"{few} of {labels.classes} classes have fewer than {FEW} held-out positives and are uncertain")
    if estimated:
        tags = float(pool.presence.sum(1).mean())
        parts.append(f"{tags:.2f} labels per image estimated, {most_tags(logits, labels):.2f} at most by their ranks")
    return "; ".join(parts)


def _judged(
    thresholds: Thresholds, pool: Pool, tags: NDArray[np.bool_], cuts: Cuts, estimated: bool, warning: str
) -> Choice:
    """The choice with what it does on the held-out cells. tags: [N, K], what is called."""
    called = tags & pool.known
    hits = (pool.presence * called).sum(0)
    count, present, cells = called.sum(0), np.where(pool.known, pool.presence, 0).sum(0), pool.known.sum(0)
    recall = hits
    base = present
    if estimated and pool.weights is not None:
        weighted = pool.positives * pool.weights
        recall, base = (weighted * called).sum(0), weighted.sum(0)
    per_class = tuple(
        ClassChoice(
            name,
            float(thresholds.values[k]),
            int(pool.positives[:, k].sum()),
            _share(present[k], cells[k]),
            _share(count[k], cells[k]),
            _share(hits[k], count[k]),
            _share(recall[k], base[k]),
            _share(2 * hits[k], count[k] + present[k]),
            cuts.reason if cuts.pooled[k] else "",
        )
        for k, name in enumerate(thresholds.classes)
    )
    images = len(pool.scores)
    return Choice(
        thresholds, images, float(tags.sum() / images), float(np.nansum(pool.share)), estimated, per_class, warning
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def from_expected(
    logits: Scores, classes: tuple[str, ...], tags: float, taxonomy: Taxonomy | None = None
) -> Thresholds:
    """One cut on logits [N, K] for all classes, at so many tags per image on average, where no tag is known."""
    logits = np.asarray(logits if taxonomy is None else taxonomy.highest(logits), np.float32)
    objective = Objective("tags", tags)
    every = np.ones(logits.shape, np.bool_)
    pool = Pool(logits.astype(np.float64), np.zeros(logits.shape), every, ~every)
    cuts = settle(choose(pool, objective, per_class=False).values, pool.scores, logits, None)
    assumes = "Photographs show so many of the classes on average; nothing was observed that could say otherwise."
    promise = guarantee("clean", objective, False, len(logits))
    values = probabilities_at(cuts, None)
    return Thresholds(classes, values, "expected tags, global", str(objective), assumes, promise, None, cuts, taxonomy)
