"""optimizer=exact: the least squares of a linear head on frozen features, solved instead of approached.

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
from collections.abc import Iterator, Sequence
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

    Raises WorkFailed if a feature is no number.
    """
    N, K, D = len(labels), labels.classes, int(rows.features.shape[2])
    lightly = loss.unknown_weight(K)
    weight = np.where(labels.unknown, lightly, 1.0)  # [N, K]
    target = np.where(labels.present, loss.target, -loss.target)
    gram, sums, of_targets = (rows.zeros(D, n) for n in (D, K, K))  # X'X, X'w, X'(w t)
    for some, x in rows.pieces(np.arange(N)):
        gram += x.T @ x
        w, wt = (torch.from_numpy(values[some]).to(x.device) for values in (weight, weight * target))
        sums += x.T @ w
        of_targets += x.T @ wt
    if not bool(gram.isfinite().all()):
        raise WorkFailed("some feature of a training image is not a number; optimizer=exact cannot solve for a head")
    values, vectors = torch.linalg.eigh(gram)  # [D], [D, D]
    values = values.clamp(min=0)
    total = np.maximum(weight.sum(0), 1e-9)  # [K]
    mean_target = (weight * target).sum(0) / total
    weights, biases, costs = rows.zeros(len(strengths), K, D), rows.zeros(len(strengths), K), rows.zeros(len(strengths))
    for k in range(K):
        unknown = labels.unknown[:, k]
        few, usual, other = (unknown, 1.0, lightly) if 2 * unknown.sum() < N else (~unknown, lightly, 1.0)
        mean = vectors.T @ sums[:, k] / total[k]  # of the features, weighted; everything in the eigenvectors from here
        right = vectors.T @ of_targets[:, k] - total[k] * mean_target[k] * mean
        system = System(usual * values, *_terms(rows, few, other - usual, vectors, mean, total[k]))
        for place, l2 in enumerate(strengths):
            a = system.solve(total[k] * l2, right)  # [D]
            weights[place, k] = vectors @ a
            biases[place, k] = mean_target[k] - a @ mean
            left = a @ system.times(a) - 2 * a @ right
            costs[place] += loss.target**2 - mean_target[k] ** 2 + left / total[k]
    return weights.float(), biases.float(), costs / K


def _terms(
    rows: Rows, few: NDArray[np.bool_], change: float, vectors: Tensor, mean: Tensor, total: float
) -> tuple[Tensor, Tensor]:
    """What makes the weighted scatter of a class of that of all images: terms u [D, n] and their signs [n]."""
    some = [x @ vectors for _, x in rows.pieces(np.flatnonzero(few))] if change else []
    terms = torch.cat([abs(change) ** 0.5 * z.T for z in some] + [total**0.5 * mean[:, None]], 1)
    signs = torch.full_like(terms[0], 1.0 if change > 0 else -1.0)
    signs[-1] = -1.0  # the bias takes the mean away
    return terms, signs


class System:
    """diag(d) + u diag(signs) u', positive semidefinite. d: [D]; terms u: [D, n]; signs: [n], 1 or -1."""

    def __init__(self, diagonal: Tensor, terms: Tensor, signs: Tensor) -> None:
        self.diagonal, self.terms, self.signs = diagonal, terms, signs
        self.whole: Tensor | None = None
        if terms.shape[1] > terms.shape[0] // 2:  # the system itself is then the smaller one
            self.whole = diagonal.diag() + (terms * signs) @ terms.T

    def times(self, a: Tensor) -> Tensor:
        """The product with a [D]."""
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
