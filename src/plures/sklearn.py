"""The closed-form head on embeddings that somebody already has, as a scikit-learn estimator.

Example:
    >>> import numpy as np, plures.sklearn
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 8))
    >>> truth = (X[:, :3] > 0.5).astype(int)  # three classes
    >>> Y = np.where(truth == 1, 1, -1)  # absent was never written down: unknown
    >>> found = plures.sklearn.PartialLabelRidge().fit(X, Y).predict(X)
    >>> found.shape
    (200, 3)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import KFold
from sklearn.utils.validation import check_is_fitted, validate_data

from plures.analysis.thresholds import from_logits
from plures.config import RIDGE_L2
from plures.errors import PluresError
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels
from plures.losses.least_squares import LeastSquares
from plures.metrics.average_precision import average_precision
from plures.metrics.choosing import Objective
from plures.metrics.thresholds import Thresholds
from plures.models.heads.linear import Linear
from plures.scoring.features import feature_statistics
from plures.training.ridge import Rows, solve

__all__ = ["PartialLabelRidge"]


class PartialLabelRidge(BaseEstimator):  # type: ignore[misc]
    """Ridge regression for several labels of which only some are known, solved in closed form.

    The head of `plures train --recipe quick` on any embeddings. Unknown cells count as absent with a small weight, so
    that one positive label per row is enough. The strength of the penalty and the thresholds are chosen by
    cross-validation on the known labels alone.

    Args:
        alphas: strengths of the penalty to choose from; one number: that one.
        unknown_weight: weight of unknown cells as absent ones; "auto": 1 / (K - 1) for K classes.
        normalize: scale every standardised row to the same length, which suits embeddings of images.
        calibrate: how `predict_proba` makes probabilities of logits: "temperature", "isotonic" or "none".
        objective: what the thresholds of `predict` are chosen for: "f1", "precision=0.9", "recall=0.9", "tags=1.5".
        cv: folds of the cross-validation, 2 or more.
        random_state: seed of the folds.

    Attributes:
        alpha_: the strength chosen. scores_: float [len(alphas)], mean average precision of each, in [0, 1], on rows
            held out (unknown counted as absent unless absent cells are known).
        coef_: float32 [K, D] and intercept_: float32 [K], on standardised (and normalised) features.
        thresholds_: the thresholds and calibration in use, a `plures.metrics.thresholds.Thresholds`.
        classes_: the names of the K columns (those of a data frame, else "0", "1", ...).
        n_features_in_: D.

    Source: Rifkin et al. 2003, "Regularized Least-Squares Classification"; the weight of unknown cells is that of
    L_WAN, Cole et al. 2021, arXiv 2106.09708.
    """

    def __init__(
        self,
        alphas: float | Sequence[float] = RIDGE_L2,
        *,
        unknown_weight: float | str = "auto",
        normalize: bool = True,
        calibrate: str = "temperature",
        objective: str = "f1",
        cv: int = 3,
        random_state: int = 0,
    ) -> None:
        self.alphas = alphas
        self.unknown_weight = unknown_weight
        self.normalize = normalize
        self.calibrate = calibrate
        self.objective = objective
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> PartialLabelRidge:
        """Solve for the weights, and choose the strength and the thresholds.

        Args:
            X: embeddings, float [N, D].
            y: labels [N, K]: 1 present, 0 absent, -1 unknown; or a data frame with a column per class.

        Returns:
            The estimator itself.

        Raises:
            ValueError: if the shapes do not fit, `X` is not finite, or `y` holds other values or no present label.
        """
        features = np.ascontiguousarray(validate_data(self, X, dtype=np.float32, ensure_min_samples=2))
        labels, names = _labels(y)
        if len(features) != len(labels):
            raise ValueError(f"X has {len(features)} rows and y has {len(labels)}; expected one row per image in both")
        strengths = [float(a) for a in np.atleast_1d(np.asarray(self.alphas, np.float64))]
        if not strengths or min(strengths) <= 0:
            raise ValueError(f"alphas must be numbers above 0, got {self.alphas!r}")
        if not 2 <= self.cv <= len(labels):
            raise ValueError(f"cv={self.cv}: expected a number of folds from 2 to the number of rows, {len(labels)}")
        loss = LeastSquares(negative_weight=self.unknown_weight)  # type: ignore[arg-type]
        held_out = np.zeros((len(strengths), *labels.values.shape), np.float32)
        for fit, score in KFold(self.cv, shuffle=True, random_state=self.random_state).split(features):
            head, weights, biases = _solved(features[fit], labels.take(fit), loss, strengths, self.normalize)
            x = _prepared(head, features[score])
            held_out[:, score] = np.einsum("nd,lkd->lnk", x, weights) + biases[:, None]
        truth = labels if labels.absent.any() else Labels.from_masks(labels.present)
        self.scores_ = np.array([_mean_ap(logits, truth) for logits in held_out])
        best = int(np.argmax(np.nan_to_num(self.scores_, nan=-np.inf)))
        self.alpha_ = strengths[best]
        self._head, weights, biases = _solved(features, labels, loss, [self.alpha_], self.normalize)
        self.coef_, self.intercept_ = weights[0], biases[0]
        self.classes_ = np.array(names, object)
        self.thresholds_ = self._choose(held_out[best], labels, names)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float32]:
        """Logits, float32 [N, K]: above 0 the model leans to present. X: float [N, D]."""
        check_is_fitted(self)
        x = _prepared(self._head, np.ascontiguousarray(validate_data(self, X, dtype=np.float32, reset=False)))
        return np.asarray(x @ self.coef_.T + self.intercept_, np.float32)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities that each class is present, float64 [N, K] in [0, 1]. X: float [N, D]."""
        logits = self.decision_function(X)
        return self.thresholds_.probabilities(logits)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """1 for every class called present, else 0, [N, K], by `thresholds_`. X: float [N, D]."""
        logits = self.decision_function(X)
        return np.asarray(self.thresholds_.called(logits), np.int64)

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Mean average precision in [0, 1] over the classes with a present and an absent label in `y` [N, K]."""
        return _mean_ap(self.decision_function(X), _labels(y)[0])

    def _choose(self, logits: NDArray[np.float32], labels: Labels, names: tuple[str, ...]) -> Thresholds:
        """Thresholds from logits of rows that were held out; 0.5 where nothing can be estimated from them."""
        source: Any = "reviewed" if labels.absent.any() else "positives"
        aim = Objective.parse(self.objective)
        try:
            kind: Any = self.calibrate
            return from_logits(logits, labels, names, source=source, objective=aim, calibrating=kind).thresholds
        except PluresError as error:
            warnings.warn(f"no thresholds were chosen, 0.5 is used: {error}", stacklevel=3)
            return Thresholds.constant(names)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.one_d_labels = False
        tags.target_tags.two_d_labels = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags


def _labels(y: ArrayLike) -> tuple[Labels, tuple[str, ...]]:
    """Labels [N, K] and the names of the classes, from an array or a data frame."""
    names = tuple(str(c) for c in y.columns) if hasattr(y, "columns") else None
    values = np.asarray(y)
    if values.ndim != 2:
        raise ValueError(f"y is [N, K] with 1 (present), 0 (absent) and -1 (unknown), got shape {values.shape}")
    if values.dtype == bool:
        values = values.astype(np.int8)
    if values.dtype.kind not in "iuf" or not np.isin(values, (PRESENT, ABSENT, UNKNOWN)).all():
        raise ValueError("y holds 1 (present), 0 (absent) or -1 (unknown); found other values")
    labels = Labels(values.astype(np.int8))
    if not labels.present.any():
        raise ValueError("y has no present label; there is nothing to learn from")
    return labels, names or tuple(str(k) for k in range(labels.classes))


def _solved(
    features: NDArray[np.float32], labels: Labels, loss: LeastSquares, strengths: Sequence[float], normalize: bool
) -> tuple[Linear, NDArray[np.float32], NDArray[np.float32]]:
    """The head with its standardisation, weights [L, K, D] and biases [L, K] for every strength."""
    head = Linear(features.shape[1], labels.classes, standardise=True, normalise=normalize)
    head.fit_features(*feature_statistics(features[:, None]))
    weights, biases, _ = solve(Rows(features[:, None], head, torch.device("cpu")), labels, loss, strengths)
    return head, weights.numpy(), biases.numpy()


@torch.inference_mode()
def _prepared(head: Linear, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features [N, D] as the classifier sees them."""
    return np.asarray(head.prepared(torch.from_numpy(features)[:, None]).mean(1).numpy())


def _mean_ap(logits: NDArray[np.floating[Any]], labels: Labels) -> float:
    """Mean average precision in [0, 1]; nan where no class has both a present and an absent label."""
    per_class = average_precision(logits, labels)
    scored = np.isfinite(per_class)
    return float(per_class[scored].mean()) if scored.any() else float("nan")
