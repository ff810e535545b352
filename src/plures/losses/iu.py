"""Ignore unknown: binary cross entropy over the cells that are known.

"Multi-Label Learning from Single Positive Labels", Cole et al. 2021, arXiv 2106.09708 (L_IU). As in the
official code the sum is divided by all B K cells, not by the known ones. The paper's oracle variant L_IUN, which is
told the true negatives, is `bce` on labels of which only single positives and all absent cells were kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses.context import Context, Need, losses
from plures.losses.log_terms import Reduction, check_common, negative_log, reduce, slope, widen
from plures.models.output import Output


@losses.part("iu", title="Ignore unknown", source="Cole et al. 2021, arXiv 2106.09708")
@dataclass(frozen=True)
class IgnoreUnknown:
    """-log p where present, -log(1 - p) where absent, nothing where unknown."""

    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)

    def check(self, labels: Labels) -> None:
        require_absent(labels, "iu")

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        return {
            "present": reduce(labels.present * negative_log(x, self.eps), self.reduction),
            "absent": reduce(labels.absent * negative_log(-x, self.eps), self.reduction),
        }

    def cell_weights(self, labels: TensorLabels) -> tuple[Tensor, Tensor]:
        return labels.present.float(), labels.absent.float()

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, None]:
        return slope(logits, yes, no, self.eps, self.reduction), None


def require_absent(labels: Labels, name: str) -> None:
    """Raise PluresError if no label is known to be absent: calling everything present would be the perfect answer."""
    if not labels.absent.any():
        raise PluresError(
            f"loss '{name}' ignores unknown labels, and no label is known to be absent: a model that calls everything"
            " present would be perfect; use a loss for presence-only labels such as an, gr or wn"
        )
