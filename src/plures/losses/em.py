"""Entropy maximisation (EM): unknown stays unknown; and asymmetric pseudo-labelling (APL) on top.

"Acknowledging the Unknown for Multi-label Learning with Single Positive Labels", Zhou, Chen, Wang, Chen, Heng, 2022,
arXiv 2203.16219. Settings of the official code for VOC / CUB / NUS / COCO: alpha .2 / .01 / .1 / .1, beta .02 / .4 /
.2 / .9, warm-up 5 / 3 / 4 / 5 epochs. As there, only low scores become pseudo-labels, soft ones, and stay for good.
Cells known to be absent cost -log(1 - p); the paper has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context, Need, rows_of
from plures.losses.epr import known_cells
from plures.losses.log_terms import Reduction, check_common, check_range, cross_entropy, entropy, reduce, widen
from plures.models.outputs import Output

PAPER = "Zhou et al. 2022, arXiv 2203.16219"


@losses.register("em", title="Entropy maximisation", source=PAPER)
@dataclass(eq=False)
class EM(Loss):
    """Entropy maximisation: -log p where present, -alpha times the entropy where unknown.

    Args:
        alpha: weight of the entropy (paper: .2 VOC, .01 CUB, .1 NUS and COCO).

    Shapes: logits and targets [B, K].

    Source: Zhou et al. 2022, arXiv 2203.16219.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.EM(alpha=0.2)
        >>> round(criterion(logits, targets).item(), 3)
        0.019
    """

    alpha: float = 0.1
    reduction: Reduction = "mean"
    eps: float = 0.0

    per_image: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        return {
            **known_cells(x, labels, self.eps, self.reduction),
            "entropy": -self.alpha * reduce(labels.unknown * entropy(x, self.eps), self.reduction),
        }


@losses.register("em_apl", title="Entropy maximisation with asymmetric pseudo-labels", source=PAPER)
@dataclass(eq=False)
class EMAPL(Loss):
    """As EM, and beta times the cross entropy to a stored soft label where there is one.

    After every epoch from `warmup_epochs` on, the lowest-scoring unlabelled images of each class get their score as
    a label for good: call `criterion.epoch_end(logits, targets, epoch=, epochs=)` with the whole training set.

    Args:
        alpha, beta: weights of the entropy and of the pseudo-labels.
        warmup_epochs: epochs of EM alone.
        negative_proportion: share of the unlabelled cells that are used up by the end of training.

    Shapes: logits and targets [B, K].

    Source: Zhou et al. 2022, arXiv 2203.16219.

    Example:
        >>> train_targets = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, 1, 0]])
        >>> criterion = plures.losses.EMAPL(warmup_epochs=1).bind(train_targets)
        >>> logits, index = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])
        >>> round(criterion(logits, train_targets[index], index=index, epoch=0, epochs=3).item(), 3)
        0.062
        >>> criterion.epoch_end(torch.zeros(3, 3), train_targets, epoch=0, epochs=3)
    """

    alpha: float = 0.1
    beta: float = 0.2
    warmup_epochs: int = 5
    negative_proportion: float = 0.9
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"label_state"})
    per_image: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("negative_proportion", self.negative_proportion, 0.0, 1.0)

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        """[N, K]: nan, no pseudo-label yet."""
        return torch.full(labels.values.shape, torch.nan)

    def follows(self) -> tuple[str, ...]:
        return ("epoch", "epochs")

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        soft = rows_of(context, "em_apl").to(x.dtype)
        labelled = labels.unknown & ~soft.isnan()
        targets = soft.nan_to_num(nan=0.0)
        return {
            **known_cells(x, labels, self.eps, self.reduction),
            "entropy": -self.alpha * reduce((labels.unknown & ~labelled) * entropy(x, self.eps), self.reduction),
            "pseudo_labels": self.beta * reduce(labelled * cross_entropy(targets, x, self.eps), self.reduction),
        }

    def needs_scores(self, context: Context) -> bool:
        """After every epoch from the warm-up on; not after the last, where nothing would use them."""
        return self.warmup_epochs <= context.epoch + 1 < context.epochs

    @torch.no_grad()
    def after_epoch(self, logits: Tensor, labels: Labels, context: Context) -> None:
        """Store the lowest scores of each class. logits [N, K] in row order."""
        assert context.label_state is not None
        rows = torch.arange(len(labels), device=logits.device)
        state = context.label_state.rows(rows).clone()
        unlabelled = torch.from_numpy(labels.unknown).to(logits.device)
        scores, free = torch.sigmoid(widen(logits)), unlabelled & state.isnan()
        steps = max(context.epochs - self.warmup_epochs, 1)
        for k, total in enumerate(unlabelled.sum(0).tolist()):
            candidates = free[:, k].nonzero()[:, 0]
            lowest = scores[candidates, k].argsort(stable=True)[: int(self.negative_proportion * total / steps)]
            chosen = candidates[lowest]
            state[chosen, k] = scores[chosen, k].to(state.dtype)
        context.label_state.write(rows, state)
