"""`plures.evaluate`: the scores of a run's model on a split, and the report of them. Every image counts once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
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
from plures.training.data import read_data, with_splits
from plures.training.features import frozen_features, needs_only_mean, token_boxes
from plures.training.fit import logits_of
from plures.training.phase import HeadOnFeatures, Scores
from plures.training.processes import world_size
from plures.training.run import Run


def evaluate(
    run: str | Path | Run,
    data: str | Dataset | None = None,
    *,
    split: str = "test",
    definition: str | None = None,
    threshold: float | None = None,
    options: dict[str, Any] | None = None,
    skip_bad: bool = False,
) -> Report:
    """Evaluate a run's best weights.

    data: None for the run's own; else a path or Dataset, whose classes are matched to the model's by name.
    split: which rows; data without splits are taken whole. definition: the experiment's unless given; threshold: for
    every class; None: the thresholds and calibration saved with the run, or else the experiment's threshold.
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
    split: str = "test",
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
    run: Run, data: str | Dataset | None, split: str, options: dict[str, Any] | None, skip_bad: bool
) -> tuple[Scores, Dataset]:
    """The logits [N, K] of a run's best weights on a split, and the split with the model's classes."""
    model = load(run.path)
    if data is None:
        dataset = own_data(run, options or {}, skip_bad)
    else:
        dataset = read(data, skip_bad=skip_bad, verify=skip_bad, **(options or {})) if isinstance(data, str) else data
    if dataset.split_names():
        dataset = dataset.split(split)
    dataset = match_classes(dataset, model.classes)
    fabric = make_fabric(run.experiment)
    return logits_of_dataset(model.to(fabric.device), dataset, run.experiment, fabric), dataset


def thresholds_of(run: Run, classes: tuple[str, ...], threshold: float | None = None) -> Thresholds:
    """The given threshold for every class; else those saved with the run; else the experiment's."""
    if threshold is not None:
        if not 0 < threshold < 1:
            raise PluresError(f"threshold={threshold:g}: a probability between 0 and 1 was expected, such as 0.5")
        return Thresholds.constant(classes, threshold)
    return Thresholds.load(run.path, classes) or Thresholds.constant(classes, run.experiment.threshold)


def own_data(run: Run, options: dict[str, Any], skip_bad: bool) -> Dataset:
    """The data that a run was trained with, divided as it was."""
    if run.imported:
        raise PluresError(f"{run.path} holds imported weights and no data of its own: plures evaluate {run.path} DATA")
    data = run.experiment.data
    part = Part(name=data.name, options={**data.options, **options})
    experiment = run.experiment.model_copy(update={"data": part})
    return with_splits(read_data(experiment, skip_bad=skip_bad), experiment)


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
