"""IGNORE: an unobserved label is left out if its logit falls when all but the observed object is removed.

"IGNORE: Information Gap-Based False Negative Loss Rejection for Single Positive Multi-Label Learning", Song, Kim, Lee,
Lee, ECCV 2024 (doi 10.1007/978-3-031-72754-2_27). The network sees every image a second time with only the area that
speaks most for its observed label. A class that is in the photo elsewhere loses much of its logit there: more, in a
false negative, than the observed label itself loses on average. Such a class is rejected if its logit is also above
the mean logit of its class. Both means run over batches (`momentum`), from zero. The rest is assume negative, and the
observed positives count a second time with `positive_weight`.

The official code trains the negatives on a strongly augmented second view that is held close to the first; that view
is not here (its own switches strong_aug=False, reg=False; tests/losses/test_ignore.py has that code's numbers for
them). It brings an activation map into [0, 1] by the smallest and largest value of the *batch* at each place; here it
is each image's own map. An image with several observed labels keeps the areas of all, one without any stays whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context, Need, rows_of, write_rows
from plures.losses.log_terms import Reduction, check_common, check_range, negative_log, scale, widen
from plures.losses.spatial_consistency import interpolate
from plures.models.outputs import Output, grid_boxes

MEAN_COLOUR = (0.485, 0.456, 0.406)  # of ImageNet in [0, 1]; zero to networks that normalise by it
PIXELS = 4  # side of the squares in which an image is kept or removed


@losses.register("ignore", title="Rejection by information gap", source="Song et al. 2024, ECCV")
@dataclass(eq=False)
class IGNORE(Loss):
    """Assume negative without the classes that the rest of the image speaks for; runs the network twice.

    Give `changed_logits=` [B, K], without gradient, of `criterion.changed_inputs(images, output, targets)`; its Output
    requires region_logits or attention [B, K, P]. Follows the epochs.

    Args:
        keep_above: the area of an observed label that is kept, by its map scaled to [0, 1] in each image.
        momentum: of the running means.
        warmup_epochs: before anything is rejected.
        positive_weight: of the observed labels, a second time.

    Shapes: logits and targets [B, K].

    Source: Song et al. 2024, ECCV, doi 10.1007/978-3-031-72754-2_27.

    Example:
        >>> targets = torch.tensor([[1, -1, -1]])
        >>> criterion = plures.losses.IGNORE().bind(targets)
        >>> looked, again = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, -2.0, -1.0]])
        >>> round(criterion(looked, targets, changed_logits=again, epoch=3).item(), 3)
        0.597
    """

    keep_above: float = 0.8
    momentum: float = 0.999
    warmup_epochs: int = 3
    positive_weight: float = 0.5
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"label_state", "changed_logits"})
    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_range("keep_above", self.keep_above, 0.0, 0.99)
        check_range("momentum", self.momentum, 0.0, 1.0)
        check_range("warmup_epochs", self.warmup_epochs, 0, float("inf"))
        check_range("positive_weight", self.positive_weight, 0.0, 100.0)

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        """[1, K, 2]: one row for all images; running mean of each class's logit, and (K times) of observed gaps."""
        return torch.zeros(1, labels.values.shape[1], 2)

    def changed_inputs(self, inputs: Tensor, output: Output, labels: TensorLabels | Tensor) -> Tensor:
        """The inputs with nothing but the areas of observed labels: removed pixels are grey, removed features zero."""
        present = labels == 1 if isinstance(labels, Tensor) else labels.present
        kept = observed_area(output, present)  # [B, P]
        if inputs.ndim == 3:
            return inputs * (kept > self.keep_above)[..., None]
        assert output.boxes is not None
        H, W = inputs.shape[2:]
        rows, columns = -(-H // PIXELS), -(-W // PIXELS)
        squares = grid_boxes(rows, columns, inputs.device)[None]  # [1, S, 4]
        read, _ = interpolate(kept[:, None], output.boxes.to(kept.dtype)[None], squares)  # [B, 1, S]
        whole = F.interpolate((read > self.keep_above).float().view(len(inputs), 1, rows, columns), (H, W))
        most = 1.0 if inputs.is_floating_point() else 255.0
        grey = (torch.tensor(MEAN_COLOUR) * most).to(inputs.dtype).to(inputs.device, non_blocking=True)
        return torch.where(whole > 0, inputs, grey.view(1, 3, 1, 1))

    def follows(self) -> tuple[str, ...]:
        return ("epoch",) if self.warmup_epochs else ()

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        if context.changed_logits is None:
            raise PluresError("loss 'ignore' compares two looks: give changed_logits=, those of its `changed_inputs`")
        x = widen(output.logits)
        gap = (x - widen(context.changed_logits)).abs().detach()
        mean_logit, mean_gap = self._moved(x.detach(), gap, labels, context)  # [K] twice
        kept = torch.ones_like(labels.present)
        if context.epoch >= self.warmup_epochs:
            kept = ~(labels.unknown & (gap > mean_gap) & (x > mean_logit))
        present = labels.present * negative_log(x, self.eps)
        absent = (kept & ~labels.present) * negative_log(-x, self.eps)
        factor, count = scale(x.shape, self.reduction), kept.sum().clamp(min=1)
        again = self.positive_weight * present.sum() / labels.present.sum().clamp(min=1)
        return {"present": factor * (present.sum() / count + again), "assumed_absent": factor * absent.sum() / count}

    def _moved(self, x: Tensor, gap: Tensor, labels: TensorLabels, context: Context) -> tuple[Tensor, Tensor]:
        """The running means of logits and of observed gaps, each [K], with this batch in them."""
        row = replace(context, index=torch.zeros(1, dtype=torch.long, device=x.device))  # one row for all images
        stored = rows_of(row, "ignore")[0].to(x.dtype)  # [K, 2]
        count = labels.present.sum()
        observed = (gap * labels.present).sum() / count.clamp(min=1)
        new = torch.stack([x.mean(0), torch.where(count > 0, observed, stored[:, 1])], 1)
        moved = self.momentum * stored + (1 - self.momentum) * new
        write_rows(row, moved[None])
        return moved[:, 0], moved[:, 1]


@torch.no_grad()
def observed_area(output: Output, present: Tensor) -> Tensor:
    """How much each region speaks for the observed labels [B, K] of its image: [B, P] in [0, 1].

    By region logits, or the attention of heads that have no such; 1 is the region that speaks most for one of the
    labels. 1 throughout where nothing is observed, or all regions say the same.
    """
    maps = output.region_logits if output.region_logits is not None else output.attention
    if maps is None:
        raise PluresError("loss 'ignore' requires an Output with region_logits or attention")
    low, high = widen(maps).aminmax(dim=2, keepdim=True)
    scaled = torch.where(high > low, (widen(maps) - low) / (high - low).clamp(min=1e-12), 1.0)
    area = torch.where(present[..., None], scaled, 0.0).amax(1)
    return torch.where(present.any(1, keepdim=True), area, 1.0)
