"""How long all pairs of N vectors of 768 numbers take, in what memory, and how many near pairs are found.

Synthetic: 64 directions of falling strength and noise; a hundredth of the rows are copies with noise of a strength
that puts their cosine above 0.85. One thread.

    python benchmarks/duplicates.py 10000 30000 100000
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from typing import Any

import numpy as np
from environment import write

SIMILARITY, WIDTH = 0.95, 768


def one(n: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from plures.data.near_copies import near_groups, unit

    random = np.random.default_rng(0)
    basis = random.normal(size=(64, WIDTH)) * np.exp(-np.arange(64) / 20)[:, None]
    vectors = np.empty((n, WIDTH), np.float32)
    for start in range(0, n, 10_000):
        rows = vectors[start : start + 10_000]
        rows[:] = random.normal(size=(len(rows), 64)) @ basis + 0.3 * random.normal(size=rows.shape)
    copies = n // 100
    length = np.linalg.norm(vectors[:copies], axis=1, keepdims=True) / np.sqrt(WIDTH)
    noise = length * np.linspace(0.05, 0.6, copies)[:, None]
    vectors[-copies:] = vectors[:copies] + noise * random.normal(size=(copies, WIDTH))
    vectors = unit(vectors)
    near = np.einsum("nd,nd->n", vectors[:copies], vectors[-copies:]) >= SIMILARITY
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.monotonic()
    first = near_groups(vectors, SIMILARITY)
    found = first[-copies:] == np.arange(copies)
    return {
        "images": n,
        "width": WIDTH,
        "similarity": SIMILARITY,
        "cpu seconds": round(time.process_time() - cpu, 1),
        "seconds": round(time.monotonic() - wall, 1),
        "near pairs": int(near.sum()),
        "recall percent": round(100 * float(found[near].mean()), 2),
        "wrongly found": int(found[~near].sum() + (first[:-copies] != np.arange(n - copies)).sum()),
        "vectors MB": round(vectors.nbytes / 1e6),
        "peak MB above": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3),
    }


def main() -> None:
    rows = []
    for n in map(int, sys.argv[1:] or ["10000", "30000", "100000"]):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak of its own
            rows.append(pool.apply(one, (n,)))
        print(rows[-1], flush=True)
    print(write("duplicates", rows))


if __name__ == "__main__":
    main()
