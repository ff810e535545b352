"""Where the model saw each class: from an Output's regions to a heat map at the photo's own size, and a picture of it.

A head with attention (Jouanneau et al.; Query2Label, arXiv 2107.10834, last decoder layer) says where each class
looked; any other head with region logits says where it was seen, by its positive class activation (Zhou et al. 2016,
arXiv 1512.04150).
"""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from plures.errors import PluresError
from plures.models.outputs import Output

Floats = NDArray[np.floating[Any]]

HEATMAPS = "heatmaps"  # what a folder of pictures is marked as
NEAR = 1e-4  # fractions of the image closer than this are the same edge
COLOURS = "inferno"  # perceptually uniform, also for the colour-blind; its dark end is never opaque
OPACITY = 0.75  # of the hottest pixel


class NoHeatMap(PluresError):
    """A model that does not say where it looked."""


def region_weights(output: Output) -> Tensor:
    """How much each region speaks for each class. Returns [B, K, P], not negative, summing to 1 over P.

    The attention where there is one; else the positive part of the region logits, each averaged with its neighbours
    (where a class has none: how far each lies above the lowest, since some region still speaks for it most). Averaged
    maps point at objects more often: docs/localisation.md.
    Raises NoHeatMap if the head gave neither.
    """
    if output.attention is not None:
        return output.attention
    if output.region_logits is None:
        raise NoHeatMap("no heat map: the head gives neither attention nor region logits for its classes")
    activation = output.region_logits
    if output.boxes is not None:
        activation = activation @ _neighbours(output.boxes).to(activation.dtype).T
    positive = activation.clamp(min=0)
    above_lowest = activation - activation.amin(-1, keepdim=True)
    weights = positive.where(positive.amax(-1, keepdim=True) > 0, above_lowest)
    total = weights.sum(-1, keepdim=True)
    return (weights / total.clamp(min=1e-12)).where(total > 0, 1 / weights.shape[-1])


def regions_of(output: Output) -> tuple[Floats, Floats]:
    """`region_weights` and where the regions lie: arrays [B, K, P] and [P, 4]. Raises NoHeatMap without either."""
    weights = region_weights(output)
    if output.boxes is None:
        raise NoHeatMap("no heat map: the head does not say where its regions lie")
    return weights.float().cpu().numpy(), output.boxes.float().cpu().numpy()


def _neighbours(boxes: Tensor) -> Tensor:
    """How much the regions [P, 4] count in the mean around each: [P, P], rows that sum to 1. On a grid 1 2 1 across and
    down; regions of another size do not count."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    near = (1 - (centre[:, None] - centre).abs() / (2 * size)).clamp(min=0)  # [P, P, 2]
    alike = ((size[:, None] - size).abs() < NEAR).to(near.dtype)
    weights = near[..., 0] * near[..., 1] * alike[..., 0] * alike[..., 1]
    return weights / weights.sum(1, keepdim=True)


def paint(weights: Floats, boxes: Floats, height: int, width: int) -> NDArray[np.float32]:
    """One class's heat map. Returns float32 [H, W]: 0 the coldest, 1 the hottest pixel; all 0 if none is hotter.

    weights: [P]; boxes: [P, 4], x1 y1 x2 y2 in [0, 1]. Boxes of one size are a level. On a level each pixel takes the
    weights at the nearest box centres, linearly in between (without a full lattice: the mean of the boxes over it);
    a level that ends before the image does falls to 0 towards its end. Levels are summed; a grid is simply one level.
    """
    if weights.ndim != 1 or boxes.shape != (len(weights), 4):
        raise ValueError(f"a heat map requires weights [P] and boxes [P, 4], got {weights.shape} and {boxes.shape}")
    values, corners = weights.astype(np.float64), boxes.astype(np.float64)
    level_of = _levels(corners)
    heat = np.zeros((height, width), np.float32)
    for level in range(level_of.max(initial=-1) + 1):
        member = level_of == level
        heat += _paint_level(values[member], corners[member], height, width)
    low, high = heat.min(initial=np.inf), heat.max(initial=-np.inf)
    if not high - low > 1e-6 * max(abs(high), 1e-12):
        return np.zeros((height, width), np.float32)
    heat -= low
    heat /= high - low
    return heat


def overlay(
    image: Image.Image, heat: Floats, label: str | None = None, score: float | None = None, colours: str = COLOURS
) -> Image.Image:
    """The photo at its own size, the heat [H, W] in [0, 1] over it, more opaque where hotter; label and score on top.

    Raises ValueError if the heat is not as large as the photo.
    """
    if heat.shape != (image.height, image.width):
        raise ValueError(f"the heat {heat.shape} is not as large as the photo {(image.height, image.width)} [H, W]")
    photo = np.asarray(image.convert("RGB"), np.float32)  # [H, W, 3]
    heat = np.clip(np.asarray(heat, np.float32), 0, 1)
    colour = 255 * matplotlib.colormaps[colours](heat)[..., :3].astype(np.float32)
    opacity = (OPACITY * heat)[..., None]
    picture = Image.fromarray((photo + opacity * (colour - photo) + 0.5).astype(np.uint8))
    if label is not None:
        _caption(picture, label if score is None else f"{label} {score:.2f}")
    return picture


# ------------------------------------------------------------------------------------------------------ the parts


def _levels(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """[P]: boxes of the same width and height share a number, from 0 on."""
    across, down = _alike(boxes[:, 2] - boxes[:, 0])[0], _alike(boxes[:, 3] - boxes[:, 1])[0]
    return np.unique(across * (down.max(initial=0) + 1) + down, return_inverse=True)[1]


def _alike(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number [P] of the group of NEAR values that each belongs to, in ascending order, and the groups' means [G]."""
    order = np.argsort(values)
    group = np.empty(len(values), np.int64)
    group[order] = np.cumsum(np.diff(values[order], prepend=values[order[:1]]) > NEAR)
    return group, np.bincount(group, values) / np.maximum(np.bincount(group), 1)


