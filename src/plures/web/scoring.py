"""A run's model as the server asks it: batches of pixels in, one answer per photo out."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from plures.models.outputs import checked_logits
from plures.runs.run import Run
from plures.scoring.features import refuse_features
from plures.scoring.heatmaps import COLOURS, OPACITY, paint
from plures.scoring.logits import refuse_names
from plures.scoring.predictor import load
from plures.web.uploads import Photo

HEAT_SIDE = 320  # pixels of a heat map's longer side
MOST_HEAT = 12  # heat maps a photo: the tags of the highest scores


class PhotoAnswer(BaseModel):
    """What the model says of one photo. tags: called ones, highest score first; scores: of every class, in [0, 1];
    maps: a PNG (data URL) a tag, transparent where the model did not look, to lay over the upright photo."""

    name: str
    width: int
    height: int
    tags: list[str]
    scores: dict[str, float]
    maps: dict[str, str] | None = None


class Scoring:
    """A run's model, its thresholds, and where its regions lie."""

    def __init__(self, run: Run) -> None:
        self.name = run.path.resolve().name
        self.model = load(run)
        refuse_features(self.model, "the web page")
        refuse_names(self.model, "the web page")
        self.classes = self.model.classes
        self.thresholds, self.transform = self.model.thresholds, self.model.transform
        self.boxes: NDArray[Any] = np.empty((0, 4))
        side = self.model.preprocessing.image_size
        self(torch.zeros(1, 3, side, side, dtype=torch.uint8), True)  # the first call is a slow one

    def __call__(self, pixels: Tensor, maps: bool) -> list[tuple[NDArray[np.float32], NDArray[Any] | None]]:
        """uint8 pixels [B, 3, S, S] -> for each image logits [K] and, if wanted, weights of regions [K, P]."""
        if not maps:
            return [(row, None) for row in checked_logits(self.model.score(pixels).logits)]
        logits, weights, self.boxes = self.model.look(pixels)
        return list(zip(logits, weights, strict=True))

    def describe(self, photo: Photo, logits: NDArray[np.float32], weights: NDArray[Any] | None) -> PhotoAnswer:
        """The answer on one photo; draws its heat maps."""
        scores = self.thresholds.probabilities(logits[None])[0]
        called = self.thresholds.called(logits)
        order = [int(k) for k in np.argsort(-scores, kind="stable") if called[k]]
        maps = None
        if weights is not None:
            scale = min(1.0, HEAT_SIDE / max(photo.width, photo.height))
            height, width = (max(1, round(side * scale)) for side in (photo.height, photo.width))
            maps = {self.classes[k]: heat_png(paint(weights[k], self.boxes, height, width)) for k in order[:MOST_HEAT]}
        return PhotoAnswer(
            name=photo.name,
            width=photo.width,
            height=photo.height,
            tags=[self.classes[k] for k in order],
            scores={name: round(float(s), 6) for name, s in zip(self.classes, scores, strict=True)},
            maps=maps,
        )


def heat_png(heat: NDArray[np.float32]) -> str:
    """A heat map [H, W] in [0, 1] as a PNG data URL, more opaque where hotter."""
    rgba = np.empty((*heat.shape, 4))
    rgba[..., :3] = matplotlib.colormaps[COLOURS](heat)[..., :3]
    rgba[..., 3] = OPACITY * heat
    file = io.BytesIO()
    Image.fromarray((255 * rgba + 0.5).astype(np.uint8), "RGBA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
