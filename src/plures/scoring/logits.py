"""Outputs of whole datasets: every image exactly once, in row order, from photographs or from cached features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.loading import FeatureBatches, ImageBatches, Order, default_workers
from plures.data.photos import image_size
from plures.errors import PluresError
from plures.models.batch_halving import BatchHalver, joined
from plures.models.model import Model, load, weighed, without_prior
from plures.models.outputs import Output, Tokens, checked_logits
from plures.models.priors import Fused
from plures.models.priors.file import FromFile
from plures.pace import Pace
from plures.runs.run import Run
from plures.scoring.device import make_fabric
from plures.scoring.distributed import gather
from plures.scoring.features import frozen_features, needs_only_mean, refuse_maps, token_boxes
from plures.scoring.heatmaps import Floats, paint, regions_of

Batches = FeatureBatches | ImageBatches
Scores = NDArray[np.float32]


class Net(Protocol):
    """What is trained: inputs of a batch -> Output. A whole Model on images, or its head on cached features."""

    def __call__(self, inputs: Tensor, maps: bool = ...) -> Output: ...


class HeadOnFeatures(nn.Module):
    """A head that takes cached features [B, P, D] of regions with these boxes [P, 4]."""

    def __init__(self, head: nn.Module, boxes: Tensor) -> None:
        super().__init__()
        self.head = head
        self.boxes: Tensor
        self.register_buffer("boxes", boxes.clone(), persistent=False)  # DDP sends it; not as an inference tensor

    def forward(self, features: Tensor, maps: bool = True) -> Output:
        dtype = next(self.head.parameters()).dtype
        output: Output = self.head(Tokens(features.to(dtype), self.boxes), maps=maps)
        return output


@torch.inference_mode()
def logits_of(net: nn.Module, batches: Batches, fabric: Fabric, pace: Pace | None = None) -> Scores:
    """Logits [N, K] float32 of every row exactly once, in row order, in evaluation mode; pace: told of every batch."""
    was_training = net.training
    net.eval()
    table: Scores | None = None
    seen = 0

    def run(inputs: Tensor) -> Tensor:
        with fabric.autocast():
            output: Output = net(inputs.to(fabric.device, non_blocking=True), maps=False)
        return output.logits.float()

    score = BatchHalver(run, torch.cat)
    for batch in batches.epoch(0):
        logits = checked_logits(gather(score(batch.inputs), batch.total))
        if table is None:
            table = np.full((batches.order.rows, logits.shape[1]), np.nan, np.float32)
        table[gather(batch.index.to(fabric.device), batch.total).cpu().numpy()] = logits
        seen += len(logits)
        if pace is not None:
            pace.step(len(logits))
    net.train(was_training)
    assert table is not None
    if seen != batches.order.rows:
        raise RuntimeError(f"evaluation saw {seen} rows of {batches.order.rows}")
    return table


def logits_of_dataset(model: Model, dataset: Dataset, experiment: Experiment, fabric: Fabric) -> Scores:
    """Logits [N, K] of every image in row order, fused with the model's prior where it has one; through the cached
    features where the run has a frozen backbone."""
    if (fused := by_name(model)) is not None:
        evidence = cast(FromFile, fused.prior).of(dataset.images)
        logits = torch.from_numpy(logits_of_dataset(without_prior(model), dataset, experiment, fabric))
        return checked_logits(fused.fuse(logits.to(evidence.device), evidence))
    order = Order(len(dataset), 64, rank=fabric.global_rank, processes=fabric.world_size)
    net, batches = _net_and_batches(model, dataset, experiment, fabric, order, needs_only_mean(model))
    if fabric.global_rank or net is not model:
        return logits_of(net, batches, fabric)
    with Pace("scoring", len(dataset)) as pace:
        return logits_of(model, batches, fabric, pace)


def _net_and_batches(
    model: Model, dataset: Dataset, experiment: Experiment, fabric: Fabric, order: Order, pooled: bool
) -> tuple[nn.Module, Batches]:
    """The head and cached features where the backbone is frozen, else the model and the images."""
    workers = default_workers(dataset) if experiment.workers is None else experiment.workers
    if dataset.features is None and not experiment.frozen:
        return model, ImageBatches(dataset, model.transform, order, workers)
    with fabric.rank_zero_first(local=True):  # one process computes them, the others read
        features = frozen_features(
            model, dataset, pooled=pooled, device=fabric.device, workers=workers, engine=experiment.engine
        )
    net = HeadOnFeatures(cast(nn.Module, model.head), token_boxes(model, pooled)).to(fabric.device)
    return net, FeatureBatches(features, dataset.labels.values, order)


@dataclass(frozen=True, eq=False)
class Seen:
    """Where a model saw the classes in one image. size: its width and height in pixels; logits [K]; weights [K, P] of
    the regions in `boxes` [P, 4], x1 y1 x2 y2 in [0, 1]."""

    row: int
    size: tuple[int, int]
    logits: Scores
    weights: Floats
    boxes: Floats

    def heat(self, column: int) -> Scores:
        """The heat map [H, W] of a class at the image's own size, in [0, 1]."""
        width, height = self.size
        return paint(self.weights[column], self.boxes, height, width)


