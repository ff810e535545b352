"""The graph that is exported: uint8 pixels -> calibrated scores, tags and, on request, attention maps."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plures.data.taxonomy import Taxonomy
from plures.metrics.thresholds import Calibration, Thresholds
from plures.models.model import Model
from plures.scoring.heatmaps import region_weights

FAR = 1e30  # below any score


class Interpolated(nn.Module):
    """Logits [B, K] -> probabilities [B, K] by isotonic calibration, as a sum of clamps.

    A line through points (x, y) that is flat outside is y_0 + sum over its pieces of their rise times
    clamp((logit - x_start) / length, 0, 1). Classes with fewer pieces than others get pieces without rise.
    """

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        pieces = max(1, *(len(x) - 1 for x, _ in calibration.points))
        shape = (len(calibration.points), pieces)
        start, rate, rise = np.zeros(shape), np.ones(shape), np.zeros(shape)  # [K, M]
        for k, (x, y) in enumerate(calibration.points):
            n = len(x) - 1
            start[k, :n], rate[k, :n], rise[k, :n] = x[:-1], 1 / np.diff(x), np.diff(y)
        first = np.array([y[0] for _, y in calibration.points])
        for name, values in (("start", start), ("rate", rate), ("rise", rise), ("first", first)):
            self.register_buffer(name, torch.from_numpy(values).float())
        self.start: Tensor
        self.rate: Tensor
        self.rise: Tensor
        self.first: Tensor

    def comparable(self, logits: Tensor) -> Tensor:
        """What can be compared between classes, as `Calibration.comparable`."""
        return self(logits)  # type: ignore[no-any-return]

    def forward(self, logits: Tensor) -> Tensor:
        share = ((logits[:, :, None] - self.start) * self.rate).clamp(0, 1)  # [B, K, M]
        return self.first + (share * self.rise).sum(-1)


class Squashed(nn.Module):
    """Logits [B, K] -> sigmoid(scale * logit + offset), one scale and offset per class; without them the sigmoid."""

    def __init__(self, calibration: Calibration | None) -> None:
        super().__init__()
        self.affine = calibration is not None
        if calibration is not None:
            self.register_buffer("scale", torch.as_tensor(calibration.scale).float())
            self.register_buffer("offset", torch.as_tensor(calibration.offset).float())
        self.scale: Tensor
        self.offset: Tensor

    def comparable(self, logits: Tensor) -> Tensor:
        """What can be compared between classes, as `Calibration.comparable`."""
        return logits * self.scale + self.offset if self.affine else logits

    def forward(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(self.comparable(logits))


class Coherent(nn.Module):
    """`Taxonomy.highest` and `Taxonomy.coherent` for tensors: the same calls from the same scores."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        super().__init__()
        k = len(taxonomy.classes)
        self.parents = list(taxonomy.below)
        for parent, below in taxonomy.below.items():
            self.register_buffer(f"below_{parent}", torch.from_numpy(below))
        place = torch.arange(k)
        place[self.parents] = k + torch.arange(len(self.parents))
        self.register_buffer("place", place)  # of each class among K scores and those of the parents
        self.groups = [[taxonomy.classes.index(name) for name in group] for group in taxonomy.exclusive]
        for name, those in (("under", self.parents), ("off", [one for group in self.groups for one in group])):
            rows = np.array([np.isin(np.arange(k), taxonomy.below.get(one, one)) for one in those], np.float32).reshape(
                -1, k
            )
            self.register_buffer(name, torch.from_numpy(rows))  # of these classes, which are they and what is below
        self.place: Tensor
        self.under: Tensor
        self.off: Tensor

    def highest(self, scores: Tensor) -> Tensor:
        """Scores [B, K] -> for each class the highest of its own and those below it, [B, K]."""
        if not self.parents:
            return scores
        found = [scores[:, getattr(self, f"below_{parent}")].amax(1, keepdim=True) for parent in self.parents]
        return torch.cat([scores, *found], 1)[:, self.place]

    def forward(self, called: Tensor, scores: Tensor) -> Tensor:
        """Calls bool [B, K] and scores [B, K] -> calls [B, K] that obey the taxonomy."""
        calls = called.float()
        if self.parents:
            calls = calls * ((1 - calls[:, self.parents]) @ self.under < 0.5)
        if self.groups:
            lost = []
            for group in self.groups:
                those = scores[:, group] - (1 - calls[:, group]) * FAR
                order = torch.arange(len(group))
                first = order[:, None] > order  # [M, M]: the class of the column comes before that of the row
                mine, others = those[:, :, None], those[:, None]
                beaten = (others > mine) | ((others == mine) & first)
                lost.append(calls[:, group] * beaten.any(2))
            calls = calls * (torch.cat(lost, 1) @ self.off < 0.5)
        return calls > 0.5


class Graph(nn.Module):
    """uint8 pixels [B, 3, S, S], S being the model's own side -> scores [B, K], tags [B, K] (booleans), logits [B, K]
    (before calibration) and, if maps are wanted, maps [B, K, P], which sum to 1 over P."""

    def __init__(self, model: Model, thresholds: Thresholds, maps: bool) -> None:
        super().__init__()
        self.model, self.maps = model.eval(), maps
        c = thresholds.calibration
        self.calibrate = Interpolated(c) if c is not None and c.kind == "isotonic" else Squashed(c)
        limits = np.finfo(np.float32)
        finite = np.clip(thresholds.cuts, limits.min, limits.max)  # infinity is no constant for every engine
        self.register_buffer("cuts", torch.from_numpy(finite))
        self.cuts: Tensor
        self.taxonomy = None if thresholds.taxonomy is None else Coherent(thresholds.taxonomy)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        output = self.model(pixels, maps=self.maps)
        logits = output.logits.float()
        if self.taxonomy is None:
            scores, tags = self.calibrate(logits), logits >= self.cuts
        else:
            ranked = self.taxonomy.highest(logits)
            scores = self.taxonomy.highest(self.calibrate(ranked))
            comparable = self.calibrate.comparable(ranked)
            tags = self.taxonomy(ranked >= self.cuts, self.taxonomy.highest(comparable))
        return (scores, tags, logits, region_weights(output).float()) if self.maps else (scores, tags, logits)


class AnySize(nn.Module):
    """uint8 images [B, 3, H, W] of any size -> what `Graph` gives of them.

    torch resizes bytes with Pillow's own arithmetic: a few levels in a thousand differ by 1, by 2 for bicubic.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.scorer = graph
        self.side: int = graph.model.preprocessing.image_size
        self.interpolation: str = graph.model.preprocessing.interpolation

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (self.side, self.side)
        pixels = F.interpolate(images, size, mode=self.interpolation, antialias=True, align_corners=False)
        scored: tuple[Tensor, ...] = self.scorer(pixels)
        return scored
