"""`plures.evaluate`: the scores of a run's model on a split, and the report of them. Every image counts once."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from numpy.typing import NDArray
from torch import nn

from plures.data.dataset import Dataset
from plures.data.images import Transform
from plures.data.loading import FeatureBatches, ImageBatches, Order, default_workers
from plures.data.observing import observe
from plures.data.read import read
from plures.errors import PluresError, did_you_mean
from plures.experiment import Experiment, Part
from plures.labels import Labels
from plures.metrics.positives_only import PositivesReport, evaluate_positives
from plures.metrics.report import Report, evaluate_scores, too_many_or_few
from plures.metrics.thresholds import Thresholds
from plures.metrics.uniform_choice import fit_uniform_choice
from plures.models.model import Model, load
from plures.training.data import (
    IN_MEMORY,
    data_root,
    found_from_anywhere,
    is_there,
    observe_splits,
    read_data,
    with_splits,
)
from plures.training.features import frozen_features, needs_only_mean, token_boxes
from plures.training.fit import logits_of
from plures.training.phase import HeadOnFeatures, Scores
from plures.training.photos import Photos, contents, log, recall, without_trained
from plures.training.processes import world_size
from plures.training.run import Run


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
    logits, dataset = scored_split(run, data, split, options, skip_bad)
    experiment = run.experiment
    if definition is not None:
        experiment = Experiment(**{**experiment.to_dict(), "average_precision": definition})
    return report_of(logits, dataset, experiment, thresholds_of(run, dataset.classes, threshold))


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
    observed = dataset.labels if how.name in ("as_given", "none") else observe(dataset, how.name, **how.options)
    if observed.complete:
        raise PluresError(
            f"{dataset.name}: every label of these {len(dataset):,} images is known; evaluate without --positives-only"
        )
    cuts = thresholds_of(run, dataset.classes, threshold).cuts
    return evaluate_positives(logits, observed, dataset.classes, cuts)


def scored_split(
    run: Run, data: str | Dataset | None, split: str | None, options: dict[str, Any] | None, skip_bad: bool
) -> tuple[Scores, Dataset]:
    """The logits [N, K] of a run's best weights on a split, and the split with the model's classes."""
    dataset = judged(run, data, split, options or {}, skip_bad).dataset
    return logits_of_run(run, dataset), dataset


def logits_of_run(run: Run, dataset: Dataset) -> Scores:
    """The logits [N, K] of a run's best weights on data with its model's classes."""
    fabric = make_fabric(run.experiment)
    return logits_of_dataset(load(run.path).to(fabric.device), dataset, run.experiment, fabric)


def thresholds_of(run: Run, classes: tuple[str, ...], threshold: float | None = None) -> Thresholds:
    """The given threshold for every class; else those saved with the run; else the experiment's."""
    if threshold is not None:
        if not 0 < threshold < 1:
            raise PluresError(f"threshold={threshold:g}: a probability between 0 and 1 was expected, such as 0.5")
        return Thresholds.constant(classes, threshold)
    return Thresholds.load(run.path, classes) or Thresholds.constant(classes, run.experiment.threshold)


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
        else read(str(data), skip_bad=skip_bad, verify=skip_bad, labelled=labelled, **options)
    )
    names = dataset.split_names()
    split = (split or ("val" if "test" not in names and "val" in names else "test")) if names else ""
    dataset = match_classes(dataset.split(split) if names else dataset, load(run.path).classes)
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
        e = e.model_copy(update={"data": Part(name=data.name, options={**data.options, **options})})
        dataset = read_data(e, skip_bad=skip_bad)
    if known is None:
        dataset = with_splits(dataset, e)
        if run.other_labels(observe_splits(e, dataset).train):
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


def _located(run: Run) -> tuple[Part, bool]:
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


