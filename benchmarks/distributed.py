"""Two processes against one on one machine, at the same batch: seconds an epoch, and how far the weights differ.

    python benchmarks/distributed.py        # a minute

A small transformer on the built-in scenes. On a machine with two cores the two processes share what the one had to
itself (each runs one thread), so the question here is the cost of exchanging, not a gain.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    args = parser.parse_args()
    from safetensors.torch import load_file

    from plures.runs.run import Run

    settings = ["scenes", f"data.train={args.images}", "data.val=32", "data.test=32", "backbone=timm", "loss=role"]
    settings += ["backbone.model=test_vit", "backbone.image_size=64", "epochs=2", "batch_size=32", "augment=flip"]
    settings += ["supervision=single_positive", "loss.expected_positives=2", "device=cpu", "workers=0"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for processes in (1, 2):
            out = Path(place) / str(processes)
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            command = [*torchrun, "-m", "plures.cli", "train", *settings, "--out", str(out)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            found[processes] = load_file(out / "model.safetensors")
            log = Run(out).log
            row = {"processes": processes, "seconds_an_epoch": log[-1]["seconds"]}
            row |= {"images_per_second": log[-1]["images_per_second"], "loss": log[-1]["loss"]}
            rows.append(row)
        one, two = found[1], found[2]
        largest = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
        rows[1]["largest_difference_of_weights"] = f"{largest:.1e}"
    for row in rows:
        print(row)
    print(write("distributed", rows))


if __name__ == "__main__":
    main()
