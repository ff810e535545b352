"""Which photographs to label first: test mAP against the number of answers, by the order in which they are asked.

Frozen features of EfficientNet-Lite2, the closed-form ridge (l2=1, standardised, normalised), solved anew after each
round. Labels of the data stand in for the person; test labels are used for nothing but the mAP reported. A draw is a
random three quarters of the training photographs, the split of miml_scene, and the single tags.

  first tags: nothing is labelled; an answer is a photograph that is labelled completely.
  answers: every photograph has one tag; an answer says of one photograph and one class whether it is there. Photographs
    are asked completely, or cells of one class alone.

random; sample: as `plures review --sample` draws; farthest: as `plures review FOLDER` orders (k-centre, Sener &
Savarese 2018, arXiv 1708.00489); typical: TypiClust (Hacohen et al. 2022, arXiv 2202.02794); uncertain: mean entropy
over the classes; suggestions: the unknown cells of the highest score, as `plures suggest`; different: the same, at most
two of a class among neighbours.

    PLURES_SHARED=... python benchmarks/active.py
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from environment import write
from voc12 import FREQUENT, SHARED

PHOTOS = (20, 50, 100, 200, 400)
ANSWERS = (250, 1000, 4000)
SEEDS = (0, 1, 2)
ORDERS = ("random", "farthest", "typical", "uncertain", "farthest x uncertain")
CELLS = ("random cells", "suggestions", "different")


@cache
def read(name: str) -> tuple[Any, np.ndarray]:
    """The data set and the features of all its photographs, [N, D]."""
    from plures import read
    from plures.models.model import build_model
    from plures.scoring.features import frozen_features

    if name == "voc12":
        data = read(f"voc:{SHARED / 'data/voc12/VOCdevkit/VOC2012'}")
    else:
        data = read(f"table:{SHARED / 'data/miml_scene/labels.csv'}", complete=True)
    weights = str(SHARED / "weights/tf_efficientnet_lite2.safetensors")
    options = {"model": "tf_efficientnet_lite2", "weights": weights, "mean": [0.5] * 3, "std": [0.5] * 3}
    model = build_model("timm", "linear", data.classes, options, {}, 260)
    return data, np.asarray(frozen_features(model, data, pooled=True, device=torch.device("cpu")))[:, 0]


class World:
    """Features, unit vectors and labels of a draw of the training photographs, and features and labels of test."""

    def __init__(self, name: str, seed: int) -> None:
        from plures import Experiment
        from plures.data.near_copies import unit
        from plures.runs.data import with_splits

        data, features = read(name)
        if data.splits is None:
            data = with_splits(data, Experiment(data="x.csv", seed=seed))
        train = np.flatnonzero(np.isin(data.splits, ["train", "val"]))
        train = np.sort(np.random.default_rng(seed).permutation(train)[: 3 * len(train) // 4])
        test = np.flatnonzero(data.splits == "test")
        self.seed, self.shown = seed, [data.classes.index(c) for c in (FREQUENT if name == "voc12" else data.classes)]
        self.data = data.take(train)
        self.x, self.y, self.vectors = features[train], data.labels.values[train], unit(features[train])
        self.x_test, self.y_test = features[test], data.labels.values[test]

    def solved(self, rows: Any, labels: np.ndarray) -> tuple[np.ndarray, float]:
        """Logits of all training photographs by a ridge on these, and test mAP; classes without a positive get 0."""
        from plures.labels import Labels
        from plures.losses.least_squares import LeastSquares
        from plures.metrics.average_precision import average_precision
        from plures.sklearn import _prepared, _solved

        head, weights, biases = _solved(self.x[rows], Labels(labels), LeastSquares(), [1.0], True)
        seen = (labels == 1).any(0)
        logits, judged = (
            np.where(seen, _prepared(head, x) @ weights[0].T + biases[0], 0) for x in (self.x, self.x_test)
        )
        return logits, 100 * float(np.nanmean(average_precision(judged, Labels(self.y_test))[self.shown]))

    def pick(self, order: str, count: int, begun: list[int], logits: np.ndarray | None, known: np.ndarray) -> list[int]:
        """The next photographs; begun: those asked before; known: the labels that the person has seen."""
        from dataclasses import replace

        from plures.labels import Labels
        from plures.web.questions import draw_sample

        random = np.random.default_rng([self.seed, len(begun)])
        left = np.setdiff1d(np.arange(len(self.x)), begun)
        if order == "sample":
            here = replace(self.data, labels=Labels(known), splits=None)
            return draw_sample(here, count, self.seed, without=begun)
        unsure = np.ones(len(self.x))
        if logits is not None and "uncertain" in order:
            p = 1 / (1 + np.exp(-4 * logits))
            unsure = -(p * np.log(p + 1e-9) + (1 - p) * np.log(1 - p + 1e-9)).mean(1)
        if order == "random" or (order == "uncertain" and logits is None):
            return [int(row) for row in random.permutation(left)[:count]]
        if order == "uncertain":
            return [int(row) for row in left[np.argsort(-unsure[left], kind="stable")][:count]]
        if order == "typical":
            return typical(self.vectors, count, begun, self.seed)
        return farthest(self.vectors, count, begun, unsure)


def farthest(vectors: np.ndarray, count: int, begun: list[int], weight: np.ndarray) -> list[int]:
    """Again and again the row of the largest weight x distance to all before; the first is the most usual one."""
    nearest, free = np.full(len(vectors), -1.0), np.ones(len(vectors), bool)
    free[begun] = False
    for row in begun:
        np.maximum(nearest, vectors @ vectors[row], out=nearest)
    picked: list[int] = []
    while len(picked) < count:
        gain = weight * (1 - nearest) if begun or picked else vectors @ vectors.mean(0)
        row = int(np.argmax(np.where(free, gain, -np.inf)))
        picked.append(row)
        free[row] = False
        np.maximum(nearest, vectors @ vectors[row], out=nearest)
    return picked


def typical(vectors: np.ndarray, count: int, begun: list[int], seed: int) -> list[int]:
    """One row from each cluster without a row begun, the largest first, where its 20 neighbours are nearest."""
    from sklearn.cluster import MiniBatchKMeans

    clusters = min(len(begun) + count, 500)
    of_row = MiniBatchKMeans(clusters, random_state=seed, n_init=1, batch_size=2048).fit_predict(vectors)
    queues = []
    for cluster in range(clusters):
        rows = np.flatnonzero(of_row == cluster)
        near = np.sort(vectors[rows] @ vectors[rows].T, axis=1)[:, -21:-1]
        score = near.mean(1) if near.size else np.zeros(len(rows))
        queues.append([int(row) for row in rows[np.argsort(-score, kind="stable")] if row not in set(begun)])
    taken, size = np.bincount(of_row[begun], minlength=clusters), np.bincount(of_row, minlength=clusters)
    picked: list[int] = []
    while len(picked) < count:
        cluster = min((c for c in range(clusters) if queues[c]), key=lambda c: (taken[c], -size[c]))
        picked.append(queues[cluster].pop(0))
        taken[cluster] += 1
    return picked


def different(cells: np.ndarray, vectors: np.ndarray, count: int) -> np.ndarray:
    """The first cells [., 2] of a ranking, no more than two of a class among neighbours (cosine above 0.7)."""
    chosen: list[int] = []
    of_class: dict[int, list[int]] = {}
    for place, (row, k) in enumerate(cells[: 20 * count]):
        before = of_class.setdefault(k, [])
        if int((vectors[before] @ vectors[row] > 0.7).sum()) < 2:
            before.append(row)
            chosen.append(place)
        if len(chosen) == count:
            break
    others = np.setdiff1d(np.arange(len(cells)), chosen)
    return cells[np.concatenate([chosen, others[: count - len(chosen)]]).astype(int)]


def first_tags(world: World) -> list[dict[str, Any]]:
    rows = []
    for order in ORDERS:
        labelled: list[int] = []
        logits = None
        for goal in PHOTOS:
            labelled += world.pick(order, goal - len(labelled), labelled, logits, world.y)
            logits, found = world.solved(labelled, world.y[labelled])
            rows.append({"order": order, "answers": goal, "map": found})
    return rows


def answers(world: World) -> list[dict[str, Any]]:
    from plures.labels import Labels, mask_to_single_positive

    y, rows = world.y, []
    start = mask_to_single_positive(Labels(y), 1200 + world.seed).values
    begin = world.solved(slice(None), start)
    for order in (*CELLS, "sample", *ORDERS):
        known, given, asked, half = start.copy(), 0, list[int](), list[int]()
        random, (logits, found) = np.random.default_rng(world.seed), begin
        rows.append({"order": order, "answers": 0, "map": found, "hidden": 0})
        for goal in ANSWERS:
            more, unknown = goal - given, (known == -1) & (y != -1)
            if more > unknown.sum():
                break
            if order in ("suggestions", "different"):
                ranked = np.argsort(-np.where(unknown, logits, -np.inf), axis=None, kind="stable")[: unknown.sum()]
                cells = np.stack(np.unravel_index(ranked, y.shape), 1)
                cells = cells[:more] if order == "suggestions" else different(cells, world.vectors, more)
            elif order == "random cells":
                cells = random.permutation(np.argwhere(unknown))[:more]
            else:
                count = min(-(-more // (y.shape[1] - 1)) + 20, len(y) - len(asked))
                new = [*half, *world.pick(order, count, asked, logits, known)]
                cells = np.array([(r, k) for r in new for k in np.flatnonzero(unknown[r])][:more])
                used = dict.fromkeys(cells[:, 0].tolist())
                asked = list(dict.fromkeys([*asked, *used]))
            known[tuple(cells.T)] = y[tuple(cells.T)]
            half = [row for row in asked if ((known[row] == -1) & (y[row] != -1)).any()]
            given, (logits, found) = goal, world.solved(slice(None), known)
            hidden = int(((known == 1) & (start != 1)).sum())
            rows.append({"order": order, "answers": goal, "map": found, "hidden": hidden})
    return rows


def run(name: str) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    worlds = (World(name, seed) for seed in SEEDS)
    return [{"task": t.__name__, "data": name, **row} for w in worlds for t in (first_tags, answers) for row in t(w)]


def main() -> None:
    with ProcessPoolExecutor(2) as pool:
        runs = [row for found in pool.map(run, ("miml_scene", "voc12")) for row in found]
    rows = []
    for key in dict.fromkeys((r["task"], r["data"], r["order"], r["answers"]) for r in runs):
        mine = [r for r in runs if (r["task"], r["data"], r["order"], r["answers"]) == key]
        values = np.array([r["map"] for r in mine])
        row = dict(zip(("task", "data", "order", "answers"), key, strict=True))
        row |= {"n": len(mine), "map": round(float(values.mean()), 2), "sd": round(float(values.std(ddof=1)), 2)}
        hidden = [r["hidden"] for r in mine if "hidden" in r]
        rows.append(row | {"hidden tags found": round(float(np.mean(hidden)), 1) if hidden else ""})
    print(write("active", rows))


if __name__ == "__main__":
    main()
