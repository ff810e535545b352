"""Observing a dataset: hiding labels the way a paper, or a person who tags, leaves them out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Boxes, Dataset
from plures.errors import PluresError, did_you_mean
from plures.labels import (
    PRESENT,
    UNKNOWN,
    Bias,
    Labels,
    complete,
    mask_all,
    mask_to_fraction,
    mask_to_single_positive,
)
from plures.registry import check_values, kinds_of

NEAREST = 1e-3  # of the image's side: a box right at the centre gets no infinite weight


def mask_labels(dataset: Dataset, mode: str, **options: Any) -> Labels:
    """What is observed of the dataset's labels.

    mode full: all of them, which must be known; as_given: whatever is known; none: nothing; single_positive (options
    seed, bias, wrong, num_pos, num_neg): one present label per image, or as many present and absent ones as num_pos and
    num_neg say; fraction (options fraction, seed): each known label with a
    probability; sources (options sources, shared, known, seed): each image from one of several sources that knows
    only its own classes.
    Pass the whole official training set, before a validation split is cut off, to draw as the MLSPL code does.
    Raises PluresError for an unknown mode or option, and for a bias that requires boxes where there are none.
    """
    check(mode, options)
    return MODES[mode](dataset, **options)


def check(mode: str, options: dict[str, Any]) -> None:
    """Raise PluresError if there is no such supervision, or it does not take one of the options."""
    if mode not in MODES:
        raise PluresError(f"unknown supervision '{mode}'{did_you_mean(mode, MODES)}")
    allowed = list(inspect.signature(MODES[mode]).parameters)[1:]
    for option in options:
        if option not in allowed:
            hint = did_you_mean(option, allowed) if allowed else "; it has no options"
            raise PluresError(f"supervision '{mode}' has no option '{option}'{hint}")
    check_values(f"supervision '{mode}'", kinds_of(MODES[mode]), options)


def _full(dataset: Dataset) -> Labels:
    return complete(dataset.labels)


def _as_given(dataset: Dataset) -> Labels:
    return dataset.labels


def _none(dataset: Dataset) -> Labels:
    return mask_all(dataset.labels)


def _fraction(dataset: Dataset, fraction: float = 0.1, seed: int = 1200) -> Labels:
    return mask_to_fraction(dataset.labels, fraction, seed)


def _single_positive(
    dataset: Dataset,
    seed: int = 1200,
    bias: Bias = "uniform",
    wrong: float = 0.0,
    num_pos: int = 1,
    num_neg: int = 0,
) -> Labels:
    weights = None if bias == "uniform" else bias_weights(dataset, bias)
    observed = mask_to_single_positive(dataset.labels, seed, weights, num_pos, num_neg)
    return mistake(observed, dataset.labels, wrong, seed) if wrong else observed


def _sources(
    dataset: Dataset, sources: int = 3, shared: float = 0.0, known: Literal["one", "all"] = "one", seed: int = 1200
) -> Labels:
    if not 1 <= sources <= dataset.labels.classes:
        raise PluresError(f"sources is a number from 1 to the {dataset.labels.classes} classes, got {sources!r}")
    if not 0 <= shared < 1:
        raise PluresError(f"shared is the share of classes that all sources know, in [0, 1), got {shared!r}")
    vocabulary, source = vocabularies(len(dataset), dataset.labels.classes, sources, shared, seed)
    inside = Labels(np.where(vocabulary[source], dataset.labels.values, np.int8(UNKNOWN)))
    return inside if known == "all" else mask_to_single_positive(inside, seed)


MODES: dict[str, Callable[..., Labels]] = {
    "full": _full,
    "single_positive": _single_positive,
    "fraction": _fraction,
    "sources": _sources,
    "as_given": _as_given,
    "none": _none,
}


def mistake(observed: Labels, truth: Labels, wrong: float, seed: int = 1200) -> Labels:
    """The observed labels with a share of the positives wrong: in `wrong` of the images that have an observed positive
    and a class that is absent, one observed positive becomes unknown and a random absent class is said to be present.

    The same draw for a larger `wrong` keeps the mistakes of a smaller one and adds to them.
    """
    if not 0 <= wrong <= 1:
        raise PluresError(f"wrong is the share of images with a wrong positive, in [0, 1], got {wrong!r}")
    if not truth.absent.any():
        raise PluresError(
            "supervision.wrong requires classes known to be absent, to name falsely; these data have none"
        )
    generator = np.random.default_rng([seed, 1])
    chance = generator.random(len(observed))
    scores = generator.random((2, *observed.values.shape), dtype=np.float32)  # by lot: what is lost, what is said
    able = observed.present.any(1) & truth.absent.any(1)
    rows = np.flatnonzero(able & (chance < wrong))
    values = observed.values.copy()
    lost = np.where(observed.present, scores[0], -1).argmax(1)
    said = np.where(truth.absent, scores[1], -1).argmax(1)
    values[rows, lost[rows]] = UNKNOWN
    values[rows, said[rows]] = PRESENT
    return Labels(values)


def vocabularies(
    rows: int, classes: int, sources: int, shared: float, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which classes each source knows, bool [S, K], and each image's source, [N]. Images are dealt to sources
    evenly by lot; `shared` of the classes are known to all, the rest is dealt out evenly, each to one source."""
    generator = np.random.default_rng([seed, 2])
    order = generator.permutation(classes)
    common = min(round(shared * classes), classes - sources)
    vocabulary = np.zeros((sources, classes), np.bool_)
    vocabulary[:, order[:common]] = True
    vocabulary[np.arange(classes - common) % sources, order[common:]] = True
    return vocabulary, generator.permutation(np.arange(rows) % sources)


def bias_weights(dataset: Dataset, bias: Bias) -> NDArray[np.floating]:
    """Weights [N, K] by which one present label per image is drawn (Arroyo, Perona & Cole 2023, Understanding Label
    Bias in Single Positive Multi-Label Learning, arXiv 2305.15584).

    size: the area of the class's boxes in the image, summed. center: the sum over the class's boxes of 1 / distance
    from the box's centre to the image's. frequency: the images of the class in the dataset; it stands in for the
    paper's semantic bias, whose weights are how often people name each COCO class and exist for no other data.
    Read so: boxes where the official code takes segmentation areas, distances in shares of width and height where it
    takes pixels. A present class without a box has weight 0 beside others that have one.
    """
    if bias == "uniform":
        return np.ones((1, dataset.labels.classes), np.float32).repeat(len(dataset), 0)  # [N, K]
    if bias == "frequency":
        counts = dataset.labels.present.sum(0).astype(np.float32)
        return np.broadcast_to(counts, dataset.labels.values.shape)  # [N, K]
    if dataset.boxes is None or not len(dataset.boxes.row):
        raise PluresError(
            f"bias={bias} requires boxes, which {dataset.name or 'the data'} do not have; use uniform or frequency"
        )
    weights = np.zeros(dataset.labels.values.shape, np.float32)
    each = _area(dataset.boxes) if bias == "size" else 1 / np.maximum(_distance(dataset.boxes), NEAREST)
    np.add.at(weights, (dataset.boxes.row, dataset.boxes.column), each.astype(np.float32))
    return weights


def _area(boxes: Boxes) -> NDArray[np.float32]:
    x1, y1, x2, y2 = boxes.corners.T
    return np.asarray(np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0), np.float32)


def _distance(boxes: Boxes) -> NDArray[np.float32]:
    x1, y1, x2, y2 = boxes.corners.T
    return np.asarray(np.hypot((x1 + x2) / 2 - 0.5, (y1 + y2) / 2 - 0.5), np.float32)
