"""Vision-language pseudo-labels (VLPL): a zero-shot model's confident classes, beside entropy maximisation.

"Vision-Language Pseudo-Labels for Single-Positive Multi-Label Learning", Xing, Xiong, Stylianou, Sastry, Gong, Jacobs,
2023, arXiv 2310.15985. The scores come from a file, whatever model made them; the official ones are the softmax over
classes of CLIP ViT-L/14's cosine similarity / .01. As in the official code a pseudo-absent cell costs nothing at all,
and in its second form (`form=asl`) a focused -log(1 - p), every other cell focused as well, without alpha and beta.
Cells known to be absent cost -log(1 - p); the paper has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context, Need, rows_of
from plures.losses.epr import known_cells
from plures.losses.log_terms import (
    Reduction,
    check_choice,
    check_common,
    check_range,
    cross_entropy,
    entropy,
    negative_log,
    power,
    reduce,
    widen,
)
from plures.losses.zero_shot import check_scores, pseudo_labels
from plures.models.outputs import Output


@losses.register("vlpl", title="Vision-language pseudo-labels", source="Xing et al. 2023, arXiv 2310.15985")
@dataclass(eq=False)
class VLPL(Loss):
    """Vision-language pseudo-labels: as EM, but an unknown label whose zero-shot score is high costs beta times -log p.

    As in the official code a pseudo-absent cell costs nothing at all. With form="asl" the powers of the asymmetric loss
    stand in place of alpha, beta and smoothing: (1 - p)^gamma_present -log p where present or pseudo-present,
    p^gamma_absent -log(1 - p) where pseudo-absent or known to be absent, and -(1 - p)^gamma_unknown times the entropy
    elsewhere.

    Args:
        scores: a .npy file [N, K], one row per training image in the order of the training rows, one column per class.
        present_above, absent_below: scores beyond which a cell is pseudo-present, or left out of the loss.
        alpha, beta: weights of the entropy and of the pseudo-labels.
        smoothing: of the pseudo-labels.
        form: em, or asl.
        gamma_present, gamma_absent, gamma_unknown: powers of the form asl; no gradient is stopped.
        warmup_epochs: epochs of EM alone at the start; if there are any, it follows the epochs.

    Shapes: logits and targets [B, K].

    Source: Xing et al. 2023, arXiv 2310.15985.

    Example:
        >>> np.save("scores.npy", np.array([[0.1, 0.5, 0.1]]))
        >>> targets = torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.VLPL(scores="scores.npy").bind(targets)
        >>> round(criterion(torch.zeros(1, 3), targets, index=torch.tensor([0])).item(), 3)
        0.347
    """

    scores: str = ""
    present_above: float = 0.3
    absent_below: float = 0.0
    alpha: float = 0.2
    beta: float = 0.7
    smoothing: float = 0.1
    form: Literal["em", "asl"] = "em"
    gamma_present: float = 0.0
    gamma_absent: float = 4.0
    gamma_unknown: float = 2.0
    warmup_epochs: int = 0
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"label_state"})
    per_image: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("smoothing", self.smoothing, 0.0, 0.5)
        check_choice("form", self.form, ("em", "asl"))
        for name in ("gamma_present", "gamma_absent", "gamma_unknown"):
            check_range(name, getattr(self, name), 0.0, 100.0)

    def check(self, labels: Labels) -> None:
        check_scores("vlpl", self.scores, labels)

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        return pseudo_labels(self.scores, labels, self.present_above, self.absent_below)

    def follows(self) -> tuple[str, ...]:
        return ("epoch",) if self.warmup_epochs else ()

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        pseudo = rows_of(context, "vlpl")
        if context.epoch < self.warmup_epochs:
            pseudo = torch.full_like(pseudo, torch.nan)
        if self.form == "asl" and context.epoch >= self.warmup_epochs:
            return self.focused(x, labels, pseudo)
        open_cells, present = labels.unknown & pseudo.isnan(), labels.unknown & (pseudo > 0.5)
        soft = cross_entropy(torch.full_like(x, 1 - self.smoothing), x, self.eps)
        return {
            **known_cells(x, labels, self.eps, self.reduction),
            "entropy": -self.alpha * reduce(open_cells * entropy(x, self.eps), self.reduction),
            "pseudo_labels": self.beta * reduce(present * soft, self.reduction),
        }

    def focused(self, x: Tensor, labels: TensorLabels, pseudo: Tensor) -> dict[str, Tensor]:
        """The terms of the form asl."""
        p, q = torch.sigmoid(x), torch.sigmoid(-x)
        positive = power(q, self.gamma_present) * negative_log(x, self.eps)
        negative = power(p, self.gamma_absent) * negative_log(-x, self.eps)
        doubt = power(q, self.gamma_unknown) * entropy(x, self.eps)
        unknown = labels.unknown
        guessed = (unknown & (pseudo > 0.5)) * positive + (unknown & (pseudo <= 0.5)) * negative
        return {
            "present": reduce(labels.present * positive, self.reduction),
            "absent": reduce(labels.absent * negative, self.reduction),
            "entropy": -reduce((unknown & pseudo.isnan()) * doubt, self.reduction),
            "pseudo_labels": reduce(guessed, self.reduction),
        }
