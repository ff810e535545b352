"""Large loss matters: an unobserved label with a large loss as a negative is probably present.

"Large Loss Matters in Weakly Supervised Multi-Label Classification", Kim, Kim, Akata, Lee, 2022, arXiv 2206.03740:
rejection (LL-R), temporary correction (LL-Ct), permanent correction (LL-Cp). As in the official code the ranking runs
over all unobserved cells of the batch, and the share for R and Ct grows by repeated subtraction from 1, whose rounding
can lift the count by one. The released LL-Cp never remembers (a string is compared by identity); the second release,
in "Bridging the Gap between Model Explanations in Partially Annotated Multi-label Classification" (Kim et al. 2023,
arXiv 2304.01804), does: `include_threshold` tells their two readings of which cells become permanent.
Cells known to be absent are negatives that are never changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context, Need, rows_of, write_rows
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, reduce, widen
from plures.models.outputs import Output

PAPER = "Kim et al. 2022, arXiv 2206.03740"


@losses.register("ll_r", title="Large loss, rejected", source=PAPER)
@dataclass(eq=False)
class LargeLossR(Loss):
    """Assume negative, but the largest losses of unknown labels are left out. Follows the epochs.

    Args:
        delta_rel: percent of the cells of a batch by which the changed share grows with each epoch from the second on.

    Shapes: logits and targets [B, K].

    Source: Kim et al. 2022, arXiv 2206.03740 (LL-R).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.LargeLossR(delta_rel=10)
        >>> round(criterion(logits, targets, epoch=2).item(), 3)
        0.209
    """

    delta_rel: float = 0.2
    reduction: Reduction = "mean"

    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("delta_rel", self.delta_rel, 0.0, 100.0)

    def follows(self) -> tuple[str, ...]:
        return ("epoch",)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        large = largest(x, labels.unknown, growing_count(x.shape, self.delta_rel, context.epoch))
        return terms(x, labels.present, ~(labels.present | large), torch.zeros_like(large), self.reduction)


@losses.register("ll_ct", title="Large loss, corrected for the time being", source=PAPER)
@dataclass(eq=False)
class LargeLossCt(Loss):
    """Assume negative, but unknown labels with the largest losses count as present. Follows the epochs.

    Args:
        delta_rel: as in LargeLossR.

    Shapes: logits and targets [B, K].

    Source: Kim et al. 2022, arXiv 2206.03740 (LL-Ct).

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.LargeLossCt(delta_rel=10)
        >>> round(criterion(logits, targets, epoch=2).item(), 3)
        0.44
    """

    delta_rel: float = 0.2
    reduction: Reduction = "mean"

    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("delta_rel", self.delta_rel, 0.0, 100.0)

    def follows(self) -> tuple[str, ...]:
        return ("epoch",)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        large = largest(x, labels.unknown, growing_count(x.shape, self.delta_rel, context.epoch))
        return terms(x, labels.present, ~(labels.present | large), large, self.reduction)


@losses.register("ll_cp", title="Large loss, corrected for good", source=PAPER)
@dataclass(eq=False)
class LargeLossCp(Loss):
    """As LargeLossCt, and the corrected labels stay present in later epochs. Follows the epochs.

    Args:
        delta_rel: percent of the cells of a batch that are changed at each step from the second epoch on.
        include_threshold: the smallest of the changed losses becomes permanent too (2023 code); False: only those above
            it (2022 code), so none where one label is changed per step.

    Shapes: logits and targets [B, K].

    Source: Kim et al. 2022, arXiv 2206.03740 (LL-Cp).

    Example:
        >>> train_targets = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, 1, 0]])
        >>> criterion = plures.losses.LargeLossCp(delta_rel=10).bind(train_targets)
        >>> logits, index = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])
        >>> round(criterion(logits, train_targets[index], index=index, epoch=2).item(), 3)
        0.44
    """

    delta_rel: float = 0.1
    include_threshold: bool = True
    reduction: Reduction = "mean"

    needs: ClassVar[frozenset[Need]] = frozenset({"label_state"})
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("delta_rel", self.delta_rel, 0.0, 100.0)

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        """[N, K]: 0, nothing corrected yet; 1 where an unknown cell has become present."""
        return torch.zeros(labels.values.shape)

    def follows(self) -> tuple[str, ...]:
        return ("epoch",)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        kept = rows_of(context, "ll_cp") > 0  # only ever unknown cells
        free = labels.unknown & ~kept
        count = ceil(x.numel() * (self.delta_rel / 100)) if context.epoch >= 1 else 0
        large = largest(x, free, count)
        new = large if self.include_threshold else largest(x, free, count, strictly=True)
        write_rows(context, (kept | new).to(torch.float32))
        present = labels.present | kept
        return terms(x, present, ~(present | large), large, self.reduction)


def growing_count(shape: torch.Size, delta_rel: float, epoch: int) -> int:
    """How many cells are changed in this 0-based epoch, with the official code's rounding."""
    clean = 1.0
    for _ in range(epoch):
        clean -= delta_rel / 100
    return ceil(shape.numel() * (1 - max(clean, 0.0)))


@torch.no_grad()
def largest(x: Tensor, free: Tensor, count: int, strictly: bool = False) -> Tensor:
    """bool [B, K]: the `count` free cells with the largest loss as negatives (all that tie with the last one).

    strictly: only those above the last one.
    """
    if count == 0:
        return torch.zeros_like(free)
    loss = torch.where(free, negative_log(-x), 0.0)
    threshold = loss.flatten().topk(min(count, loss.numel())).values[-1]
    return free & (loss > threshold if strictly else loss >= threshold)


def terms(x: Tensor, present: Tensor, absent: Tensor, corrected: Tensor, reduction: Reduction) -> dict[str, Tensor]:
    """Binary cross entropy over three masks [B, K]."""
    return {
        "present": reduce(present * negative_log(x), reduction),
        "assumed_absent": reduce(absent * negative_log(-x), reduction),
        "corrected": reduce(corrected * negative_log(x), reduction),
    }
