"""How well heat maps point at objects whose boxes are known.

pointing  the hottest pixel lies in a box of the class (Zhang et al. 2016, Top-Down Neural Attention by Excitation
          Backprop, arXiv 1608.00507; theirs also forgives 15 pixels, here `tolerance` does, as a share of the side)
energy    share of the map's sum that lies inside the boxes (Wang et al. 2020, Score-CAM, arXiv 1910.01279, section
          4.2)
box       the box of the largest connected part of the map at or above a share of its maximum (Zhou et al. 2016,
          Learning Deep Features for Discriminative Localization, arXiv 1512.04150: 20%) meets a true box with an
          intersection over union of 0.5 or more

Heat maps are float [H, W], not negative, as `plures.scoring.heatmaps.paint` makes them. Boxes are x1 y1 x2 y2 in
[0, 1]. A map that is 0 everywhere points nowhere: it misses, with energy 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from plures.errors import PluresError

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Localisation:
    """Means over the `maps` judged (pairs of an image and a class that has a box there), in [0, 1], nan for none.

    box_recall: over true boxes, the share met by the map's one box; box_hit: over maps, the share whose box meets any
    true one. parts_recall, parts_precision: the same with a box around every part of the map instead of the largest:
    the share of true boxes that one of them meets, and of them that meet a true one.
    """

    pointing: float
    energy: float
    box_hit: float
    box_recall: float
    parts_recall: float
    parts_precision: float
    maps: int
    boxes: int


class Judge:
    """Adds up how heat maps meet true boxes, one map at a time, so that memory is needed for one.

    share: of the maximum, from which on a pixel belongs to the map's boxes; see the functions for the rest.
    """

    def __init__(self, share: float = 0.2, least_iou: float = 0.5, tolerance: float = 0.0) -> None:
        self.share, self.least_iou, self.tolerance = share, least_iou, tolerance
        self.points: list[bool] = []
        self.energies: list[float] = []
        self.hits: list[bool] = []
        self.met = self.met_by_parts = self.boxes = self.parts = self.good_parts = 0

    def add(self, heat: Floats, truth: Floats) -> None:
        """One map [H, W] and the true boxes [M, 4] of its class in that image, M >= 1."""
        if len(truth) == 0:
            raise PluresError("localisation is judged where the class has a box; got an image without one")
        self.points.append(points_into(heat, truth, self.tolerance))
        self.energies.append(energy_inside(heat, truth))
        found = boxes_of(heat, self.share)
        meets = np.array([intersection_over_union(box, truth) >= self.least_iou for box in found], np.bool_)
        meets = meets.reshape(len(found), len(truth))  # [parts, M], the largest part first
        self.hits.append(bool(meets[:1].any()))
        self.met += int(meets[:1].any(0).sum())
        self.met_by_parts += int(meets.any(0).sum())
        self.good_parts += int(meets.any(1).sum())
        self.parts += len(found)
        self.boxes += len(truth)

    def result(self) -> Localisation:
        return Localisation(
            pointing=_mean(self.points),
            energy=_mean(self.energies),
            box_hit=_mean(self.hits),
            box_recall=_ratio(self.met, self.boxes),
            parts_recall=_ratio(self.met_by_parts, self.boxes),
            parts_precision=_ratio(self.good_parts, self.parts),
            maps=len(self.points),
            boxes=self.boxes,
        )


def localisation(
    judged: Iterable[tuple[Floats, Floats]], share: float = 0.2, least_iou: float = 0.5, tolerance: float = 0.0
) -> Localisation:
    """All measures over pairs of a heat map [H, W] and the true boxes [M, 4] of its class in that image, M >= 1."""
    judge = Judge(share, least_iou, tolerance)
    for heat, truth in judged:
        judge.add(heat, truth)
    return judge.result()


def points_into(heat: Floats, boxes: Floats, tolerance: float = 0.0) -> bool:
    """Whether the hottest pixel's centre lies in one of the boxes [M, 4], widened by `tolerance` (share of a side).

    Of several hottest pixels, the one nearest to their mean counts, so that a plateau points to its middle.
    """
    heat = _checked(heat)
    if heat.size == 0 or heat.max() <= 0:
        return False
    rows, columns = np.nonzero(heat == heat.max())
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    y, x = (rows[nearest] + 0.5) / heat.shape[0], (columns[nearest] + 0.5) / heat.shape[1]
    left, top, right, bottom = boxes.T
    inside = (left - tolerance <= x) & (x <= right + tolerance) & (top - tolerance <= y) & (y <= bottom + tolerance)
    return bool(inside.any())


def energy_inside(heat: Floats, boxes: Floats) -> float:
    """Share in [0, 1] of the map's sum on pixels whose centre lies in any of the boxes [M, 4]; 0 for an empty map."""
    heat = _checked(heat)
    total = float(heat.sum(dtype=np.float64))
    return float(heat[inside_any(boxes, *heat.shape)].sum(dtype=np.float64)) / total if total > 0 else 0.0


def inside_any(boxes: Floats, height: int, width: int) -> NDArray[np.bool_]:
    """bool [H, W]: pixels whose centre lies in any of the boxes [M, 4]."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    down = (boxes[:, 1, None] <= y) & (y <= boxes[:, 3, None])  # [M, H]
    across = (boxes[:, 0, None] <= x) & (x <= boxes[:, 2, None])  # [M, W]
    mask = np.zeros((height, width), np.bool_)
    for rows, columns in zip(down, across, strict=True):
        mask |= rows[:, None] & columns
    return mask


def box_of(heat: Floats, share: float = 0.2) -> NDArray[np.float64] | None:
    """The box [4] around the largest connected part (pixels touching by a side) of the map at or above `share` of its
    maximum, None for an empty map. Raises PluresError unless share is in (0, 1]."""
    return next(iter(boxes_of(heat, share)), None)


def boxes_of(heat: Floats, share: float = 0.2) -> NDArray[np.float64]:
    """Boxes [parts, 4] around all connected parts of the map at or above `share` of its maximum, the part of the most
    pixels first; [0, 4] for an empty map. Raises PluresError unless share is in (0, 1]."""
    if not 0 < share <= 1:
        raise PluresError(f"the share of the maximum that bounds a box is in (0, 1], got {share}")
    heat = _checked(heat)
    if heat.size == 0 or heat.max() <= 0:
        return np.zeros((0, 4))
    parts, _ = ndimage.label(heat >= share * heat.max())
    sizes = np.bincount(parts.ravel())[1:]  # part 0 is the background
    places = ndimage.find_objects(parts)
    height, width = heat.shape
    corners = [(x.start, y.start, x.stop, y.stop) for y, x in (places[i] for i in np.argsort(-sizes, kind="stable"))]
    return np.array(corners) / (width, height, width, height)


def intersection_over_union(box: Floats, others: Floats) -> NDArray[np.float64]:
    """Of one box [4] with each of the others [M, 4]. Returns [M], 0 where both are empty."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1, dtype=np.float64)
    union = np.prod(box[2:] - box[:2]) + (others[:, 2:] - others[:, :2]).prod(1) - common
    overlap: NDArray[np.float64] = np.divide(common, union, out=np.zeros(len(others)), where=union > 0)
    return overlap


def _checked(heat: Floats) -> Floats:
    if heat.ndim != 2:
        raise PluresError(f"a heat map is [H, W], got shape {list(heat.shape)}")
    if heat.size and not heat.min() >= 0:
        raise PluresError("a heat map holds no negative values and no nan")
    return heat


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _mean(values: list[bool] | list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