def match_classes(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The dataset with the model's classes as columns; classes the data do not name are unknown there.

    Raises PluresError if the data name a class that the model does not know.
    """
    if dataset.classes == classes:
        return dataset
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
    return replace(dataset, labels=Labels(values), classes=classes, boxes=boxes)


def make_fabric(experiment: Experiment) -> Fabric:
    """One device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; under torchrun one a process, and all of them together."""
    kind, _, number = experiment.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise PluresError(f"device '{experiment.device}' is unknown; use auto, cpu, cuda, cuda:1 or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise PluresError("device=cuda, but torch sees no GPU here; use device=auto, and see `plures doctor`")
    # Lightning makes torch look for a GPU through NVML, which without one opens a library at every optimizer step
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1" if torch.cuda.is_available() else "0"
    if world_size() > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
        ddp = DDPStrategy(find_unused_parameters=True)
        nodes = world_size() // here
        fabric = Fabric(accelerator=kind, devices=here, num_nodes=nodes, strategy=ddp, precision=experiment.precision)
        fabric.launch()
        return fabric
    return Fabric(accelerator=kind, devices=[int(number)] if number else 1, precision=experiment.precision)


def logits_of_dataset(model: Model, dataset: Dataset, experiment: Experiment, fabric: Fabric) -> Scores:
    """Logits [N, K] of every image in row order; through the cached features where the run has a frozen embedder."""
    workers = default_workers(dataset) if experiment.workers is None else experiment.workers
    order = Order(len(dataset), 64, rank=fabric.global_rank, processes=fabric.world_size)
    if experiment.mode == "frozen":
        pooled = needs_only_mean(model)
        with fabric.rank_zero_first(local=True):  # one process computes them, the others read
            features = frozen_features(model, dataset, pooled=pooled, device=fabric.device, workers=workers)
        net = HeadOnFeatures(cast(nn.Module, model.head), token_boxes(model, pooled)).to(fabric.device)
        return logits_of(net, FeatureBatches(features, dataset.labels.values, order), fabric)
    transform = Transform(model.preprocessing.image_size, "none", model.preprocessing.interpolation)
    return logits_of(model, ImageBatches(dataset, transform, order, workers), fabric)


def report_of(
    logits: Scores,
    dataset: Dataset,
    experiment: Experiment,
    thresholds: Thresholds | None = None,
    estimate: bool = True,
) -> Report:
    """The report of these logits against the dataset's known labels; thresholds None: the experiment's. estimate:
    whether to estimate, where labels are not complete, what nobody wrote down (seconds for thousands of images)."""
    thresholds = thresholds or Thresholds.constant(dataset.classes, experiment.threshold)
    report = evaluate_scores(
        logits,
        dataset.labels,
        dataset.classes,
        definition=experiment.average_precision,
        threshold=thresholds.cuts,
    )
    shown = zip(report.per_class, thresholds.values.tolist(), strict=True)
    per_class = tuple(replace(one, threshold=value) for one, value in shown)
    complete, estimates, warning = dataset.labels.complete, None, ""
    if estimate and not complete and dataset.labels.present.any():
        estimates = evaluate_positives(logits, dataset.labels, dataset.classes, thresholds.cuts).estimates
    if thresholds.objective in ("none", "f1"):  # nobody asked for more or fewer than there are
        there = None if estimates is None else estimates.tags_present
        warning = too_many_or_few(report.tags_predicted, report.tags_true, there, complete)
    return replace(report, per_class=per_class, estimates=estimates, warning=warning)


def validation_map(logits: Scores, labels: Labels, observed: Labels | None, experiment: Experiment) -> dict[str, float]:
    """mAP in percent by the known labels ("val_map"), and by the observed ones with the rest counted as absent
    ("val_map_observed"); nan where no class has both a positive and a negative. With select=val_positives also the
    mean log chance of the observed labels ("val_positives"), see `metrics/uniform_choice.py`."""
    result = {"val_map": _mean_ap(logits, labels, experiment)}
    if observed is not None:
        result["val_map_observed"] = _mean_ap(logits, Labels.from_masks(observed.present), experiment)
        if experiment.select == "val_positives":
            result["val_positives"] = fit_uniform_choice(logits, observed).likelihood
    return result


def _mean_ap(logits: Scores, labels: Labels, experiment: Experiment) -> float:
    names = tuple(str(k) for k in range(labels.classes))
    return 100 * evaluate_scores(logits, labels, names, experiment.average_precision, bootstrap=0).map