def _paint_level(
    weights: NDArray[np.float64], boxes: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float32]:
    """The heat [H, W] of boxes of one size."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height  # pixel centres
    column, across = _alike((boxes[:, 0] + boxes[:, 2]) / 2)
    row, down = _alike((boxes[:, 1] + boxes[:, 3]) / 2)
    if len(np.unique(row * len(across) + column)) == len(across) * len(down) == len(weights):
        lattice = np.zeros((len(down), len(across)), np.float32)
        lattice[row, column] = weights
        between_x = _between(x, across, boxes[:, 0].min(), boxes[:, 2].max())  # [W, columns]
        between_y = _between(y, down, boxes[:, 1].min(), boxes[:, 3].max())  # [H, rows]
        return np.asarray(between_y @ lattice @ between_x.T, np.float32)
    covers_x = (x[:, None] >= boxes[:, 0]) & (x[:, None] < boxes[:, 2])  # [W, P]
    covers_y = (y[:, None] >= boxes[:, 1]) & (y[:, None] < boxes[:, 3])  # [H, P]
    total = (covers_y * weights).astype(np.float32) @ covers_x.T.astype(np.float32)
    return np.asarray(total / np.maximum(covers_y.astype(np.float32) @ covers_x.T.astype(np.float32), 1), np.float32)


def _between(
    places: NDArray[np.float64], centres: NDArray[np.float64], start: float, end: float
) -> NDArray[np.float32]:
    """Linear interpolation as a matrix [places, centres].

    Beyond the first and last centre constant if the level reaches the image's edge there, else falling to 0 at `start`
    and `end`, where the level ends.
    """
    before, after = int(start > NEAR), int(end < 1 - NEAR)
    points = np.concatenate([[start] * before, centres, [end] * after])
    ones = np.eye(len(points))[before : before + len(centres)]
    return np.stack([np.interp(places, points, one) for one in ones], axis=1).astype(np.float32)


def _caption(picture: Image.Image, text: str) -> None:
    """Write the text into the upper left corner, white on dark, as large as the picture allows."""
    font = _font(text, max(11, min(picture.size) // 18), picture.width - 6)
    draw = ImageDraw.Draw(picture, "RGBA")
    _, _, right, bottom = draw.textbbox((3, 2), text, font=font)
    draw.rectangle((0, 0, right + 3, bottom + 3), fill=(0, 0, 0, 170))
    draw.text((3, 2), text, "white", font)


def _font(text: str, size: int, room: int) -> Any:
    """The built-in font at `size`, smaller (down to 8) if the text is wider than `room` pixels."""
    while size > 8 and ImageFont.load_default(size).getlength(text) > room:
        size -= 1
    return ImageFont.load_default(size)
