"""stages=ridge: the least squares of a linear head on frozen features, solved instead of approached.

For every class the weights a and the bias b minimise, with t = +-target and the loss's weight w of each cell,

    sum_i w_i (a x_i + b - t_i)^2 / sum_i w_i + l2 |a|^2

exactly. There is no learning rate, and there are no epochs: each strength of `l2` is scored like an epoch, and the best
by `select` is kept. Features are read in pieces; D x D numbers are kept, whatever their number. Standardised features
make one l2 fit all (head.standardise, head.normalise).

In the eigenvectors of X'X, weights that are the same for all images make every system diagonal. The cells of a class
that weigh otherwise (its known ones, or its unknown ones where they are fewer) change it by as many rank-one terms, as
does the bias, so Woodbury's identity leaves a system of that size instead of D.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from plures.config import RIDGE_L2
from plures.data.loading import FeatureBatches
from plures.errors import Diverged
from plures.labels import UNKNOWN, Labels, TensorLabels
from plures.losses.base import Loss
from plures.losses.least_squares import LeastSquares
from plures.models.heads.linear import Linear
from plures.training.progress import Callback
from plures.training.stages import Best, Checkpointer, Stage

ROWS_AT_ONCE = 8192


def fit_ridge(
    stage: Stage,
    loss: Loss,
    fabric: Fabric,
    checkpointer: Checkpointer,
    callback: Callback,
    resume: dict[str, Any] | None = None,
) -> Best:
    """As `fit`, for the stage ridge: one epoch for each l2, whose best is kept and returned."""
    started = time.perf_counter()
    strengths = stage.settings.stages[0].options.get("l2", RIDGE_L2)
    head, batches = cast(Linear, stage.head), cast(FeatureBatches, stage.batches)
    squares = cast(LeastSquares, loss)
    first = 0 if resume is None else int(resume["epoch"]) + 1
    stage.best = Best() if resume is None else Best(**resume["best"])
    callback.stage(stage.name, len(strengths), 1, first)
    weights, biases, costs = solve(Rows(batches.features, head, fabric.device), stage.train_labels, squares, strengths)
    seconds = (time.perf_counter() - started) / len(strengths)
    for epoch, l2 in enumerate(strengths):
        if epoch < first:
            continue
        with torch.no_grad():
            head.classifier.weight.copy_(weights[epoch])
            head.classifier.bias.copy_(biases[epoch])
        metrics = checkpointer.score(cast(Any, stage.net))
        score = metrics.pop("score")
        if stage.best.better(score):
            stage.best = Best(score, epoch)
            checkpointer.keep_best(stage.net)
        speed = {"images_per_second": round(len(stage.train_labels) / seconds, 1), "seconds": round(seconds, 3)}
        record = {"stage": stage.name, "epoch": epoch, "loss": float(costs[epoch]), "l2": l2, **speed, **metrics}
        record["best_epoch"] = stage.best.epoch
        best = {"score": stage.best.score, "epoch": stage.best.epoch}
        state = {"stage": stage.number, "epoch": epoch, "best": best, "net": stage.net.state_dict()}
        checkpointer.keep_state(state, record)
        callback.epoch(record)
    return stage.best


class Rows:
    """Pooled features as the head's classifier sees them, [n, D] float64."""

    def __init__(self, features: NDArray[np.floating[Any]], head: Linear, device: torch.device) -> None:
        self.features, self.head, self.device = features, head, device

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def pieces(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Some thousand of these rows at a time, with their numbers."""
        for some in np.array_split(rows, max(1, -(-len(rows) // ROWS_AT_ONCE))):
            x = torch.from_numpy(np.asarray(self.features[some])).to(self.device).float()  # [n, P, D]
            yield some, self.head.prepared(x).mean(1).double()


@torch.no_grad()
def solve(rows: Rows, labels: Labels, loss: LeastSquares, strengths: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [L, K, D] and biases [L, K] for every l2, and the loss [L] that each leaves (mean over the classes).

    Raises Diverged if a feature is not a number.
    """
    N, K, D = len(labels), labels.classes, int(rows.features.shape[2])
    lightly = loss.unknown_weight(K)
    gram, sums, of_present = (rows.zeros(D, n) for n in (D, K, K))  # X'X, X'w, X'present
    everything, total, present = rows.zeros(D), rows.zeros(K), rows.zeros(K)  # sums of x, of w, of present cells
    for some, x in rows.pieces(np.arange(N)):
        part = TensorLabels(torch.from_numpy(labels.values[some]).to(x.device))
        gram += _gram(x)
        everything += x.sum(0)
        of_part = _summed(x, part.present)
        of_present += of_part
        sums += of_part if torch.equal(part.present, ~part.unknown) else _summed(x, ~part.unknown)
        total += (~part.unknown).sum(0)
        present += part.present.sum(0)
    sums = lightly * everything[:, None] + (1 - lightly) * sums
    total = lightly * N + (1 - lightly) * total
    of_targets = loss.target * (2 * of_present - sums)  # X'(w t): present cells weigh 1
    total_target = loss.target * (2 * present - total)
    if not bool(gram.isfinite().all()):
        raise Diverged("some feature of a training image is not a number; optimizer=exact cannot compute the head")
    values, vectors = torch.linalg.eigh(gram)  # [D], [D, D]; below, everything is in these eigenvectors
    values = values.clamp(min=0)
    total = total.clamp(min=1e-9)
    means, targets = vectors.T @ sums / total, total_target / total  # [D, K], [K]
    right = vectors.T @ of_targets - total_target * means  # [D, K]
    weights, biases, costs = rows.zeros(len(strengths), K, D), rows.zeros(len(strengths), K), rows.zeros(len(strengths))
    for k in range(K):
        unknown = labels.values[:, k] == UNKNOWN
        few, usual, other = (unknown, 1.0, lightly) if 2 * unknown.sum() < N else (~unknown, lightly, 1.0)
        system = System(usual * values, means[:, k] * total[k].sqrt())
        if other != usual:
            system.add(other - usual, (x @ vectors for _, x in rows.pieces(np.flatnonzero(few))), int(few.sum()))
        for place, l2 in enumerate(strengths):
            a = system.solve(float(total[k]) * l2, right[:, k])  # [D]
            weights[place, k] = vectors @ a
            biases[place, k] = targets[k] - a @ means[:, k]
            left = a @ system.times(a) - 2 * a @ right[:, k]
            costs[place] += loss.target**2 - targets[k] ** 2 + left / total[k]
    return weights.float(), biases.float(), costs / K


class System:
    """diag(d) + sign z'z - mean mean', positive semidefinite; mean [D] is what the bias takes away, z [n, D] the rows
    that weigh otherwise. d: [D]."""

    def __init__(self, diagonal: Tensor, mean: Tensor) -> None:
        self.diagonal, self.mean, self.sign = diagonal, mean, 1.0
        self.terms: Tensor | None = None  # z' [D, n]
        self.whole: Tensor | None = None  # the system without the mean, where that is smaller than the terms

    def add(self, weight: float, pieces: Iterable[Tensor], rows: int) -> None:
        """Add weight z z' of so many rows z, which come in pieces [n, D]."""
        D = len(self.diagonal)
        self.sign = 1.0 if weight > 0 else -1.0
        if rows > D // 2:
            self.whole = self.diagonal.diag()
            for z in pieces:
                self.whole += weight * _gram(z)
        elif rows:
            self.terms = torch.cat([abs(weight) ** 0.5 * z.T for z in pieces], 1)

    def times(self, a: Tensor) -> Tensor:
        """The product with a [D]."""
        if self.whole is not None:
            product = self.whole @ a
        else:
            product = self.diagonal * a
            if self.terms is not None:
                product = product + self.sign * (self.terms @ (self.terms.T @ a))
        return product - self.mean * (self.mean @ a)

    def solve(self, ridge: float, right: Tensor) -> Tensor:
        """The solution [D] of the system with `ridge` added to its diagonal."""
        ridge = max(ridge, 1e-9)
        both = torch.stack([right, self.mean], 1)  # [D, 2]
        if self.whole is not None:
            penalised = self.whole.clone()
            penalised.diagonal().add_(ridge)
            solved = torch.cholesky_solve(both, torch.linalg.cholesky(penalised))
        else:
            d = (self.diagonal + ridge)[:, None]
            solved = both / d
            if self.terms is not None:  # Woodbury's identity
                inner = self.sign * _gram(self.terms / d.sqrt())
                inner.diagonal().add_(1.0)
                away = torch.cholesky_solve(self.terms.T @ solved, torch.linalg.cholesky(inner))
                solved = solved - self.sign * ((self.terms @ away) / d)
        a, of_mean = solved[:, 0], solved[:, 1]
        return a + of_mean * (self.mean @ a) / (1 - self.mean @ of_mean).clamp(min=1e-12)


def _gram(x: Tensor) -> Tensor:
    """x'x [D, D] of x [n, D], half of which is computed: it is symmetric."""
    D = x.shape[1]
    ends = [D * i // 8 for i in range(9)] if D >= 512 else [0, D]
    found = x.new_empty(D, D)
    for begin, end in itertools.pairwise(ends):
        found[begin:end, begin:] = x[:, begin:end].T @ x[:, begin:]
        found[end:, begin:end] = found[begin:end, end:].T
    return found


def _summed(x: Tensor, cells: Tensor) -> Tensor:
    """Sums of x [n, D] over the marked cells [n, K] of each class: [D, K]. A few cells are looked up."""
    if 20 * int(cells.sum()) > cells.numel():
        return x.T @ cells.double()
    column, row = cells.T.nonzero(as_tuple=True)
    return x.new_zeros(cells.shape[1], x.shape[1]).index_add_(0, column, x[row]).T
