"""The data that a run was trained on, as they are now and divided as the run was; and what it remembers of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.config import Component
from plures.data.dataset import Dataset
from plures.data.taxonomy import Taxonomy
from plures.errors import PluresError, did_you_mean
from plures.labels import Labels
from plures.runs.data import (
    IN_MEMORY,
    data_root,
    found_from_anywhere,
    is_there,
    mask_splits,
    read_data,
    with_classes,
    with_splits,
    with_taxonomy,
)
from plures.runs.photos import Photos, contents, log, recall
from plures.runs.run import Run


def own_data(run: Run, options: dict[str, Any], skip_bad: bool, dataset: Dataset | None = None) -> Dataset:
    """The data that a run was trained on, divided as it was: `recalled` without the places."""
    return recalled(run, options, skip_bad, dataset)[0]


def recalled(
    run: Run, options: dict[str, Any], skip_bad: bool, dataset: Dataset | None = None
) -> tuple[Dataset, NDArray[np.int64]]:
    """The data that a run was trained on as they are now, divided as the run was, and the place [N] of each row among
    the photographs of its beginning (-1: new since).

    They are read from where they lay, whatever the current folder is. dataset: the same data in hand.
    Raises PluresError if the run has no data of its own, or if they are gone or others are in their place.
    """
    if run.imported:
        raise PluresError(f"{run.path} holds imported weights and no data of its own: plures evaluate {run.path} DATA")
    known, moved, e = Photos.load(run.path), False, run.experiment
    given = "" if dataset is None else dataset.name or "the Dataset"
    if dataset is None:
        data, moved = _located(run)
        e = e.model_copy(update={"data": Component(name=data.name, options={**data.options, **options})})
        dataset = read_data(e, skip_bad=skip_bad, taxonomy=run.taxonomy)
    elif dataset.taxonomy is None:
        dataset = with_classes(dataset, run.taxonomy)
    if known is None:
        alone = replace(dataset, groups=None)  # as that version did
        dataset = with_splits(alone, e.model_copy(update={"group_near_copies": False}))
        if run.other_labels(mask_splits(e, dataset).train):
            log.warning(
                f"{dataset.name}: the data have changed since {run.path} was trained, and a run of plures 0.1.0 does"
                " not remember its splits: they are drawn anew, and training photographs may be judged"
            )
        return dataset, np.arange(len(dataset))
    dataset, place = recall(known, dataset, data_root(e), e, str(run.path))
    if not np.isin(contents(dataset), known.contents).any() if moved else (place < 0).all():
        raise PluresError(
            f"{given or e.data.name} holds none of the {len(known.contents):,} photographs of {run.path}, which was"
            " trained on other data; name DATA, or from Python pass the Dataset as data="
        )
    return dataset, place


def _located(run: Run) -> tuple[Component, bool]:
    """Where the run's data are: where they lay, as they were named where that is the same place; True: they have moved
    together with the current folder. Raises PluresError if they are nowhere."""
    typed, source = run.experiment.data, run.source
    if source.name == IN_MEMORY:
        raise PluresError(
            f"{run.path} was trained on a Dataset in memory, which is not kept with it: name DATA, or from Python pass"
            " the Dataset as data="
        )
    here = found_from_anywhere(typed) if is_there(typed) else None
    if here is not None and here.name == source.name:
        return typed, False
    if is_there(source):
        return source, False
    if here is None:
        raise PluresError(
            f"{run.path}: the data it was trained on are gone ({source.name}); put them back, or name other DATA"
        )
    log.warning(f"{run.path}: its data are no longer at {source.name}; taken from {here.name}")
    return typed, True


def photos_of(run: Run) -> Photos | None:
    """What the run remembers of its photographs; says so where that is nothing."""
    known = Photos.load(run.path)
    if known is None:
        log.warning(f"{run.path}: which photographs it was trained on is not recorded (a run of plures 0.1.0)")
    return known


def holds_training(run: Run, dataset: Dataset) -> bool:
    """Whether the run was trained on any of these photographs, as far as it remembers."""
    known = Photos.load(run.path)
    return known is not None and bool(np.isin(contents(dataset), known.trained).any())


def match_classes(dataset: Dataset, classes: tuple[str, ...], taxonomy: Taxonomy | None = None) -> Dataset:
    """The dataset with the model's classes as columns; classes the data do not name are unknown there, but for what
    follows by the model's taxonomy.

    Raises PluresError if the data name a class that the model does not know.
    """
    if dataset.classes == classes:
        return dataset if taxonomy is None or dataset.taxonomy is not None else _closed(dataset, taxonomy)
    strange = [name for name in dataset.classes if name not in classes]
    if strange:
        raise PluresError(
            f"{dataset.name}: class '{strange[0]}' is unknown to the model{did_you_mean(strange[0], classes)}"
            + (f" ({len(strange)} such classes)" if len(strange) > 1 else "")
        )
    values = np.full((len(dataset), len(classes)), -1, np.int8)
    places = np.array([classes.index(name) for name in dataset.classes], np.int64)
    values[:, places] = dataset.labels.values
    boxes = None if dataset.boxes is None else replace(dataset.boxes, column=places[dataset.boxes.column])
    found = replace(dataset, labels=Labels(values), classes=classes, boxes=boxes, taxonomy=None)
    return found if taxonomy is None else _closed(found, taxonomy)


def _closed(dataset: Dataset, taxonomy: Taxonomy) -> Dataset:
    found = with_taxonomy(dataset, taxonomy)
    for problem in found.problems[len(dataset.problems) :]:
        log.warning(f"{problem.file}: {problem.what}")
    return found
