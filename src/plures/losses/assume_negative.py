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
from plures.losses.base import losses
from plures.losses.bce import PAPER, WeightedBCE
from plures.losses.log_terms import check_range


@losses.register("an", title="Assume negative", source=PAPER)
@dataclass(eq=False)
class AssumeNegative(WeightedBCE):
    """-log p where present, -negative_weight log(1 - p) everywhere else.

    Args:
        negative_weight: of what is not known to be present.

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_AN); the weight: Jouanneau et al. 2022, arXiv 2209.06530.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.AssumeNegative(negative_weight=0.5)
        >>> round(criterion(logits, targets).item(), 3)
        0.272
    """

    negative_weight: float = 1.0

    rest: ClassVar[str] = "assumed_absent"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("negative_weight", self.negative_weight, 0.0, float("inf"))

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        present = labels.present.to(dtype)
        return present, self.negative_weight * (1 - present)


@losses.register("an_ls", title="Assume negative with label smoothing", source=PAPER)
@dataclass(eq=False)
class AssumeNegativeLabelSmoothing(WeightedBCE):
    """As AssumeNegative with the soft targets 1 - smoothing (present) and smoothing (everything else).

    Args:
        smoothing: in [0, 0.5].

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_AN-LS).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.AssumeNegativeLabelSmoothing()
        >>> round(criterion(logits, targets).item(), 3)
        0.507
    """

    smoothing: float = 0.1

    rest: ClassVar[str] = "assumed_absent"
    both_sides: ClassVar[bool] = True

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        present = labels.present.to(dtype)
        yes = torch.lerp(present, 1 - present, self.smoothing)
        return yes, 1 - yes


@losses.register("wan", title="Weak assume negative", source=PAPER)
@dataclass(eq=False)
class WAN(WeightedBCE):
    """Weak assume negative: negatives, known or assumed, weigh 1 / (K - 1), together as much as one positive.

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_WAN).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.WAN()
        >>> round(criterion(logits, targets).item(), 3)
        0.272
    """

    rest: ClassVar[str] = "assumed_absent"

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        present = labels.present.to(dtype)
        return present, (1 - present) / max(present.shape[-1] - 1, 1)
