"""What a run thinks of the labels that were hidden from it, epoch by epoch: probabilities.jsonl in the run folder.

Only where hidden labels are known (simulated single-label data or fractions): after each epoch the probabilities of a
sample of training rows, apart for observed positives, hidden positives and negatives, as in Figure 2 of Cole et al.
(2021, Multi-Label Learning from Single Positive Labels, arXiv 2106.09708). A loss that assumes negatives pushes the
hidden positives down with the negatives; one that copes keeps them apart.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.files import read_json_lines, writing
from plures.labels import Labels
from plures.metrics.thresholds import sigmoid
from plures.runs.run import Run

PROBABILITIES = "probabilities.jsonl"
ROWS, BINS = 512, 20  # rows looked at: a few percent of an epoch's time; bins of the histogram over [0, 1]
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


class HiddenLabels:
    """A sample of training rows with the labels hidden from training. rows: their places among the training rows."""

    def __init__(self, observed: Labels, known: Labels, seed: int) -> None:
        chosen = np.random.default_rng(seed).permutation(len(known))[:ROWS]
        self.rows = np.sort(chosen)
        observed, known = observed.take(self.rows), known.take(self.rows)
        self.groups = {
            "observed_positives": observed.present,
            "hidden_positives": known.present & ~observed.present,
            "negatives": known.absent,
        }
        self.records: list[dict[str, Any]] = []

    @classmethod
    def of(cls, train: Dataset, known: Labels | None, seed: int) -> HiddenLabels | None:
        """None where nothing that is known was hidden."""
        if known is None or not (known.present & ~train.labels.present).any():
            return None
        return cls(train.labels, known, seed)

    def record(self, stage: str, epoch: int, logits: NDArray[np.floating]) -> None:
        """Add an epoch. logits: [rows, K]."""
        p = sigmoid(logits)
        groups = {name: _described(p[mask]) for name, mask in self.groups.items()}
        self.records.append({"stage": stage, "epoch": epoch, "rows": len(self.rows), **groups})

    def read(self, run: Run, kept: list[dict[str, Any]]) -> None:
        """Continue the records of the epochs that a resumed run keeps."""
        epochs = {(record["stage"], record["epoch"]) for record in kept}
        self.records = [r for r in read_probabilities(run) if (r["stage"], r["epoch"]) in epochs]

    def write(self, run: Run) -> None:
        with writing(run.path / PROBABILITIES) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in self.records), encoding="utf-8")


def read_probabilities(run: Run) -> list[dict[str, Any]]:
    """The records of a run, one an epoch; none where nothing was hidden. Each group: count, histogram (shares in BINS
    bins of equal width over [0, 1]), mean and quantiles at QUANTILES."""
    path = run.path / PROBABILITIES
    if not path.is_file():
        return []
    return [run.of_today(record) for record in read_json_lines(path)]


def _described(p: NDArray[np.float64]) -> dict[str, Any]:
    if not len(p):
        return {"count": 0, "histogram": [0.0] * BINS, "mean": None, "quantiles": None}
    histogram = np.histogram(p, BINS, (0, 1))[0] / len(p)
    quantiles = np.quantile(p, QUANTILES).round(5).tolist()
    return {
        "count": len(p),
        "histogram": histogram.round(5).tolist(),
        "mean": round(float(p.mean()), 5),
        "quantiles": quantiles,
    }
