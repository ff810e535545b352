"""Pairwise ranking: every present class above every other class of the same image.

"Multi-Label Learning from Single Positive Labels", Cole et al. 2021, arXiv 2106.09708 (L_PR). The official
code takes the hinge on probabilities with margin 1, max(0, 1 - p_i + p_j), which is never cut since p lies in [0, 1].
The sum over pairs therefore separates, and costs O(K) instead of O(K^2) an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.labels import TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.log_terms import Reduction, check_common, reduce, widen
from plures.models.outputs import Output


@losses.register("pr", title="Pairwise ranking", source="Cole et al. 2021, arXiv 2106.09708")
@dataclass(eq=False)
class PairwiseRanking(Loss):
    """Sum over present i and not-present j of 1 - p_i + p_j. Unknown and absent labels are treated alike.

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_PR).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.PairwiseRanking()
        >>> round(criterion(logits, targets).item(), 3)
        0.436
    """

    reduction: Reduction = "mean"

    per_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        present, other = labels.present.to(x.dtype), (~labels.present).to(x.dtype)
        below = present * torch.sigmoid(-x) * other.sum(1, keepdim=True)  # 1 - p_i, once for every j
        above = other * torch.sigmoid(x) * present.sum(1, keepdim=True)  # p_j, once for every i
        return {"ranking": reduce(below + above, self.reduction)}
