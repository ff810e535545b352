"""Class-aware selective loss (partial asymmetric loss): known and unknown labels each with their own focusing.

"Multi-label Classification with Partial Annotations using Class-aware Selective Loss", Ben-Baruch, Ridnik, Friedman,
Ben-Cohen, Zamir, Noy, Zelnik-Manor, 2022, arXiv 2110.10955. As in the official code the focal powers are constants
and the selective mode drops the most probable unknown cells of the whole batch, not of each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses.asymmetric import focal_cost
from plures.losses.base import Loss, losses
from plures.losses.bce import require_absent
from plures.losses.context import Context
from plures.losses.log_terms import Reduction, check_choice, check_common, check_range, constants, reduce, widen
from plures.models.outputs import Output

Unknown = Literal["negative", "ignore", "ignore_normalised", "selective"]


@losses.register("csl", title="Class-aware selective loss", source="Ben-Baruch et al. 2022, arXiv 2110.10955")
@dataclass(eq=False)
class CSL(Loss):
    """Class-aware selective loss: asymmetric loss over three kinds of cells, each with its power and weight.

    Args:
        unknown: "negative": they count as absent; "ignore": not at all; "ignore_normalised": not at all, and an image
            weighs 1 + 1 / (1 + its known cells); "selective": as absent, except the `selected_per_image` x B unknown
            cells of the batch with the largest p, and the classes whose `class_prior` exceeds `prior_threshold`.
        gamma_pos, gamma_neg, gamma_unknown: focusing powers.
        alpha_pos, alpha_neg, alpha_unknown: weights.
        clip: of negatives, as in ASL.
        selected_per_image: see `unknown`.
        class_prior: K estimated frequencies, such as the mean predictions of a model trained with unknown=ignore.
        prior_threshold: see `unknown`.

    Shapes: logits and targets [B, K].

    Source: Ben-Baruch et al. 2022, arXiv 2110.10955.

    Example:
        >>> logits, targets = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.CSL(selected_per_image=1)
        >>> round(criterion(logits, targets).item(), 3)
        0.105
    """

    unknown: Unknown = "selective"
    gamma_pos: float = 0.0
    gamma_neg: float = 1.0
    gamma_unknown: float = 4.0
    alpha_pos: float = 1.0
    alpha_neg: float = 1.0
    alpha_unknown: float = 1.0
    clip: float = 0.0
    selected_per_image: int = 5
    class_prior: tuple[float, ...] = ()
    prior_threshold: float = 0.5
    reduction: Reduction = "mean"
    eps: float = 0.0

    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_choice("unknown", self.unknown, get_args(Unknown))
        check_range("clip", self.clip, 0.0, 1.0)
        for name in ("gamma_pos", "gamma_neg", "gamma_unknown"):
            check_range(name, getattr(self, name), 0.0, 100.0)
        if self.selected_per_image < 0:
            raise ValueError(f"selected_per_image is 0 or more, got {self.selected_per_image}")

    def check(self, labels: Labels) -> None:
        if self.unknown.startswith("ignore"):
            require_absent(labels, f"csl with unknown={self.unknown}")
        if self.class_prior and len(self.class_prior) != labels.classes:
            raise PluresError(f"class_prior has {len(self.class_prior)} numbers, the data {labels.classes} classes")

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        present = self.alpha_pos * focal_cost(x, self.gamma_pos, 0.0, self.eps, True)
        absent = self.alpha_neg * focal_cost(-x, self.gamma_neg, self.clip, self.eps, True)
        unknown = self.alpha_unknown * focal_cost(-x, self.gamma_unknown, self.clip, self.eps, True)
        known = (~labels.unknown).sum(1, keepdim=True).to(x.dtype)  # [B, 1]
        weight = 1 + 1 / (1 + known) if self.unknown == "ignore_normalised" else torch.ones_like(known)
        return {
            "present": reduce(weight * labels.present * present, self.reduction),
            "absent": reduce(weight * labels.absent * absent, self.reduction),
            "unknown": reduce(self._counted(x.detach(), labels) * unknown, self.reduction),
        }

    def _counted(self, x: Tensor, labels: TensorLabels) -> Tensor:
        """bool [B, K]: the unknown cells that count as absent."""
        if self.unknown == "negative":
            return labels.unknown
        if self.unknown != "selective":
            return torch.zeros_like(labels.unknown)
        score = torch.where(labels.unknown, torch.sigmoid(x), -1.0).flatten()  # [B * K]
        dropped = torch.zeros_like(score, dtype=torch.bool)
        top = score.topk(min(self.selected_per_image * len(x), score.numel())).indices
        dropped = dropped.scatter(0, top, True).reshape(x.shape)  # [B, K]
        if self.class_prior:
            dropped = dropped | (constants(self.class_prior, x) > self.prior_threshold)
        return labels.unknown & ~dropped
