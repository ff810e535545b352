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
from plures.training.stages import Best, Keeper, Stage

ROWS_AT_ONCE = 8192


def fit_ridge(
    stage: Stage,
    loss: Loss,
    fabric: Fabric,
    keeper: Keeper,
    watch: Callback,
    resume: dict[str, Any] | None = None,
) -> Best:
    """As `fit`, for the stage ridge: one epoch for each l2, whose best is kept and returned."""
    started = time.perf_counter()
    strengths = stage.settings.stages[0].options.get("l2", RIDGE_L2)
    head, batches = cast(Linear, stage.head), cast(FeatureBatches, stage.batches)
    squares = cast(LeastSquares, loss)
    first = 0 if resume is None else int(resume["epoch"]) + 1
    stage.best = Best() if resume is None else Best(**resume["best"])
    watch.stage(stage.name, len(strengths), 1, first)
    weights, biases, costs = solve(Rows(batches.features, head, fabric.device), stage.train_labels, squares, strengths)
    seconds = (time.perf_counter() - started) / len(strengths)
    for epoch, l2 in enumerate(strengths):
        if epoch < first:
            continue
        with torch.no_grad():
            head.classifier.weight.copy_(weights[epoch])
            head.classifier.bias.copy_(biases[epoch])
        metrics = keeper.score(cast(Any, stage.net))
        score = metrics.pop("score")
        if stage.best.better(score):
            stage.best = Best(score, epoch)
            keeper.keep_best(stage.net)
        speed = {"images_per_second": round(len(stage.train_labels) / seconds, 1), "seconds": round(seconds, 3)}
        record = {"stage": stage.name, "epoch": epoch, "loss": float(costs[epoch]), "l2": l2, **speed, **metrics}
        record["best_epoch"] = stage.best.epoch
        best = {"score": stage.best.score, "epoch": stage.best.epoch}
        state = {"stage": stage.number, "epoch": epoch, "best": best, "net": stage.net.state_dict()}
        keeper.keep_state(state, record)
        watch.epoch(record)
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
    gram, sums, of_targets = (rows.zeros(D, n) for n in (D, K, K))  # X'X, X'w, X'(w t)
    total, total_target = rows.zeros(K), rows.zeros(K)  # sums of w and of w t
    for some, x in rows.pieces(np.arange(N)):
        part = TensorLabels(torch.from_numpy(labels.values[some]).to(x.device))
        w = torch.where(part.unknown, lightly, 1.0).double()  # [n, K]
        wt = w * torch.where(part.present, loss.target, -loss.target)
        gram += x.T @ x
        sums += x.T @ w
        of_targets += x.T @ wt
        total += w.sum(0)
        total_target += wt.sum(0)
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
    """diag(d) + u diag(signs) u', positive semidefinite. d: [D]; terms u: [D, n]; signs: [n], 1 or -1.

    Begins as diag(d) - mean mean', where the mean [D] is what the bias takes away.
    """

    def __init__(self, diagonal: Tensor, mean: Tensor) -> None:
        self.diagonal, self.terms, self.signs = diagonal, mean[:, None], torch.full_like(mean[:1], -1.0)
        self.whole: Tensor | None = None

    def add(self, weight: float, pieces: Iterable[Tensor], rows: int) -> None:
        """Add weight z z' of so many rows z, which come in pieces [n, D]."""
        D = len(self.diagonal)
        if rows > D // 2:  # the system itself is then smaller than their number
            self.whole = self.diagonal.diag() - self.terms @ self.terms.T
            for z in pieces:
                self.whole += weight * (z.T @ z)
            return
        new = torch.cat([abs(weight) ** 0.5 * z.T for z in pieces], 1)
        self.terms = torch.cat([self.terms, new], 1)
        self.signs = torch.cat([self.signs, torch.full_like(new[0], 1.0 if weight > 0 else -1.0)])

    def times(self, a: Tensor) -> Tensor:
        """The product with a [D]."""
        if self.whole is not None:
            return self.whole @ a
        return self.diagonal * a + self.terms @ (self.signs * (self.terms.T @ a))

    def solve(self, ridge: float, right: Tensor) -> Tensor:
        """The solution [D] of the system with `ridge` added to its diagonal."""
        if self.whole is not None:
            penalised = self.whole.clone()
            penalised.diagonal().add_(max(ridge, 1e-9))
            return torch.cholesky_solve(right[:, None], torch.linalg.cholesky(penalised))[:, 0]
        d = self.diagonal + max(ridge, 1e-9)
        scaled = self.terms / d[:, None]
        inner = self.signs.diag() + self.terms.T @ scaled
        away: Tensor = scaled @ torch.linalg.solve(inner, scaled.T @ right)
        return right / d - away
