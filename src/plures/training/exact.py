"""optimizer=exact: the least squares of a linear head on frozen features, solved instead of approached.

For every class the weights a and the bias b minimise, with t = +-target and the loss's weight w of each cell,

    sum_i w_i (a x_i + b - t_i)^2 / sum_i w_i + l2 |a|^2

by one Cholesky factorisation. There is no learning rate, and there are no epochs: each strength of `l2` is scored like
an epoch, and the best by `select` is kept. Features pass once, in pieces, so their number costs no memory: D x D
numbers are kept, whatever N. Standardised features make one l2 fit all (head.standardise, head.normalise).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from plures.data.loading import FeatureBatches
from plures.errors import WorkFailed
from plures.experiment import EXACT_L2, Experiment
from plures.labels import Labels
from plures.losses.context import Loss
from plures.losses.least_squares import LeastSquares
from plures.models.linear import Linear
from plures.training.fit import Best, Keeper, Phase
from plures.training.progress import Watch

ROWS_AT_ONCE = 8192


def fit_exactly(
    phase: Phase,
    experiment: Experiment,
    loss: Loss,
    fabric: Fabric,
    keeper: Keeper,
    watch: Watch,
    resume: dict[str, Any] | None = None,
) -> Best:
    """As `fit`, for optimizer=exact: one epoch for each l2, whose best is kept and returned."""
    started = time.perf_counter()
    strengths = experiment.optimizer.options.get("l2", EXACT_L2)
    head, batches = cast(Linear, phase.head), cast(FeatureBatches, phase.batches)
    squares = cast(LeastSquares, loss)
    first = 0 if resume is None else int(resume["epoch"]) + 1
    phase.best = Best() if resume is None else Best(**resume["best"])
    watch.phase(phase.name, len(strengths), 1, first)
    weights, biases, costs = solve(Rows(batches.features, head, fabric.device), phase.train_labels, squares, strengths)
    seconds = (time.perf_counter() - started) / len(strengths)
    for epoch, l2 in enumerate(strengths):
        if epoch < first:
            continue
        with torch.no_grad():
            head.classifier.weight.copy_(weights[epoch])
            head.classifier.bias.copy_(biases[epoch])
        metrics = keeper.score(cast(Any, phase.net))
        score = metrics.pop("score")
        if phase.best.better(score):
            phase.best = Best(score, epoch)
            keeper.keep_best(phase.net)
        speed = {"images_per_second": round(len(phase.train_labels) / seconds, 1), "seconds": round(seconds, 3)}
        record = {"phase": phase.name, "epoch": epoch, "loss": float(costs[epoch]), "l2": l2, **speed, **metrics}
        record["best_epoch"] = phase.best.epoch
        best = {"score": phase.best.score, "epoch": phase.best.epoch}
        state = {"phase": phase.number, "epoch": epoch, "best": best, "net": phase.net.state_dict()}
        keeper.keep_state(state, record)
        watch.epoch(record)
    return phase.best


class Rows:
    """Pooled features as the head's classifier sees them, with a one behind for the bias; [n, D + 1] float64."""

    def __init__(self, features: NDArray[np.floating[Any]], head: Linear, device: torch.device) -> None:
        self.features, self.head, self.device = features, head, device

    @property
    def width(self) -> int:
        return int(self.features.shape[2]) + 1

    def pieces(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Some thousand of these rows at a time, with their numbers."""
        for some in np.array_split(rows, max(1, -(-len(rows) // ROWS_AT_ONCE))):
            x = torch.from_numpy(np.asarray(self.features[some])).to(self.device).float()  # [n, P, D]
            x = self.head.prepared(x).mean(1).double()
            yield some, torch.cat([x, x.new_ones(len(x), 1)], 1)


@torch.no_grad()
def solve(rows: Rows, labels: Labels, loss: LeastSquares, strengths: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [L, K, D] and biases [L, K] for every l2, and the loss [L] that each leaves (mean over the classes).

    Raises WorkFailed if a feature is no number.
    """
    D, K = rows.width, labels.classes
    lightly = loss.unknown_weight(K)
    everywhere = np.arange(len(labels))
    gram, sums = _zeros(rows, D, D), _zeros(rows, D, K)  # of all rows, unweighted; of weight times target
    weight = np.where(labels.unknown, lightly, 1.0)  # [N, K]
    target = np.where(labels.present, loss.target, -loss.target)
    for some, x in rows.pieces(everywhere):
        gram += x.T @ x
        sums += x.T @ torch.from_numpy(weight[some] * target[some]).to(x.device)
    if not bool(gram.isfinite().all()):
        raise WorkFailed("some feature of a training image is not a number; optimizer=exact cannot solve for a head")
    total = torch.from_numpy(weight.sum(0)).clamp(min=1e-9).to(gram.device)  # [K]
    sums /= total
    found = _zeros(rows, len(strengths), K, D)
    costs = _zeros(rows, len(strengths))
    if labels.complete or lightly == 1:  # the same for all classes
        _solve_for(gram / total[0], sums, strengths, loss, found, costs)
    else:
        for k in range(K):
            own = _weighted(gram, rows, labels.unknown[:, k], lightly) / total[k]
            _solve_for(own, sums[:, k : k + 1], strengths, loss, found[:, k : k + 1], costs)
    return found[..., :-1].float(), found[..., -1].float(), costs / K


def _weighted(gram: Tensor, rows: Rows, unknown: NDArray[np.bool_], weight: float) -> Tensor:
    """Sum of w x x' with w = 1 where known and `weight` where not, from that of all rows and the smaller of the two."""
    few = unknown if unknown.sum() * 2 < len(unknown) else ~unknown
    own = torch.zeros_like(gram)
    for _, x in rows.pieces(np.flatnonzero(few)):
        own += x.T @ x
    return weight * gram + (1 - weight) * (gram - own if few is unknown else own)


def _solve_for(
    gram: Tensor, sums: Tensor, strengths: list[float], loss: LeastSquares, found: Tensor, costs: Tensor
) -> None:
    """Fill `found` [L, k, D] for the classes of `sums` [D, k]; add the loss each class is left with to `costs` [L]."""
    for place, l2 in enumerate(strengths):
        penalised = gram.clone()
        penalised.diagonal()[:-1] += l2
        penalised[-1, -1] += 1e-9  # the bias is free
        a = torch.cholesky_solve(sums, torch.linalg.cholesky(penalised))  # [D, k]
        found[place] = a.T
        costs[place] += ((a * (gram @ a)).sum(0) - 2 * (a * sums).sum(0) + loss.target**2).sum()


def _zeros(rows: Rows, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=rows.device)
