"""What one observed label per image says of the labels that were not observed: the uniform-choice likelihood.

A label that is present is observed with chance 1 / k(x), where k(x) is the number of labels present, so positives are
not "selected completely at random" (Elkan & Noto 2008): they come more often from images with few labels. Here the
labels of an image are taken to be independent given its logits s, each present with probability
p_j = sigmoid(scale s_j + offset_j), and the observed one to be drawn uniformly among those present. Then

    P(o observed | s, something present) = p_o I_o / (1 - prod_j (1 - p_j)),
    I_o = E[1 / (1 + sum_{j != o} Y_j)] = int_0^1 prod_{j != o} (1 - p_j + p_j u) du,

and scale and offsets are those that make the held-out observed labels most likely. This can tell how many labels
there are because a label above its logistic curve's bend is observed no more often than another one there, however far
apart their scores: equal chances of well separated scores mean several labels, unequal ones a single one. The
derivation is this project's own; docs/thresholds.md gives it whole, with what it cannot know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.thresholds import Floats, sigmoid

ASSUMES = "the tag of an image was picked evenly among its labels, which are independent given the model's scores"
NODES = 16  # Gauss-Legendre nodes for the integral: exact up to 32 classes, and for a few labels of any number
CELLS = 2**20  # of rows x nodes x classes looked at together
FIT_ROWS, FIT_CELLS = 4000, 400_000  # more hardly move the curve; the posterior is taken for all rows
OFFSET_SPREAD = 1.0  # prior standard deviation of a class's offset around the common one, in logits
SCALE_SPREAD = 1.0  # and of log scale around 0

_nodes, _node_weights = np.polynomial.legendre.leggauss(NODES)
_U = (_nodes + 1) / 2  # in [0, 1]
_LOG_U, _LOG_REST, _LOG_WEIGHT = np.log(_U), np.log1p(-_U), np.log(_node_weights / 2)


@dataclass(frozen=True, eq=False)
class UniformChoice:
    """The fitted curve: sigmoid(scale * logit + offset). scale: a number > 0; offset: [K]; likelihood: mean log
    chance of a held-out observation under it (larger is better; minus log K is chance)."""

    scale: float
    offset: Floats
    likelihood: float

    def presence(self, logits: NDArray[np.floating], observed: Labels) -> Floats:
        """P(present | logits, what is observed), [N, K]: 1 where observed, 0 where known to be absent. Rows with
        nothing observed present are taken as rows with no condition."""
        result = np.empty(observed.values.shape)
        z = self.scale * np.asarray(logits, np.float64) + self.offset
        for rows in _blocks(len(z), observed.classes):
            result[rows] = _posterior(z[rows], observed.take(rows))[1]
        return result


def fit_uniform_choice(logits: NDArray[np.floating], observed: Labels, seed: int = 0) -> UniformChoice:
    """The curve that makes these observed positives most likely. logits: [N, K]; observed: [N, K], of images that the
    model was not trained on.

    Rows without an observed positive are left out. Raises PluresError if there is none at all.
    """
    rows = np.flatnonzero(observed.present.any(1))
    if not len(rows):
        raise PluresError("no held-out image has an observed positive label; nothing can be estimated from positives")
    most = max(1, min(FIT_ROWS, FIT_CELLS // observed.classes))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    s, seen = np.asarray(logits, np.float64)[rows], observed.take(rows)

    def loss(x: Floats) -> tuple[float, Floats]:
        scale, offset = float(np.exp(x[0])), x[1] + x[2:]
        total, slope = 0.0, np.zeros_like(x)
        for block in _blocks(len(s), seen.classes):
            z = scale * s[block] + offset
            likelihood, presence, something = _posterior(z, seen.take(block))
            gradient = presence - sigmoid(z) / something[:, None]  # of the log likelihood by z
            total -= likelihood.sum()
            slope[0] -= (gradient * scale * s[block]).sum()
            slope[1] -= gradient.sum()
            slope[2:] -= gradient.sum(0)
        slope[0] += x[0] / SCALE_SPREAD**2
        slope[2:] += x[2:] / OFFSET_SPREAD**2
        penalty = (x[0] / SCALE_SPREAD) ** 2 + ((x[2:] / OFFSET_SPREAD) ** 2).sum()
        return total + penalty / 2, slope

    found = minimize(loss, np.zeros(2 + seen.classes), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    scale, offset = float(np.exp(found.x[0])), found.x[1] + found.x[2:]
    mean = sum(_posterior(scale * s[b] + offset, seen.take(b))[0].sum() for b in _blocks(len(s), seen.classes))
    return UniformChoice(scale, offset, float(mean) / len(s))


def most_tags(logits: NDArray[np.floating], observed: Labels) -> float:
    """An upper bound on the mean number of labels per image, 2 E[rank of the observed label] - 1, and at least 1.

    Holds for any scores: k labels have ranks of mean (k + 1) / 2 or more, and the observed one is any of them with the
    same chance. Sharp where present classes rank above absent ones. Ties count against the observed label.
    """
    rows, columns = np.nonzero(observed.present)
    if not len(rows):
        return float("nan")
    own = np.asarray(logits)[rows, columns]
    ranks = (np.asarray(logits)[rows] >= own[:, None]).sum(1)
    return max(1.0, 2 * float(ranks.mean()) - 1)


def _posterior(z: Floats, observed: Labels) -> tuple[Floats, Floats, Floats]:
    """Log likelihood [n], presence [n, K] and P(something present) [n] of calibrated logits z [n, K].

    With m observed labels in a row, drawn without replacement, 1 / C(k, m) = m int u^(k - m) (1 - u)^(m - 1) du takes
    the place of 1 / k = int u^(k - 1) du.
    """
    present, absent = observed.present, observed.absent
    m = present.sum(1)
    free = ~(present | absent)
    lifted = z[:, None, :] + _LOG_U[:, None]  # [n, M, K]
    base = np.logaddexp(0, z)  # [n, K]: -log(1 - p)
    free_terms = (np.logaddexp(0, lifted) * free[:, None, :]).sum(2)  # [n, M]
    exponent = np.maximum(m - 1, 0)[:, None] * _LOG_REST + _LOG_WEIGHT + free_terms
    top = exponent.max(1, keepdims=True)
    weights = np.exp(exponent - top)
    total = weights.sum(1)
    weights /= total[:, None]
    presence = np.einsum("nm,nmk->nk", weights, sigmoid(lifted)) * free + present
    nothing = base.sum(1)  # -log P(nothing present)
    something = np.maximum(-np.expm1(-nothing), 1e-300)
    likelihood = (z * present).sum(1) - nothing + top[:, 0] + np.log(total) + np.log(np.maximum(m, 1))
    likelihood -= np.log(something)
    blank = m == 0
    presence[blank] = (sigmoid(z) * free)[blank]
    return np.where(blank, 0.0, likelihood), presence, something


def _blocks(rows: int, classes: int) -> Iterator[slice]:
    size = max(1, CELLS // (NODES * max(classes, 1)))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
