"""How cost grows: with images N, classes K, image size and number of patches; seconds and peak memory of each.

    python benchmarks/scaling.py        # a minute or two on one core

label memory: one step of a learned table (batch 64, 80 classes) and the whole process's memory for it, over N; average
precision: of N x 80 scores, over N; a head's name: one training step (batch 16, 7 x 7 tokens of 1280) over K; patch
model: one training step (2 images, 80 classes) over the image's side at stride 64, and over the number of patches of
256 pixels (stride 64 to 16). `seconds`: the least of `runs`. `peak_mb`: the most memory beyond what the process held
before, the making of the model included, each case in a forked process of its own.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write

from plures.labels import Labels, TensorLabels
from plures.losses import Context, losses
from plures.losses.label_memory import LabelMemory
from plures.metrics.average_precision import average_precision
from plures.models import Tokens
from plures.models.heads import heads
from plures.models.model import build_model
from plures.models.outputs import grid_boxes

SMALL = {"hidden": 256, "feedforward": 512}
Step = Callable[[], Any]
Case = tuple[str, str, int, Callable[[], Step], int]  # what, over what, how much of it, makes the step, runs


def memory(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process in MiB (Linux)."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def label_memory(N: int) -> Step:
    table = LabelMemory(torch.zeros(1, 1).expand(N, 80), learned=True, dtype=torch.float32, in_memory_at_most=2**40)

    def step() -> None:
        table.rows(torch.randint(N, (64,))).sub(1).square().sum().backward()
        table.apply_gradient(0.1)

    return step


def ranking(N: int) -> Step:
    random = np.random.default_rng(0)
    labels = Labels.from_masks(random.random((N, 80), dtype=np.float32) < 0.05)
    scores = random.random((N, 80), dtype=np.float32)
    return lambda: average_precision(scores, labels, threads=1)


def head(name: str, K: int) -> Step:
    made = heads.make(name, {"width": 1280, "classes": K}, **(SMALL if name in ("query2label", "ml_decoder") else {}))
    tokens = Tokens(torch.randn(16, 49, 1280), grid_boxes(7, 7))
    return training_step(made, lambda: made(tokens, maps=False), 16, K)


def patches(image_size: int, stride: int) -> Step:
    levels = int(math.log2(image_size / 64))
    model = build_model(
        "patches",
        "codebook",
        tuple(map(str, range(80))),
        {"image_size": image_size, "levels": levels, "stride": stride},
    )
    images = torch.randint(0, 256, (2, 3, image_size, image_size), dtype=torch.uint8)
    return training_step(model, lambda: model(images, maps=False), 2, 80)


def training_step(model: Any, forward: Step, images: int, K: int) -> Step:
    values = torch.full((images, K), -1, dtype=torch.int8)
    values[:, 0] = 1
    optimizer, loss, labels = torch.optim.Adam(model.parameters(), lr=1e-3), losses.make("wan"), TensorLabels(values)

    def step() -> None:
        sum(loss.compute(forward(), labels, Context()).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    return step


def patch_count(image_size: int, stride: int) -> int:
    sides = [image_size // 2**level for level in range(int(math.log2(image_size / 64)) + 1)]
    return sum(((side - 64) // stride + 1) ** 2 for side in sides)


def cases() -> list[Case]:
    found: list[Case] = []
    for N in (10_000, 100_000, 1_000_000):
        found.append(("label memory", "images", N, lambda N=N: label_memory(N), 20))
        found.append(("average precision", "images", N, lambda N=N: ranking(N), 1))
    for name in ("linear", "codebook", "query2label", "ml_decoder"):
        found += [(name, "classes", K, lambda n=name, K=K: head(n, K), 3) for K in (20, 80, 320, 1280)]
    for side in (128, 256, 384, 512, 640):
        found.append(("patch model", "pixels a side", side, lambda s=side: patches(s, 64), 2))
    for stride in (64, 48, 32, 16):
        count = patch_count(256, stride)
        found.append(("patch model", "patches", count, lambda s=stride: patches(256, s), 2))
    return found


def measured(place: int) -> dict[str, Any]:
    what, over, value, make, runs = cases()[place]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    step, seconds = make(), []
    for _ in range(runs + 1):  # the first prepares
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    row: dict[str, Any] = {"what": what, "over": over, "value": value, "seconds": f"{min(seconds[1:]):.4g}"}
    return row | {"peak_mb": round(memory("VmHWM") - before), "runs": runs, "threads": torch.get_num_threads()}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for place in range(len(cases())):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            rows.append(pool.apply(measured, (place,)))
        print(rows[-1], flush=True)
    print(write("scaling", rows))


if __name__ == "__main__":
    main()
