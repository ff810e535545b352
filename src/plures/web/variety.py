"""In which order photographs get their first tags: the most different first, near-duplicates together.

Farthest-first traversal (Gonzalez 1985, k-centre clustering): each next photograph is the one that differs most from
all before it, those that have tags included; so the first hundred show what there is, and the order is the same
whenever the review is opened again. Photographs differ by the features of a pretrained backbone where its weights are
on this disk, else by their colours in 8 x 8 places. What looks the same as one before comes right behind it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.photos import Transform, Unreadable, is_address, to_pixels
from plures.models.backbones.presets import PRESETS, on_disk
from plures.models.model import build_model
from plures.pace import Pace
from plures.scoring.features import frozen_features

LOOKED_AT = 2000  # photographs that are put in order, spread evenly over the table; the others follow as they stand
WITH_FEATURES = 500  # of which features are computed, some ten a second
TAGGED = 500  # of those with tags that count as seen
SIDE, PLACES = 16, 8
NEAR = 12.0  # levels of 255, root mean square over SIDE x SIDE pixels: below it two photographs look the same
THREADS = 8
Floats = NDArray[np.float32]


def most_different_first(dataset: Dataset, rows: list[int]) -> list[int]:
    """The rows in the order in which they are to be tagged; those that cannot be read, or lie elsewhere, at the end."""
    here = [row for row in rows if not is_address(str(dataset.images[row]))]
    file = on_disk()["fast"]
    asked = _spread(here, LOOKED_AT if file is None else WITH_FEATURES)
    among = set(rows)
    seen = _spread(
        [r for r in range(len(dataset)) if r not in among and not is_address(str(dataset.images[r]))], TAGGED
    )
    small, readable = _small(dataset, [*seen, *asked])
    kept = np.array([*seen, *asked])[readable]
    before = int(readable[: len(seen)].sum())
    if before == len(kept):
        return rows
    vectors = _places(small) if file is None else _features(dataset.take(kept), file)
    order = farthest_first(vectors, small.reshape(len(small), -1).astype(np.float32), before)
    first: list[int] = kept[order].tolist()
    done = set(first)
    return first + [row for row in rows if row not in done]


def farthest_first(vectors: Floats, looks: Floats, before: int) -> list[int]:
    """The places from `before` on, each the farthest by its vector from all before it, and behind it those whose looks
    are the same (root mean square below NEAR). vectors: [N, D]; looks: [N, E], in levels of 255."""
    lengths, looks_lengths = (vectors**2).sum(1), (looks**2).sum(1)
    left = np.ones(len(vectors), bool)
    left[:before] = False
    distance = np.full(len(vectors), np.inf, np.float32)
    for place in range(before):
        np.minimum(distance, _squares(vectors, lengths, place), out=distance)
    order: list[int] = []
    while left.any():
        if not before and not order:  # what is most usual, as nothing has been seen
            place = int(np.argmin(((vectors - vectors.mean(0)) ** 2).sum(1)))
        else:
            place = int(np.argmax(np.where(left, distance, -1)))
        same = np.flatnonzero(left & (_squares(looks, looks_lengths, place) < NEAR**2 * looks.shape[1]))
        for one in [place, *(other for other in same.tolist() if other != place)]:
            order.append(one)
            left[one] = False
            np.minimum(distance, _squares(vectors, lengths, one), out=distance)
    return order


def _squares(table: Floats, lengths: Floats, place: int) -> Floats:
    """Squared distances [N] from one row; lengths [N]: the squared ones of the rows."""
    return np.asarray(np.maximum(lengths + lengths[place] - 2 * (table @ table[place]), 0), np.float32)


def _spread(rows: list[int], most: int) -> list[int]:
    """At most so many of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return [rows[place] for place in np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _small(dataset: Dataset, rows: list[int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Small copies of the photographs that can be read, uint8 [M, 3, SIDE, SIDE], and which of the rows these are."""
    transform = Transform(SIDE, "none")

    def look(row: int) -> NDArray[np.uint8] | None:
        try:
            pixels: NDArray[np.uint8] = transform(to_pixels(str(dataset.images[row]), transform.decoding_size)).numpy()
        except Unreadable:
            return None
        return pixels

    found = []
    with ThreadPoolExecutor(THREADS) as pool, Pace("looking at the photographs", len(rows)) as pace:
        for pixels in pool.map(look, rows):
            found.append(pixels)
            pace.step(1)
    readable = np.array([pixels is not None for pixels in found], bool)
    held = [pixels for pixels in found if pixels is not None]
    return (np.stack(held) if held else np.empty((0, 3, SIDE, SIDE), np.uint8)), readable


def _places(small: NDArray[np.uint8]) -> Floats:
    """The colours in PLACES x PLACES places: float32 [M, 3 * PLACES ** 2]."""
    step = SIDE // PLACES
    means = small.reshape(len(small), 3, PLACES, step, PLACES, step).mean((3, 5), dtype=np.float32)
    return np.asarray(means.reshape(len(small), 3 * PLACES**2), np.float32)


def _features(dataset: Dataset, file: str) -> Floats:
    """Features of the backbone `fast`, each of length 1: float32 [M, D]."""
    options = {**PRESETS["fast"], "weights": file}
    model = build_model("timm", "linear", ("-",), options)
    found = np.asarray(frozen_features(model, dataset, pooled=True, device=torch.device("cpu")), np.float32)[:, 0]
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6), np.float32)
