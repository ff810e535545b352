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
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, power, reduce, widen
from plures.models.outputs import Output

PAPER = "Zhang et al. 2021, arXiv 2112.07368"


@losses.register("hill", title="Hill loss", source=PAPER)
@dataclass(eq=False)
class Hill(Loss):
    """(1 - m)^gamma -log m where present, m = sigmoid(logit - margin); (height - p) p^2 elsewhere.

    The hill falls again beyond p = 2/3 height, so that likely missing labels are left alone.

    Args:
        height: of the hill (lambda in the paper).
        margin, gamma: of the positives.

    Shapes: logits and targets [B, K].

    Source: Zhang et al. 2021, arXiv 2112.07368. The official code sums (reduction="sum").

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.Hill()
        >>> round(criterion(logits, targets).item(), 3)
        0.171
    """

    height: float = 1.5
    margin: float = 1.0
    gamma: float = 2.0
    reduction: Reduction = "mean"

    per_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("gamma", self.gamma, 0.0, 100.0)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        p, lowered = torch.sigmoid(x), x - self.margin
        positive = power(torch.sigmoid(-lowered), self.gamma) * negative_log(lowered)
        return {
            "present": reduce(labels.present * positive, self.reduction),
            "assumed_absent": reduce(~labels.present * (self.height - p) * p.square(), self.reduction),
        }


@losses.register("splc", title="Self-paced loss correction", source=PAPER)
@dataclass(eq=False)
class SPLC(Loss):
    """Self-paced loss correction: focal loss with a margin; confident unknown labels become positives.

    Follows the epochs. The margin is on observed positives only, not on those switched.

    Args:
        threshold: probability above which an unknown label counts as present.
        change_epoch: from this 0-based epoch on.
        margin, gamma: of the focal loss.

    Shapes: logits and targets [B, K].

    Source: Zhang et al. 2021, arXiv 2112.07368. The official code sums (reduction="sum").

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.SPLC()
        >>> round(criterion(logits, targets, epoch=2).item(), 3)
        0.123
    """

    threshold: float = 0.6
    change_epoch: int = 1
    margin: float = 1.0
    gamma: float = 2.0
    reduction: Reduction = "mean"

    per_image: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("threshold", self.threshold, 0.0, 1.0)
        check_range("gamma", self.gamma, 0.0, 100.0)

    def follows(self) -> tuple[str, ...]:
        return ("epoch",)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
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
