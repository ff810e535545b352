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
from plures.losses.context import Context, Need, losses
from plures.losses.gr import robust
from plures.losses.log_terms import Reduction, check_common, check_range, reduce, widen
from plures.models.output import Output


@losses.part("gce", title="Generalised cross entropy", source="Zhang and Sabuncu 2018, arXiv 1805.07836")
@dataclass(frozen=True)
class GeneralisedCrossEntropy:
    """q in (0, 1] is the paper's .7 by default."""

    q: float = 0.7
    reduction: Reduction = "mean"

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, 0.0)
        check_range("q", self.q, 1e-6, 1.0)

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        return {
            "present": reduce(labels.present * robust(x, self.q), self.reduction),
            "assumed_absent": reduce(~labels.present * robust(-x, self.q), self.reduction),
        }
