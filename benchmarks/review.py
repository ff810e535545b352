"""What an answer is worth: test mAP against the number of answers given in a review simulated from the full labels.

VOC-12 sample, frozen MobileNetV2 features, linear head, weak assume-negative loss (the best on single positives in
voc12_linear.csv), last epoch, three draws of the one positive a photo. An answer says of a cell (photo, class) whether
it is present. Strategies: "suggestions": the highest unknown cells by a model trained on what is known so far, asked in
rounds; "full annotations": photos drawn at random, every unknown class of each asked; "random cells". Test labels are
used for nothing but the mAP reported.

    PLURES_SHARED=... python benchmarks/review.py [--keep FILE]       # FILE: keeps finished seeds
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environment import write
from voc12 import FREQUENT, photographs, settings

from plures.analysis.missing import rank_missing
from plures.labels import Labels
from plures.metrics.thresholds import sigmoid

ANSWERS = (0, 250, 500, 1000, 2000, 4000)
STRATEGIES = ("suggestions", "full annotations", "random cells")
SEEDS = (0, 1, 2)
EPOCHS, LR = 10, 1e-3
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "review_answers.png"


def trained(observed: np.ndarray, data: Any, seed: int, scores: bool) -> tuple[dict[str, float], np.ndarray | None]:
    """Test mAP in percent of a model trained on these labels of the training rows, and its logits of them."""
    import torch

    from plures import Experiment, train
    from plures.metrics.report import Report
    from plures.models.model import load
    from plures.scoring.device import make_fabric
    from plures.scoring.logits import logits_of_dataset

    torch.set_num_threads(1)
    values = settings("linear", "wan", LR, seed)
    e = Experiment(**values | {"supervision": "as_given", "select": "last", "epochs": EPOCHS})
    labels = data.labels.values.copy()
    labels[data.splits == "train"] = observed
    data = data.with_labels(Labels(labels))
    with tempfile.TemporaryDirectory() as folder:
        run = train(e, Path(folder) / "run", dataset=data)
        report = Report.load(run.path / "report.json")
        logits = logits_of_dataset(load(run.path), data.split("train"), e, make_fabric(e)) if scores else None
    ap = {c.name: c.average_precision for c in report.per_class}
    test13 = 100 * float(np.mean([ap[c] for c in FREQUENT]))
    return {"test13": test13, "test20": 100 * report.map}, logits


def asked(strategy: str, observed: np.ndarray, logits: np.ndarray | None, count: int, random: Any) -> list[Any]:
    """The next cells to ask, at most `count`."""
    unknown = observed == -1
    if strategy == "suggestions":
        assert logits is not None
        found = rank_missing(sigmoid(logits), Labels(observed), top=count)
        return [(s.row, s.column) for s in found]
    if strategy == "random cells":
        cells = np.argwhere(unknown)
        return [tuple(cell) for cell in random.permutation(cells)[:count]]
    # photos that an earlier round began (a round may end in the middle of one) come first
    begun = [row for row in np.flatnonzero(unknown.any(1)) if (observed[row] == 0).any()]
    rest = [row for row in random.permutation(np.flatnonzero(unknown.any(1))) if row not in set(begun)]
    return [(row, k) for row in [*begun, *rest] for k in np.flatnonzero(unknown[row])][:count]


def curve(strategy: str, seed: int, start: tuple[dict[str, float], np.ndarray], data: Any) -> list[dict[str, Any]]:
    from plures.labels import mask_to_single_positive

    random = np.random.default_rng(seed)
    full = data.split("train").labels
    observed = mask_to_single_positive(full, 1200 + seed).values.copy()
    scores, logits = start
    rows = []
    given = found = 0
    for goal in ANSWERS:
        if goal:
            cells = tuple(np.array(asked(strategy, observed, logits, goal - given, random)).T)
            observed[cells] = full.values[cells]
            given, found = goal, found + int((full.values[cells] == 1).sum())
            scores, logits = trained(observed, data, seed, strategy == "suggestions")
        rows.append({"strategy": strategy, "seed": seed, "answers": goal, "positives found": found, **scores})
        print(rows[-1], flush=True)
    return rows


def plot(rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=110)
    for strategy, colour in zip(STRATEGIES, ("#2357b8", "#b3372e", "#777770"), strict=True):
        mine = [r for r in rows if r["strategy"] == strategy]
        mean, sd = (np.array([r[name] for r in mine]) for name in ("test13", "test13 sd"))
        x = np.array([r["answers"] for r in mine])
        axes.plot(x, mean, "o-", color=colour, label=strategy)
        axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="answers (one photo, one class each)", ylabel="test mAP, 13 classes (percent)")
    axes.set_title("VOC-12 sample: one tag a photo, then a review (mean and sd of 3 draws)", fontsize=10)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    from plures import Experiment
    from plures.labels import mask_to_single_positive
    from plures.runs.data import with_splits

    e = Experiment(**settings("linear", "wan", LR, 0))
    data = with_splits(photographs(e.data.name), e)
    kept = json.loads(args.keep.read_text()) if args.keep and args.keep.is_file() else []
    for seed in SEEDS:
        if all(any(r["seed"] == seed and r["strategy"] == s for r in kept) for s in STRATEGIES):
            continue
        first = mask_to_single_positive(data.split("train").labels, 1200 + seed).values
        start = trained(first, data, seed, True)
        for strategy in STRATEGIES:
            kept += curve(strategy, seed, start, data)
        if args.keep:
            args.keep.write_text(json.dumps(kept))
    rows = []
    for strategy in STRATEGIES:
        for answers in ANSWERS:
            mine = [r for r in kept if r["strategy"] == strategy and r["answers"] == answers]
            row: dict[str, Any] = {"strategy": strategy, "answers": answers, "n": len(mine)}
            for name in ("test13", "test20", "positives found"):
                values = np.array([r[name] for r in mine])
                row |= {name: round(float(values.mean()), 2), f"{name} sd": round(float(values.std(ddof=1)), 2)}
            rows.append(row)
            print(row)
    print(write("review", rows))
    plot(rows)


if __name__ == "__main__":
    main()
