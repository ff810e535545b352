"""A run scored once: the logits of a split, and everything a report or a comparison reads off them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plures.analysis.evaluate import Judged, judged
from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.average_precision import Scores
from plures.metrics.report import Report
from plures.metrics.thresholds import Thresholds
from plures.report.measures import Measure, take_measures
from plures.runs.data import Prepared, mask_splits
from plures.runs.run import Run, labels_hash
from plures.scoring.device import thresholds_of
from plures.scoring.logits import logits_of_run
from plures.scoring.measure import report_of


@dataclass(frozen=True, eq=False)
class Scored:
    """logits [N, K] of the split's images; prepared: what was trained on, None for imported weights; environment,
    selected: what the run recorded, empty where it did not."""

    run: Run
    split: str
    dataset: Dataset
    logits: Scores
    thresholds: Thresholds
    report: Report
    measures: tuple[Measure, ...]
    prepared: Prepared | None
    environment: dict[str, Any]
    selected: dict[str, Any]

    @property
    def labels(self) -> Labels:
        return self.dataset.labels

    @property
    def labels_hash(self) -> str:
        """sha256 of the labels that the numbers were judged by."""
        return labels_hash(self.dataset)


def score_run(path: str | Path, split: str | None = None, resamples: int = 200, skip_bad: bool = False) -> Scored:
    """Score a run's best weights on a split of its own data; None: test where there is one, else val. Raises
    PluresError for imported weights (they have no data of their own), a split that is not there, or fewer than two
    resamples."""
    _refuse_few(resamples)
    run = Run(path)
    return scored(run, judged(run, None, split, {}, skip_bad), resamples)


def scored(run: Run, rows: Judged, resamples: int) -> Scored:
    """Score a run's best weights on these rows of its own data."""
    _refuse_few(resamples)
    dataset, thresholds = rows.dataset, thresholds_of(run, rows.dataset.classes)
    logits = thresholds.ranked(logits_of_run(run, dataset))
    report = report_of(logits, dataset, run.experiment, thresholds)
    measures = take_measures(logits, dataset.labels, thresholds.called(logits), report, resamples)
    return Scored(
        run,
        rows.split,
        dataset,
        logits,
        thresholds,
        report,
        tuple(measures),
        None if rows.own is None else mask_splits(run.experiment, rows.own),
        recorded(run, "environment.json"),
        recorded(run, "report.json").get("selected") or {},
    )


def _refuse_few(resamples: int) -> None:
    if resamples < 2:
        raise PluresError(f"a bootstrap requires 2 resamples or more, got {resamples}")


def recorded(run: Run, name: str) -> dict[str, Any]:
    """A JSON file of the run, empty where there is none."""
    path = run.path / name
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError as error:
        raise PluresError(f"{path}: damaged ({error})") from None
