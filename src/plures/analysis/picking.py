"""Which photographs to label next: different from each other and from those that are labelled, and uncertain."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError, did_you_mean

Method = Literal["typical", "k-centre"]
CLUSTERS, NEIGHBOURS = 500, 20  # at most so many clusters; rows whose mean similarity is a row's typicality
Vectors = NDArray[np.float32]


def pick(
    vectors: Vectors,
    count: int,
    *,
    begun: Collection[int] = (),
    among: NDArray[np.bool_] | None = None,
    uncertainty: NDArray[np.float64] | None = None,
    method: Method = "typical",
    seed: int = 0,
) -> list[int]:
    """Rows to label next, the most useful first.

    Args:
        vectors: features of the photographs, float32 [N, D], of length 1.
        count: how many rows.
        begun: rows that are labelled already.
        among: which rows may be picked, bool [N]; all but those begun unless given.
        uncertainty: of a model, [N], 0 or more; it multiplies typicality or distance.
        method: typical: one row from each cluster that holds no labelled row, the largest first, where its neighbours
            are nearest (Hacohen et al. 2022, arXiv 2202.02794, TypiClust); k-centre: again and again the row that is
            farthest from all before (Sener & Savarese 2018, arXiv 1708.00489).
        seed: of the clusters, and of the first row where nothing is begun.

    Returns:
        At most `count` different rows.
    """
    if method not in get_args(Method):
        raise PluresError(f"no method '{method}'{did_you_mean(method, get_args(Method))}")
    free = np.ones(len(vectors), np.bool_) if among is None else among.copy()
    free[list(begun)] = False
    weight = np.ones(len(vectors)) if uncertainty is None else np.asarray(uncertainty, np.float64)
    count = min(count, int(free.sum()))
    choose = _k_centre if method == "k-centre" else _typical
    return choose(vectors, count, list(begun), free, weight, np.random.default_rng(seed))


def _k_centre(
    vectors: Vectors,
    count: int,
    begun: list[int],
    free: NDArray[np.bool_],
    weight: NDArray[np.float64],
    random: np.random.Generator,
) -> list[int]:
    nearest = np.full(len(vectors), -1.0)  # cosine to the nearest row that is labelled or picked
    for row in begun:
        np.maximum(nearest, vectors @ vectors[row], out=nearest)
    picked = list[int]()
    while len(picked) < count:
        gain = np.where(free, weight * (1 - nearest), -1)
        row = int(np.argmax(gain)) if begun or picked else int(random.choice(np.flatnonzero(free)))
        picked.append(row)
        free[row] = False
        np.maximum(nearest, vectors @ vectors[row], out=nearest)
    return picked


def _typical(
    vectors: Vectors,
    count: int,
    begun: list[int],
    free: NDArray[np.bool_],
    weight: NDArray[np.float64],
    random: np.random.Generator,
) -> list[int]:
    from sklearn.cluster import MiniBatchKMeans

    if not count:
        return []
    clusters = min(len(begun) + count, CLUSTERS, len(vectors))
    state = int(random.integers(2**31))
    made = MiniBatchKMeans(clusters, random_state=state, n_init=1, batch_size=2048)
    of_row = made.fit_predict(vectors)
    queues: list[list[int]] = []
    for cluster in range(clusters):
        rows = np.flatnonzero(of_row == cluster)
        some = rows if len(rows) <= 2000 else random.choice(rows, 2000, replace=False)
        alike = vectors[rows] @ vectors[some].T
        near = np.sort(alike, axis=1)[:, -(NEIGHBOURS + 1) : -1] if len(some) > 1 else np.zeros((len(rows), 1))
        score = weight[rows] * np.maximum(near.mean(1), 0)
        queues.append([int(row) for row in rows[np.argsort(-score, kind="stable")] if free[row]])
    taken = np.bincount(of_row[begun], minlength=clusters) if begun else np.zeros(clusters, np.int64)
    size = np.bincount(of_row, minlength=clusters)
    picked = list[int]()
    while len(picked) < count:  # the clusters with the fewest labelled rows, the largest of them first
        open_ = [c for c in range(clusters) if queues[c]]
        cluster = min(open_, key=lambda c: (taken[c], -size[c]))
        picked.append(queues[cluster].pop(0))
        taken[cluster] += 1
    return picked
