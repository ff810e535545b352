"""Hill loss and self-paced loss correction (SPLC): robust against missing labels without knowing any negative.

"Simple and Robust Loss Design for Multi-Label Learning with Missing Labels", Zhang, Cheng, Huang, Wen, Feng, Li, Guo,
2021, arXiv 2112.07368. The official code sums over the batch (reduction=sum); its focal weights carry gradient.
Cells known to be absent count as absent and are never switched; the paper has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.labels import TensorLabels
from plures.losses.context import Context, Need, losses
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, power, reduce, widen
from plures.models.output import Output

PAPER = "Zhang et al. 2021, arXiv 2112.07368"


@losses.part("hill", title="Hill loss", source=PAPER)
@dataclass(frozen=True)
class Hill:
    """(1 - m)^gamma -log m where present, m = sigmoid(logit - margin); (height - p) p^2 elsewhere.

    The hill falls again beyond p = 2/3 height, so that likely missing labels are left alone.
    """

    height: float = 1.5
    margin: float = 1.0
    gamma: float = 2.0
    reduction: Reduction = "mean"

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("gamma", self.gamma, 0.0, 100.0)

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        p, lowered = torch.sigmoid(x), x - self.margin
        positive = power(torch.sigmoid(-lowered), self.gamma) * negative_log(lowered)
        return {
            "present": reduce(labels.present * positive, self.reduction),
            "assumed_absent": reduce(~labels.present * (self.height - p) * p.square(), self.reduction),
        }


@losses.part("splc", title="Self-paced loss correction", source=PAPER)
@dataclass(frozen=True)
class SelfPacedLossCorrection:
    """Focal loss with margin on the observed positives; confident unknown cells become positives.

    threshold: probability above which an unknown cell counts as present, from epoch `change_epoch` (0-based) on. The
    margin is on observed positives only, not on those switched.
    """

    threshold: float = 0.6
    change_epoch: int = 1
    margin: float = 1.0
    gamma: float = 2.0
    reduction: Reduction = "mean"

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("threshold", self.threshold, 0.0, 1.0)
        check_range("gamma", self.gamma, 0.0, 100.0)

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        x = torch.where(labels.present, x - self.margin, x)
        switched = torch.zeros_like(labels.present)
        if context.epoch >= self.change_epoch:
            switched = labels.unknown & (torch.sigmoid(x) > self.threshold)
        positive = power(torch.sigmoid(-x), self.gamma) * negative_log(x)
        negative = power(torch.sigmoid(x), self.gamma) * negative_log(-x)
        return {
            "present": reduce(labels.present * positive, self.reduction),
            "corrected": reduce(switched * positive, self.reduction),
            "assumed_absent": reduce(~(labels.present | switched) * negative, self.reduction),
        }
