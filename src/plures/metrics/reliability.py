"""Whether probabilities mean what they say: of the cells called 70% probable, are 70% present?

Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599: bins of equal width over [0, 1]; the
expected calibration error is the distance between mean probability and share present, averaged over bins by their
cells (equation 3). All known cells of all classes are pooled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plures.labels import Labels

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reliability:
    """By bin: mean probability and share present in [0, 1] (nan for an empty bin), and cells. error: ECE in [0, 1]."""

    probability: Floats
    present: Floats
    cells: NDArray[np.int64]
    error: float


def reliability(probabilities: NDArray[np.floating], labels: Labels, bins: int = 15) -> Reliability:
    """probabilities [N, K] in [0, 1] against labels [N, K]; unknown cells do not count; nan without a known cell."""
    known = ~labels.unknown
    p, present = np.asarray(probabilities, np.float64)[known], labels.present[known]
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    cells = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, p, bins) / cells
        share = np.bincount(place, present, bins) / cells
    gap = np.where(cells > 0, np.abs(mean - share), 0.0)
    error = float((gap * cells).sum() / cells.sum()) if cells.sum() else float("nan")
    return Reliability(mean, share, cells, error)
