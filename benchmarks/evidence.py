"""Every loss that a linear head can have, one positive an image, on three data sets: which one should be the default?

Frozen MobileNetV2 features (photographs 224 px, built-in scenes 128 px), pooled; five seeds, each with its own draw of
the positives, order and first weights; 10, 8 and 6 epochs of batches of 16. Two ways of training:
  plain: Adam, learning rate 1e-3 or 3e-4, as the papers train linear heads;
  regularised: standardised features, AdamW, learning rate 3e-4, weight decay 3 or 10.
Of the two settings and of the epochs the best validation mAP is taken, per loss and data set: by the observed
positives, everything else counted as absent (no clean labels are used), or by all labels. Never by test.
Full supervision (bce) is the upper end. Test mAP on VOC-12 is over the 13 classes with 10 test positives or more.

    PLURES_SHARED=... python benchmarks/evidence.py           # about half an hour on one core

Writes benchmarks/results/evidence_runs.csv (a row a run) and evidence.csv (mean and sd over the seeds).
"""

from __future__ import annotations

import argparse
import inspect
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from environment import read_rows, write
from voc12 import FREQUENT, SHARED, settings

WAYS = {
    "plain": [{"head": "linear", "optimizer": "adam", "lr": lr, "weight_decay": 0.0} for lr in (1e-3, 3e-4)],
    "regularised": [
        {"head": {"name": "linear", "standardise": True}, "optimizer": "adamw", "lr": 3e-4, "weight_decay": decay}
        for decay in (3.0, 10.0)
    ],
}
DATA: dict[str, dict[str, Any]] = {
    "voc12": {"epochs": 10, "split": "mlspl"},
    "miml_scene": {
        "data": {"name": f"table:{SHARED / 'data' / 'miml_scene' / 'labels.csv'}", "complete": True},
        "epochs": 8,
        "split": "mlspl",
    },
    "scenes": {"data": "scenes", "epochs": 6, "image_size": 128},
}
LABELS_AN_IMAGE = {"voc12": 1.4, "miml_scene": 1.24, "scenes": 2.5}  # for losses that want it, as their papers give it
RULES = {"observed": "val_map_observed", "clean": "val_map"}


def losses_here() -> list[str]:
    """Every loss that needs nothing of the head and takes one positive an image, without scores of another model."""
    from plures.errors import PluresError
    from plures.labels import Labels
    from plures.losses import losses

    names = []
    for name in losses.names():
        if set(getattr(losses[name].make, "needs", ())) - {"label_state"} or name == "vlpl":
            continue
        try:
            getattr(losses.make(name), "check", lambda labels: None)(Labels(np.array([[1, -1], [-1, 1]], np.int8)))
        except PluresError:
            continue
        names.append(name)
    return names


def experiment(data: str, loss: str, setting: dict[str, Any], rule: str, seed: int) -> Any:
    from plures import Experiment
    from plures.losses import losses

    values = settings("linear", "an", 1e-3, seed) | DATA[data] | setting
    values |= {"batch_size": 16, "select": RULES[rule], "supervision": {"name": "single_positive", "seed": 1200 + seed}}
    values["loss"] = loss
    if loss == "bce":
        values["supervision"] = "full"
    elif "expected_positives" in inspect.signature(losses[loss].make).parameters:
        values["loss"] = {"name": loss, "expected_positives": LABELS_AN_IMAGE[data]}
    if "image_size" in values:
        values["embedder"] = {**values["embedder"], "image_size": values.pop("image_size")}
    return Experiment(**values)


def measure(data: str, names: list[str], seeds: int, threads: int) -> list[dict[str, Any]]:
    """All runs on one data set, trained together; a row a run."""
    from plures import read
    from plures.metrics.report import evaluate_scores
    from plures.training.frozen_sweep import Bench
    from plures.training.together import train_together

    jobs = [
        (way, place, rule, loss, seed)
        for way, ones in WAYS.items()
        for place in range(len(ones))
        for rule in RULES
        for loss in ["bce", *names]
        for seed in range(seeds)
        if not (loss == "bce" and rule == "observed")
    ]
    first = experiment(data, "an", WAYS["plain"][0], "clean", 0)
    bench = Bench(read(first.data.name, **first.data.options), torch.device("cpu"))
    made = [
        bench.head_run(experiment(data, loss, WAYS[way][place], rule, seed)) for way, place, rule, loss, seed in jobs
    ]
    rows = []
    for (way, place, rule, loss, seed), run, head in zip(
        jobs, made, train_together(made, threads=threads), strict=True
    ):
        logits, test = bench.test_logits(run, head)
        report = evaluate_scores(logits, test.labels, test.classes, "plain", 0.5, bootstrap=0, logits=True)
        ap = {c.name: c.average_precision for c in report.per_class}
        kept = FREQUENT if data == "voc12" else list(ap)
        row = {"data": data, "loss": loss, "way": way, "setting": place, "rule": rule, "seed": seed}
        score = {"val": head.best.score, "test": 100 * float(np.nanmean([ap[c] for c in kept]))}
        tags = {"f1": 100 * report.averages["OF1"], "tags": report.tags_predicted, "true_tags": report.tags_true}
        rows.append({**row, **score, **tags, "epoch": head.best.epoch, "failed": head.failed})
    return rows


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each data set, loss, way and rule the setting with the best mean validation score: mean and sd on test."""
    cells: dict[tuple[str, ...], dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        cells[run["data"], run["loss"], run["way"], run["rule"]][run["setting"]].append(run)
    rows = []
    for (data, loss, way, rule), by_setting in cells.items():
        place = max(by_setting, key=lambda s: np.nan_to_num(np.mean([r["val"] for r in by_setting[s]]), nan=-1.0))
        mine = by_setting[place]
        test = np.array([r["test"] for r in mine])
        row = {"data": data, "loss": loss, "way": way, "rule": rule, "setting": place, "n": len(mine)}
        row |= {"test": round(float(test.mean()), 2), "sd": round(float(test.std(ddof=1)), 2)}
        row |= {name: round(float(np.mean([r[name] for r in mine])), 2) for name in ("val", "f1", "tags", "true_tags")}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--losses", default="")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    names = args.losses.split(",") if args.losses else losses_here()
    for data in args.data.split(","):
        kept = [r for r in read_rows("evidence_runs") if r["data"] != data or r["loss"] not in ["bce", *names]]
        runs = kept + measure(data, names, args.seeds, args.threads)
        write("evidence_runs", runs)
        write("evidence", summary(runs))
        print(data, "done", flush=True)


if __name__ == "__main__":
    main()
