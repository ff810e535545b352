"""The closed-form ridge on made-up features of one observed positive per image: seconds, memory, and scikit-learn.

    OMP_NUM_THREADS=2 python benchmarks/ridge.py                                  # COCO's size, seven strengths
    OMP_NUM_THREADS=2 python benchmarks/ridge.py --images 1000000 --width 768 --classes 500
    python benchmarks/ridge.py --images 8000 --width 512 --classes 40 --sklearn   # RidgeCV, LogisticRegression

Features are a memory-mapped file, made piece by piece, and read in pieces. `seconds` and `cpu` are of the closed form
for all strengths, without choosing among them; `anonymous_mb` the most memory held beyond what was held before, without
the pages of the mapped file, which are the system's to drop. scikit-learn's RidgeCV chooses among the same strengths by
leaving one out, LogisticRegression has one strength; both take every unknown label for absent, one class at a time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write

from metrics import extra_memory
from plures.config import RIDGE_L2
from plures.labels import Labels
from plures.losses.least_squares import LeastSquares
from plures.models.heads.linear import Linear
from plures.scoring.features import feature_statistics
from plures.training.ridge import Rows, solve

PIECE = 8192


def made_up(folder: Path, N: int, D: int, K: int) -> tuple[Any, Labels]:
    """Features [N, 1, D] >= 0 in a file, half of them 0, and one observed label of each image."""
    features = np.memmap(folder / "features", np.float32, "w+", shape=(N, 1, D))
    random = np.random.default_rng(1)
    directions = random.normal(size=(K, D)).astype(np.float32)
    shares = np.geomspace(0.2, 0.2 * 0.025, K)
    observed = np.full((N, K), -1, np.int8)
    for start in range(0, N, PIECE):
        rows = np.arange(start, min(start + PIECE, N))
        present = random.random((len(rows), K)) < shares
        present[np.arange(len(rows)), random.choice(K, len(rows), p=shares / shares.sum())] = True
        x = present.astype(np.float32) @ directions + random.standard_normal((len(rows), D), np.float32)
        features[rows, 0] = np.maximum(x, 0)
        shown = np.where(present, random.random(present.shape), -1).argmax(1)
        observed[rows, shown] = 1
    return features, Labels(observed)


def plures(features: Any, labels: Labels, D: int, K: int) -> Any:
    head = Linear(D, K, standardise=True, normalise=True)
    head.fit_features(*feature_statistics(features))
    return head, solve(Rows(features, head, torch.device("cpu")), labels, LeastSquares(), RIDGE_L2)


def timed(name: str, work: Any, size: dict[str, int]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    extra = extra_memory(work)
    row: dict[str, Any] = {"what": name, **size, "threads": torch.get_num_threads()}
    row |= {"seconds": round(time.perf_counter() - wall, 1), "cpu": round(time.process_time() - cpu, 1)}
    row |= {"anonymous_mb": round(extra)}
    print(row, flush=True)
    return row


def beside(features: Any, labels: Labels, D: int, K: int, size: dict[str, int]) -> list[dict[str, Any]]:
    """scikit-learn, class by class, on the same prepared features."""
    from sklearn.linear_model import LogisticRegression, RidgeCV

    head, _ = plures(features, labels, D, K)
    x = head.prepared(torch.from_numpy(np.asarray(features)))[:, 0].numpy()

    def each(make: Any, targets: Any) -> None:
        for k in range(K):
            make().fit(x, targets[:, k])

    present = labels.present
    return [
        timed("scikit-learn RidgeCV per class", lambda: each(lambda: RidgeCV(RIDGE_L2), 3.0 * (2 * present - 1)), size),
        timed("scikit-learn LogisticRegression per class", lambda: each(LogisticRegression, present), size),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=65_665)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--sklearn", action="store_true", help="also scikit-learn, class by class")
    args = parser.parse_args()
    N, D, K = args.images, args.width, args.classes
    size = {"images": N, "width": D, "classes": K, "strengths": len(RIDGE_L2)}
    from environment import read_rows

    kept = [r for r in read_rows("ridge") if any(r[key] != value for key, value in size.items())]
    with tempfile.TemporaryDirectory() as folder:
        features, labels = made_up(Path(folder), N, D, K)
        rows = [timed("closed form", lambda: plures(features, labels, D, K), size)]
        if args.sklearn:
            rows += beside(features, labels, D, K, size)
    print(write("ridge", [*kept, *rows]))


if __name__ == "__main__":
    main()