@torch.inference_mode()
def look(model: Model, dataset: Dataset, experiment: Experiment) -> Iterator[Seen]:
    """Where the model saw every class in every image, in row order; through the cached features where the backbone is
    frozen.

    Raises PluresError if the head has neither attention nor region logits.
    """
    refuse_maps(model)
    fabric = make_fabric(experiment)
    model = model.to(fabric.device)
    net, batches = _net_and_batches(model, dataset, experiment, fabric, Order(len(dataset), 32), pooled=False)
    net.eval()

    def run(inputs: Tensor) -> Output:
        with fabric.autocast():
            output: Output = net(inputs.to(fabric.device, non_blocking=True), maps=True)
        return output

    score = BatchHalver(run, joined)
    with Pace("looking where", len(dataset)) as pace:
        for batch in batches.epoch(0):
            output = score(batch.inputs)
            logits, (weights, boxes) = checked_logits(output.logits), regions_of(output)
            for i, row in enumerate(batch.index.tolist()):
                yield Seen(row, image_size(dataset.images[row]), logits[i], weights[i], boxes)
            pace.step(len(logits))


def by_name(model: Model) -> Fused | None:
    """The head of a model whose prior finds an image's scores by its name, not in its pixels; None of any other."""
    head = model.head
    return head if isinstance(head, Fused) and isinstance(head.prior, FromFile) else None


def refuse_names(model: Model, what: str) -> None:
    """Raise PluresError for a model whose prior is a file, for what takes any photograph."""
    if by_name(model) is not None:
        raise PluresError(
            f"{what} scores any photograph, and the prior of this run is a file, which knows only its own images; train"
            " with prior=imagenet, text or none"
        )


def prior_of_dataset(model: Model, dataset: Dataset, experiment: Experiment, fabric: Fabric) -> Scores:
    """The evidence [N, K] of the model's prior alone."""
    return logits_of_dataset(weighed(model, 0.0, 1.0), dataset, experiment, fabric)


def parts_of_dataset(model: Model, dataset: Dataset, experiment: Experiment, fabric: Fabric) -> dict[str, Scores]:
    """What head and prior of a fused model say each alone, [N, K], by what to call them; nothing of other models."""
    if not isinstance(model.head, Fused):
        return {}
    parts = {"prior alone": prior_of_dataset(model, dataset, experiment, fabric)}
    if bool(model.head.head_weight.any()):  # else nothing was trained
        parts["head alone"] = logits_of_dataset(without_prior(model), dataset, experiment, fabric)
    return parts


def logits_of_run(run: Run, dataset: Dataset) -> Scores:
    """The logits [N, K] of a run's best weights on data with its model's classes."""
    fabric = make_fabric(run.experiment)
    return logits_of_dataset(load(run.path).to(fabric.device), dataset, run.experiment, fabric)
