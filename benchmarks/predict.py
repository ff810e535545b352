"""`plures predict` into parts: memory as the list grows, and the cost of bookkeeping on resume.

    python benchmarks/predict.py                  # lists of 1,000, 10,000 and 100,000; some minutes on one core
    python benchmarks/predict.py --most 1000000   # also a million: half an hour, memory is the question

A generated list names sixteen small JPEGs of the built-in scenes over and over; the model is the built-in small network
at 16 pixels, so that what is measured is the streaming. Each list runs in a process of its own; `peak_rss_mb` is that
process's peak. `resume_s`: the same command again with --resume on the finished folder (nothing to do but to look at
every part). `rows`: counted in the parts afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from environment import write

SIZES = (1_000, 10_000, 100_000, 1_000_000)
CHILD = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from plures.prediction.predict import predict
started = time.perf_counter()
summary = predict(sys.argv[1], sys.argv[2], sys.argv[3], parts=1000, batch_size=64, resume=sys.argv[4] == "resume")
print(json.dumps({"images": summary.images, "seconds": time.perf_counter() - started,
                  "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def pictures(folder: Path) -> list[str]:
    """Sixteen scenes as JPEGs of 16 pixels a side; their names."""
    from PIL import Image

    from plures.data.read import read

    scenes = read("scenes", train=16, val=1, test=1).images[:16]
    for number, scene in enumerate(scenes):
        Image.fromarray(scene).resize((16, 16)).save(folder / f"{number:02d}.jpg")
    return [f"{number:02d}.jpg" for number in range(len(scenes))]


def made_run(folder: Path) -> Path:
    from plures.config import Experiment
    from plures.models.model import build_model, save
    from plures.runs.run import Run

    settings = {"image_size": 16}
    Run.create(folder, Experiment(backbone={"name": "small_conv", **settings}, device="cpu"))
    save(build_model("small_conv", "linear", tuple(f"class {k}" for k in range(20)), settings), folder)
    return folder


def child(run: Path, names: Path, out: Path, mode: str) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, str(run), str(names), str(out), mode]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000, help="the longest list (100,000)")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = pictures(folder)
        run = made_run(folder / "run")
        for count in (size for size in SIZES if size <= args.most):
            listed = folder / f"{count}.txt"
            with listed.open("w") as handle:
                handle.writelines(f"{names[row % len(names)]}\n" for row in range(count))
            first = child(run, listed, folder / f"out{count}", "new")
            again = child(run, listed, folder / f"out{count}", "resume")
            found = sum(pq.read_metadata(part).num_rows for part in (folder / f"out{count}").glob("*.parquet"))
            assert first["images"] == again["images"] == found == count
            row = {"images": count, "rows": found, "seconds": round(first["seconds"], 2)}
            row |= {"peak_rss_mb": first["peak_rss_mb"], "images_per_second": round(count / first["seconds"])}
            rows.append(row | {"resume_s": round(again["seconds"], 2), "resume_peak_rss_mb": again["peak_rss_mb"]})
            print(rows[-1], flush=True)
            write("predict", rows)
    print("benchmarks/results/predict.csv")


if __name__ == "__main__":
    main()
