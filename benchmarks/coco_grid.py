"""The MLSPL grid at COCO's size: 65,665 x 2,048 features, 80 classes, 8 runs (batch 8 and 16, four rates), trained
together. Features are random but structured: classes have directions, images have one to five classes, one observed.

    python benchmarks/coco_grid.py --share 0.02       # times a part of one epoch's rows and extrapolates to 25 epochs
    python benchmarks/coco_grid.py --share 1 --epochs 25 --threads 2
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import numpy as np
import torch
from environment import write

from plures.config import Experiment
from plures.labels import Labels, mask_to_single_positive
from plures.losses import losses
from plures.sweeps.vectorized.training import FrozenData, HeadRun, train_together

N, M, D, K, EPOCHS = 65_665, 16_416, 2_048, 80, 25


def made_up(rows: int, seed: int) -> tuple[np.ndarray, Labels]:
    """Features [rows, D] >= 0, half of them 0, as a ResNet's pooled ones, and full labels."""
    random = np.random.default_rng(seed)
    present = random.random((rows, K)) < np.geomspace(0.2, 0.005, K)
    present[np.arange(rows), random.integers(0, K, rows)] = True
    directions = np.random.default_rng(0).normal(size=(K, D)).astype(np.float32)
    features = present.astype(np.float32) @ directions
    features += random.standard_normal((rows, D), np.float32)
    np.maximum(features, 0, out=features)
    return features, Labels.from_masks(present)


def measure(loss: str, share: float, epochs: int, threads: int, device: str) -> dict[str, Any]:
    """Seconds of the grid's eight runs on this share of the rows, and what the whole grid would take."""
    rows = round(share * N)
    features, full = made_up(rows, 1)
    val, val_labels = made_up(round(share * M), 2)
    shared = FrozenData(features, val, val_labels)
    observed = mask_to_single_positive(full)
    head = torch.nn.Linear(D, K)
    runs = [
        HeadRun(
            Experiment(stages="probe", head="linear", optimizer="adam", epochs=epochs, batch_size=batch, lr=lr,
                       device="cpu"),
            shared, observed, losses.make(loss), head.weight.detach(), head.bias.detach(), "val_map",
        )
        for batch in (8, 16)
        for lr in (1e-2, 1e-3, 1e-4, 1e-5)
    ]  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    found = train_together(runs, device, threads=threads)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    times = EPOCHS / epochs / share
    return {
        "loss": loss, "runs": len(runs), "rows": rows, "epochs": epochs, "threads": threads,
        "device": device, "seconds": round(wall, 2), "cpu": round(cpu, 2),
        "whole_grid_seconds": round(wall * times),
        "whole_grid_cpu": round(cpu * times), "extrapolated": "no" if times == 1 else f"x {times:.0f}",
        "peak_MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "best_val_map": round(max(head.best.score for head in found), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.02, help="of the training rows, in (0, 1]")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loss", default="an")
    parser.add_argument("--device", default="cpu", help="cuda needs one thread")
    args = parser.parse_args()
    torch.set_num_threads(1)
    row = measure(args.loss, args.share, args.epochs, args.threads, args.device)
    print(row)
    print(write("coco_grid", [row]))


if __name__ == "__main__":
    main()
