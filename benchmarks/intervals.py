"""How often the bootstrap interval of the mAP holds the truth, by how rare the classes are: nominal 95 percent.

    python benchmarks/intervals.py        # writes benchmarks/results/intervals.csv; minutes

Many samples are drawn from one population of scores and labels; the truth is the mAP of a very large sample over the
classes that the small one shows. Beside the interval in use: the percentile interval, and the percentile interval when
classes that a resample does not show are left out of it, as plures 0.1 did.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from plures.labels import Labels
from plures.metrics.average_precision import average_precision
from plures.metrics.intervals import bootstrap_average_precision, interval_of

CLASSES, LEVEL, RESAMPLES, SAMPLES = 10, 0.95, 200, 200
SHARES = {  # of images that have each class
    "rare, 1.5 percent": np.full(CLASSES, 0.015),
    "mixed, 1 to 30 percent": np.geomspace(0.01, 0.3, CLASSES),
    "common, 10 to 40 percent": np.linspace(0.1, 0.4, CLASSES),
}
APART = np.linspace(0.5, 2.5, CLASSES)  # standard deviations between scores of present and absent labels


def drawn(random: np.random.Generator, images: int, share: np.ndarray) -> tuple[np.ndarray, Labels]:
    present = random.random((images, CLASSES)) < share
    return (random.normal(size=present.shape) + APART * present).astype(np.float32), Labels.from_masks(present)


def measured(name: str, images: int) -> dict[str, object]:
    share = SHARES[name]
    scores, labels = drawn(np.random.default_rng(12345), 200_000, share)
    truths = average_precision(scores, labels)
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    held: dict[str, list[bool]] = {"basic": [], "percentile": [], "percentile, classes left out": []}
    widths, errors, outside = [], [], 0
    for seed in range(SAMPLES):
        scores, labels = drawn(np.random.default_rng(seed), images, share)
        there = labels.present.any(0)
        scores, labels, truth = scores[:, there], Labels(labels.values[:, there]), truths[there].mean()
        own = average_precision(scores, labels)
        samples = bootstrap_average_precision(scores, labels, resamples=RESAMPLES, seed=seed)
        same = np.where(np.isnan(samples), own, samples).mean(1)  # as `bootstrap_means`
        fewer = np.nanmean(samples, axis=1)
        found = interval_of(float(own.mean()), same, LEVEL, (0.0, 1.0))
        for kind, (low, high) in {
            "basic": (found.low, found.high),
            "percentile": np.quantile(same, edges),
            "percentile, classes left out": np.quantile(fewer, edges),
        }.items():
            held[kind].append(bool(low <= truth <= high))
            if kind == "percentile, classes left out":
                outside += not low <= found.value <= high
        widths.append(found.high - found.low)
        errors.append(found.value - truth)
    row: dict[str, object] = {"classes": name, "images": images, "samples": SAMPLES}
    row |= {f"{kind}, held the truth": round(100 * float(np.mean(of)), 1) for kind, of in held.items()}
    return row | {
        "width": round(100 * float(np.mean(widths)), 1),
        "mAP too high by": round(100 * float(np.mean(errors)), 1),
        "estimate outside, classes left out": round(100 * outside / SAMPLES, 1),
    }


def main() -> None:
    rows = [measured(name, images) for images in (150, 500) for name in SHARES]
    out = Path(__file__).parent / "results" / "intervals.csv"
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
