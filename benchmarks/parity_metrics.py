"""Metrics beside those of torchmetrics (Apache-2.0) on random scores: the same quantity from other people's code.

Scores with and without ties; complete labels and partial ones (torchmetrics leaves out `ignore_index`); a class that
no image has and one that all have. Values that only one of the two defines are counted apart.

    python benchmarks/parity_metrics.py        # seconds; torchmetrics comes with the extra `dev`

Writes benchmarks/results/parity_metrics.csv: a row for each metric and kind of labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from environment import write
from torchmetrics.functional import classification as tm
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_precision, retrieval_recall

from plures.labels import Labels
from plures.metrics.average_precision import average_precision
from plures.metrics.counts import averages, count_tags
from plures.metrics.ranking import ranking

SHAPES, SEEDS, WITHIN = ((40, 5), (300, 20), (1000, 80)), (0, 1, 2), 1e-6  # torchmetrics computes in float32
BELOW = float(np.nextafter(np.float32(0.5), np.float32(0)))  # a score of 0.5 itself is a tag here, and none there
WHY = {
    "overall F1 (OF1), their threshold": "a score of exactly 0.5 is a tag here (>=) and none there (>)",
    "overall F1 (OF1), all classes": "a class that all images have counts there, and not here (textbook)",
    **dict.fromkeys(
        ("precision at k", "recall at k", "hit at k"),
        "equal scores: here the class that comes first, there as topk has it",
    ),
}
Values = dict[str, tuple[np.ndarray, np.ndarray]]


def cases(kind: str, tied: bool) -> Iterator[tuple[np.ndarray, Labels]]:
    for n, K in SHAPES:
        for seed in SEEDS:
            random = np.random.default_rng([seed, n, K])
            values = (random.random((n, K)) < random.uniform(0.02, 0.5, K)).astype(np.int8)
            values[:, 0], values[:, 1] = 0, 1
            if kind == "partial":
                values[random.random((n, K)) < 0.4] = -1
            scores = np.clip(random.normal(0.35 + 0.2 * (values == 1), 0.2), 0.01, 0.99)
            yield (scores.round(1) if tied else scores).astype(np.float32), Labels(values)


def both(scores: np.ndarray, labels: Labels) -> Values:
    """Ours and theirs, by metric."""
    p, y = torch.from_numpy(scores), torch.from_numpy(labels.values).long()
    K, each = labels.classes, {"num_labels": labels.classes, "average": "none", "ignore_index": -1}
    cut: dict[str, Any] = each | {"threshold": BELOW}
    ours, counts = averages(count_tags(scores, labels)), count_tags(scores, labels)
    fallible = counts.known > counts.positives  # elsewhere precision and F1 are undefined here
    pooled = torch.from_numpy(np.where(fallible[None], labels.values, -1)).long()
    micro = cut | {"average": "micro"}
    found = {
        "AP of each class": (average_precision(scores, labels), tm.multilabel_average_precision(p, y, **each)),
        "precision of each class": (ours.precision, tm.multilabel_precision(p, y, **cut)),
        "recall of each class": (ours.recall, tm.multilabel_recall(p, y, **cut)),
        "F1 of each class": (ours.f1, tm.multilabel_f1_score(p, y, **cut)),
        "overall precision (OP)": (ours.OP, tm.multilabel_precision(p, pooled, **micro)),
        "overall F1 (OF1)": (ours.OF1, tm.multilabel_f1_score(p, pooled, **micro)),
        "overall F1 (OF1), their threshold": (
            ours.OF1,
            tm.multilabel_f1_score(p, pooled, **micro | {"threshold": 0.5}),
        ),
        "overall F1 (OF1), all classes": (ours.OF1, tm.multilabel_f1_score(p, y, **micro)),
    }
    if labels.complete:
        for one in ranking(scores, labels, (1, 3, min(5, K))):
            given = list(zip(p, y, strict=True))
            for name, theirs in (
                ("precision", retrieval_precision), ("recall", retrieval_recall), ("hit", retrieval_hit_rate),
            ):  # fmt: skip
                each_image = [float(theirs(s, t, top_k=one.k)) for s, t in given]
                found[f"{name} at k"] = (getattr(one, name), np.mean(each_image))  # type: ignore[assignment]
    return {name: (np.atleast_1d(a), np.atleast_1d(np.asarray(b))) for name, (a, b) in found.items()}


def main() -> None:
    rows = []
    for kind in ("complete", "partial"):
        for tied in (False, True):
            sums: dict[str, dict[str, Any]] = {}
            for scores, labels in cases(kind, tied):
                for name, (ours, theirs) in both(scores, labels).items():
                    row = sums.setdefault(name, {"values": 0, "far": 0.0, "only_theirs": []})
                    row["values"] += len(ours)
                    defined = ~np.isnan(ours)
                    row["far"] = max(row["far"], float(np.abs(ours - theirs)[defined].max(initial=0)))
                    row["only_theirs"] += [abs(value) for value in theirs[~defined].tolist()]
            for name, row in sums.items():
                other = row["only_theirs"]
                undefined = f"{len(other)} values of {min(other):.2f} to {max(other):.2f}" if other else ""
                rows.append(
                    {
                        "metric": name, "labels": kind, "scores": "with ties" if tied else "distinct",
                        "values": row["values"], "difference": f"{row['far']:.1e}", "within": WITHIN,
                        "agrees": "yes" if row["far"] <= WITHIN else "no",
                        "why_not": "" if row["far"] <= WITHIN else WHY.get(name, ""),
                        "theirs_where_undefined": undefined,
                    }
                )  # fmt: skip
    for row in rows:
        print(*row.values(), sep=" | ")
    print(write("parity_metrics", rows))


if __name__ == "__main__":
    main()
