"""A Dataset from pairs (image, target) in memory, such as a torch Dataset gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.labels import Labels

CODES = "1 (present), 0 (absent) and -1 (unknown)"


def from_pairs(pairs: Any, classes: Sequence[str] | None = None, name: str = "") -> Dataset:
    """Read every (image, target) of a torch Dataset, or of any sequence of pairs, into memory.

    Args:
        pairs: has a length and gives (image, target) for 0, 1, ...: the image a PIL image, an array [H, W, 3] or
            [H, W], or a tensor [3, H, W], of uint8 or of floats in [0, 1]; the target [K] in {1, 0, -1}.
        classes: K names; None: `pairs.classes` where it has them, else "0", "1", ...
        name: what the data call themselves in reports.

    Raises:
        PluresError: for an image or a target of another kind, or targets of several lengths; names its place.

    Example:
        >>> image = np.zeros((8, 8, 3), np.uint8)
        >>> from_pairs([(image, [1, -1]), (image, [0, 1])], classes=["cat", "dog"]).labels.present.tolist()
        [[True, False], [False, True]]
    """
    images, targets = list[NDArray[np.uint8]](), list[NDArray[np.int8]]()
    for row in range(len(pairs)):
        pair = pairs[row]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise PluresError(f"item {row} of the data is no pair (image, target) but {type(pair).__name__}")
        images.append(_pixels(pair[0], row))
        targets.append(_codes(pair[1], row, targets[0].shape if targets else None))
    if not images:
        raise PluresError("the data hold no pair (image, target)")
    width = len(targets[0])
    known = getattr(pairs, "classes", None) if classes is None else classes
    names = [str(k) for k in range(width)] if known is None or (classes is None and len(known) != width) else known
    if len(names) != width or len(set(names)) != width:
        raise PluresError(f"targets have {width} columns, and classes= holds {len(names)} names; expected one for each")
    return Dataset(
        stacked(images), Labels(np.stack(targets)), tuple(map(str, names)), name=name or type(pairs).__name__
    )


def stacked(images: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
    """uint8 [N, H, W, 3] of N images [H, W, 3], or an object array [N] where sizes differ."""
    if len({image.shape for image in images}) == 1:
        return np.stack(images)
    held: NDArray[Any] = np.empty(len(images), object)
    for place, image in enumerate(images):
        held[place] = image
    return held


def _pixels(image: Any, row: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]."""
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    tensor = isinstance(image, torch.Tensor)
    found = np.asarray(image.detach().cpu()) if tensor else image
    shape = getattr(found, "shape", ())
    if isinstance(found, np.ndarray) and found.dtype.kind in "fu":
        found = found.transpose(1, 2, 0) if tensor and found.ndim == 3 else found
        found = np.repeat(found[..., None], 3, 2) if found.ndim == 2 else found
        if found.ndim == 3 and found.shape[2] == 1:
            found = np.repeat(found, 3, 2)
        if found.ndim == 3 and found.shape[2] == 3:
            if found.dtype == np.uint8:
                return np.ascontiguousarray(found)
            if found.dtype.kind == "f" and found.size and found.min() >= 0 and found.max() <= 1:
                return np.round(found * 255).astype(np.uint8)
    what = f"{type(image).__name__} {list(shape)} {getattr(found, 'dtype', '')}".strip()
    raise PluresError(
        f"image {row} is {what}; expected a PIL image, an array [H, W, 3] or a tensor [3, H, W], uint8 or floats in"
        " [0, 1] (before any normalisation)"
    )


def _codes(target: Any, row: int, shape: tuple[int, ...] | None) -> NDArray[np.int8]:
    """int8 [K]."""
    found = np.asarray(target.detach().cpu() if isinstance(target, torch.Tensor) else target)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "biuf" or shape not in (None, found.shape):
        expected = f"[K] of {CODES}" if shape is None else f"{list(shape)}, as the first one"
        raise PluresError(f"target {row} has shape {list(found.shape)} and type {found.dtype}; expected {expected}")
    if not np.isin(found, (1, 0, -1)).all():
        wrong = found[~np.isin(found, (1, 0, -1))][0]
        raise PluresError(f"target {row} holds {wrong}; expected {CODES}")
    return found.astype(np.int8)
