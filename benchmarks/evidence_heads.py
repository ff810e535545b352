"""Every loss, one positive an image, under heads that look at regions: codebook and query2label on frozen features.

The linear head on the same maps (not pooled) is for losses that want regions of it: ignore and en_scl.

Data, features and heads as in benchmarks/voc12_heads.py (query2label for 5 epochs here); the best epoch is chosen by
validation mAP on the observed positives, so that no clean label is used; bce has all labels and clean validation.
Expected numbers of labels are estimated from the data (`auto`), where a loss wants them.

    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/evidence_heads.py --seeds 3                        # codebook
    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/evidence_heads.py --heads query2label --losses an,wan,em

Runs are added to what evidence_heads_runs.csv has. Writes evidence_heads.csv: mean and sd over the seeds.
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
from voc12_heads import HEADS

EPOCHS = {"codebook": 4, "query2label": 5, "linear": 10}  # linear on maps: for losses that look at regions


def losses_for(head: str) -> list[str]:
    """bce, and every loss that this head can feed and that takes one positive an image."""
    from plures.errors import PluresError
    from plures.labels import Labels
    from plures.losses import losses
    from plures.losses.context import FROM_TRAINING
    from plures.models.heads import heads

    labels, names = Labels(np.array([[1, -1], [-1, 1]], np.int8)), ["bce"]
    for name in losses.names():
        needs = set(getattr(losses[name].make, "needs", ())) - FROM_TRAINING
        if name in ("bce", "vlpl", "gpr") or needs - set(getattr(heads[head].make, "gives", ())):
            continue
        try:
            losses.make(name).check(labels)
        except PluresError:
            continue
        names.append(name)
    return names


def one_run(job: tuple[str, str, int]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from plures import Experiment
    from plures.errors import WorkFailed
    from plures.metrics.report import Report
    from plures.training.train import train

    head, loss, seed = job
    values = {**settings("linear", "an", 1e-3, seed), **HEADS[head], "loss": loss, "epochs": EPOCHS[head]}
    values |= {"select": "val_map_observed", "supervision": {"name": "single_positive", "seed": 1200 + seed}}
    if loss == "bce":
        values |= {"select": "val_map", "supervision": "full"}
    row = {"head": head, "loss": loss, "seed": seed, "epochs": values["epochs"]}
    folder = Path(tempfile.mkdtemp()) / "run"
    try:
        run = train(Experiment(**values), folder, dataset=photographs(values["data"]))
    except WorkFailed as error:
        return {**row, "failed": str(error)[:100]}
    report = Report.load(run.path / "report.json")
    ap = {c.name: c.average_precision for c in report.per_class}
    seconds = round(sum(r["seconds"] for r in run.log), 1)
    shutil.rmtree(folder.parent)
    row |= {"test13": 100 * float(np.mean([ap[c] for c in FREQUENT])), "tags": report.tags_predicted}
    return {**row, "f1": 100 * report.averages["OF1"], "training_seconds": seconds, "failed": ""}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sd over the seeds of each head under each loss, best first."""
    rows = []
    for head, loss in dict.fromkeys((r["head"], r["loss"]) for r in runs):
        mine = [r for r in runs if (r["head"], r["loss"]) == (head, loss) and not r["failed"]]
        row: dict[str, Any] = {"head": head, "loss": loss, "n": len(mine), "epochs": EPOCHS[head]}
        for name in ("test13", "f1", "tags"):
            values = np.array([r[name] for r in mine])
            row[name] = round(float(values.mean()), 2) if len(values) else ""
            row[f"{name}_sd"] = round(float(values.std(ddof=1)), 2) if len(values) > 1 else ""
        rows.append(row)
    return sorted(rows, key=lambda r: (r["head"], -(r["test13"] or 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="codebook")
    parser.add_argument("--losses", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    runs = read_rows("evidence_heads_runs")
    done = {(r["head"], r["loss"], r["seed"]) for r in runs}
    jobs = [
        (head, loss, seed)
        for head in args.heads.split(",")
        for seed in range(args.seeds)
        for loss in (args.losses.split(",") if args.losses else losses_for(head))
    ]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for run in pool.imap_unordered(one_run, [job for job in jobs if job not in done]):
            runs.append(run)
            runs.sort(key=lambda r: (r["head"], r["loss"], r["seed"]))
            write("evidence_heads_runs", runs)
            write("evidence_heads", summary(runs))
            print(len(runs), run, flush=True)


if __name__ == "__main__":
    main()
