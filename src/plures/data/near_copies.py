"""Which images are copies of each other but for size, encoding or a touch of light: groups of near vectors.

Vectors are small pictures of the images (here), or a backbone's features (`analysis/duplicates.py`). All pairs are
compared, in blocks, so that memory does not grow with their number. No pair is lost: a projection never makes a
distance larger, so what is far apart in few dimensions is far apart in all.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from plures.data.dataset import Dataset
from plures.data.photos import Unreadable, is_address, to_image
from plures.pace import Pace

SIDE = 16  # pixels of a small picture
NEAR_EXACT = 0.985  # correlation of small pictures from which two photographs are one
ROWS, COLUMNS = 2048, 8192  # of the products in one block: 64 MB
PROJECTED = 48  # dimensions of the first look
MOST = 2_000_000  # pairs in memory, before they become groups
THREADS, AT_ONCE = 8, 64

Groups = NDArray[np.int64]


def small_pictures(dataset: Dataset) -> NDArray[np.float32]:
    """Small pictures [N, 768] of the images, each colour without its mean, of length 1; zeros for an image that cannot
    be read or that is one colour, which is a copy of none."""
    pictures = np.zeros((len(dataset), 3 * SIDE * SIDE), np.float32)

    def fill(start: int) -> None:
        for row in range(start, min(start + AT_ONCE, len(dataset))):
            pictures[row] = _small(dataset.images[row])

    with ThreadPoolExecutor(THREADS) as pool, Pace("looking for copies", len(dataset)) as pace:
        for _ in pool.map(fill, range(0, len(dataset), AT_ONCE)):
            pace.step(AT_ONCE)
    of_colours = pictures.reshape(len(pictures), -1, 3)
    of_colours -= of_colours.mean(1, keepdims=True)
    return unit(pictures, least=4.0 * SIDE)  # a spread of two levels of 255 says nothing


def _small(image: Any) -> NDArray[np.float32] | float:
    if isinstance(image, str) and is_address(image):
        return 0.0
    try:
        picture = to_image(image, 4 * SIDE)
    except Unreadable:
        return 0.0
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).reshape(-1)


def unit(vectors: NDArray[Any], least: float = 1e-12) -> NDArray[np.float32]:
    """Vectors [N, D] of length 1; zeros for those shorter than `least`."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > least, vectors / np.maximum(length, 1e-12), 0).astype(np.float32)


def near_groups(vectors: NDArray[np.float32], similarity: float) -> Groups:
    """For each row the first row [N] of its group: rows that are near are in one, and so are those near to these.

    Args:
        vectors: float32 [N, D] of length 1, or zeros, which are near to nothing.
        similarity: the cosine from which two rows are near, in (0, 1).
    """
    n = len(vectors)
    first = np.arange(n)
    rows = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0.5)
    found: list[NDArray[np.int64]] = []
    held = 0
    looks = _projected(vectors, rows)
    bound = np.float32((2 - 2 * similarity) * (1 + 1e-4) + 1e-6)  # squared distance, with room for rounding
    with Pace("comparing", len(rows)) as pace:
        for start in range(0, len(rows), ROWS):
            mine = slice(start, start + ROWS)
            for other in range(start, len(rows), COLUMNS):
                theirs = slice(other, other + COLUMNS)
                pairs = _near(vectors, rows, looks, mine, theirs, bound, similarity)
                if len(pairs):
                    found.append(pairs)
                    held += len(pairs)
                if held > MOST:
                    first, found, held = joined_groups(first, found), [], 0
            pace.step(ROWS)
    return joined_groups(first, found)


def _projected(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows along their main directions [n, 48], and the squares of their lengths there [n]."""
    if vectors.shape[1] <= 2 * PROJECTED:
        looks = torch.from_numpy(vectors[rows])
    else:
        some = vectors[rows[:: max(1, len(rows) // 10_000)]].astype(np.float64)
        _, axes = np.linalg.eigh(np.cov(some, rowvar=False)) if len(some) > 1 else (0, np.eye(vectors.shape[1]))
        main = axes[:, ::-1][:, :PROJECTED].astype(np.float32)
        parts = [vectors[rows[at : at + 65_536]] @ main for at in range(0, len(rows), 65_536)]
        looks = torch.from_numpy(np.concatenate(parts) if parts else np.empty((0, PROJECTED), np.float32))
    return looks, (looks**2).sum(1)


def _near(
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    looks: tuple[torch.Tensor, torch.Tensor],
    mine: slice,
    theirs: slice,
    bound: np.float32,
    similarity: float,
) -> NDArray[np.int64]:
    """Pairs of rows [m, 2] of these blocks that are near, the first of each before the second."""
    at, squares = looks
    far = torch.addmm(squares[theirs][None], at[mine], at[theirs].T, alpha=-2)  # distance^2 - squares of mine
    close = (far <= float(bound) - squares[mine][:, None]).nonzero().numpy()
    pairs = close + np.array([mine.start, theirs.start])
    pairs = rows[pairs[pairs[:, 0] < pairs[:, 1]]]
    keep = np.empty(len(pairs), np.bool_)
    for start in range(0, len(pairs), ROWS):
        i, j = pairs[start : start + ROWS].T
        keep[start : start + ROWS] = np.einsum("nd,nd->n", vectors[i], vectors[j]) >= similarity
    return np.asarray(pairs[keep])


def joined_groups(first: Groups, found: list[NDArray[np.int64]]) -> Groups:
    """The groups [N], with the two rows of each of these pairs [m, 2] in one."""
    if not found:
        return first
    n, pairs = len(first), np.concatenate(found)
    i, j = np.concatenate([np.stack([np.arange(n), first], 1), pairs]).T
    count, part = connected_components(coo_array((np.ones(len(i), np.bool_), (i, j)), shape=(n, n)), directed=False)
    leader = np.full(count, n)
    np.minimum.at(leader, part, np.arange(n))
    return np.asarray(leader[part], np.int64)
