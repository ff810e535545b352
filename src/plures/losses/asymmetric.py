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
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, power, reduce, widen
from plures.models.outputs import Output


@losses.register("asl", title="Asymmetric loss", source="Ridnik et al. 2021, arXiv 2009.14119")
@dataclass(eq=False)
class ASL(Loss):
    """Asymmetric loss: (1 - p)^gamma_pos -log p where present, p_m^gamma_neg -log(1 - p_m) elsewhere.

    Here p_m = max(p - clip, 0). Unknown labels count as absent.

    Args:
        gamma_neg, gamma_pos: focusing powers of negatives and positives.
        clip: shift of the probability of negatives; the easiest cost nothing.
        detach_focal_weight: the powers are constants for the gradient, as in the official code.
        factor: multiplies the whole loss.

    Shapes: logits and targets [B, K].

    Source: Ridnik et al. 2021, arXiv 2009.14119 (Eq. 4-7). The official code has eps=1e-8, reduction="sum".

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.ASL(gamma_neg=4, gamma_pos=1, clip=0.05)
        >>> round(criterion(logits, targets).item(), 3)
        0.036
    """

    gamma_neg: float = 4.0
    gamma_pos: float = 0.0
    clip: float = 0.05
    detach_focal_weight: bool = True
    factor: float = 1.0
    reduction: Reduction = "mean"
    eps: float = 0.0

    per_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("gamma_neg", self.gamma_neg, 0.0, 100.0)
        check_range("gamma_pos", self.gamma_pos, 0.0, 100.0)
        check_range("clip", self.clip, 0.0, 1.0)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        powers = (self.gamma_pos, self.gamma_neg, self.clip, self.detach_focal_weight)
        terms = asymmetric_terms(widen(output.logits), labels, *powers, self.eps, self.reduction)
        return {name: self.factor * term for name, term in terms.items()}


@losses.register("focal", title="Focal loss", source="Lin et al. 2017, arXiv 1708.02002")
@dataclass(eq=False)
class FocalLoss(Loss):
    """The asymmetric loss with the same power on both sides and no clip. Unknown labels count as absent.

    Args:
        gamma: the focusing power.
        detach_focal_weight: the power is a constant for the gradient.

    Shapes: logits and targets [B, K].

    Source: Lin et al. 2017, arXiv 1708.02002 (Eq. 4).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.FocalLoss(gamma=2)
        >>> round(criterion(logits, targets).item(), 3)
        0.073
    """

    gamma: float = 2.0
    detach_focal_weight: bool = False
    reduction: Reduction = "mean"
    eps: float = 0.0

    per_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("gamma", self.gamma, 0.0, 100.0)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        powers = (self.gamma, self.gamma, 0.0, self.detach_focal_weight)
        return asymmetric_terms(widen(output.logits), labels, *powers, self.eps, self.reduction)


@losses.register(
    "q2l_asl", title="Asymmetric loss as Query2Label trains with", source="Liu et al. 2021, arXiv 2107.10834"
)
@dataclass(eq=False)
class Q2LASL(ASL):
    """The asymmetric loss, summed, divided by B and K, times a thousand, as Query2Label trains with.

    Args:
        gamma_neg, gamma_pos: focusing powers of negatives and positives.
        clip, detach_focal_weight, factor: as in ASL.

    Shapes: logits and targets [B, K].

    Source: Liu et al. 2021, arXiv 2107.10834; the official training command.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.Q2LASL()
        >>> round(criterion(logits, targets).item(), 3)
        169.736
    """

    gamma_neg: float = 2.0
    clip: float = 0.0
    factor: float = 1000.0
    eps: float = 1e-5


def asymmetric_terms(
    x: Tensor,
    labels: TensorLabels,
    gamma_pos: float,
    gamma_neg: float,
    clip: float,
    hold: bool,
    eps: float,
    reduction: Reduction,
) -> dict[str, Tensor]:
    """The two terms of logits [B, K]; see ASL and `focal_cost`."""
    positive = focal_cost(x, gamma_pos, 0.0, eps, hold)
    negative = focal_cost(-x, gamma_neg, clip, eps, hold)
    return {
        "present": reduce(labels.present * positive, reduction),
        "assumed_absent": reduce(~labels.present * negative, reduction),
    }


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
