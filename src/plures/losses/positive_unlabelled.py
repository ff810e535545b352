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
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses.context import Context, Need, losses
from plures.losses.expected_positives import ExpectedPositives, check_expected, class_frequencies
from plures.losses.log_terms import Reduction, check_common, check_range, constants, negative_log, reduce, scale, widen
from plures.models.output import Output


@losses.part("nnpu", title="Non-negative positive-unlabelled risk", source="Kiryo et al. 2017, arXiv 1703.00593")
@dataclass(frozen=True)
class NonNegativeRisk:
    """Per class: prior R_p(+) + max(R_u(-) - prior R_p(-), 0), with Kiryo's step back where the latter is below -beta.

    prior: K shares of images that have each class; empty: observed frequencies, corrected by known absent cells and
    scaled to sum to `expected_positives` if that is a number. With neither, in single-positive data, the prior is the
    observed share, and the risk that of assume negative.
    weights: prior over observed share of each class, filled in by `prepare`.
    """

    expected_positives: ExpectedPositives = "auto"
    prior: tuple[float, ...] = ()
    beta: float = 0.0
    gamma: float = 1.0
    weights: tuple[float, ...] = ()
    reduction: Reduction = "mean"

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_expected(self.expected_positives)
        for share in self.prior:
            check_range("a class prior", share, 0.0, 1.0)

    def prepare(self, labels: Labels) -> NonNegativeRisk:
        observed = labels.present.mean(0) if len(labels) else np.zeros(labels.classes)
        prior = np.asarray(self.prior) if self.prior else self._estimated(labels)
        if len(prior) != labels.classes:
            raise PluresError(f"loss 'nnpu': {len(prior)} class priors for {labels.classes} classes")
        weights = np.divide(prior, observed, out=np.zeros(len(prior)), where=observed > 0)
        return replace(self, weights=tuple(float(w) for w in weights))

    def _estimated(self, labels: Labels) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        shares = class_frequencies(labels)
        if self.expected_positives != "auto" and shares.sum() > 0:
            shares = np.minimum(shares * (self.expected_positives / shares.sum()), 1.0)
        return shares

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        if len(self.weights) != x.shape[1]:
            raise ValueError("loss 'nnpu' has no class weights: call loss = loss.prepare(labels) before training")
        weights = constants(self.weights, x)
        positive = weights * (labels.present * negative_log(x)).mean(0)  # [K]
        negative = negative_log(-x)
        rest = (negative - weights * labels.present * negative).mean(0)  # [K]
        rest = torch.where(rest < -self.beta, -self.gamma * rest, rest)
        factor = scale(x.shape, self.reduction)
        return {"present": factor * positive.mean(), "unlabelled": factor * rest.mean()}


@losses.part(
    "pu_mlc", title="PU-MLC, variational positive-unlabelled risk", source="Yuan et al. 2023, arXiv 2306.16016"
)
@dataclass(frozen=True)
class VariationalRisk:
    """Per class: (mean q)^gamma log(mean q) over all images less the mean of log q over its positives in the batch.

    q = sigmoid(logit / t), t = min(alpha times the batch's standard deviation of the class's logits, 1), at least .01
    (the official code divides by zero at a batch of one). gamma re-balances frequent and rare classes; both factors
    are constants for the gradient. Cells known to be absent are treated as unlabelled, except `absent_weight` times
    -log(1 - p), which is ours.
    """

    gamma: float = 1.0
    alpha: float = 1.0
    absent_weight: float = 1.0
    reduction: Reduction = "mean"

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("gamma", self.gamma, 0.0, 100.0)

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
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
