"""Weighted binary cross entropy, and its plain forms for labels that are known.

"Multi-Label Learning from Single Positive Labels", Cole, Mac Aodha, Lorieul, Perona, Morris, Jojic, 2021,
arXiv 2106.09708 (L_BCE, its label smoothing, and L_IU); the official code adds 1e-5 inside the logarithm (`eps`), and
divides by all B K cells, not by the known ones. The paper's oracle variant L_IUN, which is told the true negatives, is
`iu` on labels of which only single positive labels and all absent cells were kept; `bce` refuses unknown labels. What
assumes negatives is in assume_negative.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, reduce, slope, widen
from plures.models.outputs import Output

PAPER = "Cole et al. 2021, arXiv 2106.09708"


@dataclass(eq=False)
class WeightedBCE(Loss):
    """Binary cross entropy with two weights per cell: yes times -log p and no times -log(1 - p).

    A subclass defines `weights(labels)`, which depend on nothing but the labels; everything else follows.
    """

    reduction: Reduction = field(default="mean", kw_only=True)
    eps: float = field(default=0.0, kw_only=True)

    per_image: ClassVar[bool] = True
    closed_form: ClassVar[bool] = True
    per_cell: ClassVar[bool] = True
    rest: ClassVar[str] = "absent"
    """The name of the term of all cells but the present ones."""
    both_sides: ClassVar[bool] = False
    """A cell may have both weights (label smoothing)."""

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("smoothing", getattr(self, "smoothing", 0.0), 0.0, 0.5)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        yes, no = self.weights(labels, x.dtype)
        cost, present = yes * negative_log(x, self.eps) + no * negative_log(-x, self.eps), labels.present
        return {"present": reduce(present * cost, self.reduction), self.rest: reduce(~present * cost, self.reduction)}

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, None]:
        return slope(logits, yes, no, self.eps, self.reduction), None


@losses.register("bce", title="Binary cross entropy, all labels known", source=PAPER)
@dataclass(eq=False)
class BCE(WeightedBCE):
    """-log p where present, -log(1 - p) where absent. Unknown labels are refused.

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_BCE).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, 0, 0]])
        >>> criterion = plures.losses.BCE()
        >>> round(criterion(logits, targets).item(), 3)
        0.44
    """

    complete_only: ClassVar[bool] = True

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        return labels.present.to(dtype), labels.absent.to(dtype)


@losses.register("bce_ls", title="Binary cross entropy with label smoothing, all labels known", source=PAPER)
@dataclass(eq=False)
class BCELabelSmoothing(WeightedBCE):
    """As BCE with the soft targets 1 - smoothing (present) and smoothing (absent).

    Args:
        smoothing: in [0, 0.5].

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_BCE-LS).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, 0, 0]])
        >>> criterion = plures.losses.BCELabelSmoothing(smoothing=0.2)
        >>> round(criterion(logits, targets).item(), 3)
        0.573
    """

    smoothing: float = 0.1

    complete_only: ClassVar[bool] = True
    both_sides: ClassVar[bool] = True

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        present, absent = labels.present.to(dtype), labels.absent.to(dtype)
        return torch.lerp(present, absent, self.smoothing), torch.lerp(absent, present, self.smoothing)


@losses.register("iu", title="Ignore unknown", source=PAPER)
@dataclass(eq=False)
class IgnoreUnknown(WeightedBCE):
    """-log p where present, -log(1 - p) where absent, nothing where unknown.

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_IU); divided by all B K cells, as in the official code.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, 0, -1]])
        >>> criterion = plures.losses.IgnoreUnknown()
        >>> round(criterion(logits, targets).item(), 3)
        0.335
    """

    def check(self, labels: Labels) -> None:
        require_absent(labels, "iu")

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        return labels.present.to(dtype), labels.absent.to(dtype)


def require_absent(labels: Labels, name: str) -> None:
    """Raise PluresError if no label is known to be absent: calling everything present would be the perfect answer."""
    if not labels.absent.any():
        raise PluresError(
            f"loss '{name}' ignores unknown labels, and no label is known to be absent: a model that calls everything"
            " present would be perfect; use a loss for presence-only labels such as an, gr or wn"
        )
