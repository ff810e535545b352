"""Weak negatives: a class that looks at the same patches as an observed class is probably absent.

"A patch-based architecture for multi-label classification from single label annotations", Jouanneau, Bugeau, Palyart,
Papadakis, Vézard, 2022 (arXiv 2209.06530), Eq. 6-9. The weight of an unobserved class as a negative is the cosine
similarity of its embedding to the closest observed class's embedding, cut below theta (Eq. 7-8); classes that look
elsewhere are left alone. Open in the paper, our reading: the weight is a target, so no gradient flows through it
(`stop_gradient=False` lets it flow); cells known to be absent have weight 1, as z^- in Section 3 says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.errors import PluresError
from plures.labels import TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context, Need
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, reduce, widen
from plures.models.outputs import Output


@losses.register("wn", title="Weak negatives from self-similarity", source="Jouanneau et al. 2022, arXiv 2209.06530")
@dataclass(eq=False)
class WeakNegatives(Loss):
    """Weak negatives: -log p where present, -w log(1 - p) elsewhere, w from the similarity of embeddings.

    w in [0, 1] is the cosine similarity of the embeddings [B, K, D] of a class and of the closest observed class. An
    image without any present label has no weak negatives. Requires an Output with embeddings.

    Args:
        theta: similarity in [0, 1] that must be exceeded.
        stop_gradient: the weight is a constant for the gradient.

    Shapes: logits and targets [B, K].

    Source: Jouanneau et al. 2022, arXiv 2209.06530 (Eq. 6-9).

    Example:
        >>> embeddings = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
        >>> output = plures.Output(torch.zeros(1, 3), embeddings=embeddings)
        >>> round(plures.losses.WeakNegatives()(output, torch.tensor([[1, -1, -1]])).item(), 3)
        0.394
    """

    theta: float = 0.0
    stop_gradient: bool = True
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    per_image: ClassVar[bool] = True
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("theta", self.theta, 0.0, 1.0)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        if output.embeddings is None:
            raise PluresError("loss 'wn' requires per-label embeddings; use a head that gives them, such as codebook")
        x = widen(output.logits)
        embeddings = output.embeddings.detach() if self.stop_gradient else output.embeddings
        weights = negative_weights(widen(embeddings), labels.present, self.theta)
        cost = negative_log(-x, self.eps)
        return {
            "present": reduce(labels.present * negative_log(x, self.eps), self.reduction),
            "weak_negatives": reduce(labels.unknown * weights * cost, self.reduction),
            "absent": reduce(labels.absent * cost, self.reduction),
        }


def negative_weights(embeddings: Tensor, present: Tensor, theta: float) -> Tensor:
    """Eq. 7-8. embeddings [B, K, D], present bool [B, K] -> [B, K] in [0, 1]; 0 in images without a present label."""
    unit = F.normalize(embeddings, dim=-1)
    similarity = unit @ unit.transpose(1, 2)  # [B, K, K]
    similarity = similarity.clamp(max=1.0)  # rounding may lift it above 1
    beta = torch.where((similarity > theta) & present[:, None, :], similarity, 0.0)  # [B, K, K], column k observed
    return beta.amax(-1)  # [B, K]
