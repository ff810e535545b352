"""A linear head solved exactly against linear heads trained step by step: one positive an image, three data sets.

Frozen MobileNetV2 features, data, splits and draws of positives as in benchmarks/evidence.py, whose best settings this
table stands beside. Here: stages=ridge, loss least_squares, head.standardise; with and without head.normalise; with
weights of 1, .3 and 1 / (K - 1) of the unobserved labels. With all labels nothing is drawn, so one run is all. The
strength l2 is chosen by validation mAP on the observed positives alone (all labels: by clean validation). Test mAP on
VOC-12 is over the 13 classes with 10 test positives. F1 and tags stand at 0.5 and at a threshold chosen on the
validation images from observed positives alone. Seconds: of solving and scoring all strengths, features being cached.

    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/exact.py     # some minutes
    ... benchmarks/exact.py --backbone efficientnet_lite2 --data voc12 miml_scene    # the same on other features

Writes benchmarks/results/exact.csv: mean and sd over five seeds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environment import read_rows, write
from evidence import DATA, experiment
from voc12 import FREQUENT, SHARED

from plures import Experiment, load, read
from plures.analysis.thresholds import from_logits
from plures.metrics.choosing import Objective
from plures.metrics.report import Report, evaluate_scores
from plures.runs.data import prepare
from plures.scoring.device import make_fabric
from plures.scoring.logits import logits_of_dataset
from plures.training.train import train

BACKBONES: dict[str, dict[str, Any]] = {
    "mobilenetv2": {},
    "efficientnet_lite2": {
        "backbone": {"name": "fast", "weights": str(SHARED / "weights" / "tf_efficientnet_lite2.safetensors")}
    },
}
WEIGHTS: dict[str, Any] = {"1": 1.0, "0.3": 0.3, "1/(K-1)": "auto"}


def one_run(
    name: str, dataset: Any, labels: str, weight: Any, normalise: bool, seed: int, backbone: str
) -> dict[str, float]:
    full = labels == "all"
    values = experiment(name, "bce" if full else "an", {}, "clean" if full else "observed", seed).to_dict()
    values |= {"head": {"name": "linear", "standardise": True, "normalise": normalise}, "stages": "ridge"}
    values |= BACKBONES[backbone]
    values["loss"] = {"name": "least_squares", "negative_weight": weight}
    folder = Path(tempfile.mkdtemp()) / "run"
    run = train(Experiment(**values), folder, dataset=dataset)
    report = Report.load(run.path / "report.json")
    ap = {c.name: c.average_precision for c in report.per_class}
    kept = FREQUENT if name == "voc12" else list(ap)
    l2 = run.log[run.log[-1]["best_epoch"]]["l2"]
    row = {"test": 100 * float(np.nanmean([ap[c] for c in kept])), "l2": l2}
    row |= {"f1": 100 * report.averages["OF1"], "tags": report.tags_predicted, "true_tags": report.tags_true}
    row["seconds"] = sum(record["seconds"] for record in run.log)
    row |= at_chosen(run, dataset, "clean" if full else "positives")
    shutil.rmtree(folder.parent)
    return row


def at_chosen(run: Any, dataset: Any, source: Any) -> dict[str, float]:
    """Micro F1 and tags an image on test at a global threshold chosen on the validation images."""
    model, fabric, e = load(run.path), make_fabric(run.experiment), run.experiment
    prepared = prepare(e, dataset)
    test = prepared.test or prepared.val
    on_val, on_test = (logits_of_dataset(model, part, e, fabric) for part in (prepared.val, test))
    labels = prepared.val.labels if source == "clean" else prepared.val_observed
    choice = from_logits(on_val, labels, test.classes, source=source, objective=Objective("f1"), per_class=False)
    cut = choice.thresholds.values
    report = evaluate_scores(on_test, test.labels, test.classes, "plain", cut, bootstrap=0, logits=True)
    return {"f1_chosen": 100 * report.averages["OF1"], "tags_chosen": report.tags_predicted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbone", choices=BACKBONES, default="mobilenetv2")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    args = parser.parse_args()
    old = [{"backbone": "mobilenetv2", **row} for row in read_rows("exact")]
    rows = [row for row in old if row["backbone"] != args.backbone or row["data"] not in args.data]
    for name in args.data:
        first = experiment(name, "an", {}, "clean", 0)
        dataset = read(first.data.name, **first.data.options)
        cells = [("all", "1"), ("one positive", "1"), ("one positive", "0.3"), ("one positive", "1/(K-1)")]
        for labels, weight in cells:
            for normalise in (False, True):
                seeds = range(args.seeds if labels == "one positive" else 1)
                runs = [one_run(name, dataset, labels, WEIGHTS[weight], normalise, s, args.backbone) for s in seeds]
                row: dict[str, Any] = {
                    "backbone": args.backbone,
                    "data": name,
                    "labels": labels,
                    "unknown_weight": weight,
                }
                row |= {"normalise": normalise, "n": len(runs)}
                for key in ("test", "f1", "tags", "f1_chosen", "tags_chosen"):
                    numbers = np.array([r[key] for r in runs])
                    row[key] = round(float(numbers.mean()), 2)
                    row[f"{key}_sd"] = round(float(numbers.std(ddof=1)), 2) if len(runs) > 1 else ""
                row["true_tags"] = round(runs[0]["true_tags"], 2)
                row["l2"] = float(np.median([r["l2"] for r in runs]))
                row["seconds"] = round(float(np.median([r["seconds"] for r in runs])), 2)
                rows.append(row)
                print(row, flush=True)
                write("exact", rows)


if __name__ == "__main__":
    main()
