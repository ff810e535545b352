"""Precision, recall and F1 of tags: what is counted, and the averages that papers print (CP CR CF1, OP OR OF1).

Conventions. Two, by name:

textbook  a ratio with denominator 0 is nan and its class is left out of the mean. So are the precision and the F1 of a
          class of which no image is known to be without it: no false call could be seen, every call would count as
          right, and calling it everywhere would score 100. OP and OF1 pool the other classes only. Recall needs
          positives alone and stays.
mlgcn     as the evaluator of ML-GCN (Chen et al., CVPR 2019, arXiv 1904.03582), which later papers reuse: a class
          that is never predicted counts as one prediction (precision 0) in CP and in OP; a class without positives
          makes CR and CF1 nan. It is for complete labels, and counts a class that every image has.

In both, CF1 is the harmonic mean of CP and CR (as in that paper), and `macro_f1` the mean of the classes' own F1
(scikit-learn's "macro"). OF1 is scikit-learn's "micro" F1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.average_precision import Scores, arrays, check_shapes

if TYPE_CHECKING:
    from torch import Tensor

Convention = Literal["textbook", "mlgcn"]
BLOCK_CELLS = 2**22  # cells of scores looked at together


AVERAGES = ("CP", "CR", "CF1", "OP", "OR", "OF1", "macro_f1")


@dataclass(frozen=True, eq=False)
class TagCounts:
    """Counted tags, int64 [K] each. Unknown cells are in `tagged` alone.

    hits: predicted and present; predicted: predicted and known; positives: present; known: present or absent;
    tagged: predicted, known or not; images: N.
    """

    hits: NDArray[np.int64]
    predicted: NDArray[np.int64]
    positives: NDArray[np.int64]
    known: NDArray[np.int64]
    tagged: NDArray[np.int64]
    images: int


@dataclass(frozen=True, eq=False)
class Averages:
    """The family of precision, recall and F1, each in [0, 1] or nan where undefined.

    CP, CR, CF1: class-wise; OP, OR, OF1: overall (micro); macro_f1: mean of `f1`. precision, recall, f1: float64 [K].
    """

    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float
    macro_f1: float
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    convention: Convention

    @property
    def micro_f1(self) -> float:
        """OF1 by its other name."""
        return self.OF1

    def undefined(self, classes: tuple[str, ...]) -> dict[str, list[str]]:
        """The names of the classes without a precision, recall or F1 of their own."""
        values = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {what: [classes[k] for k in np.flatnonzero(np.isnan(value))] for what, value in values.items()}

    def overall(self) -> dict[str, float]:
        """The seven averages by name."""
        return {name: getattr(self, name) for name in AVERAGES}


def predict_tags(
    scores: Scores, threshold: ArrayLike | None = 0.5, top: int | None = None, among: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Which tags the scores [N, K] mean. Returns bool [N, K].

    threshold: scalar or one per class [K]: score >= threshold; None for no threshold. top: only the `top` best of an
    image, whatever their score if threshold is None (forced), or among them those over the threshold (the "top-3" of
    ML-GCN and its followers is top=3, threshold=0.5). among: bool [N, K], the cells that compete for the top (the
    known ones); None for all. Equal scores go to the class that comes first.
    """
    scores = np.asarray(scores)
    tags = np.ones(scores.shape, np.bool_) if threshold is None else scores >= _thresholds(threshold, scores.shape[1])
    if top is None:
        return tags
    if top < 1:
        raise PluresError(f"top-k needs k of 1 or more, got {top}")
    chosen = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(chosen, best_classes(scores, top, among), True, axis=1)
    return tags & chosen if among is None else tags & chosen & among


def best_classes(scores: Scores, top: int, among: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Columns of the `top` highest scores of each image, best first, ties by column. Returns int64 [N, min(top, K)].

    With `among`, the cells outside it come last.
    """
    ranked = -scores if among is None else np.where(among, -scores, np.inf)
    return np.argsort(ranked, axis=1, kind="stable")[:, :top]


def count_tags(
    scores: Scores | Tensor,
    labels: Labels | NDArray[Any] | Tensor,
    threshold: ArrayLike | None = 0.5,
    top: int | None = None,
    called: NDArray[np.bool_] | None = None,
) -> TagCounts:
    """Count predicted tags against labels; arguments as `predict_tags`, unknown cells masked. Memory is bounded.

    called: bool [N, K], the predicted tags themselves, whatever the scores say.
    Raises PluresError if the shapes differ or neither threshold nor top is given.
    """
    scores, labels = arrays(scores, labels)
    check_shapes(scores, labels)
    if threshold is None and top is None:
        raise PluresError("counting tags needs a threshold, a top-k, or both")
    totals = np.zeros((5, labels.classes), np.int64)
    rows = max(1, BLOCK_CELLS // max(labels.classes, 1))
    for start in range(0, len(labels), rows):
        part = labels.take(slice(start, start + rows))
        present, known = part.present, ~part.unknown
        some = slice(start, start + rows)
        tags = predict_tags(scores[some], threshold, top, known) if called is None else called[some]
        cells: list[NDArray[Any]] = [tags & present, tags & known, present, known, tags]
        totals += np.stack([np.count_nonzero(cell, axis=0) for cell in cells])
    hits, predicted, positives, known_cells, tagged = totals
    return TagCounts(hits, predicted, positives, known_cells, tagged, len(labels))


def averages(counts: TagCounts, convention: Convention = "textbook", lost: Averages | None = None) -> Averages:
    """Precision, recall and F1 from counts, in a convention of this file's table. lost: where a class has no value of
    its own in these counts, because they are of a resample, its value on all images."""
    if convention not in ("textbook", "mlgcn"):
        raise PluresError(f"unknown convention '{convention}'; choose from: mlgcn, textbook")
    predicted, positives, hits = counts.predicted, counts.positives, counts.hits
    judged = counts.known > positives  # [K]: where a false call would be seen
    if convention == "mlgcn":
        predicted, judged = np.maximum(predicted, 1), np.ones(len(hits), np.bool_)
    precision, recall = np.where(judged, _ratio(hits, predicted), np.nan), _ratio(hits, positives)
    f1 = np.where(judged, _ratio(2 * hits, predicted + positives), np.nan)
    if lost is not None:
        precision, recall, f1 = (
            np.where(np.isnan(own), whole, own)
            for own, whole in ((precision, lost.precision), (recall, lost.recall), (f1, lost.f1))
        )
    mean = np.mean if convention == "mlgcn" else _mean_of_defined
    CP, CR = float(mean(precision)), float(mean(recall))
    OR = float(_ratio(hits.sum(), positives.sum()))
    all_hits, all_predicted, all_positives = (int(of[judged].sum()) for of in (hits, predicted, positives))
    return Averages(
        CP=CP,
        CR=CR,
        CF1=_harmonic(CP, CR),
        OP=float(_ratio(all_hits, all_predicted)),
        OR=OR,
        OF1=float(_ratio(2 * all_hits, all_predicted + all_positives)),
        macro_f1=_mean_of_defined(f1),
        precision=precision,
        recall=recall,
        f1=f1,
        convention=convention,
    )


def _thresholds(threshold: ArrayLike, classes: int) -> NDArray[np.floating[Any]]:
    values = np.asarray(threshold, np.float64)
    if values.shape not in ((), (classes,)):
        raise PluresError(f"a threshold is one number or one per class [{classes}], got shape {list(values.shape)}")
    return values


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio


def _mean_of_defined(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _harmonic(a: float, b: float) -> float:
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)
