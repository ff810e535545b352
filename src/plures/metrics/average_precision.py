"""Average precision per class, in every definition that multi-label papers use, each by name.

With the scores of a class sorted from high to low, hits(s) images that have the class and taken(s) images in all
score s or more; precision(s) = hits(s) / taken(s), recall(s) = hits(s) / positives. Every definition is a way of
averaging precision over recall:

name   formula                                                       who uses it
plain  sum of (recall step) x precision                              scikit-learn, Jouanneau et al. 2022
mlspl  plain; a class without positives is 0 and counts in the mean  Cole et al. 2021 (MLSPL) and its family
voc    sum of (recall step) x (best precision at this recall or up)  PASCAL VOC 2010 and later; Query2Label
voc07  mean over recall >= 0, 0.1, ..., 1 of the best precision      PASCAL VOC 2007
mlgcn  plain                                                         Chen et al. 2019 (ML-GCN)
asl    plain x positives / (positives + 1e-8); 0 without positives   Ridnik et al. 2021 (ASL, ML-Decoder)

Images with the same score are taken together, so that no value depends on the order of the rows. The published
code of Query2Label, ML-GCN and ASL takes them one by one in the order that its sort happens to leave; with ties its
numbers differ by that.

Sources: scikit-learn, `average_precision_score`; Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV
2010, section 4.2, and the VOC 2010 development kit; Cole et al., Multi-Label Learning from Single Positive Labels,
CVPR 2021 (arXiv 2106.09708); Liu et al., Query2Label, 2021 (arXiv 2107.10834); Chen et al., Multi-Label Image
Recognition with Graph Convolutional Networks, CVPR 2019 (arXiv 1904.03582); Ridnik et al., Asymmetric Loss for
Multi-Label Classification, ICCV 2021 (arXiv 2009.14119). What published code does was read in that code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError, did_you_mean
from plures.labels import PRESENT, UNKNOWN, Labels
from plures.system import in_threads

if TYPE_CHECKING:
    from torch import Tensor

Scores = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
T = TypeVar("T")

BLOCK_BYTES = 32 * 2**20  # scores that one thread holds at once, class by class
COUNTED_FROM = 2**15  # rows from which counting float16 scores is faster than sorting them
TILE_ROWS = 4096  # rows copied at once when the scores are turned over: fits the cache
RECALLS_2007 = np.arange(0.0, 1.1, 0.1)  # holds 0.30000000000000004, as the published code does


# ------------------------------------------------------------------------------------------------ the definitions


@dataclass(frozen=True)
class Definition:
    """One way to average precision. average(hits, taken) -> AP, see `plain_average` for the shapes."""

    name: str
    formula: str
    used_by: str
    average: Callable[[Floats, Floats], Floats]


def plain_average(hits: Floats, taken: Floats) -> Floats:
    """AP from the curve of one class. nan where there is no positive.

    hits, taken: [G, ...]; row g stands for the g-th lowest of the G distinct scores that positives have; how many
    positives, and how many images in all, score that much or more. Further axes are independent curves.
    Returns [...].
    """
    return _area(hits, _precision(hits, taken))


def voc_average(hits: Floats, taken: Floats) -> Floats:
    """Area under the precision envelope; arguments and shapes as `plain_average`."""
    envelope = np.maximum.accumulate(_precision(hits, taken), axis=0)
    return _area(hits, envelope)


def voc07_average(hits: Floats, taken: Floats) -> Floats:
    """Mean of the best precision at eleven recalls; arguments and shapes as `plain_average`."""
    positives = _positives(hits)
    if len(hits) == 0:
        return np.full(hits.shape[1:], np.nan)
    precision = _precision(hits, taken)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / positives
    best = [np.where(recall >= least, precision, 0.0).max(axis=0) for least in RECALLS_2007]
    return np.where(positives > 0, np.mean(best, axis=0), np.nan)


def mlspl_average(hits: Floats, taken: Floats) -> Floats:
    """`plain_average`, 0 without positives."""
    return np.where(_positives(hits) > 0, plain_average(hits, taken), 0.0)


def asl_average(hits: Floats, taken: Floats) -> Floats:
    """`mlspl_average` with 1e-8 added to the number of positives that divides the sum."""
    positives = _positives(hits)
    shrunk: Floats = mlspl_average(hits, taken) * (positives / (positives + 1e-8))
    return shrunk


def _positives(hits: Floats) -> Floats:
    return hits[0] if len(hits) else np.zeros(hits.shape[1:])


def _precision(hits: Floats, taken: Floats) -> Floats:
    return np.divide(hits, taken, out=np.zeros(np.shape(taken)), where=taken > 0)


def _area(hits: Floats, precision: Floats) -> Floats:
    """Sum over the curve of the step in recall times `precision`; nan where there is no positive."""
    positives = _positives(hits)
    step = hits.copy()
    step[:-1] -= hits[1:]
    total = (step * precision).sum(axis=0)
    area: Floats = np.divide(total, positives, out=np.full(np.shape(positives), np.nan), where=positives > 0)
    return area


DEFINITIONS: dict[str, Definition] = {
    d.name: d
    for d in (
        Definition("plain", "sum of (recall step) x precision", "scikit-learn, Jouanneau et al. 2022", plain_average),
        Definition("mlspl", "plain, 0 for a class without positives", "Cole et al. 2021 and its family", mlspl_average),
        Definition("voc", "area under the precision envelope", "PASCAL VOC 2010+, Query2Label", voc_average),
        Definition("voc07", "mean best precision at 11 recalls", "PASCAL VOC 2007", voc07_average),
        Definition("mlgcn", "plain", "ML-GCN (Chen et al. 2019)", plain_average),
        Definition("asl", "plain with positives + 1e-8, 0 without", "ASL, ML-Decoder", asl_average),
    )
}


def find_definition(name: str) -> Definition:
    """The definition of this name. Raises PluresError if there is none."""
    if name not in DEFINITIONS:
        raise PluresError(f"unknown definition of average precision '{name}'{did_you_mean(name, DEFINITIONS)}")
    return DEFINITIONS[name]


# ------------------------------------------------------------------------------------------------------ the values


@dataclass(frozen=True, eq=False)
class MeanAveragePrecision:
    """value: mean of `per_class` over the classes scored, in [0, 1], nan if there are none.

    per_class: float64 [K], nan where undefined (see also `cannot_fail`); scored: bool [K].
    """

    value: float
    per_class: Floats
    scored: NDArray[np.bool_]


def average_precision(
    scores: Scores | Tensor,
    labels: Labels | NDArray[Any] | Tensor,
    definition: str = "plain",
    threads: int | None = None,
) -> NDArray[np.float64]:
    """AP of every class by the definition's formula, in [0, 1]. Returns float64 [K], nan for a class without a known
    positive. A class of which no image is known to be without it has 1 here, whatever its scores: see `cannot_fail`.

    scores: float [N, K], any order-preserving score (probability or logit), an array, a memory map or a tensor;
    labels: [N, K], Labels or their codes, unknown cells are left out of their class; definition: a name of DEFINITIONS;
    threads: default one a core.
    Raises PluresError for other shapes, nan scores or an unknown definition.
    """
    average = find_definition(definition).average
    scores, labels = arrays(scores, labels)

    def of_column(column: Scores, codes: NDArray[np.int8]) -> float:
        hits, taken = curve(column, codes)
        return float(average(hits, taken))

    return np.array(map_classes(of_column, scores, labels, threads), np.float64)


def mean_average_precision(
    scores: Scores | Tensor,
    labels: Labels | NDArray[Any] | Tensor,
    definition: str = "plain",
    threads: int | None = None,
) -> MeanAveragePrecision:
    """mAP over the classes that the definition gives a value and that can fail; arguments as `average_precision`."""
    scores, labels = arrays(scores, labels)
    by_formula = average_precision(scores, labels, definition, threads)
    per_class = np.where(cannot_fail(labels, definition), np.nan, by_formula)
    scored = ~np.isnan(per_class)
    value = float(per_class[scored].mean()) if scored.any() else float("nan")
    return MeanAveragePrecision(value, per_class, scored)


def cannot_fail(labels: Labels, definition: str = "plain") -> NDArray[np.bool_]:
    """The classes, bool [K], that any scores would rank perfectly: some image has them and none is known to be without.

    Where every label of the class is known, this holds for `plain` alone: the published codes behind the other
    definitions count such a class as 1.
    """
    present = labels.present.sum(0)
    certain = (present > 0) & (present == (~labels.unknown).sum(0))
    return np.asarray(certain if definition == "plain" else certain & (present < len(labels)))


def curve(column: Scores, codes: NDArray[np.int8]) -> tuple[Floats, Floats]:
    """hits and taken [G] of one class, lowest score first (see `plain_average`). column: [N]; codes: int8 [N].

    Two sorts of plain numbers, all images and the positives alone, give every rank; no argsort is needed.
    """
    positives = column.take(np.flatnonzero(codes == PRESENT))
    if np.any(codes == UNKNOWN):
        column = column.take(np.flatnonzero(codes != UNKNOWN))
    if column.dtype == np.float16:
        if len(column) >= COUNTED_FROM:
            return _counted(column, positives)
        column, positives = column.astype(np.float32), positives.astype(np.float32)
    positives, ordered = np.sort(positives), np.sort(column)
    if len(ordered) and np.isnan(ordered[-1]):
        raise _nan_in_scores()
    first = first_of_ties(positives)
    hits = len(positives) - first
    taken = len(ordered) - np.searchsorted(ordered, positives[first], side="left")
    return hits.astype(np.float64), taken.astype(np.float64)


def _counted(column: Scores, positives: Scores) -> tuple[Floats, Floats]:
    """`curve` of float16 scores: there are so few different ones that counting them replaces sorting."""
    values, place, number = _halves()  # the 65,536 bit patterns, how many values there are
    counts = [np.bincount(scores.view(np.uint16), minlength=len(place)) for scores in (positives, column)]
    if counts[1][np.isnan(values)].any():
        raise _nan_in_scores()
    by_value = [np.bincount(place, weights=count, minlength=number) for count in counts]  # lowest value first
    hits, taken = (np.cumsum(count[::-1])[::-1] for count in by_value)
    there = by_value[0] > 0
    return hits[there].astype(np.float64), taken[there].astype(np.float64)


@cache
def _halves() -> tuple[NDArray[np.float16], NDArray[np.int64], int]:
    """The value of each bit pattern of a float16, its place among all values (two zeros are one), and their number."""
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    different, place = np.unique(values.astype(np.float32), return_inverse=True)
    return values, place, len(different)


def _nan_in_scores() -> PluresError:
    return PluresError("scores hold nan; average precision needs a number for every image and class")


def first_of_ties(ordered: Scores) -> NDArray[np.int64]:
    """Where each distinct value of an ascending [P] array begins. Returns [G]."""
    if len(ordered) == 0:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


# ------------------------------------------------------------------------------------------- class by class, bounded


def map_classes(
    work: Callable[[Scores, NDArray[np.int8]], T], scores: Scores, labels: Labels, threads: int | None = None
) -> list[T]:
    """work(column of scores [N], column of label codes int8 [N]) for every class, on several threads, in order.

    Memory is bounded: a thread holds BLOCK_BYTES of scores at a time, whatever N x K is.
    """
    check_shapes(scores, labels)
    threads = threads or os.cpu_count() or 1
    blocks = list(_blocks(scores, threads))

    def of_block(block: slice) -> list[T]:
        columns, codes = _turned(scores, block), _turned(labels.values, block)  # [k, N]
        return [work(column, code) for column, code in zip(columns, codes, strict=True)]

    if threads == 1 or len(blocks) == 1:
        return [value for block in blocks for value in of_block(block)]
    return [value for values in in_threads(of_block, blocks, threads) for value in values]


def arrays(scores: Scores | Tensor, labels: Labels | NDArray[Any] | Tensor) -> tuple[Scores, Labels]:
    """Scores and labels as the metrics count them: arrays stay as they are, tensors of any device and precision are
    copied; labels may be codes (1, 0, -1) or booleans [N, K]."""
    return _array(scores), labels if isinstance(labels, Labels) else Labels(_array(labels).astype(np.int8))


def _array(values: Any) -> NDArray[Any]:
    if not hasattr(values, "detach"):
        return np.asanyarray(values)
    tensor = values.detach().cpu()
    return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)


def check_shapes(scores: Scores, labels: Labels) -> None:
    """Raise PluresError unless scores are floating and as many rows and columns as the labels."""
    if not np.issubdtype(scores.dtype, np.floating):
        raise PluresError(f"scores are floating-point numbers [N, K], got {scores.dtype}")
    if scores.shape != labels.values.shape:
        raise PluresError(f"scores {list(scores.shape)} and labels {list(labels.values.shape)} differ in shape")


def _blocks(scores: Scores, threads: int) -> Iterator[slice]:
    """Slices of classes: at least four a thread where there are that many, each within BLOCK_BYTES."""
    images, classes = scores.shape
    fitting = BLOCK_BYTES // max(images * scores.itemsize, 1)
    width = max(1, min(fitting, -(-classes // (4 * threads))))
    for start in range(0, classes, width):
        yield slice(start, min(start + width, classes))


def _turned(matrix: NDArray[Any], block: slice) -> NDArray[Any]:
    """The block's columns of [N, K] as contiguous rows [k, N], copied tile by tile."""
    turned = np.empty((block.stop - block.start, len(matrix)), matrix.dtype)
    for start in range(0, len(matrix), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        turned[:, rows] = matrix[rows, block].T
    return turned
