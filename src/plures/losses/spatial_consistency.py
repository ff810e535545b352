"""Expected negatives with spatial consistency (SCL): heat maps agree with their own running mean over the epochs.

"Spatial Consistency Loss for Training Multi-Label Classifiers from Single-Label Annotations", Verelst, Rubenstein,
Eichner, Tuytelaars, Berman, 2023 (arXiv 2203.06127). There is no official code; our reading: F is the sigmoid of the
class activation before pooling. A running map H of every training image and class is kept in image coordinates. The
part of H that the augmented image shows is cropped and mirrored like it, and read bilinearly at F's regions;
the loss is `consistency` times the mean of |F - T(H)|. Then H moves towards F where the image was seen, and rests
elsewhere. Regions that no earlier view has shown have no past and cost nothing. The negatives are those of `en`, from
the running mean of the image's predictions.

Maps are [N, K, grid, grid] in float16: with VOC-12 (5,717 x 20) and grid 14 45 MB, with COCO-14 (82,081 x 80) 2.6 GB;
from 4 GB on in a memory-mapped file. They are part of every checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context, Need, rows_of, write_rows
from plures.losses.epr import known_cells
from plures.losses.expected_negative import PAPER, least_likely
from plures.losses.expected_positives import ExpectedPositives, check_expected, estimate, resolved
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, reduce, scale, widen
from plures.models.outputs import Output, grid_boxes


@losses.register("en_scl", title="Expected negatives with spatial consistency", source=PAPER)
@dataclass(eq=False)
class ExpectedNegativesSCL(Loss):
    """Expected negatives, and `consistency` times the distance of heat maps to their running mean.

    Requires an Output with region_logits [B, K, P] and boxes [P, 4].

    Args:
        expected_positives, momentum: as in ExpectedNegatives.
        consistency: weight of the distance.
        grid: cells per side of the stored maps, whatever the grid of the head.

    Shapes: logits and targets [B, K].

    Source: Verelst et al. 2023, arXiv 2203.06127 (EN + SCL); our reading.

    Example:
        >>> train_targets = torch.tensor([[1, -1, -1], [-1, 1, -1]])
        >>> criterion = plures.losses.ExpectedNegativesSCL(expected_positives=2).bind(train_targets)
        >>> regions, boxes = torch.zeros(1, 3, 4), plures.Tokens.of(torch.zeros(1, 8, 2, 2)).boxes
        >>> output, index = plures.Output(torch.zeros(1, 3), region_logits=regions, boxes=boxes), torch.tensor([0])
        >>> round(criterion(output, train_targets[index], index=index).item(), 3)
        0.462
    """

    expected_positives: ExpectedPositives = "auto"
    momentum: float = 0.8
    consistency: float = 1.0
    grid: int = 14
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"label_state", "region_logits", "views"})
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_expected(self.expected_positives)
        check_range("momentum", self.momentum, 0.0, 1.0)
        check_range("grid", self.grid, 1, 64)

    def prepare(self, labels: Labels) -> Self:
        return replace(self, expected_positives=estimate(labels)) if self.expected_positives == "auto" else self

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        """[N, K, 1 + grid^2] float16, nan: no past yet. Later the running mean of the prediction, then of the map."""
        shape = (*labels.values.shape, 1 + self.grid**2)
        return torch.full((1, 1, 1), torch.nan, dtype=torch.float16).expand(shape)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        if output.region_logits is None or output.boxes is None:
            raise PluresError(
                "loss 'en_scl' requires an Output with region_logits and boxes; use a head such as linear"
            )
        x = widen(output.logits)
        p, seen = torch.sigmoid(x), torch.sigmoid(widen(output.region_logits))  # [B, K], [B, K, P]
        stored = rows_of(context, "en_scl").to(x.dtype)  # [B, K, 1 + S]
        past = torch.where(stored[..., 0].isnan(), p.detach(), stored[..., 0])
        views = context.views if context.views is not None else x.new_tensor([[0, 0, 1, 1]]).expand(len(x), 4)
        regions = in_image(output.boxes.to(x.dtype), views.to(x.dtype))  # [B, P, 4]
        cells = grid_boxes(self.grid, self.grid, x.device).to(x.dtype).expand(len(x), -1, 4)  # [B, S, 4]
        maps = stored[..., 1:]
        expected, known = interpolate(maps, cells, regions)  # [B, K, P] twice
        distance = torch.where(known, (seen - expected).abs(), 0.0).mean(2)  # [B, K]
        running = self._moved(maps, *interpolate(seen.detach(), regions, cells))
        prediction = self.momentum * past + (1 - self.momentum) * p.detach()
        write_rows(context, torch.cat([prediction[..., None], running], dim=2))
        negatives = least_likely(past, labels, round(resolved(self.expected_positives)))
        return {
            **known_cells(x, labels, self.eps, self.reduction),
            "expected_absent": reduce(negatives * negative_log(-x, self.eps), self.reduction),
            "consistency": self.consistency * scale(x.shape, self.reduction) * distance.mean(),
        }

    def _moved(self, maps: Tensor, new: Tensor, shown: Tensor) -> Tensor:
        """The running maps after this view. All [B, K, S]; shown: bool, the cells that the view has shown."""
        mean = torch.where(maps.isnan(), new, self.momentum * maps + (1 - self.momentum) * new)
        return torch.where(shown, mean, maps)


def in_image(boxes: Tensor, views: Tensor) -> Tensor:
    """Boxes [P, 4] of a view's regions, as shares of the view -> [B, P, 4] as shares of the image (mirrored ones keep
    left < right)."""
    start, end = views[:, None, :2], views[:, None, 2:]  # [B, 1, 2]
    one, other = (start + corner * (end - start) for corner in (boxes[:, :2], boxes[:, 2:]))  # [B, P, 2]
    return torch.cat([torch.minimum(one, other), torch.maximum(one, other)], dim=2)


def interpolate(values: Tensor, boxes: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B, K, P] of boxes [B, P, 4], read at the centres of other boxes `at` [B, Q, 4].

    Returns [B, K, Q] and a bool mask of the same shape: whether there was anything to read. Each box weighs as a tent
    of its own size around its centre; on a regular grid this is bilinear interpolation, with the border repeated
    half a cell outwards. Boxes with value nan weigh nothing.
    """
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)[:, None]  # [B, 1, P, 2]
    centre, point = (boxes[..., :2] + boxes[..., 2:])[:, None] / 2, (at[..., :2] + at[..., 2:])[:, :, None] / 2
    tents = (1 - (point - centre).abs() / size).clamp(min=0).prod(-1)  # [B, Q, P]
    inside = ((point - centre).abs() <= size / 2 + 1e-6).all(-1).any(2)  # [B, Q]: the point lies in a box
    there = ~values.isnan()
    total = there.to(values.dtype) @ tents.transpose(1, 2)  # [B, K, Q]
    found = (total > 1e-4) & inside[:, None]
    mean = (values.nan_to_num(nan=0.0) @ tents.transpose(1, 2)) / total.clamp(min=1e-4)
    return torch.where(found, mean, 0.0), found
