"""Logits of whole datasets: every image exactly once, in row order, from photographs or from cached features."""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.loading import FeatureBatches, ImageBatches, Order, default_workers
from plures.data.photos import Transform
from plures.errors import PluresError
from plures.models.batch_halving import BatchHalver
from plures.models.model import Model, load, weighed, without_prior
from plures.models.outputs import Output, Tokens, checked_logits
from plures.models.priors import Fused
from plures.models.priors.file import FromFile
from plures.pace import Pace
from plures.runs.run import Run
from plures.scoring.device import make_fabric
from plures.scoring.distributed import gather
from plures.scoring.features import frozen_features, needs_only_mean, token_boxes

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
    workers = default_workers(dataset) if experiment.workers is None else experiment.workers
    order = Order(len(dataset), 64, rank=fabric.global_rank, processes=fabric.world_size)
    if dataset.features is not None or experiment.frozen:
        pooled = needs_only_mean(model)
        with fabric.rank_zero_first(local=True):  # one process computes them, the others read
            features = frozen_features(
                model, dataset, pooled=pooled, device=fabric.device, workers=workers, engine=experiment.engine
            )
        net = HeadOnFeatures(cast(nn.Module, model.head), token_boxes(model, pooled)).to(fabric.device)
        return logits_of(net, FeatureBatches(features, dataset.labels.values, order), fabric)
    transform = Transform(model.preprocessing.image_size, "none", model.preprocessing.interpolation)
    batches = ImageBatches(dataset, transform, order, workers)
    if fabric.global_rank:
        return logits_of(model, batches, fabric)
    with Pace("scoring", len(dataset)) as pace:
        return logits_of(model, batches, fabric, pace)


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
