"""How well heat maps point at objects whose boxes are known.

pointing  the hottest pixel lies in a box of the class (Zhang et al. 2016, Top-Down Neural Attention by Excitation
          Backprop, arXiv 1608.00507; theirs also forgives 15 pixels, here `tolerance` does, as a share of the side)
energy    share of the map's sum that lies inside the boxes (Wang et al. 2020, Score-CAM, arXiv 1910.01279, section
          4.2)
box       the box of the largest connected part of the map at or above a share of its maximum (Zhou et al. 2016,
          Learning Deep Features for Discriminative Localization, arXiv 1512.04150: 20%) meets a true box with an
          intersection over union of 0.5 or more

Heat maps are float [H, W], not negative, as `plures.inference.heatmaps.paint` makes them. Boxes are x1 y1 x2 y2 in
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
    true one.
    """

    pointing: float
    energy: float
    box_hit: float
    box_recall: float
    maps: int
    boxes: int


def localisation(
    judged: Iterable[tuple[Floats, Floats]], share: float = 0.2, least_iou: float = 0.5, tolerance: float = 0.0
) -> Localisation:
    """All measures over pairs of a heat map [H, W] and the true boxes [M, 4] of its class in that image, M >= 1.

    share: of the maximum, from which on a pixel belongs to the map's box; see the functions for the rest.
    Maps are taken one by one, so a generator needs memory for one.
    """
    points, energies, hits, met, boxes = [], [], [], 0, 0
    for heat, truth in judged:
        if len(truth) == 0:
            raise PluresError("localisation is judged where the class has a box; got an image without one")
        points.append(points_into(heat, truth, tolerance))
        energies.append(energy_inside(heat, truth))
        found = box_of(heat, share)
        overlaps = np.zeros(len(truth)) if found is None else intersection_over_union(found, truth)
        hits.append(bool((overlaps >= least_iou).any()))
        met += int((overlaps >= least_iou).sum())
        boxes += len(truth)
    return Localisation(
        _mean(points), _mean(energies), _mean(hits), met / boxes if boxes else float("nan"), len(points), boxes
    )


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
    if not 0 < share <= 1:
        raise PluresError(f"the share of the maximum that bounds a box is in (0, 1], got {share}")
    heat = _checked(heat)
    if heat.size == 0 or heat.max() <= 0:
        return None
    parts, _ = ndimage.label(heat >= share * heat.max())
    largest = int(np.argmax(np.bincount(parts.ravel())[1:]))  # part 0 is the background
    rows, columns = ndimage.find_objects(parts)[largest]
    (height, width) = heat.shape
    return np.array([columns.start / width, rows.start / height, columns.stop / width, rows.stop / height])


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


def _mean(values: list[bool] | list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
