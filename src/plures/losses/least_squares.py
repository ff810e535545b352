"""Least squares on logits, which a linear head on frozen features can minimise exactly (stages=ridge).

"Regularized Least-Squares Classification", Rifkin, Yeo, Poggio, 2003. Hidden labels, counted as absent, move the mean
of a class's negatives towards that of its positives, along the line between the two. The direction of least squares is
that line seen through the inverse covariance of all images, so it stays where it is if the hidden ones are a random
part (for ranking, the argument of Elkan and Noto 2008, "Learning classifiers from only positive and unlabeled data").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from plures.labels import TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.log_terms import Reduction, check_choice, check_common, check_range, reduce, widen
from plures.models.outputs import Output


@losses.register(
    "least_squares", title="Least squares", source="Rifkin et al. 2003, Regularized Least-Squares Classification"
)
@dataclass(eq=False)
class LeastSquares(Loss):
    """(logit - target)^2, the target of all cells but the present ones being minus `target`.

    Args:
        target: 3 is a probability of 95 %.
        negative_weight: of unknown labels, as absent ones; "auto": 1 / (K - 1), as in WAN.

    Shapes: logits and targets [B, K].

    Source: Rifkin et al. 2003, Regularized Least-Squares Classification.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.LeastSquares(target=1.0)
        >>> round(criterion(logits, targets).item(), 3)
        0.167
    """

    target: float = 3.0
    negative_weight: float | Literal["auto"] = "auto"
    reduction: Reduction = "mean"

    per_image: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("target", self.target, 1e-3, 100.0)
        if isinstance(self.negative_weight, str):
            check_choice("negative_weight", self.negative_weight, ("a number", "auto"))
        else:
            check_range("negative_weight", self.negative_weight, 0.0, 100.0)

    def unknown_weight(self, K: int) -> float:
        """The weight of unknown cells among K classes."""
        return 1 / max(K - 1, 1) if isinstance(self.negative_weight, str) else self.negative_weight

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        below = (x + self.target).square()
        return {
            "present": reduce(labels.present * (x - self.target).square(), self.reduction),
            "absent": reduce(labels.absent * below, self.reduction),
            "assumed_absent": self.unknown_weight(x.shape[1]) * reduce(labels.unknown * below, self.reduction),
        }
