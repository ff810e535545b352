"""Assume negative: what is not known to be present counts as absent; plain, label-smoothed and weakly weighted.

"Multi-Label Learning from Single Positive Labels", Cole et al. 2021, arXiv 2106.09708 (L_AN, L_AN-LS, L_WAN).
Smoothing follows the official code: weights 1 - s and s (.9 and .1) on both sides.
`negative_weight` is the lambda of "A patch-based architecture for multi-label classification from single label
annotations", Jouanneau, Bugeau, Palyart, Papadakis, Vézard, 2022 (arXiv 2209.06530), Section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.labels import TensorLabels
from plures.losses.context import Context, Need, losses
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, reduce, slope, widen
from plures.models.output import Output

PAPER = "Cole et al. 2021, arXiv 2106.09708"


@losses.part("an", title="Assume negative", source=PAPER)
@dataclass(frozen=True)
class AssumeNegative:
    """-log p where present, -negative_weight log(1 - p) everywhere else."""

    negative_weight: float = 1.0
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("negative_weight", self.negative_weight, 0.0, float("inf"))

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        return {
            "present": reduce(labels.present * negative_log(x, self.eps), self.reduction),
            "assumed_absent": self.negative_weight
            * reduce(~labels.present * negative_log(-x, self.eps), self.reduction),
        }

    def cell_weights(self, labels: TensorLabels) -> tuple[Tensor, Tensor]:
        return labels.present.float(), self.negative_weight * (~labels.present).float()

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, None]:
        return slope(logits, yes, no, self.eps, self.reduction), None


@losses.part("an_ls", title="Assume negative with label smoothing", source=PAPER)
@dataclass(frozen=True)
class SmoothedAssumeNegative:
    """As an with the soft targets 1 - smoothing (present) and smoothing (everything else)."""

    smoothing: float = 0.1
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("smoothing", self.smoothing, 0.0, 0.5)

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        yes, no = negative_log(x, self.eps), negative_log(-x, self.eps)
        return {
            "present": reduce(labels.present * torch.lerp(yes, no, self.smoothing), self.reduction),
            "assumed_absent": reduce(~labels.present * torch.lerp(no, yes, self.smoothing), self.reduction),
        }

    def cell_weights(self, labels: TensorLabels) -> tuple[Tensor, Tensor]:
        yes = torch.where(labels.present, 1 - self.smoothing, self.smoothing)
        return yes, 1 - yes

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, None]:
        return slope(logits, yes, no, self.eps, self.reduction), None


@losses.part("wan", title="Weak assume negative", source=PAPER)
@dataclass(frozen=True)
class WeakAssumeNegative:
    """As an with negatives weighted by 1 / (K - 1), so that they weigh together as much as one positive."""

    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        weight = 1 / max(x.shape[1] - 1, 1)
        return {
            "present": reduce(labels.present * negative_log(x, self.eps), self.reduction),
            "assumed_absent": weight * reduce(~labels.present * negative_log(-x, self.eps), self.reduction),
        }

    def cell_weights(self, labels: TensorLabels) -> tuple[Tensor, Tensor]:
        present = labels.present.float()
        return present, (1 - present) / max(present.shape[-1] - 1, 1)

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, None]:
        return slope(logits, yes, no, self.eps, self.reduction), None
