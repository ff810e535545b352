"""Which photographs to label first: test mAP against the number of photographs labelled, by the way they are picked.

Frozen features of EfficientNet-Lite2, the closed-form ridge (l2=1, standardised, normalised). Labels of the data stand
in for the person. Three draws: of the first photographs, and on miml_scene of the split; test labels are used for
nothing but the mAP reported.

  first tags: nothing is labelled; photographs are labelled completely, in rounds.
  answers: every training photograph has one tag; an answer says of one photograph and one class whether it is there.
    suggestions: the unknown cells of the highest probability (today's `plures suggest`); different: the same, at most
    one class per photograph and two photographs of a neighbourhood per round; photographs: complete ones, as picked.

    PLURES_SHARED=... python benchmarks/active.py
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from environment import write
from voc12 import FREQUENT, SHARED

PHOTOS = (20, 50, 100, 200, 400)
ANSWERS = (250, 500, 1000, 2000)
SEEDS = (0, 1, 2)
WAYS = {
    "random": {},
    "uncertain": {"uncertain": True},
    "k-centre": {"method": "k-centre"},
    "k-centre x uncertain": {"method": "k-centre", "uncertain": True},
    "typical": {"method": "typical"},
    "typical x uncertain": {"method": "typical", "uncertain": True},
}


def world(name: str, seed: int) -> tuple[Any, ...]:
    """Features, unit vectors and labels of the training rows; features and labels of the test rows; scored classes."""
    from plures import Experiment, read
    from plures.data.near_copies import unit
    from plures.models.model import build_model
    from plures.runs.data import with_splits
    from plures.scoring.features import frozen_features

    weights = {"model": "tf_efficientnet_lite2", "weights": str(SHARED / "weights/tf_efficientnet_lite2.safetensors")}
    if name == "voc12":
        data = read(f"voc:{SHARED / 'data/voc12/VOCdevkit/VOC2012'}")
    else:
        data = read(f"table:{SHARED / 'data/miml_scene/labels.csv'}", complete=True)
    options = weights | {"mean": [0.5] * 3, "std": [0.5] * 3}
    model = build_model("timm", "linear", data.classes, options, {}, 260)
    features = np.asarray(frozen_features(model, data, pooled=True, device=torch.device("cpu")))[:, 0]
    if data.splits is None:
        data = with_splits(data, Experiment(data="x.csv", seed=seed))
    assert data.splits is not None
    train, test = np.isin(data.splits, ["train", "val"]), data.splits == "test"
    shown = [data.classes.index(c) for c in (FREQUENT if name == "voc12" else data.classes)]
    y = data.labels.values
    return features[train], unit(features[train]), y[train], features[test], y[test], shown


def scores(x: np.ndarray, y: np.ndarray, x_test: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of other rows by a ridge on these; classes without a positive get 0."""
    from plures.labels import Labels
    from plures.losses.least_squares import LeastSquares
    from plures.sklearn import _prepared, _solved

    head, weights, biases = _solved(x, Labels(y), LeastSquares(), [1.0], True)
    seen = (y == 1).any(0)
    return [np.where(seen, _prepared(head, rows) @ weights[0].T + biases[0], 0) for rows in x_test]


def map_of(logits: np.ndarray, y: np.ndarray, shown: list[int]) -> float:
    from plures.labels import Labels
    from plures.metrics.average_precision import average_precision

    return 100 * float(np.nanmean(average_precision(logits, Labels(y))[shown]))


def uncertainty(logits: np.ndarray) -> np.ndarray:
    """Mean entropy over the classes, [N]."""
    p = 1 / (1 + np.exp(-4 * logits))
    return np.asarray(-(p * np.log(p + 1e-9) + (1 - p) * np.log(1 - p + 1e-9)).mean(1))


def first_tags(name: str, seed: int) -> list[dict[str, Any]]:
    from plures.analysis.picking import pick

    x, vectors, y, x_test, y_test, shown = world(name, seed)
    rows = []
    for way, options in WAYS.items():
        labelled: list[int] = []
        random = np.random.default_rng(100 + seed)
        logits = None
        for goal in PHOTOS:
            more = goal - len(labelled)
            unsure = uncertainty(logits) if options.get("uncertain") and logits is not None else None
            if way == "random" or (way == "uncertain" and unsure is None):
                left = np.setdiff1d(np.arange(len(x)), labelled)
                labelled += random.permutation(left)[:more].tolist()
            elif way == "uncertain":
                assert unsure is not None
                unsure[labelled] = -1
                labelled += np.argsort(-unsure, kind="stable")[:more].tolist()
            else:
                method: Any = options["method"]
                labelled += pick(vectors, more, begun=labelled, uncertainty=unsure, method=method, seed=seed)
            logits, judged = scores(x[labelled], y[labelled], [x, x_test])
            found = map_of(judged, y_test, shown)
            rows.append({"task": "first tags", "data": name, "way": way, "seed": seed, "given": goal, "map": found})
        print(rows[-1], flush=True)
    return rows


