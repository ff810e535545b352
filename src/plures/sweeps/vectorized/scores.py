"""mAP of many runs on the same validation rows at once: one sort per class for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.labels import Labels
from plures.metrics.average_precision import cannot_fail, find_definition
from plures.sweeps.vectorized.heads import HeadRun, Rows

Scores = NDArray[np.float32]


class Validation:
    """mAP in percent of all runs on the validation rows: val_map by known labels, val_map_observed by observed ones.

    As `evaluate.validation_map`: a class that cannot fail is left out of the mean (`average_precision.cannot_fail`).
    """

    def __init__(self, runs: Sequence[HeadRun], device: torch.device) -> None:
        data, definition = runs[0].data, runs[0].experiment.average_precision
        assert data.val is not None
        assert data.val_labels is not None
        self.features = Rows(data.val, device)
        everyone = np.arange(len(runs))
        self.known = [(everyone, Curves(data.val_labels, definition))]
        observed: dict[bytes, list[int]] = defaultdict(list)
        for r, run in enumerate(runs):
            if run.val_observed is not None:
                observed[run.val_observed.values.tobytes()].append(r)
        self.observed = [
            (np.array(places), Curves(Labels.from_masks(runs[places[0]].val_observed.present), definition))  # type: ignore[union-attr]
            for places in observed.values()
        ]

    def __call__(self, weight: Tensor, bias: Tensor) -> dict[str, NDArray[np.float64]]:
        """weight [R, K, D], bias [R, K] -> [R] by name."""
        R, K, D = weight.shape
        logits = self.features.logits(weight.reshape(R * K, D), bias.reshape(R * K))
        scores = logits.view(-1, R, K).permute(2, 1, 0).contiguous().cpu().numpy()  # [K, R, M]
        found = {}
        for name, judges in {"val_map": self.known, "val_map_observed": self.observed}.items():
            if judges:
                found[name] = np.full(R, np.nan)
            for places, curves in judges:
                found[name][places] = 100 * curves.mean(scores[:, places])
        return found


class Curves:
    """mAP of many sets of scores against the same labels [M, K]: one sort per class for all sets."""

    def __init__(self, labels: Labels, definition: str) -> None:
        self.average = find_definition(definition).average
        self.known = [np.flatnonzero(column) for column in ~labels.unknown.T]
        self.present = [np.flatnonzero(column) for column in labels.present.T]
        self.scored = ~cannot_fail(labels, definition)

    def mean(self, scores: Scores) -> NDArray[np.float64]:
        """scores [K, R, M] -> mean over classes of average precision [R], in [0, 1]; nan where no class has any."""
        per_class = np.full(scores.shape[:2], np.nan)  # [K, R]
        for k, (known, present) in enumerate(zip(self.known, self.present, strict=True)):
            if self.scored[k]:
                per_class[k] = self.average(*_curves(scores[k], known, present))
        counted = (~np.isnan(per_class)).sum(0)
        means = np.full(len(counted), np.nan)
        np.divide(np.nansum(per_class, 0), counted, out=means, where=counted > 0)
        return means


def _curves(scores: Scores, known: NDArray[np.int64], present: NDArray[np.int64]) -> tuple[Any, Any]:
    """hits, taken [P, R] of one class from scores [R, M], as `metrics.average_precision.curve` has them; a score
    that several positives share stands once for each, which adds nothing to any average."""
    positives = torch.from_numpy(np.sort(np.ascontiguousarray(scores[:, present])))  # [R, P]
    ordered = torch.from_numpy(
        np.sort(scores if len(known) == scores.shape[1] else np.ascontiguousarray(scores[:, known]))
    )
    hits = positives.shape[1] - torch.searchsorted(positives, positives)
    taken = ordered.shape[1] - torch.searchsorted(ordered, positives)
    return hits.T.double().numpy(), taken.T.double().numpy()
