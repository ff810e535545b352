"""Every loss that a linear head can have, one positive an image, on three data sets: which one should be the default?

Frozen MobileNetV2 features (photographs 224 px, built-in scenes 128 px), pooled; five seeds, each with its own draw of
the positives, order and first weights; 10, 8 and 6 epochs of batches of 16. Two ways of training:
  plain: Adam, learning rate 1e-3 or 3e-4, as the papers train linear heads;
  regularised: standardised features, AdamW, learning rate 3e-4, weight decay 3 or 10.
Of the two settings and of the epochs the best validation mAP is taken, per loss and data set: by the observed
positives, everything else counted as absent (no clean labels are used), or by all labels. Never by test.
Full supervision (bce) is the upper end. Test mAP on VOC-12 is over the 13 classes with 10 test positives or more. Micro
F1 and tags an image stand at a threshold of 0.5 and at one global threshold chosen on the validation images: from their
observed positives alone (rule observed) or from all their labels (rule clean).

    PLURES_SHARED=... python benchmarks/evidence.py           # about an hour on one core
    PLURES_SHARED=... python benchmarks/evidence.py --data "" # only the summaries, from the runs that are there

Writes benchmarks/results/evidence_runs.csv (a row a run), evidence.csv (mean and sd over the seeds) and
evidence_ranks.csv (the place of each loss among those measured on every data set, 1 the best).
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
        if set(getattr(losses[name].make, "needs", ())) - {"label_state"} or name in ("vlpl", "gpr"):
            continue
        try:
            losses.make(name).check(Labels(np.array([[1, -1], [-1, 1]], np.int8)))
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
        values["backbone"] = {**values["backbone"], "image_size": values.pop("image_size")}
    return Experiment(**values)


def measure(data: str, names: list[str], seeds: int, threads: int) -> list[dict[str, Any]]:
    """All runs on one data set, trained together; a row a run."""
    from plures import read
    from plures.metrics.report import evaluate_scores
    from plures.sweeps.frozen import SharedData
    from plures.sweeps.vectorized.training import train_together

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
    bench = SharedData(read(first.data.name, **first.data.options), torch.device("cpu"))
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
        chosen = at_chosen(run, head, rule, logits, test) if not head.failed else {}
        rows.append({**row, **score, **tags, **chosen, "epoch": head.best.epoch, "failed": head.failed})
    return rows


def at_chosen(run: Any, head: Any, rule: str, logits: Any, test: Any) -> dict[str, float]:
    """Micro F1 and tags an image on test at a global threshold chosen on the validation images, as the rule allows."""
    from plures.analysis.thresholds import from_logits
    from plures.metrics.choosing import Objective
    from plures.metrics.report import evaluate_scores

    on_val = np.asarray(run.data.val, np.float32) @ head.weight.numpy().T + head.bias.numpy()
    labels, source = (run.val_observed, "positives") if rule == "observed" else (run.data.val_labels, "clean")
    choice = from_logits(on_val, labels, test.classes, source=source, objective=Objective("f1"), per_class=False)
    cut = choice.thresholds.values
    report = evaluate_scores(logits, test.labels, test.classes, "plain", cut, bootstrap=0, logits=True)
    return {"f1_chosen": 100 * report.averages["OF1"], "tags_chosen": report.tags_predicted}


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
        for name in ("val", "f1", "tags", "f1_chosen", "tags_chosen", "true_tags"):
            values = [r.get(name, "") for r in mine]
            row[name] = "" if "" in values else round(float(np.mean(values)), 2)
        rows.append(row)
    return rows


def ranks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each loss's place by test mAP on each data set, among the losses that all data sets have, and the mean of these;
    by way of training, where setting and epoch were chosen without clean labels."""
    found = []
    for way in WAYS:
        of = {
            d: {r["loss"]: r["test"] for r in rows if (r["data"], r["way"], r["rule"]) == (d, way, "observed")}
            for d in DATA
        }
        shared = sorted(set.intersection(*(set(scores) for scores in of.values())))
        places = {d: sorted(shared, key=lambda loss, d=d: -of[d][loss]) for d in DATA}
        for loss in shared:
            place = {d: places[d].index(loss) + 1 for d in DATA}
            found.append(
                {
                    "way": way,
                    "loss": loss,
                    "of": len(shared),
                    "mean_rank": round(np.mean([*place.values()]), 2),
                    **place,
                }
            )
    return sorted(found, key=lambda row: (row["way"], row["mean_rank"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--losses", default="")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    names = args.losses.split(",") if args.losses else losses_here()
    for data in filter(None, args.data.split(",")):
        kept = [r for r in read_rows("evidence_runs") if r["data"] != data or r["loss"] not in ["bce", *names]]
        runs = kept + measure(data, names, args.seeds, args.threads)
        write("evidence_runs", runs)
        print(data, "done", flush=True)
    rows = summary(read_rows("evidence_runs"))
    write("evidence", rows)
    print(write("evidence_ranks", ranks(rows)))


if __name__ == "__main__":
    main()
