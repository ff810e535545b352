"""How much a head's logits and a prior's evidence each count, from observed positives alone.

Evidence is brought to mean 0 and standard deviation 1 per class (over the training images), and enters the logits of
the classes that it knows something of with one weight, in units of the logits' mean standard deviation. Logits as they
are can be compared between classes, and stay so: a weight or a scale of each class's own finds fewer missing tags
(docs/log.md).

- Which classes: by Somers' D = 2 AUC - 1 of the evidence, observed positives against all other images. Neither head
  nor weight has seen it, so training images count too. Classes lend each other strength: D is shrunk to their common
  mean as its standard error and the spread between classes say (empirical Bayes, DerSimonian & Laird 1986). A class
  whose D is below LEAST, or below two standard errors, takes nothing from the prior, and is named.
- The weight: the ratio of two common slopes in a logistic regression, on the validation images, of "observed present"
  on logit and evidence, with an intercept for each class. Positives that nobody wrote down count as absent there; that
  lowers both slopes alike. Two numbers fitted on all cells are far less noisy than the best of a grid by mAP, which
  cost up to 2 points on VOC-12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata

from plures.labels import Labels
from plures.metrics.thresholds import Floats, sigmoid

LEAST = 0.1  # reliability below which a class is left to the head
USUAL = 0.3  # the weight where there is no validation image to choose it by: what VOC-12 chooses
MOST = 20.0  # of the weight: the head then hardly counts
NOTHING = -20.0  # the logit of a class of which nothing at all is known
ROWS = 20_000  # looked at; more hardly move anything
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Seen:
    """Images with their evidence [N, K], observed labels, and, of validation images, the head's logits [N, K]."""

    evidence: Scores
    observed: Labels
    logits: Scores | None = None

    def some(self, seed: int = 0) -> Seen:
        """At most ROWS of them."""
        if len(self.observed) <= ROWS:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.observed), ROWS, replace=False))
        logits = None if self.logits is None else self.logits[rows]
        return Seen(self.evidence[rows], self.observed.take(rows), logits)


@dataclass(frozen=True, eq=False)
class Fusion:
    """Fused logits are head * logit + prior * evidence + offset, each [K]. weight, reliability [K] (Somers' D): see
    above; silent: the classes, by number, that take nothing from the prior, each with the reason."""

    head: Floats
    prior: Floats
    offset: Floats
    weight: float
    reliability: Floats
    silent: dict[int, str]


def choose_fusion(train: Seen, val: Seen | None, said: NDArray[np.bool_]) -> Fusion:
    """The weights for evidence whose scale is that of the training images. said [K]: where the prior says anything."""
    train, val = train.some(), None if val is None else val.some()
    mean, spread = _scale(train.evidence)
    both = [train, *([] if val is None else [val])]
    z = np.concatenate([(one.evidence - mean) / spread for one in both])
    present = np.concatenate([one.observed.present for one in both])
    reliability, silent = _reliability(z, present, said & (np.ptp(train.evidence, axis=0) > 0))
    heard = (reliability > 0).astype(np.float64)
    weight, unit = USUAL * bool(heard.any()), 1.0
    if val is not None and val.logits is not None:
        unit = float(_scale(val.logits)[1].mean())
        if heard.any() and val.observed.present.any():
            weight = _weight(
                val.logits.astype(np.float64) / unit, (val.evidence - mean) / spread * heard, val.observed.present
            )
    alone = np.isinf(weight)  # the head only disturbs: the prior by itself, where it says something
    factor = (1.0 if alone else weight) * unit * heard / spread
    head = np.where((heard > 0) & alone, 0.0, 1.0)
    return Fusion(head, factor, -factor * mean, weight, reliability, silent)


