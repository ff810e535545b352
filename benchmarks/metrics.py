"""How fast and how large average precision is, beside scikit-learn's loop over the classes in the same run.

    python benchmarks/metrics.py            # 40,000 x 80: ratio to scikit-learn, bootstrap; a minute
    python benchmarks/metrics.py --large    # 1,000,000 x 500 float16 from disk instead (1.5 GB of disk, 10 minutes)

torchmetrics' exact average precision runs beside it, in memory (--large: one run, as far as 20 GB suffice). Writes
benchmarks/results/metrics.csv, where rows of the other size stay. Seconds are the minimum and median of the runs.
`extra_mb` is the most memory held beyond the inputs: the peak of the process's anonymous memory, sampled every 5 ms,
less its value before; pages of the memory-mapped files are the system's to drop and are not in it.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from environment import read_rows
from sklearn.metrics import average_precision_score

from plures.labels import Labels
from plures.metrics.average_precision import average_precision
from plures.metrics.intervals import bootstrap_map

MOST_MEMORY = 20 * 2**30  # of address space, so that a greedy comparison fails alone
RESULTS = Path(__file__).parent / "results" / "metrics.csv"


def anonymous_mb() -> float:
    """Anonymous resident memory of this process, in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def extra_memory(work: Callable[[], Any]) -> float:
    """The most anonymous memory that `work` held beyond what was held before, in MiB."""
    before, peak, done = anonymous_mb(), [0.0], threading.Event()

    def callback() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_mb())

    watcher = threading.Thread(target=callback)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(peak[0] - before, 0.0)


def seconds(work: Callable[[], Any], runs: int) -> list[float]:
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def inputs(images: int, classes: int) -> tuple[np.ndarray, Labels]:
    random = np.random.default_rng(0)
    present = random.random((images, classes), dtype=np.float32) < np.linspace(0.02, 0.35, classes)
    return random.random((images, classes)) + 0.45 * present, Labels.from_masks(present)


def mapped_inputs(folder: Path, images: int, classes: int) -> tuple[np.ndarray, Labels]:
    """The same in float16 and int8 files on disk, 2% positives."""
    scores = np.memmap(folder / "scores", np.float16, "w+", shape=(images, classes))
    codes = np.memmap(folder / "labels", np.int8, "w+", shape=(images, classes))
    random = np.random.default_rng(0)
    for start in range(0, images, 20_000):
        rows = slice(start, start + 20_000)
        codes[rows] = random.random((len(codes[rows]), classes), dtype=np.float32) < 0.02
        scores[rows] = random.random(codes[rows].shape, dtype=np.float32) + 0.45 * codes[rows]
    return scores, Labels(codes)


def measured(name: str, size: str, work: Callable[[], Any], runs: int, than: float | None = None) -> dict[str, Any]:
    began = time.perf_counter()
    extra = extra_memory(work)
    taken = [time.perf_counter() - began] if runs == 1 else seconds(work, runs)
    row = {
        "what": name,
        "images_x_classes": size,
        "runs": runs,
        "min_s": round(min(taken), 4),
        "median_s": round(statistics.median(taken), 4),
        "sklearn_over_this": "" if than is None else round(than / min(taken), 1),
        "extra_mb": round(extra, 1),
    }
    print(row, flush=True)
    return row


def torchmetrics(scores: np.ndarray, labels: Labels) -> np.ndarray:
    """torchmetrics' exact average precision (thresholds=None). It wants probabilities as a tensor; int8 targets do."""
    import torch
    from torchmetrics.functional.classification import multilabel_average_precision

    torch.set_num_threads(1)
    probabilities = torch.from_numpy(np.asarray(scores, np.float32)).sigmoid_()
    target = torch.from_numpy(labels.values)
    found = multilabel_average_precision(probabilities, target, labels.classes, average=None, thresholds=None)
    return np.asarray(found.numpy())


def torchmetrics_row(scores: np.ndarray, labels: Labels, size: str, runs: int, than: float) -> dict[str, Any]:
    """Which must give the same numbers, as far as float32 tells scores apart."""
    assert np.abs(torchmetrics(scores.copy(), labels) - average_precision(scores, labels)).max() < 1e-4
    return measured("torchmetrics, exact", size, lambda: torchmetrics(scores.copy(), labels), runs, than)


def small(runs: int) -> list[dict[str, Any]]:
    scores, labels = inputs(40_000, 80)
    size = "40000x80"

    present = labels.present

    def loop() -> np.ndarray:
        return np.array([average_precision_score(present[:, k], scores[:, k]) for k in range(80)])

    assert np.abs(loop() - average_precision(scores, labels)).max() < 1e-12
    rows = [measured("scikit-learn loop", size, loop, runs)]
    than = rows[0]["min_s"]
    rows.append(torchmetrics_row(scores, labels, size, min(runs, 2), than))
    for threads in (1, os.cpu_count()):
        for name in ("plain", "voc", "voc07"):
            work = lambda n=name, t=threads: average_precision(scores, labels, n, threads=t)  # noqa: E731
            rows.append(measured(f"{name}, {threads} threads", size, work, runs, than))
    rows.append(measured("bootstrap_map, 200 resamples", size, lambda: bootstrap_map(scores, labels), 3))
    random = np.random.default_rng(0)

    def gather() -> None:
        drawn = random.integers(0, len(labels), len(labels))
        average_precision(scores[drawn], labels.take(drawn))

    rows.append(measured("one resample gathered and sorted", size, gather, runs))
    return rows


def large() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        scores, labels = mapped_inputs(Path(folder), 1_000_000, 500)
        size = "1000000x500"
        rows = [measured("plain, float16 from disk", size, lambda: average_precision(scores, labels), 2)]
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        try:
            rows.append(measured("torchmetrics, exact", size, lambda: torchmetrics(scores, labels), 1))
        except (MemoryError, RuntimeError) as error:
            print(f"torchmetrics at {size} within {MOST_MEMORY / 2**30:.0f} GB: {error}")
        return rows


def write(rows: list[dict[str, Any]]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}"
    rows = [{**row, "machine": machine, "date": str(date.today()), "commit": commit} for row in rows]
    kept = [row for row in read_rows("metrics") if row["images_x_classes"] != rows[0]["images_x_classes"]]
    rows = sorted(kept + rows, key=lambda row: len(row["images_x_classes"]))  # the small ones first
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="1,000,000 x 500 from disk instead")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    write(large() if options.large else small(options.runs))
