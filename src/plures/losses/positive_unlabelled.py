"""Positive-unlabelled learning, one binary problem a class: non-negative risk (nnPU) and PU-MLC's variational risk.

nnPU: "Positive-Unlabeled Learning with Non-Negative Risk Estimator", Kiryo, Niu, du Plessis, Sugiyama, 2017, arXiv
1703.00593 (Eq. 6 and Algorithm 1), with the logistic loss, in the one-sample setting (the unlabelled set is every
image). Means over a class's positives are taken as sums over the batch divided by the class's share of observed labels
in the training data, which is right on average and defined for a batch without a positive.
PU-MLC: "Positive Label Is All You Need for Multi-Label Classification", Yuan, Zhang, Huang, 2023, arXiv 2306.16016, as
its official code computes it, without the 1e-10 inside logarithms and without the mixup term, which needs a second
forward pass; the code has no default for gamma and alpha, ours are 1.
Both assume that the observed labels of a class are a random sample of its images. A single positive drawn from each
image is not: images with many labels are observed less often per class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.expected_positives import ExpectedPositives, check_expected, class_frequencies
from plures.losses.log_terms import Reduction, check_common, check_range, constants, negative_log, reduce, scale, widen
from plures.models.outputs import Output


@losses.register("nnpu", title="Non-negative positive-unlabelled risk", source="Kiryo et al. 2017, arXiv 1703.00593")
@dataclass(eq=False)
class NNPU(Loss):
    """Non-negative positive-unlabelled risk, per class: prior R(+) + max(R_u(-) - prior R(-), 0).

    With Kiryo's step back where the latter is below -beta.

    Args:
        expected_positives: labels per image to which the priors are scaled, or "auto".
        prior: K shares of images that have each class; empty: observed frequencies, corrected by known absent labels.
            With neither, in single-positive data, the prior is the observed share, the risk that of assume negative.
        beta, gamma: of the step back.
        class_weights: prior over observed share of each class, filled in by `bind`.

    Shapes: logits and targets [B, K].

    Source: Kiryo et al. 2017, arXiv 1703.00593 (Eq. 6, Algorithm 1).

    Example:
        >>> train_targets = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        >>> criterion = plures.losses.NNPU(expected_positives=1.5).bind(train_targets)
        >>> round(criterion(torch.zeros(3, 3), train_targets).item(), 3)
        0.693
    """

    expected_positives: ExpectedPositives = "auto"
    prior: tuple[float, ...] = ()
    beta: float = 0.0
    gamma: float = 1.0
    class_weights: tuple[float, ...] = ()
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_expected(self.expected_positives)
        for share in self.prior:
            check_range("a class prior", share, 0.0, 1.0)

    def prepare(self, labels: Labels) -> Self:
        observed = labels.present.mean(0) if len(labels) else np.zeros(labels.classes)
        prior = np.asarray(self.prior) if self.prior else self._estimated(labels)
        if len(prior) != labels.classes:
            raise PluresError(f"loss 'nnpu': {len(prior)} class priors for {labels.classes} classes")
        weights = np.divide(prior, observed, out=np.zeros(len(prior)), where=observed > 0)
        return replace(self, class_weights=tuple(float(w) for w in weights))

    def _estimated(self, labels: Labels) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        shares = class_frequencies(labels)
        if self.expected_positives != "auto" and shares.sum() > 0:
            shares = np.minimum(shares * (self.expected_positives / shares.sum()), 1.0)
        return shares

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        if len(self.class_weights) != x.shape[1]:
            raise ValueError("loss 'nnpu' has no class weights: call criterion = criterion.bind(train_targets) first")
        weights = constants(self.class_weights, x)
        positive = weights * (labels.present * negative_log(x)).mean(0)  # [K]
        negative = negative_log(-x)
        rest = (negative - weights * labels.present * negative).mean(0)  # [K]
        rest = torch.where(rest < -self.beta, -self.gamma * rest, rest)
        factor = scale(x.shape, self.reduction)
        return {"present": factor * positive.mean(), "unlabelled": factor * rest.mean()}


@losses.register(
    "pu_mlc", title="PU-MLC, variational positive-unlabelled risk", source="Yuan et al. 2023, arXiv 2306.16016"
)
@dataclass(eq=False)
class PUMLC(Loss):
    """PU-MLC, per class: (mean q)^gamma log(mean q) over all images less the mean of log q over its positives.

    q = sigmoid(logit / t), t = min(alpha times the standard deviation of the logits of the class in the batch, 1), at
    least .01. Both factors are constants for the gradient. Absent labels are treated as unlabelled, except for the
    term of `absent_weight`, which is ours.

    Args:
        gamma: re-balances frequent and rare classes.
        alpha: see above.
        absent_weight: of -log(1 - p) where absent.

    Shapes: logits and targets [B, K].

    Source: Yuan et al. 2023, arXiv 2306.16016.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.PUMLC()
        >>> round(criterion(logits, targets).item(), 3)
        -0.116
    """

    gamma: float = 1.0
    alpha: float = 1.0
    absent_weight: float = 1.0
    reduction: Reduction = "mean"

    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("gamma", self.gamma, 0.0, 100.0)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        spread = (x - x.mean(0)).square().mean(0).sqrt().detach()  # [K]
        log_q = -negative_log(x / (self.alpha * spread).clamp(0.01, 1.0))
        log_mean = log_q.logsumexp(0) - float(np.log(len(x)))  # [K], log of the mean of q
        balance = torch.exp(self.gamma * log_mean).detach()
        positives = labels.present.sum(0)
        from_positives = -(labels.present * log_q).sum(0) / positives.clamp(min=1)  # [K]
        factor = scale(x.shape, self.reduction)
        return {
            "present": factor * from_positives.mean(),
            "unlabelled": factor * (balance * log_mean).mean(),
            "absent": self.absent_weight * reduce(labels.absent * negative_log(-x), self.reduction),
        }
