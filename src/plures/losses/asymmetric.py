"""Asymmetric loss and its kin: focal loss and the variant that Query2Label trains with.

asl: "Asymmetric Loss For Multi-Label Classification", Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter,
Zelnik-Manor, 2021, arXiv 2009.14119 (Eq. 4-7). The official code clamps probabilities at 1e-8 inside the logarithm
(`eps`) and sums over the batch (reduction=sum).
focal: "Focal Loss for Dense Object Detection", Lin, Goyal, Girshick, He, Dollár, 2017, arXiv 1708.02002 (Eq. 4).
q2l_asl: "Query2Label: A Simple Transformer Way to Multi-Label Classification", Liu, Zhang, Yang, Su, Zhu, 2021, arXiv
2107.10834; the official training command, with its epsilon and its factor of a thousand.
In all three, unknown cells count as absent.
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


@losses.part("asl", title="Asymmetric loss", source="Ridnik et al. 2021, arXiv 2009.14119")
@dataclass(frozen=True)
class Asymmetric:
    """(1 - p)^gamma_pos -log p where present, p_m^gamma_neg -log(1 - p_m) elsewhere, p_m = max(p - clip, 0).

    detach_focal_weight: the powers are constants. eps: probabilities are clamped at it inside the logarithm.
    factor: multiplies the whole loss.
    """

    gamma_neg: float = 4.0
    gamma_pos: float = 0.0
    clip: float = 0.05
    detach_focal_weight: bool = True
    factor: float = 1.0
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("gamma_neg", self.gamma_neg, 0.0, 100.0)
        check_range("gamma_pos", self.gamma_pos, 0.0, 100.0)
        check_range("clip", self.clip, 0.0, 1.0)

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        hold = self.detach_focal_weight
        positive = focal_cost(x, self.gamma_pos, 0.0, self.eps, hold)
        negative = focal_cost(-x, self.gamma_neg, self.clip, self.eps, hold)
        return {
            "present": self.factor * reduce(labels.present * positive, self.reduction),
            "assumed_absent": self.factor * reduce(~labels.present * negative, self.reduction),
        }


@losses.part("focal", title="Focal loss", source="Lin et al. 2017, arXiv 1708.02002")
def focal(
    gamma: float = 2.0, detach_focal_weight: bool = False, reduction: Reduction = "mean", eps: float = 0.0
) -> Asymmetric:
    """The asymmetric loss with the same power on both sides and no clip."""
    return Asymmetric(gamma, gamma, 0.0, detach_focal_weight, reduction=reduction, eps=eps)


@losses.part("q2l_asl", title="Asymmetric loss as Query2Label trains with", source="Liu et al. 2021, arXiv 2107.10834")
def q2l_asl(
    gamma_neg: float = 2.0,
    gamma_pos: float = 0.0,
    clip: float = 0.0,
    detach_focal_weight: bool = True,
    factor: float = 1000.0,
    reduction: Reduction = "mean",
    eps: float = 1e-5,
) -> Asymmetric:
    """The asymmetric loss, summed, divided by B and K, times a thousand, as in the official training command."""
    return Asymmetric(gamma_neg, gamma_pos, clip, detach_focal_weight, factor, reduction, eps)


def focal_cost(logits: Tensor, gamma: float, clip: float, eps: float, hold: bool) -> Tensor:
    """(1 - q)^gamma * -log max(q, eps), elementwise, with q = min(sigmoid(logits) + clip, 1). hold: constant power."""
    if clip == 0:
        cost = negative_log(logits) if eps == 0 else -torch.log(torch.sigmoid(logits).clamp(min=eps))
        rest = torch.sigmoid(-logits)
    else:
        q = (torch.sigmoid(logits) + clip).clamp(max=1)
        cost = -torch.log(q.clamp(min=eps))
        rest = (torch.sigmoid(-logits) - clip).clamp(min=0)
    if gamma == 0:
        return cost
    return power(rest.detach() if hold else rest, gamma) * cost
