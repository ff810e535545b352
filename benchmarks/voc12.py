"""Losses for one positive label an image on real photographs, MobileNetV2 features frozen: linear and codebook heads.

Data: the VOC-12 sample and the MobileNetV2 weights in the folder that PLURES_SHARED names. Single positives are drawn
with seed 1200, validation is cut as in the official MLSPL code; the learning rate of each loss (of three for the linear
head, one for the codebook) is the one with the best mean clean validation mAP over the seeds, and the best epoch of
each run is chosen the same way (never on test).

    PLURES_SHARED=... python benchmarks/voc12.py --head linear      # one row: see `command` in the results
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environment import write

SHARED = Path(os.environ.get("PLURES_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
FREQUENT = [
    "bottle",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "tvmonitor",
]  # classes with at least 10 test positives
LOSSES = {
    "bce": {"supervision": "full", "loss": "bce"},
    "an": {"loss": "an"},
    "an_ls": {"loss": "an_ls"},
    "wan": {"loss": "wan"},
    "epr": {"loss": {"name": "epr", "expected_positives": 1.4}},
    "role": {"loss": {"name": "role", "expected_positives": 1.4, "dense_adam": True}},
    "wn": {"loss": "wn"},
}
HEADS = {
    "linear": {"epochs": 25, "batch_size": 16, "lrs": (1e-3, 3e-4, 1e-4)},
    "codebook": {"epochs": 5, "batch_size": 16, "lrs": (5e-4,)},
}


def settings(head: str, loss: str, lr: float, seed: int) -> dict[str, Any]:
    backbone = {"name": "timm", "model": "mobilenetv2_100", "image_size": 224}
    backbone |= {
        "weights": str(SHARED / "weights" / "mobilenetv2_100.safetensors"),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    backbone["model_options"] = {"pad_type": "same", "bn_eps": 1e-3}
    values = {
        "data": f"voc:{SHARED / 'data' / 'voc12' / 'VOCdevkit' / 'VOC2012'}",
        "supervision": {"name": "single_positive", "seed": 1200},
        "split": "mlspl",
        "backbone": backbone,
        "head": head,
        "stages": "probe",
        "select": "val_map",
        "device": "cpu",
        "workers": 0,
        "epochs": HEADS[head]["epochs"],
        "batch_size": HEADS[head]["batch_size"],
        "lr": lr,
        "seed": seed,
    }
    return values | LOSSES[loss]


@functools.cache
def photographs(data: str) -> Any:
    """The dataset, read once a process."""
    from plures import read

    return read(data)


def one_run(job: tuple[str, str, float, int]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from plures import Experiment, Run
    from plures.metrics.report import Report
    from plures.training.train import train

    head, loss, lr, seed = job
    folder = Path(tempfile.mkdtemp()) / "run"
    experiment = Experiment(**settings(head, loss, lr, seed))
    run: Run = train(experiment, folder, dataset=photographs(experiment.data.name))
    report = Report.load(run.path / "report.json")
    ap = {c.name: c.average_precision for c in report.per_class}
    log = run.log
    best = max(log, key=lambda r: r["val_map"])
    shutil.rmtree(folder.parent)
    return {
        "head": head,
        "loss": loss,
        "lr": lr,
        "seed": seed,
        "val": best["val_map"],
        "test20": 100 * report.map,
        "test13": 100 * float(np.mean([ap[c] for c in FREQUENT])),
        "tags": report.tags_predicted,
        "true_tags": report.tags_true,
        "epoch": best["epoch"],
        "seconds": round(sum(r["seconds"] for r in log), 1),
    }


def summary(runs: list[dict[str, Any]], head: str, loss: str) -> dict[str, Any]:
    """The row of one loss: the learning rate with the best mean validation mAP, mean and sd over its seeds."""
    lrs = sorted({r["lr"] for r in runs if r["loss"] == loss})
    chosen = max(lrs, key=lambda lr: np.mean([r["val"] for r in runs if r["loss"] == loss and r["lr"] == lr]))
    mine = [r for r in runs if r["loss"] == loss and r["lr"] == chosen]
    row: dict[str, Any] = {"head": head, "loss": loss, "lr": chosen, "n": len(mine)}
    for name in ("test13", "test20", "val", "tags"):
        values = np.array([r[name] for r in mine])
        row[name] = round(float(values.mean()), 2)
        row[f"{name}_sd"] = round(float(values.std(ddof=1)), 2) if len(values) > 1 else ""
    return {**row, "true_tags": round(mine[0]["true_tags"], 2), "seconds": np.median([r["seconds"] for r in mine])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", choices=list(HEADS), default="linear")
    parser.add_argument("--losses", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    names = [n for n in (args.losses.split(",") if args.losses else LOSSES) if args.head != "linear" or n != "wn"]
    jobs = [(args.head, n, lr, s) for n in names for lr in HEADS[args.head]["lrs"] for s in range(args.seeds)]
    runs = [one_run(jobs[0])]  # fills the feature cache before the processes share it
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for run in pool.imap_unordered(one_run, jobs[1:]):
            runs.append(run)
            print(len(runs), "of", len(jobs), run, flush=True)
    write(f"voc12_{args.head}_runs", runs)
    rows = [summary(runs, args.head, n) for n in names]
    for row in rows:
        print(row)
    print(write(f"voc12_{args.head}", rows))


if __name__ == "__main__":
    main()
