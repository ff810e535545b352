"""The whole network trained for some epochs on real photographs: four heads under four losses, and more losses.

Data, splits, single positives and heads as in benchmarks/voc12_heads.py, but the pretrained MobileNetV2 learns along
(not its batch norms; Adam, 1e-4; the new head at 5 or 10 times that; one cycle; flips), at 128 pixels, so that a run
takes some minutes of one CPU core. The last epoch counts, so no clean label chooses anything. Nothing was tuned. In
three epochs em_apl is em: its pseudo-labels have not begun.

    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/voc12_end_to_end.py --processes 2
    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/voc12_end_to_end.py --side 224 --epochs 2

Runs are added to what voc12_end_to_end_runs.csv has. Writes voc12_end_to_end.csv: mean and sd over the seeds; of
another size than 128, six losses under a linear head alone, to voc12_end_to_end_SIDE.csv and its _runs.csv.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import read_rows, write
from voc12 import FREQUENT, photographs, settings
from voc12_heads import HEADS, LOSSES

EPOCHS, SIDE = 3, 128  # unless asked otherwise
MORE_LOSSES: dict[str, dict[str, Any]] = {**LOSSES, **{name: {"loss": name} for name in ("wan", "em", "gr")}}
FASTER = {"linear": 10.0, "codebook": 5.0, "query2label": 5.0, "ml_decoder": 5.0}  # the head's rate over 1e-4
Job = tuple[str, str, int, int, int]  # head, loss, seed, epochs, side


def values_of(head: str, loss: str, seed: int, epochs: int = EPOCHS, side: int = SIDE) -> dict[str, Any]:
    values = {**settings("linear", "an", 1e-4, seed), "head": HEADS[head]["head"], **MORE_LOSSES[loss]}
    values["backbone"] = {**values["backbone"], "frozen_norm": True}  # these weights come without statistics
    changed = {"stages": "finetune", "image_size": side, "epochs": epochs, "schedule": "onecycle", "select": "last"}
    return {**values, **changed, "head_lr": FASTER[head], "batch_size": 16}


def one_run(job: Job) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from plures import Experiment
    from plures.metrics.report import Report
    from plures.training.train import train

    head, loss, seed, epochs, side = job
    experiment, folder = Experiment(**values_of(*job)), Path(tempfile.mkdtemp()) / "run"
    began, cpu = time.perf_counter(), time.process_time()
    run = train(experiment, folder, dataset=photographs(experiment.data.name))
    report = Report.load(run.path / "report.json")
    ap = {c.name: c.average_precision for c in report.per_class}
    log = run.log
    shutil.rmtree(folder.parent)
    return {
        "head": head,
        "loss": loss,
        "seed": seed,
        "epochs": epochs,
        "image_size": side,
        "val": log[-1]["val_map"],
        "test13": 100 * float(np.mean([ap[c] for c in FREQUENT])),
        "test20": 100 * report.map,
        "tags": report.tags_predicted,
        "true_tags": report.tags_true,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def summary(runs: list[dict[str, Any]], head: str, loss: str) -> dict[str, Any]:
    """Mean and sd over the seeds of one head under one loss."""
    mine = [r for r in runs if (r["head"], r["loss"]) == (head, loss)]
    row: dict[str, Any] = {"head": head, "loss": loss, "n": len(mine)}
    row |= {name: mine[0][name] for name in ("epochs", "image_size")}
    for name in ("test13", "test20", "val", "tags"):
        values = np.array([r[name] for r in mine])
        row[name] = round(float(values.mean()), 2)
        row[f"{name}_sd"] = round(float(values.std(ddof=1)), 2) if len(values) > 1 else ""
    row["true_tags"] = round(mine[0]["true_tags"], 2)
    return {**row, "cpu_seconds": round(float(np.median([r["cpu_seconds"] for r in mine])))}


def jobs_in_order(seeds: int, epochs: int, side: int) -> list[Job]:
    """First the table of heads with one seed (at 128 pixels), then the losses under a linear head, then more seeds."""
    heads = [(h, n) for h in HEADS for n in LOSSES if (h, n) != ("linear", "wn")]  # linear has no label embeddings
    linear = [("linear", n) for n in MORE_LOSSES if n != "wn"]
    jobs = [(h, n, 0) for h, n in heads] if side == SIDE else []
    jobs += [(h, n, s) for s in range(seeds) for h, n in linear]
    return [(*job, epochs, side) for job in dict.fromkeys(jobs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of the losses under the linear head")
    parser.add_argument("--losses", default="", help="only these")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    name = "voc12_end_to_end" if args.side == SIDE else f"voc12_end_to_end_{args.side}"
    runs = read_rows(f"{name}_runs")
    done = {tuple(r[k] for k in ("head", "loss", "seed", "epochs", "image_size")) for r in runs}
    jobs = [job for job in jobs_in_order(args.seeds, args.epochs, args.side) if job not in done]
    if args.losses:
        jobs = [job for job in jobs if job[1] in args.losses.split(",")]
    order = {(h, n): i for i, (h, n) in enumerate((h, n) for h in HEADS for n in MORE_LOSSES)}
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for run in pool.imap_unordered(one_run, jobs):
            runs.append(run)
            runs.sort(key=lambda r: (order[r["head"], r["loss"]], r["seed"]))
            write(f"{name}_runs", runs)
            pairs = sorted({(r["head"], r["loss"]) for r in runs}, key=order.__getitem__)
            write(name, [summary(runs, h, n) for h, n in pairs])
            print(len(runs), run, flush=True)


if __name__ == "__main__":
    main()
