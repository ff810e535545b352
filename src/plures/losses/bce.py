"""Binary cross entropy, for labels that are all known: the upper end of every comparison.

As in "Multi-Label Learning from Single Positive Labels", Cole, Mac Aodha, Lorieul, Perona, Morris, Jojic, 2021,
arXiv 2106.09708 (L_BCE and its label smoothing); the official code adds 1e-5 inside the logarithm (`eps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses.context import Context, Need, losses
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, reduce, slope, widen
from plures.models.output import Output

PAPER = "Cole et al. 2021, arXiv 2106.09708"


@losses.part("bce", title="Binary cross entropy, all labels known", source=PAPER)
@dataclass(frozen=True)
class BinaryCrossEntropy:
    """-log p where present, -log(1 - p) where absent. Unknown cells are refused by `check` and count as zero."""

    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)

    def check(self, labels: Labels) -> None:
        require_complete(labels, "bce")

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


@losses.part("bce_ls", title="Binary cross entropy with label smoothing, all labels known", source=PAPER)
@dataclass(frozen=True)
class SmoothedBinaryCrossEntropy:
    """As bce with the soft targets 1 - smoothing (present) and smoothing (absent)."""

    smoothing: float = 0.1
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("smoothing", self.smoothing, 0.0, 0.5)

    def check(self, labels: Labels) -> None:
        require_complete(labels, "bce_ls")

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        yes, no = negative_log(x, self.eps), negative_log(-x, self.eps)
        return {
            "present": reduce(labels.present * torch.lerp(yes, no, self.smoothing), self.reduction),
            "absent": reduce(labels.absent * torch.lerp(no, yes, self.smoothing), self.reduction),
        }


def require_complete(labels: Labels, name: str) -> None:
    """Raise PluresError if a label is unknown."""
    if not labels.complete:
        raise PluresError(
            f"loss '{name}' wants every label known, but {int(labels.unknown.sum()):,} of {labels.values.size:,} are"
            " unknown; use supervision=full, loss=iu (unknown ignored) or loss=an (unknown taken as absent)"
        )
