"""How good the best-ranked tags of each image are: precision and recall at k, share of images with a hit.

Convention `mlspl` is that of the code of Cole et al. 2021 (Multi-Label Learning from Single Positive Labels, arXiv
2106.09708): an image without a present label counts as 0 in every mean. `textbook` leaves such images out of recall
and of the share of hits, where they have no meaning; their precision is 0 and counts. It also leaves out images of
which no class is known to be absent: their best-ranked known classes are present whatever the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.average_precision import Scores, arrays, check_shapes
from plures.metrics.counts import BLOCK_CELLS, best_classes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """Means over images for one k, in [0, 1], nan for no images.

    precision: share of the k best-ranked tags that are present; recall: share of the present tags among them;
    hit: share of images with a present tag among them (MLSPL logs it as top_k). images: how many have a present tag.
    """

    k: int
    precision: float
    recall: float
    hit: float
    images: int


def ranking(
    scores: Scores | Tensor,
    labels: Labels | NDArray[Any] | Tensor,
    ks: Sequence[int] = (1, 3, 5),
    convention: Literal["textbook", "mlspl"] = "textbook",
) -> list[Ranking]:
    """One Ranking for each k. scores: float [N, K]; labels: [N, K].

    Unknown cells do not take part: the ranking of an image is over its known classes, and precision divides by k or
    by the number of its known classes, whichever is less (an image without a known class is left out of it).
    Raises PluresError for a k below 1 or shapes that differ.
    """
    scores, labels = arrays(scores, labels)
    check_shapes(scores, labels)
    if convention not in ("textbook", "mlspl"):
        raise PluresError(f"unknown convention '{convention}'; choose from: mlspl, textbook")
    if min(ks, default=1) < 1:
        raise PluresError(f"precision at k needs k of 1 or more, got {min(ks)}")
    hits, positives, known = _per_image(scores, labels, max(ks, default=1))
    some, fallible = positives > 0, known > positives
    if convention == "mlspl":
        fallible = np.ones(len(labels), np.bool_)
    counted = some & fallible if convention == "textbook" else fallible
    results = []
    for k in ks:
        found = hits[:, min(k, hits.shape[1]) - 1] if hits.shape[1] else np.zeros(len(labels))
        asked = np.minimum(k, known)
        judged = (asked > 0) & fallible
        results.append(
            Ranking(
                k=k,
                precision=_mean(found[judged] / asked[judged]),
                recall=_mean((found / np.maximum(positives, 1))[counted]),
                hit=_mean((found > 0)[counted]),
                images=int(some.sum()),
            )
        )
    return results


def _per_image(scores: Scores, labels: Labels, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Present tags among the best 1, 2, ... `top` [N, top], present tags [N], known classes [N]."""
    rows = max(1, BLOCK_CELLS // max(labels.classes, 1))
    hits, positives, known = [np.zeros((0, 0))], [np.zeros(0)], [np.zeros(0)]
    for start in range(0, len(labels), rows):
        part = labels.take(slice(start, start + rows))
        best = best_classes(np.asarray(scores[start : start + rows]), top, ~part.unknown)  # [n, top]
        found = np.take_along_axis(part.present, best, axis=1)
        hits.append(np.cumsum(found, axis=1))
        positives.append(part.present.sum(1))
        known.append((~part.unknown).sum(1))
    first = 1 if len(hits) > 1 else 0
    return np.concatenate(hits[first:]), np.concatenate(positives), np.concatenate(known)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
