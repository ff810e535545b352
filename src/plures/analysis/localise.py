"""`plures.localise`: from heat maps to boxes without ever having seen one: how well they meet true boxes where the data
have them, and boxes to start annotating from, as COCO JSON.

One way for every head: `region_weights` takes the attention of the codebook and of Query2Label, and the class
activation of the linear head; `paint` lays it on the photo at the photo's own size. No map is finer than the regions
it is made of, which `Localised.region` says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.analysis.evaluate import judged
from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.files import writing
from plures.metrics.localisation import Judge, Localisation, box_of
from plures.models.model import load
from plures.runs.own_data import photos_of
from plures.runs.photos import without_trained
from plures.runs.run import Run
from plures.scoring.device import thresholds_of
from plures.scoring.logits import look

SHARE = 0.2  # of the hottest pixel; benchmarks/localisation.py measures it for each head
Truth = dict[int, NDArray[np.floating]]


@dataclass(frozen=True)
class FoundBox:
    """A box [x1, y1, x2, y2] in [0, 1] around where a called tag was seen; score: the tag's probability."""

    row: int
    column: int
    corners: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, eq=False)
class Localised:
    """scores: against true boxes, None where the data have none; flat: of maps that are equally hot everywhere, for
    comparison. found: a box for each called tag. region: width and height of the smallest region, in [0, 1].
    share: of the hottest pixel, from which on a pixel belongs to a box."""

    dataset: Dataset
    sizes: tuple[tuple[int, int], ...]
    scores: Localisation | None
    flat: Localisation | None
    found: tuple[FoundBox, ...]
    region: tuple[float, float]
    share: float


def localise(
    run: str | Path | Run,
    data: str | Dataset | None = None,
    *,
    split: str | None = None,
    share: float = SHARE,
    options: dict[str, Any] | None = None,
    skip_bad: bool = False,
) -> Localised:
    """Judge a run's heat maps by the true boxes of a split, and draw a box around each tag that the model calls.

    data, split, options: as `plures.evaluate`; data need no labels. share: in (0, 1], see Localised. Maps are judged
    where a class has a box; tags are called by the run's thresholds.
    """
    run = run if isinstance(run, Run) else Run(run)
    model = load(run.path)
    rows = judged(run, data, split, options or {}, skip_bad, labelled=False, leave_out=False)
    dataset = rows.dataset
    if rows.own is None and dataset.boxes is not None and not run.imported:  # to be judged, not just drawn
        dataset = without_trained(photos_of(run), dataset, str(run.path))
    thresholds = thresholds_of(run, model.classes)
    truth = true_boxes(dataset)
    judge, flat, found = Judge(share), Judge(share), list[FoundBox]()
    sizes, smallest = list[tuple[int, int]](), (1.0, 1.0)
    for seen in look(model, dataset, run.experiment):
        sizes.append(seen.size)
        smallest = _smallest(seen.boxes)
        probabilities = thresholds.probabilities(seen.logits[None])
        called = set(np.flatnonzero(thresholds.called(seen.logits)).tolist())
        here = truth.get(seen.row, {})
        for column in sorted(called | here.keys()):
            heat = seen.heat(column)
            if column in here:
                judge.add(heat, here[column])
                flat.add(np.ones((101, 101), np.float32), here[column])
            box = box_of(heat, share) if column in called else None
            if box is not None:
                x1, y1, x2, y2 = box.tolist()
                found.append(FoundBox(seen.row, column, (x1, y1, x2, y2), float(probabilities[0, column])))
    scores, flat_scores = (judge.result(), flat.result()) if truth else (None, None)
    return Localised(dataset, tuple(sizes), scores, flat_scores, tuple(found), smallest, share)


def true_boxes(dataset: Dataset) -> dict[int, Truth]:
    """The true boxes [M, 4] by row and column, only of rows and columns that have any."""
    if dataset.boxes is None:
        return {}
    gathered: dict[int, dict[int, list[NDArray[np.floating]]]] = {}
    for row, column, corners in zip(
        dataset.boxes.row.tolist(), dataset.boxes.column.tolist(), dataset.boxes.corners, strict=True
    ):
        gathered.setdefault(row, {}).setdefault(column, []).append(corners)
    return {row: {column: np.array(b) for column, b in of.items()} for row, of in gathered.items()}


def write_coco(localised: Localised, path: str | Path) -> None:
    """Write the boxes that were found as COCO instances: images with sizes, categories, boxes x y width height in
    pixels with a score. `segmentation` is there and empty, by which CVAT knows rectangles; file names are relative to
    the deepest folder that all images share. Raises PluresError for images in memory, which have no name."""
    dataset = localised.dataset
    if dataset.in_memory:
        raise PluresError(f"{dataset.name or 'the data'}: the images are in memory, so no boxes file can name them")
    names = _names([str(image) for image in dataset.images])
    images = [
        {"id": row + 1, "file_name": name, "width": size[0], "height": size[1]}
        for row, (name, size) in enumerate(zip(names, localised.sizes, strict=True))
    ]
    content = {
        "info": {"description": "boxes around heat maps, made without boxes; check each", "version": "1"},
        "images": images,
        "categories": [{"id": k + 1, "name": name, "supercategory": ""} for k, name in enumerate(dataset.classes)],
        "annotations": [_annotation(i, box, localised.sizes[box.row]) for i, box in enumerate(localised.found, 1)],
    }
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _annotation(number: int, box: FoundBox, size: tuple[int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(c * side, 1) for c, side in zip(box.corners, size * 2, strict=True))
    width, height = round(x2 - x1, 1), round(y2 - y1, 1)
    return {
        "id": number,
        "image_id": box.row + 1,
        "category_id": box.column + 1,
        "bbox": [x1, y1, width, height],
        "area": round(width * height, 1),
        "iscrowd": 0,
        "segmentation": [],
        "score": round(box.score, 4),
    }


def _names(images: Sequence[str]) -> list[str]:
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(image)) for image in images]) if images else ""
    return [Path(os.path.relpath(image, folder)).as_posix() for image in images]


def _smallest(boxes: NDArray[np.floating]) -> tuple[float, float]:
    sides = boxes[:, 2:] - boxes[:, :2]
    width, height = sides[sides.prod(1).argmin()].tolist()
    return width, height
