"""`plures.analysis.thresholds`: choose a run's thresholds, from full labels or from observed positives alone, and keep
them in the run folder for predict, evaluate, export and the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from plures.analysis.evaluate import judged
from plures.data.dataset import Dataset
from plures.errors import PluresError, did_you_mean
from plures.labels import Labels
from plures.metrics.calibrating import KINDS
from plures.metrics.calibrating import Kind as Calibrating
from plures.metrics.choosing import Objective
from plures.metrics.threshold_choice import Choice, Source
from plures.metrics.threshold_choice import from_logits as from_logits
from plures.runs.card import write_card
from plures.runs.data import mask_splits
from plures.runs.own_data import match_classes
from plures.runs.run import Run
from plures.scoring.logits import logits_of_run


def choose_thresholds(
    run: str | Path | Run,
    data: str | Dataset | None = None,
    *,
    source: Source = "positives",
    objective: str = "f1",
    per_class: bool = True,
    calibrating: Calibrating = "none",
    split: str = "val",
    options: dict[str, Any] | None = None,
    skip_bad: bool = False,
) -> Choice:
    """Choose a run's thresholds on images that it was not trained on, and save them in its folder.

    data: None for the run's own validation split; else a path or Dataset (its split `split`, or all of it where it has
    none). source: clean: all labels of those images are known; reviewed: the same for a table of a few hundred images,
    of which unknown cells are left out; positives: only observed positives are used, as the run's supervision shows
    them. objective: `f1`, `precision=0.9`, `recall=0.9`, `tags=1.5`. calibrating: none, temperature, isotonic.
    Raises PluresError where the labels do not allow it.
    """
    if source not in get_args(Source):
        raise PluresError(f"--from {source} is unknown{did_you_mean(source, get_args(Source))}")
    if calibrating not in KINDS:
        raise PluresError(f"--calibrate {calibrating} is unknown{did_you_mean(calibrating, KINDS)}")
    if source == "reviewed" and data is None:
        raise PluresError("--from reviewed needs the table of reviewed images: plures thresholds RUN TABLE ...")
    aim = Objective.parse(objective)
    run = run if isinstance(run, Run) else Run(run)
    dataset, observed = held_out(run, data, split, options or {}, skip_bad)
    logits = logits_of_run(run, dataset)
    labels = observed if source == "positives" else dataset.labels
    choice = from_logits(
        logits,
        labels,
        dataset.classes,
        source=source,
        objective=aim,
        per_class=per_class,
        calibrating=calibrating,
        taxonomy=dataset.taxonomy,
    )
    choice.thresholds.save(run.path)
    write_card(run)
    return choice


def held_out(
    run: Run, data: str | Dataset | None, split: str, options: dict[str, Any], skip_bad: bool
) -> tuple[Dataset, Labels]:
    """The images to choose on, with all that is known of them, and what the run's supervision shows of it."""
    rows = judged(run, data, split, options, skip_bad)
    if rows.own is None or rows.split != "val":
        if rows.own is not None and rows.split == "train":
            raise PluresError(
                f"{run.path} was trained on the photographs of split 'train', and thresholds chosen on them do not hold"
                " for others; use --split val, or give other DATA"
            )
        return rows.dataset, rows.dataset.labels
    prepared = mask_splits(run.experiment, rows.own)
    assert prepared.val is not None
    assert prepared.val_observed is not None
    return rows.dataset, match_classes(prepared.val.with_labels(prepared.val_observed), rows.dataset.classes).labels
