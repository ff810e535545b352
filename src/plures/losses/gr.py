"""Generalised robust loss (GR): unknown cells are weighed between present and absent, and by how certain they are.

"Boosting Single Positive Multi-label Classification with Generalized Robust Loss", Chen, Li, Dai, Li, Sun, Wang,
Zhang, Zhang, Wang, 2024, arXiv 2405.03501. An unknown cell costs

    V [k (1 - p^q_missing) / q_missing + (1 - k) (1 - (1 - p)^q_absent) / q_absent],

where k is the chance that it is a missing present label and V its weight; both are read off the detached probability by
curves that move with the epoch. Cells known to be absent cost -log(1 - p); the paper has none.
The official schedule of w and b never reaches its end: in the last of T epochs it stands at (T - 1) / T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.labels import TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, reduce, widen
from plures.models.outputs import Output

Course = tuple[float, float]  # the value at the start and at the end of training


@losses.register("gr", title="Generalised robust loss", source="Chen et al. 2024, arXiv 2405.03501")
@dataclass(eq=False)
class GR(Loss):
    """Generalised robust loss: -log p where present; a weighted robust loss where unknown.

    k = sigmoid(slope p + offset) is the chance that an unknown label is a missing one, V = exp(-(p - centre)^2 /
    (2 width^2)) its weight; each option runs from its first to its second value over training. Follows the epochs.

    Args:
        slope, offset, centre, width: values at the start and at the end. The official COCO and NUS settings are slope
            (0, 10) and offset (-2, -8).
        q_missing, q_absent: exponents of the two robust losses (near 0 like a logarithm, 1 like an absolute error) for
            a missing present label and for an absent one.
        linear_epochs: epochs at the start that do not count (a linear stage).

    Shapes: logits and targets [B, K].

    Source: Chen et al. 2024, arXiv 2405.03501.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.GR()
        >>> round(criterion(logits, targets, epoch=2, epochs=8).item(), 3)
        0.412
    """

    slope: Course = (0.0, 2.0)
    offset: Course = (-2.0, -2.0)
    centre: Course = (0.5, 0.8)
    width: Course = (2.0, 0.5)
    q_missing: float = 0.01
    q_absent: float = 1.0
    linear_epochs: int = 0
    reduction: Reduction = "mean"
    eps: float = 0.0

    per_image: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("q_missing", self.q_missing, 1e-6, 1.0)
        check_range("q_absent", self.q_absent, 1e-6, 1.0)
        if min(self.width) <= 0:
            raise ValueError(f"width is positive, got {self.width}")

    def follows(self) -> tuple[str, ...]:
        return ("epoch", "epochs")

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        slope, offset, _, _ = self.curves(context)
        missing = torch.sigmoid(slope * torch.sigmoid(x).detach() + offset)
        weight = self.certainty(x, context)
        cost = missing * robust(x, self.q_missing) + (1 - missing) * robust(-x, self.q_absent)
        return {
            "present": reduce(labels.present * negative_log(x, self.eps), self.reduction),
            "unknown": reduce(labels.unknown * weight * cost, self.reduction),
            "absent": reduce(labels.absent * negative_log(-x, self.eps), self.reduction),
        }

    def certainty(self, x: Tensor, context: Context) -> Tensor:
        """V of logits [B, K], detached."""
        _, _, centre, width = self.curves(context)
        return torch.exp(-((torch.sigmoid(x).detach() - centre) ** 2) / (2 * width**2))

    def curves(self, context: Context) -> tuple[float, float, float, float]:
        """slope, offset, centre, width in this epoch."""
        epoch, epochs = context.epoch + 1 - self.linear_epochs, max(context.epochs - self.linear_epochs, 1)
        early, late = max(epoch - 1, 0) / epochs, max(epoch, 0) / epochs

        def at(course: Course, share: float) -> float:
            return course[0] + (course[1] - course[0]) * share

        return at(self.slope, early), at(self.offset, early), at(self.centre, late), at(self.width, late)


def robust(logits: Tensor, q: float) -> Tensor:
    """(1 - p^q) / q for p = sigmoid(logits): -log p as q goes to 0, 1 - p at q = 1."""
    return -torch.expm1(-q * negative_log(logits)) / q
