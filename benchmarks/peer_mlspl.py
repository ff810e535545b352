"""The official MLSPL grid on fixed features, run by plures beside the official code's recorded runs.

Data: fixtures/peer (features of real VOC-12 photographs, the official split and observed labels), in the folder that
PLURES_SHARED names. Grid: batch 8/16 x lr 1e-2, 1e-3, 1e-4, 25 epochs, Adam, clean validation, best epoch by
validation mAP (their definition), 5 torch seeds; test mAP over the 13 classes with at least 10 test positives.

    PLURES_SHARED=... python benchmarks/peer_mlspl.py            # about 20 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import write

SHARED = Path(os.environ.get("PLURES_SHARED", Path(__file__).parents[1] / ".." / "shared"))
LOSSES = ("bce", "an", "an_ls", "wan", "epr", "role")
K_EXPECTED = 1.4098837209302326  # mean number of clean train labels, what the recorded runs were given


def arrays() -> dict[str, Any]:
    folder = SHARED / "fixtures" / "peer"
    data = {p.stem: np.load(p) for p in folder.glob("*.npy")}
    data["results"] = json.loads((folder / "peer_results.json").read_text())
    data["classes"] = json.loads((folder / "classes.json").read_text())
    return data


def split() -> tuple[Any, Any]:
    from plures.data.splits import mlspl_split

    return mlspl_split(1720, 0.2)


class Checkpointer:
    """Scores validation and test after each epoch and remembers the test score of the best validation epoch."""

    def __init__(self, val: Any, test: Any, kept: list[int], fabric: Any) -> None:
        self.val, self.test, self.kept, self.fabric = val, test, kept, fabric
        self.best = {"val": -1.0, "test13": 0.0, "test20": 0.0, "epoch": -1}
        self.epoch = 0

    def score(self, net: Any) -> dict[str, float]:
        from plures.labels import Labels
        from plures.metrics.average_precision import average_precision
        from plures.scoring.logits import logits_of

        (val_batches, val_labels), (test_batches, test_labels) = self.val, self.test
        val_logits = logits_of(net, val_batches, self.fabric)
        val = 100 * average_precision(val_logits, Labels(val_labels), "mlspl").mean()
        if val > self.best["val"]:
            ap = average_precision(logits_of(net, test_batches, self.fabric), Labels(test_labels), "mlspl")
            self.best = {
                "val": val,
                "test13": 100 * ap[self.kept].mean(),
                "test20": 100 * ap.mean(),
                "epoch": self.epoch,
            }
        self.epoch += 1
        return {"score": val}

    def keep_best(self, net: Any) -> None:
        pass

    def keep_state(self, state: Any, record: Any) -> None:
        pass


def one_run(job: tuple[str, int, float, int, dict[str, Any]]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from plures.config import Experiment
    from plures.data.loading import FeatureBatches, Order
    from plures.labels import Labels
    from plures.losses import losses
    from plures.models.heads.linear import Linear
    from plures.models.outputs import grid_boxes
    from plures.scoring.device import make_fabric
    from plures.scoring.logits import HeadOnFeatures
    from plures.training.loop import fit
    from plures.training.progress import Quiet
    from plures.training.stages import Stage

    name, batch_size, lr, seed, extra = job
    data = arrays()
    train_rows, val_rows = split()
    options: dict[str, Any] = {"eps": 1e-5, **extra}
    if name in ("epr", "role"):
        options["expected_positives"] = K_EXPECTED
    if name == "role":
        options.setdefault("dense_adam", True)
    labels = data["train_labels"] if name == "bce" else np.where(data["train_labels_obs"] == 1, 1, -1)
    labels = labels.astype(np.int8)
    full, test = data["train_labels"].astype(np.int8), data["val_labels"].astype(np.int8)
    features = data["train_features"][:, None]
    experiment = Experiment(
        stages="probe", head="linear", epochs=25, batch_size=batch_size, lr=lr, seed=seed, device="cpu"
    )
    fabric = make_fabric(experiment)
    torch.manual_seed(seed)
    head = Linear(features.shape[2], len(data["classes"]))

    def batches(x: Any, y: Any, size: int, shuffle: int | None = None) -> Any:
        return FeatureBatches(x, y, Order(len(x), size, shuffle))

    val = batches(features[val_rows], full[val_rows], 512), full[val_rows]
    held = batches(data["val_features"][:, None], test, 512), test
    kept = [data["classes"].index(c) for c in data["results"]["setting"]["kept_classes"]]
    checkpointer = Checkpointer(val, held, kept, fabric)
    x, y = features[train_rows], labels[train_rows]
    phase = Stage(
        name="frozen",
        number=0,
        net=HeadOnFeatures(head, grid_boxes(1, 1)),
        head=head,
        batches=batches(x, y, batch_size, seed),
        train_labels=Labels(y),
        epochs=25,
        lr=lr,
        in_order=batches(x, y, 512),
    )
    started = time.perf_counter()
    fit(phase, experiment, losses.make(name, **options), fabric, checkpointer, Quiet())
    seconds = time.perf_counter() - started
    return {
        "loss": name,
        "batch": batch_size,
        "lr": lr,
        "seed": seed,
        **checkpointer.best,
        "seconds": round(seconds, 2),
        **extra,
    }


def recorded(results: dict[str, Any], name: str, batch: int, lr: float) -> dict[str, Any]:
    return next(r for r in results["results"][name]["runs"] if r["bs"] == batch and np.isclose(r["lr"], lr))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lrs", default="1e-2,1e-3,1e-4,1e-5")
    parser.add_argument("--name", default="peer_mlspl")
    parser.add_argument("--options", default="{}", help="JSON of loss options, for experiments")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    results = arrays()["results"]
    extra = json.loads(args.options)
    lrs = [float(lr) for lr in args.lrs.split(",")]
    names = args.losses.split(",")
    jobs = [(n, b, lr, s, extra) for n in names for lr in lrs for b in (8, 16) for s in range(args.seeds)]
    runs = []
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for run in pool.imap_unordered(one_run, jobs):
            runs.append(run)
            print(len(runs), "of", len(jobs), run, flush=True)
    write(f"{args.name}_runs", sorted(runs, key=lambda r: (r["loss"], r["batch"], -r["lr"], r["seed"])))
    rows = []
    for name in names:
        for batch in (8, 16):
            for lr in lrs:
                mine = [r for r in runs if (r["loss"], r["batch"], r["lr"]) == (name, batch, lr)]
                theirs = recorded(results, name, batch, lr)
                test = np.array([r["test13"] for r in mine])
                rows.append(
                    {
                        "loss": name,
                        "batch": batch,
                        "lr": lr,
                        "official_test13": round(theirs["test_all_rows_kept"], 2),
                        "plures_test13": round(test.mean(), 2),
                        "sd": round(test.std(ddof=1), 2) if len(test) > 1 else "",
                        "n": len(test),
                        "difference": round(test.mean() - theirs["test_all_rows_kept"], 2),
                        "official_val": round(theirs["val"], 2),
                        "plures_val": round(np.mean([r["val"] for r in mine]), 2),
                        "official_seconds": round(theirs["seconds"], 1),
                        "plures_seconds": round(np.mean([r["seconds"] for r in mine]), 2),
                    }
                )
                print(rows[-1])
    print(write(args.name, rows))


if __name__ == "__main__":
    main()
