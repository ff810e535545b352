"""A second round with the first run as its teacher: what `teacher=RUN` adds, and what it is worth.

Photographs (voc12, miml_scene): one positive per image, linear heads on frozen MobileNetV2 features, data, splits and
draws as in benchmarks/evidence.py; strength or epoch chosen by validation mAP on observed positives alone. `exact`: the
closed form on standardised features; `wan`, `an`, `gr`: AdamW, weight decay 10. Scenes: the teacher is the best loss of
`plures demo` (a run that benchmarks/demo.py left), the student assume-negative with the demo's settings, from scratch.
The threshold is chosen from observed positives alone, except where it is named.

    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/self_training.py --data voc12,miml_scene --seeds 5
    OMP_NUM_THREADS=1 python benchmarks/self_training.py --data scenes --seeds 3 --runs DIR

`--rounds`: the teacher is cross-fitted on the run's own training photographs (rounds=2). `--backbone lite2`:
EfficientNet-Lite2 at 260 px in place of MobileNetV2.

Adds to self_training_runs.csv; writes self_training.csv: n, means, and the mean and sd of the paired difference.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment, read_rows, write
from voc12 import SHARED

REGULARISED = {"head": {"name": "linear", "standardise": True}, "optimizer": "adamw", "lr": 3e-4, "weight_decay": 10.0}
LITE2 = {"name": "fast", "weights": str(SHARED / "weights" / "tf_efficientnet_lite2.safetensors")}
KEY = ("data", "method", "backbone", "threshold")
METHODS: dict[str, dict[str, Any]] = {
    "exact": {
        "head": {"name": "linear", "standardise": True},
        "stages": "ridge",
        "loss": {"name": "least_squares", "negative_weight": "auto"},
    },
    "wan": {**REGULARISED, "loss": "wan"},
    "an": {**REGULARISED, "loss": "an"},
    "gr": {**REGULARISED, "loss": "gr"},
}


def score(run: Any, data: str) -> dict[str, float]:
    from voc12 import FREQUENT

    from plures.metrics.report import Report

    report = Report.load(run.path / "report.json")
    ap = {c.name: c.average_precision for c in report.per_class}
    kept = FREQUENT if data == "voc12" else list(ap)
    return {"mAP": round(100 * float(np.nanmean([ap[c] for c in kept])), 2), "tags": round(report.tags_predicted, 3)}


def row_of(
    data: str, method: str, threshold: float | None, seed: int, first: Any, second: Any, backbone: str = ""
) -> dict[str, Any]:
    from plures.training.self_training import PRECISION

    cut = threshold or f"chosen at {PRECISION}"
    added = json.loads((second.path / "self_training.json").read_text())
    one, two = score(first, data), score(second, data)
    return {
        "data": data, "method": method, "backbone": backbone, "threshold": cut, "seed": seed, "teacher": one["mAP"],
        "student": two["mAP"], "teacher_tags": one["tags"], "student_tags": two["tags"], "at": added["threshold"],
        "added": added["added"], "estimated_precision": added["precision"],
        "precision": added["right"] / added["known"] if added["known"] else "", **environment(),
    }  # fmt: skip


def photographs(args: argparse.Namespace, data: str, method: str, seed: int, dataset: Any) -> dict[str, Any]:
    from evidence import experiment

    from plures import Experiment
    from plures.runs.run import Run
    from plures.training.train import train

    folder = Path(tempfile.mkdtemp())
    values = experiment(data, "an", {}, "observed", seed).to_dict() | METHODS[method]
    if args.backbone == "lite2":
        values["backbone"] = LITE2
    values["teacher_threshold"] = args.threshold
    if args.rounds:
        second = train(Experiment(**values | {"rounds": 2}), folder / "run", dataset=dataset)
        first = Run(second.path / "first_round")
    else:
        first = train(Experiment(**values | {"teacher_threshold": None}), folder / "first", dataset=dataset)
        second = train(Experiment(**values | {"teacher": str(first.path)}), folder / "second", dataset=dataset)
    name = method + (", rounds=2" if args.rounds else "")
    row = row_of(data, name, args.threshold, seed, first, second, args.backbone)
    shutil.rmtree(folder)
    return row


def scenes(threshold: float | None, seed: int, runs: Path, dataset: Any) -> dict[str, Any]:
    from plures.report.demo import ROWS
    from plures.runs.run import Run
    from plures.training.train import train

    first = Run(runs / f"one_tag_best_{seed}")
    supervision = {"name": "single_positive", "seed": 1200 + seed}
    changes = {"supervision": supervision, "ema": 0.995, "seed": seed}
    experiment = ROWS[1].experiment(**changes, teacher=str(first.path), teacher_threshold=threshold)
    out = runs / f"student_{threshold or 'chosen'}_{seed}"
    second = Run(out) if (out / "report.json").is_file() else train(experiment, out, dataset=dataset)
    return row_of("scenes", "gr, then an", threshold, seed, first, second)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = []
    for key in dict.fromkeys(tuple(r.get(name, "") for name in KEY) for r in rows):
        of = [r for r in rows if tuple(r.get(name, "") for name in KEY) == key]
        line: dict[str, Any] = dict(zip(KEY, key, strict=True)) | {"n": len(of)}
        for name in ("teacher", "student", "teacher_tags", "student_tags", "at", "added"):
            line[name] = round(float(np.mean([float(r[name]) for r in of])), 3)
        gain = np.array([float(r["student"]) - float(r["teacher"]) for r in of])
        line |= {
            "gain": round(float(gain.mean()), 2),
            "gain_sd": round(float(gain.std(ddof=1)), 2) if len(of) > 1 else "",
        }
        for name in ("estimated_precision", "precision"):
            values = [float(r[name]) for r in of if r[name] not in ("", None)]
            line[name] = round(float(np.mean(values)), 3) if values else ""
        lines.append(line)
    return lines


def main() -> None:
    from plures.data.read import read

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="voc12,miml_scene")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--threshold", type=float, help="this one instead of a chosen one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", action="store_true")
    parser.add_argument("--backbone", default="mobilenetv2", choices=["mobilenetv2", "lite2"])
    parser.add_argument("--runs", type=Path, help="of benchmarks/demo.py")
    args = parser.parse_args()
    rows = read_rows("self_training_runs")
    for data in args.data.split(","):
        if data == "scenes":
            dataset = read("scenes", train=3000, val=500, test=1000)
            made = (scenes(args.threshold, seed, args.runs, dataset) for seed in range(args.seeds))
        else:
            from evidence import experiment

            part = experiment(data, "an", {}, "observed", 0).data
            dataset = read(part.name, **part.options)
            made = (
                photographs(args, data, method, seed, dataset)
                for seed in range(args.seeds) for method in args.methods.split(",")
            )  # fmt: skip
        for row in made:
            rows.append(row)
            print(row, flush=True)
            write("self_training_runs", rows)
            write("self_training", summary(rows))


if __name__ == "__main__":
    main()
