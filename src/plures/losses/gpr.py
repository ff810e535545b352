"""Generalised pseudo-label robust loss (GPR): the robust loss GR, with pseudo-labels trusted as GR's own weight says.

"More Reliable Pseudo-labels, Better Performance: A Generalized Approach to Single Positive Multi-label Learning", Tran,
Vo, Nguyen, Dinh, Nguyen, ICCV 2025, arXiv 2508.20381. With V the weight of GR, of the detached probability,

    pseudo-present   (1 - V, cut to [lowest, highest]) ((1 - smoothing) -log p + smoothing -log(1 - p)),
    pseudo-absent    V -log(1 - p),
    else unknown     as GR,

and `regularisation` times the expected positive regulariser. Written from formulas alone, never compared with the
authors' code. Readings: V is GR's, with the same curves; the bounds and the factor of the regulariser are not known to
us, so that nothing is cut and the factor is 1 unless they are set. Where the scores come from (the paper: CLIP on the
whole image and a grid of crops) is left to their file. Cells known to be absent cost -log(1 - p); the paper has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from plures.labels import Labels, TensorLabels
from plures.losses.base import losses
from plures.losses.context import Context, Need, rows_of
from plures.losses.epr import deviation
from plures.losses.expected_positives import ExpectedPositives, check_expected, estimate, resolved
from plures.losses.gr import GR
from plures.losses.log_terms import check_range, cross_entropy, negative_log, reduce, scale, widen
from plures.losses.zero_shot import check_scores, pseudo_labels
from plures.models.outputs import Output


@losses.register(
    "gpr", title="Generalised pseudo-label robust loss", source="Tran et al. 2025, arXiv 2508.20381 (a reading)"
)
@dataclass(eq=False)
class GPR(GR):
    """Generalised pseudo-label robust loss: as GR, but unknown labels with a clear zero-shot score are pseudo-labels.

    A pseudo-present label weighs 1 - V, a pseudo-absent one V, with GR's weight V. Follows the epochs. A reading of the
    paper: see the module.

    Args:
        scores: a .npy file [N, K], one row per training image in the order of the training rows, one column per class.
        present_above, absent_below: scores beyond which a cell is pseudo-present or pseudo-absent.
        lowest, highest: bounds of the weight of a pseudo-present cell.
        smoothing: of the pseudo-present labels.
        regularisation: factor of the expected positive regulariser.
        expected_positives: mean number of present labels per image; "auto" estimates it from the training labels.
        slope, offset, centre, width: (first, last) of the curves of GR.
        q_missing, q_absent, linear_epochs: as in GR.

    Shapes: logits and targets [B, K].

    Source: Tran et al. 2025, arXiv 2508.20381.

    Example:
        >>> np.save("scores.npy", np.array([[0.1, 0.5, 0.1]]))
        >>> targets = torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.GPR(scores="scores.npy", expected_positives=1.5).bind(targets)
        >>> round(criterion(torch.zeros(1, 3), targets, index=torch.tensor([0]), epoch=2, epochs=8).item(), 3)
        0.407
    """

    scores: str = ""
    present_above: float = 0.3
    absent_below: float = 0.0
    lowest: float = 0.0
    highest: float = 1.0
    smoothing: float = 0.1
    regularisation: float = 1.0
    expected_positives: ExpectedPositives = "auto"

    needs: ClassVar[frozenset[Need]] = frozenset({"label_state"})
    per_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("lowest", self.lowest, 0.0, 1.0)
        check_range("highest", self.highest, self.lowest, 1.0)
        check_range("smoothing", self.smoothing, 0.0, 0.5)
        check_range("regularisation", self.regularisation, 0.0, 1e6)
        check_expected(self.expected_positives)

    def check(self, labels: Labels) -> None:
        check_scores("gpr", self.scores, labels)

    def prepare(self, labels: Labels) -> Self:
        return replace(self, expected_positives=estimate(labels)) if self.expected_positives == "auto" else self

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        return pseudo_labels(self.scores, labels, self.present_above, self.absent_below)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x, pseudo = widen(output.logits), rows_of(context, "gpr")
        without, unknown = pseudo.isnan(), labels.unknown
        open_cells = TensorLabels(torch.where(unknown & ~without, 2, labels.values))  # 2: neither of the three
        weight = self.certainty(x, context)
        soft = cross_entropy(torch.full_like(x, 1 - self.smoothing), x, self.eps)
        present = (unknown & (pseudo > 0.5)) * (1 - weight).clamp(self.lowest, self.highest) * soft
        absent = (unknown & (pseudo <= 0.5)) * weight * negative_log(-x, self.eps)
        k = resolved(self.expected_positives)
        return {
            **super().compute(output, open_cells, context),
            "pseudo_labels": reduce(present + absent, self.reduction),
            "expected_positives": self.regularisation * deviation(x, k) * scale(x.shape, self.reduction),
        }
