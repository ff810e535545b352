"""How sure a mean average precision is: bootstrap intervals over images, for one model or between two.

A resample draws N images out of N with replacement, so an image counts 0, 1, 2, ... times. Instead of gathering and
sorting the drawn scores each time, the scores of a class are sorted once and every resample becomes a vector of
multiplicities: how many images score at least s is then a weighted sum over the sorted order, for all resamples
together. Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from plures.errors import PluresError
from plures.labels import PRESENT, UNKNOWN, Labels
from plures.metrics.average_precision import (
    Definition,
    Floats,
    Scores,
    find_definition,
    first_of_ties,
    map_classes,
    mean_average_precision,
)

RESAMPLES_TOGETHER = 8  # measured: 8 beats 16, 32 and 64, the sums of a class stay in the cache


@dataclass(frozen=True)
class Interval:
    """A percentile interval. value: on the images as they are; low, high: around it, at `level`, in the same unit."""

    value: float
    low: float
    high: float
    level: float
    resamples: int


def bootstrap_map(
    scores: Scores,
    labels: Labels,
    definition: str = "plain",
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of the mAP, in [0, 1]. scores: float [N, K]; labels: [N, K].

    A class that loses its positives in a resample is left out of the mean of that resample (under `mlspl` and `asl`
    it counts as 0). Raises PluresError for an unknown definition, a bad level or fewer than two resamples.
    """
    _check(resamples, level)
    value = mean_average_precision(scores, labels, definition).value
    samples = _means(bootstrap_average_precision(scores, labels, definition, resamples, seed))
    return _interval(value, samples, level)


def bootstrap_difference(
    scores: Scores,
    others: Scores,
    labels: Labels,
    definition: str = "plain",
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of mAP(others) - mAP(scores) on the same images, in [-1, 1]; arguments as `bootstrap_map`.

    Both are judged on the same resamples, so what the images share cancels: the interval is that of the difference
    and much narrower than two separate ones. If it leaves out 0, the two models differ at this level.
    """
    _check(resamples, level)
    values = [mean_average_precision(s, labels, definition).value for s in (scores, others)]
    first, second = (
        _means(bootstrap_average_precision(s, labels, definition, resamples, seed)) for s in (scores, others)
    )
    return _interval(values[1] - values[0], second - first, level)


def bootstrap_average_precision(
    scores: Scores, labels: Labels, definition: str = "plain", resamples: int = 200, seed: int = 0
) -> Floats:
    """AP of every class in every resample: float64 [resamples, K], nan where the class has no positive drawn.

    The resamples depend on the seed and on the number of images alone.
    """
    found = find_definition(definition)
    draws = multiplicities(len(labels), resamples, seed)

    def of_column(column: Scores, codes: NDArray[np.int8]) -> Floats:
        return weighted_average_precision(column, codes, draws, found)

    return np.stack(map_classes(of_column, scores, labels), axis=1) if labels.classes else np.zeros((resamples, 0))


def multiplicities(images: int, resamples: int, seed: int) -> list[NDArray[np.uint8]]:
    """How often each image is drawn: uint8 blocks [N, r], r up to RESAMPLES_TOGETHER, `resamples` columns in all."""
    random = np.random.default_rng(seed)
    blocks = []
    for start in range(0, resamples, RESAMPLES_TOGETHER):
        together = min(RESAMPLES_TOGETHER, resamples - start)
        block = np.empty((images, together), np.uint8)
        for column in range(together):
            drawn = random.integers(0, max(images, 1), images)
            block[:, column] = np.bincount(drawn, minlength=images)
        blocks.append(block)
    return blocks


def weighted_average_precision(
    column: Scores, codes: NDArray[np.int8], draws: list[NDArray[np.uint8]], definition: Definition
) -> Floats:
    """AP of one class when image n counts draws[b][n, r] times. column, codes: [N]; returns [resamples]."""
    known = np.flatnonzero(codes != UNKNOWN)
    order = known[np.argsort(column[known])]
    hit = codes[order] == PRESENT
    positives, ordered = column[order[hit]], column[order]
    if len(ordered) and np.isnan(ordered[-1]):
        raise PluresError("scores hold nan; average precision needs a number for every image and class")
    first = first_of_ties(positives)
    steps_hits = _rows_between(order[hit], first, len(column))
    steps_taken = _rows_between(order, np.searchsorted(ordered, positives[first]), len(column))
    values: list[Floats] = []
    for block in draws:
        times = block.astype(np.float32)  # [N, r]; sums stay exact below 2 ** 24
        hits, taken = (_from_above(steps @ times) for steps in (steps_hits, steps_taken))
        values += [definition.average(*curve) for curve in zip(hits, taken, strict=True)]
    return np.array(values, np.float64)


def _rows_between(order: NDArray[np.int64], first: NDArray[np.int64], images: int) -> csr_array:
    """The 0/1 matrix [G, N] whose row g selects order[first[g]:first[g + 1]]."""
    start = int(first[0]) if len(first) else len(order)
    bounds = np.append(first, len(order)) - start
    columns = order[start:].astype(np.int32)
    ones = np.ones(len(columns), np.float32)
    return csr_array((ones, columns, bounds.astype(np.int32)), shape=(len(first), images))


def _from_above(steps: NDArray[np.float32]) -> Floats:
    """Sums of steps [G, r] from the last row up to each row, turned over: [r, G]."""
    downwards = np.ascontiguousarray(steps.T[:, ::-1])  # [r, G]; cumsum is fast along contiguous memory
    return np.cumsum(downwards, axis=1, dtype=np.float64)[:, ::-1]


def _means(samples: Floats) -> Floats:
    """Mean of [resamples, K] over the classes defined in each resample; nan where none is."""
    defined = ~np.isnan(samples)
    total = np.where(defined, samples, 0.0).sum(1)
    means: Floats = np.divide(total, defined.sum(1), out=np.full(len(samples), np.nan), where=defined.any(1))
    return means


def _interval(value: float, samples: Floats, level: float) -> Interval:
    samples = samples[~np.isnan(samples)]
    if len(samples) == 0:
        return Interval(value, float("nan"), float("nan"), level, 0)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, len(samples))


def _check(resamples: int, level: float) -> None:
    if resamples < 2:
        raise PluresError(f"a bootstrap wants 2 resamples or more, got {resamples}")
    if not 0 < level < 1:
        raise PluresError(f"the level of an interval is in (0, 1), got {level}")
