"""Time and memory of one step of a label memory, small and large: must not grow with the number of images.

    python benchmarks/label_state.py

Writes benchmarks/results/label_state.csv. A learned table is float32 with two moments (12 bytes a cell), a written one
is float16. Fresh rows of a large table cost page faults at their first visit; that is what the difference in time is.
"""

from __future__ import annotations

import csv
import itertools
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

from plures.losses.label_memory import LabelMemory

B, K, STEPS = 64, 500, 200


def step(N: int, learned: bool, mapped: bool) -> tuple[float, float, float]:
    """Median milliseconds of one step (read, backward, Adam; or read, write), seconds to set up, MiB that steps added.

    The MiB are anonymous memory: the pages of a mapped file are the system's to take back.
    """
    started = time.perf_counter()
    initial = torch.zeros(1, 1).expand(N, K)
    limit = 0 if mapped else 2**40
    dtype = torch.float32 if learned else torch.float16
    memory = LabelMemory(initial, learned=learned, dtype=dtype, in_memory_at_most=limit)
    made = time.perf_counter() - started
    before = anonymous_mib()
    times = []
    for _ in range(STEPS):
        index = torch.randint(N, (B,))
        started = time.perf_counter()
        rows = memory.rows(index)
        if learned:
            rows.sub(1).square().sum().backward()
            memory.apply_gradient(0.1)
        else:
            memory.write(index, rows * 0.9 + 0.1)
        times.append(time.perf_counter() - started)
    added = anonymous_mib() - before
    return statistics.median(times) * 1e3, made, added


def anonymous_mib() -> float:
    """MiB of this process that are not pages of a file (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def measure(N: int, learned: bool, mapped: bool) -> None:
    """One row of the table, in a process of its own so that its peak memory is its own."""
    milliseconds, made, added = step(N, learned, mapped)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    row = [
        N,
        K,
        B,
        "learned" if learned else "written",
        "mapped" if mapped else "in memory",
        f"{milliseconds:.2f}",
        f"{made:.2f}",
        f"{added:.0f}",
        machine,
        date.today(),
        commit,
    ]
    csv.writer(sys.stdout).writerow(row)


def main() -> None:
    heads = ["images", "classes", "batch", "kind", "place", "ms_per_step_median", "setup_s", "mib_added_by_200_steps"]
    rows = [",".join([*heads, "machine", "date", "commit"])]
    for N, learned, mapped in itertools.product((10_000, 1_000_000), (1, 0), (0, 1)):
        command = [sys.executable, __file__, str(N), str(learned), str(mapped)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows.append(done.stdout.strip())
        print(rows[-1])
    file = Path(__file__).parent / "results" / "label_state.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    measure(int(sys.argv[1]), sys.argv[2] == "1", sys.argv[3] == "1") if len(sys.argv) > 1 else main()
