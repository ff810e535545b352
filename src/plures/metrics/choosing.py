"""Choosing thresholds: from scores and what is known, or estimated, of the labels, for an objective.

Every rule here sees scores [N, K], how surely each cell is present, `presence` in [0, 1] [N, K] (0 and 1 where labels
are known; an estimate from `uniform_choice` elsewhere), and which cells count, `known` [N, K].

Cuts lie midway between neighbouring distinct scores, never on one: scores differ in their last digits from processor
to processor, and a cut that equals a score would call it here and not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.metrics.thresholds import Floats

Kind = Literal["f1", "precision", "recall", "tags"]
NEVER = float("inf")  # no score reaches it
ALWAYS = float("-inf")  # every score reaches it


@dataclass(frozen=True)
class Objective:
    """What thresholds are chosen for. f1: the best F1; precision: the most tags at this precision or more; recall: the
    fewest tags at this recall or more; tags: this many tags per image on average."""

    kind: Kind
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> Objective:
        """`f1`, `precision=0.9`, `recall=0.9` or `tags=1.5`. Raises PluresError for anything else."""
        kind, _, number = text.partition("=")
        if kind == "f1" and not number:
            return cls("f1")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if kind in ("precision", "recall") and 0 < value < 1:
            return cls("precision" if kind == "precision" else "recall", value)
        if kind == "tags" and 0 < value < float("inf"):
            return cls("tags", value)
        raise PluresError(f"objective '{text}' is unknown; use f1, precision=0.9, recall=0.9 (in (0, 1)) or tags=1.5")

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}={self.value:g}"


@dataclass(frozen=True, eq=False)
class Curve:
    """What each cut of one column of scores would do, from the highest to the lowest score that occurs.

    cuts: the threshold, midway to the next score below (at the end as far below as the scores lie apart in the middle
    of their order); called: how many cells are tagged; hits: how many of them are present. positives: present in all.
    """

    cuts: Floats
    called: Floats
    hits: Floats
    positives: float

    @classmethod
    def of(cls, scores: Floats, presence: Floats) -> Curve:
        """scores, presence: [n], the known cells of a class (or of all)."""
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        ends = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True)) if len(ordered) else np.empty(0, np.int64)
        distinct = ordered[ends]
        below = np.append(distinct[1:], distinct[-1:] - 2 * usual_gap(distinct))
        called: Floats = ends.astype(np.float64) + 1
        return cls(between(distinct, below), called, np.cumsum(presence[order])[ends], float(presence.sum()))

    def best_f1(self) -> float:
        """The highest cut of those with the largest F1 = 2 hits / (called + positives)."""
        if not len(self.cuts) or self.positives == 0:
            return NEVER
        return float(self.cuts[np.argmax(2 * self.hits / (self.called + self.positives))])

    def at_precision(self, least: float) -> float:
        """The lowest cut whose precision is `least` or more; NEVER where no cut has it."""
        enough = np.flatnonzero(self.hits >= least * self.called - 1e-9)
        return float(self.cuts[enough[-1]]) if len(enough) else NEVER

    def at_count(self, count: float) -> float:
        """The cut that calls as nearly `count` cells as ties allow; NEVER where none is nearer."""
        called = np.append(0.0, self.called)
        return float(np.append(NEVER, self.cuts)[np.argmin(np.abs(called - count))])


def usual_gap(ordered: Floats) -> float:
    """The median distance of neighbours in distinct ordered scores [n]; 1 for fewer than two."""
    return float(np.median(np.abs(np.diff(ordered)))) if len(ordered) > 1 else 1.0


def between(high: Floats, low: Floats) -> Floats:
    """Midway from `high` down to `low`, above `low` and not above `high` whatever the rounding."""
    middle = low + (high - low) / 2
    return np.where((middle > low) & (middle <= high), middle, high)


def conformal_cut(scores: Floats, recall: float, weights: Floats | None = None) -> float:
    """The highest threshold that a new positive's score reaches with a chance of `recall` or more; nan where the
    positives are too few to promise it.

    scores [n]: of held-out positives. weights None: split conformal prediction (Papadopoulos et al. 2002; Vovk et al.
    2005): with miss = 1 - recall, the floor(miss (n + 1))-th smallest score, so nan below 1 / miss - 1 positives. The
    chance is over new and held-out positives alike, whatever the model. weights [n] > 0: how often such a positive
    occurs, relative to how often it was observed (Tibshirani et al. 2019, arXiv 1904.06019, lemma 3); the new one's
    weight is taken as the largest.
    """
    w = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    if not len(scores):
        return float("nan")
    order = np.argsort(scores, kind="stable")
    ordered, w, largest = scores[order], w[order], float(w.max())
    first = np.searchsorted(ordered, ordered, side="left")  # of each group of ties
    missed = np.append(0.0, np.cumsum(w))[first] + largest  # below each score, the new one counted as missed
    kept = np.flatnonzero(missed <= (1 - recall) * (w.sum() + largest) + 1e-9)
    return float(ordered[kept[-1]]) if len(kept) else float("nan")


@dataclass(frozen=True, eq=False)
class Pool:
    """The held-out cells that thresholds are chosen on, each [N, K].

    scores: higher is surer; presence: chance in [0, 1] that the class is there; known: bool, the cells that count;
    positives: bool, the cells observed to be present, from which recall is promised; weights: of those positives, see
    `conformal_cut`, or None.
    """

    scores: Floats
    presence: Floats
    known: NDArray[np.bool_]
    positives: NDArray[np.bool_]
    weights: Floats | None = None

    @property
    def share(self) -> Floats:
        """How large a share of the images has each class, [K]; nan where no cell is known."""
        known = self.known.sum(0)
        present = np.where(self.known, self.presence, 0).sum(0)
        share: Floats = np.divide(present, known, out=np.full(len(known), np.nan), where=known > 0)
        return share

    def column(self, k: int) -> Pool:
        """The cells of one class."""
        one = slice(k, k + 1)
        weights = None if self.weights is None else self.weights[:, one]
        return Pool(self.scores[:, one], self.presence[:, one], self.known[:, one], self.positives[:, one], weights)

    def curve(self) -> Curve:
        """All cells as one column of scores."""
        return Curve.of(self.scores[self.known], self.presence[self.known])

    def conformal_cut(self, recall: float) -> float:
        """`conformal_cut` of the positives, lowered midway to the next score below, which calls no other known cell."""
        weights = None if self.weights is None else self.weights[self.positives]
        cut = conformal_cut(self.scores[self.positives], recall, weights)
        curve = self.curve()
        return cut if np.isnan(cut) else float(curve.cuts[np.searchsorted(-curve.cuts, -cut)])


@dataclass(frozen=True, eq=False)
class Cuts:
    """values [K]: a threshold for each class. pooled: bool [K], the classes that took the common threshold because
    too little is known of them; reason: why, for people."""

    values: Floats
    pooled: NDArray[np.bool_]
    reason: str = ""


def choose(pool: Pool, objective: Objective, *, per_class: bool = True, match_priors: bool = False) -> Cuts:
    """A threshold for each class, or one for all.

    match_priors: for f1 of a class, call it as often as it is present (so that precision = recall) instead of
    searching the best F1, which fits the noise of an estimated presence. Per class, `tags` is shared out by how often
    each class is present. A class without a positive, or with too few for the recall asked for, takes the threshold
    of all cells together.
    """
    classes, value = pool.scores.shape[1], objective.value or 0.0
    common = _common(pool, objective)
    common = ALWAYS if np.isnan(common) else common  # a recall that cannot be promised: call everything
    if not per_class:
        return Cuts(np.full(classes, common), np.zeros(classes, np.bool_))
    values, share = np.full(classes, np.nan), pool.share
    for k in np.flatnonzero(pool.positives.any(0)):
        column = pool.column(int(k))
        if objective.kind == "recall":
            values[k] = column.conformal_cut(value)
        elif objective.kind == "precision":
            values[k] = column.curve().at_precision(value)
        elif objective.kind == "tags":
            called = value * share[k] / np.nansum(share)
            values[k] = column.curve().at_count(called * column.known.sum())
        else:
            curve = column.curve()
            values[k] = curve.at_count(curve.positives) if match_priors else curve.best_f1()
    pooled = np.isnan(values)
    reason = "too few held-out positives for this recall" if objective.kind == "recall" else "no held-out positive"
    return Cuts(np.where(pooled, common, values), pooled, reason)


def _common(pool: Pool, objective: Objective) -> float:
    """One threshold from all cells together."""
    value = objective.value or 0.0
    if objective.kind == "recall":
        return pool.conformal_cut(value)
    if objective.kind == "precision":
        return pool.curve().at_precision(value)
    if objective.kind == "tags":
        rate = value / pool.scores.shape[1]  # tags a cell
        return pool.curve().at_count(rate * pool.known.sum())
    return pool.curve().best_f1()
