"""Four heads on the same frozen MobileNetV2 feature maps (7 x 7 x 1280) of real photographs, under four losses.

Data, splits, single positives and choice of the epoch: as in benchmarks/voc12.py. Each head has one learning rate and
one schedule, not tuned a loss: the transformer heads are small (hidden 256, feed-forward 512) and train
for 10 epochs, so that the whole table takes less than an hour on two CPU cores.

    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/voc12_heads.py

Writes benchmarks/results/voc12_heads_runs.csv (a row a run) and voc12_heads.csv (mean and sd over the seeds).
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environment import read_rows, write
from voc12 import FREQUENT, photographs, settings

SMALL = {"hidden": 256, "feedforward": 512}
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"head": "linear", "epochs": 15, "lr": 1e-3, "batch_size": 16},
    "codebook": {"head": "codebook", "epochs": 4, "lr": 5e-4, "batch_size": 16},
    "query2label": {
        "head": {"name": "query2label", **SMALL},
        "epochs": 10,
        "lr": 5e-4,
        "batch_size": 16,
        "schedule": "onecycle",
    },
    "ml_decoder": {
        "head": {"name": "ml_decoder", **SMALL},
        "epochs": 10,
        "lr": 5e-4,
        "batch_size": 16,
        "schedule": "onecycle",
    },
}
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"supervision": "full", "loss": "bce"},
    "an": {"loss": "an"},
    "wn": {"loss": "wn"},
    "asl": {"loss": "asl"},
}


def one_run(job: tuple[str, str, int]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from plures import Experiment, load
    from plures.metrics.report import Report
    from plures.training.train import train

    head, loss, seed = job
    values = {**settings("linear", "an", 1e-3, seed), **HEADS[head], **LOSSES[loss]}
    folder = Path(tempfile.mkdtemp()) / "run"
    run = train(Experiment(**values), folder, dataset=photographs(values["data"]))
    report = Report.load(run.path / "report.json")
    ap = {c.name: c.average_precision for c in report.per_class}
    log = run.log
    best = max(log, key=lambda r: r["val_map"])
    parameters = sum(p.numel() for p in load(run.path).head.parameters())  # type: ignore[attr-defined]
    shutil.rmtree(folder.parent)
    return {
        "head": head,
        "loss": loss,
        "seed": seed,
        "parameters": parameters,
        "val": best["val_map"],
        "test13": 100 * float(np.mean([ap[c] for c in FREQUENT])),
        "test20": 100 * report.map,
        "tags": report.tags_predicted,
        "true_tags": report.tags_true,
        "epoch": best["epoch"],
        "epochs": values["epochs"],
        "training_seconds": round(sum(r["seconds"] for r in log), 1),
    }


def summary(runs: list[dict[str, Any]], head: str, loss: str) -> dict[str, Any]:
    """Mean and sd over the seeds of one head under one loss."""
    mine = [r for r in runs if (r["head"], r["loss"]) == (head, loss)]
    row: dict[str, Any] = {"head": head, "parameters": mine[0]["parameters"], "loss": loss, "n": len(mine)}
    for name in ("test13", "test20", "val", "tags"):
        values = np.array([r[name] for r in mine])
        row[name] = round(float(values.mean()), 2)
        row[f"{name}_sd"] = round(float(values.std(ddof=1)), 2) if len(values) > 1 else ""
    return {**row, "true_tags": round(mine[0]["true_tags"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="keep the runs that voc12_heads_runs.csv has")
    args = parser.parse_args()
    heads = args.heads.split(",")
    pairs = [(h, n) for h in heads for n in LOSSES if (h, n) != ("linear", "wn")]  # linear has no label embeddings
    runs = read_rows("voc12_heads_runs") if args.resume else []
    done = {(r["head"], r["loss"], r["seed"]) for r in runs}
    jobs = [(h, n, s) for s in range(args.seeds) for h, n in pairs if (h, n, s) not in done]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for run in pool.imap_unordered(one_run, jobs):
            runs.append(run)
            runs.sort(key=lambda r: (list(HEADS).index(r["head"]), list(LOSSES).index(r["loss"]), r["seed"]))
            write("voc12_heads_runs", runs)
            print(len(runs), run, flush=True)
    rows = [summary(runs, h, n) for h, n in pairs if any((r["head"], r["loss"]) == (h, n) for r in runs)]
    for row in rows:
        print(row)
    print(write("voc12_heads", rows))


if __name__ == "__main__":
    main()
