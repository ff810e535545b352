"""Expected positive regularisation: the mean number of predicted labels per image is held at k.

"Multi-Label Learning from Single Positive Labels", Cole et al. 2021, arXiv 2106.09708 (L_EPR). As in the
official code the number is averaged over the batch, not held in every image: ((sum of all p) / B - k)^2 / K^2.
Beyond the paper, cells known to be absent count as negatives; the paper has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.expected_positives import ExpectedPositives, check_expected, estimate, resolved
from plures.losses.log_terms import Reduction, check_common, negative_log, reduce, scale, slope, widen
from plures.models.outputs import Output


@losses.register("epr", title="Expected positive regularisation", source="Cole et al. 2021, arXiv 2106.09708")
@dataclass(eq=False)
class EPR(Loss):
    """Expected positive regularisation: the mean number of predicted labels per image is held at k.

    -log p where present, -log(1 - p) where known absent, plus the regulariser; unknown labels enter only there.

    Args:
        expected_positives: k, labels per image (paper: VOC 1.5, COCO 2.9, NUS 1.9, CUB 31.4), or "auto": estimated by
            `bind` from the observed labels, which is 1 in a single-positive run (see expected_positives.py).

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_EPR).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.EPR(expected_positives=1.5)
        >>> round(criterion(logits, targets).item(), 3)
        0.104
    """

    expected_positives: ExpectedPositives = "auto"
    reduction: Reduction = "mean"
    eps: float = 0.0

    closed_form: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_expected(self.expected_positives)

    def prepare(self, labels: Labels) -> Self:
        return replace(self, expected_positives=estimate(labels)) if self.expected_positives == "auto" else self

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        k = resolved(self.expected_positives)
        return {
            **known_cells(x, labels, self.eps, self.reduction),
            "expected_positives": deviation(x, k) * scale(x.shape, self.reduction),
        }

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        return labels.present.to(dtype), labels.absent.to(dtype)

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, None]:
        return slope(logits, yes, no, self.eps, self.reduction, pull_to(resolved(self.expected_positives))), None


def known_cells(x: Tensor, labels: TensorLabels, eps: float, reduction: Reduction) -> dict[str, Tensor]:
    """The terms of logits [B, K] over the cells that are known."""
    return {
        "present": reduce(labels.present * negative_log(x, eps), reduction),
        "absent": reduce(labels.absent * negative_log(-x, eps), reduction),
    }


def deviation(x: Tensor, k: float) -> Tensor:
    """(mean over images of the summed probabilities - k)^2 / K^2, from logits [B, K]."""
    return ((torch.sigmoid(x).sum(1).mean() - k) / x.shape[1]) ** 2


def pull_to(k: float) -> Callable[[Tensor], Tensor]:
    """What turns p [B, ..., K] into the gradient of `deviation` by p for each of the runs between, times B K."""
    return lambda p: (p.sum((0, -1), keepdim=True) / len(p) - k) * (2 / p.shape[-1])
