"""Calibrating: a monotone curve from logits to probabilities that mean what they say.

The targets are what is known to be present (0 or 1), or how surely a cell is present where that was estimated.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from plures.errors import PluresError
from plures.metrics.thresholds import Calibration, Floats, sigmoid

Kind = Literal["none", "temperature", "isotonic"]
KINDS = ("none", "temperature", "isotonic")
ENOUGH = 10.0  # present and absent cells that a class requires for a curve of its own; else it takes the common one


def calibrate(
    logits: NDArray[np.floating], presence: Floats, known: NDArray[np.bool_], kind: Kind
) -> Calibration | None:
    """A calibration fitted on the known cells. logits, presence in [0, 1], known: [N, K]. None for kind "none".

    temperature: one scale, the inverse of the temperature (Guo et al. 2017, arXiv 1706.04599), and one shift for all
    classes (Platt 1999), by cross-entropy: losses for missing labels shift all logits together, which a scale alone
    cannot undo. isotonic: a rising step curve for each class, joined by lines (Zadrozny and Elkan 2002).
    """
    if kind == "none":
        return None
    if not known.any():
        raise PluresError("no label of the held-out images is known; there is nothing to calibrate on")
    s = np.asarray(logits, np.float64)
    return _temperature(s, presence, known) if kind == "temperature" else _isotonic(s, presence, known)


def calibration_error(probabilities: Floats, present: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error over all cells, in [0, 1]: the mean distance between predicted and true share in
    bins of equally many cells (Naeini et al. 2015, with equal-mass bins)."""
    order = np.argsort(probabilities, axis=None, kind="stable")
    groups = np.array_split(order, bins)
    p, y = probabilities.ravel(), present.ravel()
    return float(sum(abs(p[g].sum() - y[g].sum()) for g in groups) / max(len(order), 1))


def _temperature(s: Floats, presence: Floats, known: NDArray[np.bool_]) -> Calibration:
    x, y = s[known], presence[known]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scale = np.exp(parameters[0])
        z = scale * x + parameters[1]
        slope = sigmoid(z) - y
        value = float((np.logaddexp(0, z) - y * z).mean())
        pull = 1e-3 * parameters  # keeps both finite where one kind of cell alone is known
        gradient = np.array([(slope * scale * x).mean(), slope.mean()]) + pull
        return value + float(pull @ parameters) / 2, gradient

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    classes = s.shape[1]
    return Calibration("affine", np.full(classes, np.exp(found[0])), np.full(classes, found[1]))


def _isotonic(s: Floats, presence: Floats, known: NDArray[np.bool_]) -> Calibration:
    common = _curve(s[known], presence[known])
    points = []
    for k in range(s.shape[1]):
        rows = known[:, k]
        present = float(presence[rows, k].sum())
        own = min(present, rows.sum() - present) >= ENOUGH
        points.append(_curve(s[rows, k], presence[rows, k]) if own else common)
    return Calibration("isotonic", points=tuple(points))


def _curve(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The points of one rising curve."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(x, y)
    return np.asarray(fitted.X_thresholds_, np.float64), np.asarray(fitted.y_thresholds_, np.float64)