def prior_alone(evidence: Scores) -> Fusion:
    """Logits from the prior alone, comparable between classes, where nothing is observed.

    Half of a class's mean evidence is taken for its frequency, and half for the way its name is written: with all of
    it, or none, fewer of the called tags are right (docs/priors.md).
    """
    mean, spread = _scale(evidence)
    usual = float(np.std(evidence)) or 1.0
    prior = (1 / spread + 1 / usual) / 2
    offset = -(mean / spread + float(evidence.mean()) / usual) / 2
    zeros = np.zeros_like(mean)
    constant = np.ptp(evidence, axis=0) <= 0
    silent = {int(k): "the prior says nothing of it" for k in np.flatnonzero(constant)}
    prior, offset = np.where(constant, 0.0, prior), np.where(constant, NOTHING, offset)
    return Fusion(zeros, prior, offset, np.inf, (~constant).astype(np.float64), silent)


def _scale(values: Scores) -> tuple[Floats, Floats]:
    """Mean and standard deviation, [K] each; 1 for a constant column."""
    mean, spread = np.mean(values, 0, dtype=np.float64), np.std(values, 0, dtype=np.float64)
    return np.asarray(mean), np.where(spread > 1e-9, spread, 1.0)


def _reliability(z: Floats, present: NDArray[np.bool_], said: NDArray[np.bool_]) -> tuple[Floats, dict[int, str]]:
    """Reliability [K] of evidence z [N, K], and why where it is 0."""
    positives, n = present.sum(0), len(z)
    tried = said & (positives > 0) & (positives < n)
    ranks = np.where(present, rankdata(z, axis=0), 0).sum(0)
    pairs = np.where(tried, positives * (n - positives), 1).astype(np.float64)
    d = np.where(tried, 2 * (ranks - positives * (positives + 1) / 2) / pairs - 1, 0.0)
    variance = np.where(tried, (n + 1) / (3 * pairs), np.inf)  # of D, under no relation: four times that of AUC
    mean, between = _between(d[tried], variance[tried])
    share = np.where(tried, between / np.where(tried, between + variance, 1.0), 0.0)
    found = share * d + (1 - share) * mean
    error = np.sqrt(np.where(tried, share * np.where(tried, variance, 0.0), between))
    weak = (found < LEAST) | (found < 2 * error)
    silent = {}
    for k in np.flatnonzero(~said | weak):
        why = "observed images score no higher than others" if tried[k] else "no observed image"
        silent[int(k)] = why if said[k] else "the prior says nothing of it"
    return np.where(~said | weak, 0.0, np.clip(found, 0.0, 1.0)), silent


def _between(d: Floats, variance: Floats) -> tuple[float, float]:
    """The common mean of these, and the variance between them beyond their own errors."""
    if not len(d):
        return 0.0, 0.0
    variance = np.maximum(variance, 1e-9)
    w = 1 / variance
    mean = float((w * d).sum() / w.sum())
    if len(d) < 2:
        return mean, 0.0
    q, free = float((w * (d - mean) ** 2).sum()), w.sum() - (w**2).sum() / w.sum()
    between = max(0.0, (q - (len(d) - 1)) / float(free))
    w = 1 / (variance + between)
    return float((w * d).sum() / w.sum()), between


def _weight(h: Floats, z: Floats, present: NDArray[np.bool_]) -> float:
    """The ratio of the slopes of z and h, [N, K] each, in a logistic regression with an intercept for each class; 0 to
    MOST, infinity where the slope of h is not above 0."""
    k = h.shape[1]

    def loss(x: Floats) -> tuple[float, Floats]:
        u = x[0] * h + x[1] * z + x[2:]
        rest = sigmoid(u) - present
        value = float((np.logaddexp(0, u) - u * present).sum() + 5e-4 * (x[2:] ** 2).sum())
        return value, np.concatenate([[(rest * h).sum(), (rest * z).sum()], rest.sum(0) + 1e-3 * x[2:]])

    start = np.concatenate([[1.0, 0.5], np.full(k, -2.0)])
    bounds = [(0.0, None), (0.0, None), *[(None, None)] * k]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300})
    of_head, of_prior = found.x[:2]
    if of_prior <= 0:
        return 0.0
    return float(min(of_prior / of_head, MOST)) if of_head > 1e-6 else float("inf")
