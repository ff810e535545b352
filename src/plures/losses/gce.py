"""Generalised cross entropy, between cross entropy (q to 0) and mean absolute error (q = 1), assuming negatives.

"Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", Zhang, Sabuncu, 2018, arXiv
1805.07836 (Eq. 6), taken per class: (1 - p^q) / q where present, (1 - (1 - p)^q) / q elsewhere. Missing labels are
wrong negatives, which this loss pulls at less the more certain the model is of their presence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plures.labels import TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.gr import robust
from plures.losses.log_terms import Reduction, check_common, check_range, reduce, widen
from plures.models.outputs import Output


@losses.register("gce", title="Generalised cross entropy", source="Zhang and Sabuncu 2018, arXiv 1805.07836")
@dataclass(eq=False)
class GCE(Loss):
    """Generalised cross entropy, assuming negatives: (1 - p^q) / q where present, (1 - (1 - p)^q) / q elsewhere.

    Args:
        q: in (0, 1]; towards 0 it is cross entropy, at 1 the mean absolute error.

    Shapes: logits and targets [B, K].

    Source: Zhang and Sabuncu 2018, arXiv 1805.07836 (Eq. 6), taken per class.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.GCE(q=0.7)
        >>> round(criterion(logits, targets).item(), 3)
        0.371
    """

    q: float = 0.7
    reduction: Reduction = "mean"

    per_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("q", self.q, 1e-6, 1.0)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        return {
            "present": reduce(labels.present * robust(x, self.q), self.reduction),
            "assumed_absent": reduce(~labels.present * robust(-x, self.q), self.reduction),
        }
