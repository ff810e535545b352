"""`plures.evaluate`: the scores of a run's model on a split, and the report of them. Every image counts once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.masking import mask_labels
from plures.data.read import read
from plures.errors import PluresError
from plures.metrics.positives_only import PositivesReport, evaluate_positives
from plures.metrics.report import Report
from plures.models.model import load
from plures.runs.data import (
    IN_MEMORY,
)
from plures.runs.own_data import holds_training, match_classes, own_data, photos_of
from plures.runs.photos import log, without_trained
from plures.runs.run import Run
from plures.scoring.device import make_fabric, thresholds_of
from plures.scoring.logits import Scores, logits_of_dataset, logits_of_run, parts_of_dataset
from plures.scoring.measure import report_of


def evaluate(
    run: str | Path | Run,
    data: str | Dataset | None = None,
    *,
    split: str | None = None,
    definition: str | None = None,
    threshold: float | None = None,
    options: dict[str, Any] | None = None,
    skip_bad: bool = False,
) -> Report:
    """Evaluate a run's best weights.

    data: None for the run's own; else a path or Dataset, whose classes are matched to the model's by name.
    split: which rows: test where there is one, else val, unless given; data without splits are taken whole. Photographs
    of other data that the run was trained on are left out, known by their content.
    definition: the experiment's unless given. threshold: for every class; None: the thresholds and calibration saved
    with the run, or else the experiment's threshold.
    options: of the data's reader, such as {"variant": "query2label"}.
    """
    run = run if isinstance(run, Run) else Run(run)
    dataset = judged(run, data, split, options or {}, skip_bad).dataset
    experiment, fabric = run.experiment, make_fabric(run.experiment)
    model = load(run.path).to(fabric.device)
    logits = logits_of_dataset(model, dataset, experiment, fabric)
    parts = parts_of_dataset(model, dataset, experiment, fabric)
    if definition is not None:
        experiment = Experiment(**{**experiment.to_dict(), "average_precision": definition})
    thresholds = thresholds_of(run, dataset.classes, threshold)
    return report_of(logits, dataset, experiment, thresholds, baselines=parts)


def evaluate_positives_only(
    run: str | Path | Run,
    data: str | Dataset | None = None,
    *,
    split: str | None = None,
    threshold: float | None = None,
    options: dict[str, Any] | None = None,
    skip_bad: bool = False,
) -> PositivesReport:
    """Evaluate a run's best weights by observed positives alone; arguments as `evaluate`.

    Labels are observed as in the run's training (supervision=single_positive shows one of an image), so that nothing
    else of the split is looked at. Raises PluresError if nothing is unknown then: `evaluate` says more of such data.
    """
    run = run if isinstance(run, Run) else Run(run)
    logits, dataset = scored_split(run, data, split, options, skip_bad)
    how = run.experiment.supervision
    observed = dataset.labels if how.name in ("as_given", "none") else mask_labels(dataset, how.name, **how.options)
    if observed.complete:
        raise PluresError(
            f"{dataset.name}: every label of these {len(dataset):,} images is known; evaluate without --positives-only"
        )
    thresholds = thresholds_of(run, dataset.classes, threshold)
    return evaluate_positives(thresholds.ranked(logits), observed, dataset.classes, called=thresholds.called(logits))


def scored_split(
    run: Run, data: str | Dataset | None, split: str | None, options: dict[str, Any] | None, skip_bad: bool
) -> tuple[Scores, Dataset]:
    """The logits [N, K] of a run's best weights on a split, and the split with the model's classes."""
    dataset = judged(run, data, split, options or {}, skip_bad).dataset
    return logits_of_run(run, dataset), dataset


# ------------------------------------------------------------------------------------------- which data, which split


@dataclass(frozen=True, eq=False)
class Judged:
    """The rows to judge a run on, with its model's classes, and their split ("" where the data have none). own: all of
    the run's own data, divided as it was trained, where the rows are of those."""

    dataset: Dataset
    split: str
    own: Dataset | None


def judged(
    run: Run,
    data: str | Dataset | None,
    split: str | None,
    options: dict[str, Any],
    skip_bad: bool,
    *,
    labelled: bool = True,
    leave_out: bool = True,
) -> Judged:
    """Find the rows to judge a run on, and say which they are.

    data: None for the run's own, divided as it was trained; else other data, without the photographs that the run was
    trained on (leave_out False: with them). split: None for test where there is one, else val. Raises PluresError if
    there is no such split or nothing is left.
    """
    own = None
    if data is None:
        own = own_data(run, options, skip_bad)
    elif isinstance(data, Dataset) and run.source.name == IN_MEMORY and holds_training(run, data):
        own = own_data(run, options, skip_bad, data)
    dataset = own or (
        data
        if isinstance(data, Dataset)
        else read(os.fspath(data or ""), skip_bad=skip_bad, verify=skip_bad, labelled=labelled, **options)
    )
    names = dataset.split_names()
    split = (split or ("val" if "test" not in names and "val" in names else "test")) if names else ""
    model = load(run.path)
    dataset = match_classes(dataset.split(split) if names else dataset, model.classes, model.taxonomy)
    if own is None and leave_out and not run.imported:
        dataset = without_trained(photos_of(run), dataset, str(run.path))
    words = f"{dataset.name}: {len(dataset):,} photographs" + (f" of split '{split}'" if names else " (no splits)")
    if own is not None and split == "train":
        log.warning(f"{words}: {run.path} was trained on these; their numbers say what it remembers, not how it does")
    elif own is not None and split == "val":
        log.info(f"{words}, on which the epoch and by default the thresholds are chosen")
    else:
        log.info(words)
    return Judged(dataset, split, own)
