"""Expected negatives (EN) and consistency with past predictions (CL): only the least likely classes are negatives.

"Spatial Consistency Loss for Training Multi-Label Classifiers from Single-Label Annotations", Verelst, Rubenstein,
Eichner, Tuytelaars, Berman, 2023 (arXiv 2203.06127). There is no official code; this is our reading of the abstract
and of how other papers describe it. A running mean of each training image's own past predictions is kept, one update a
visit. Of an image's unknown classes the K - k least likely by that mean are negatives (k: expected positives; known
absent ones count towards K - k), the rest is ignored. CL adds `consistency` times the squared distance of the
predictions to the running mean. At the first visit there is no past: the predictions themselves rank, and CL is zero.
The spatial variant (SCL), which compares heat maps, is in spatial_consistency.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context, Need, rows_of, write_rows
from plures.losses.epr import known_cells
from plures.losses.expected_positives import ExpectedPositives, check_expected, estimate, resolved
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, reduce, widen
from plures.models.outputs import Output

PAPER = "Verelst et al. 2023, arXiv 2203.06127"


@losses.register("en", title="Expected negatives", source=PAPER)
@dataclass(eq=False)
class ExpectedNegatives(Loss):
    """Binary cross entropy over known cells and the K - k least likely unknown ones, by past predictions.

    Args:
        expected_positives: k, rounded, or "auto" (1 in a single-positive run, where then nothing is ignored).
        momentum: of the running mean of predictions.
        consistency: weight of the squared distance to that mean (CL).

    Shapes: logits and targets [B, K].

    Source: Verelst et al. 2023, arXiv 2203.06127 (EN); our reading, there is no official code.

    Example:
        >>> train_targets = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, 1, 0]])
        >>> criterion = plures.losses.ExpectedNegatives(expected_positives=2).bind(train_targets)
        >>> logits, index = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])
        >>> round(criterion(logits, train_targets[index], index=index).item(), 3)
        0.209
    """

    expected_positives: ExpectedPositives = "auto"
    momentum: float = 0.8
    consistency: float = 0.0
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"label_state"})
    per_image: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_expected(self.expected_positives)
        check_range("momentum", self.momentum, 0.0, 1.0)

    def prepare(self, labels: Labels) -> Self:
        return replace(self, expected_positives=estimate(labels)) if self.expected_positives == "auto" else self

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        """[N, K]: nan, no prediction yet; later the running mean of predictions in [0, 1]."""
        return torch.full(labels.values.shape, torch.nan)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        p = torch.sigmoid(x)
        stored = rows_of(context, "en").to(x.dtype)
        past = torch.where(stored.isnan(), p.detach(), stored)
        write_rows(context, self.momentum * past + (1 - self.momentum) * p.detach())
        negatives = least_likely(past, labels, round(resolved(self.expected_positives)))
        parts = {
            **known_cells(x, labels, self.eps, self.reduction),
            "expected_absent": reduce(negatives * negative_log(-x, self.eps), self.reduction),
        }
        if self.consistency:
            parts["consistency"] = self.consistency * reduce((p - past).square(), self.reduction)
        return parts


@losses.register("en_cl", title="Expected negatives with consistency", source=PAPER)
@dataclass(eq=False)
class ExpectedNegativesCL(ExpectedNegatives):
    """Expected negatives with the consistency term.

    Args:
        expected_positives, momentum, consistency: as in ExpectedNegatives.

    Shapes: logits and targets [B, K].

    Source: Verelst et al. 2023, arXiv 2203.06127 (EN + CL); our reading.

    Example:
        >>> train_targets = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, 1, 0]])
        >>> criterion = plures.losses.ExpectedNegativesCL(expected_positives=2).bind(train_targets)
        >>> logits, index = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])
        >>> round(criterion(logits, train_targets[index], index=index).item(), 3)
        0.209
    """

    consistency: float = 1.0


def least_likely(scores: Tensor, labels: TensorLabels, k: int) -> Tensor:
    """bool [B, K]: in each row the unknown cells with the lowest scores, K - k of them less the known absent ones."""
    order = torch.where(labels.unknown, scores, torch.inf).argsort(dim=1, stable=True)  # [B, K]
    rank: Tensor = order.argsort(1)  # [B, K]
    required = scores.shape[1] - k - labels.absent.sum(1, keepdim=True)  # [B, 1]
    return labels.unknown.logical_and(rank < required)