def answers(name: str, seed: int) -> list[dict[str, Any]]:
    from plures.analysis.picking import pick
    from plures.labels import Labels, mask_to_single_positive

    x, vectors, full, x_test, y_test, shown = world(name, seed)
    start = mask_to_single_positive(Labels(full), 1200 + seed).values
    rows = []
    for way in ("random cells", "suggestions", "different", "photographs: random", "photographs: k-centre x uncertain"):
        observed, given = start.copy(), 0
        random = np.random.default_rng(seed)
        logits, judged = scores(x, observed, [x, x_test])
        found = map_of(judged, y_test, shown)
        rows.append({"task": "answers", "data": name, "way": way, "seed": seed, "given": 0, "map": found})
        for goal in ANSWERS:
            more = goal - given
            unknown = observed == -1
            if more > int(unknown.sum()):
                break
            if way.startswith("photographs"):
                begun = np.flatnonzero((observed == 0).any(1)).tolist()
                left = unknown.any(1)
                n = int(np.ceil(more / (full.shape[1] - 1)))
                if way.endswith("random"):
                    order = random.permutation(np.flatnonzero(left & ~(observed == 0).any(1)))[:n].tolist()
                else:
                    order = pick(vectors, n, begun=begun, uncertainty=uncertainty(logits), method="k-centre", seed=seed)
                half = [row for row in begun if unknown[row].any()]
                cells = [(r, k) for r in [*half, *order] for k in np.flatnonzero(unknown[r])][:more]
            elif way == "random cells":
                cells = [tuple(c) for c in random.permutation(np.argwhere(unknown))[:more]]
            else:
                ranked = np.argsort(-np.where(unknown, logits, -np.inf), axis=None, kind="stable")[: int(unknown.sum())]
                cells = [(int(c) // full.shape[1], int(c) % full.shape[1]) for c in ranked]
                cells = cells[:more] if way == "suggestions" else different(cells, vectors, more)
            at = tuple(np.array(cells).T)
            observed[at] = full[at]
            given = goal
            logits, judged = scores(x, observed, [x, x_test])
            found = map_of(judged, y_test, shown)
            hidden = int(((observed == 1) & (start != 1)).sum())
            rows.append({"task": "answers", "data": name, "way": way, "seed": seed, "given": goal, "map": found,
                         "hidden tags found": hidden})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def different(cells: list[tuple[int, int]], vectors: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The first cells of a ranking, no more than two of a class among neighbours (cosine above 0.7)."""
    chosen: list[tuple[int, int]] = []
    of_class: dict[int, list[int]] = {}
    for row, k in cells[: 20 * count]:
        before = of_class.setdefault(k, [])
        if len(before) >= 2 and int((vectors[before] @ vectors[row] > 0.7).sum()) >= 2:
            continue
        before.append(row)
        chosen.append((row, k))
        if len(chosen) == count:
            return chosen
    return chosen + [c for c in cells if c not in set(chosen)][: count - len(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="first_tags,answers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {"first_tags": first_tags, "answers": answers}
    runs = [
        row
        for task in args.tasks.split(",")
        for name in ("miml_scene", "voc12")
        for seed in SEEDS
        for row in tasks[task](name, seed)
    ]
    rows = []
    for task, name, way, given in dict.fromkeys((r["task"], r["data"], r["way"], r["given"]) for r in runs):
        mine = [r for r in runs if (r["task"], r["data"], r["way"], r["given"]) == (task, name, way, given)]
        values = np.array([r["map"] for r in mine])
        row = {"task": task, "data": name, "way": way, "given": given, "n": len(mine)}
        row |= {"map": round(float(values.mean()), 2), "sd": round(float(values.std(ddof=1)), 2)}
        if "hidden tags found" in mine[0]:
            row["hidden tags found"] = round(float(np.mean([r["hidden tags found"] for r in mine])), 1)
        rows.append(row)
    print(write("active", rows))


if __name__ == "__main__":
    main()
