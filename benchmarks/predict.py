"""`plures predict` into parts: memory as the list grows, and the cost of bookkeeping on resume.

    python benchmarks/predict.py           # lists of 1,000 to 20,000; about a minute
    python benchmarks/predict.py --large   # also 1,000,000 (an hour or so on one core; memory is the question)

A generated list names one small picture over and over; the model is the built-in small network at 16 pixels, so that
what is measured is the streaming. Each list runs in a process of its own; `peak_rss_mb` is that process's peak.
`resume_s`: the same command again with --resume on the finished folder (nothing to do but to look at every part).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import write

CHILD = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from plures.inference.predict import predict
started = time.perf_counter()
summary = predict(sys.argv[1], sys.argv[2], sys.argv[3], parts=1000, batch_size=64, resume=sys.argv[4] == "resume")
print(json.dumps({"images": summary.images, "seconds": time.perf_counter() - started,
                  "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def made_run(folder: Path) -> Path:
    from plures.experiment import Experiment
    from plures.models.model import build_model, save
    from plures.training.run import Run

    settings = {"image_size": 16}
    Run.create(folder, Experiment(embedder={"name": "small_conv", **settings}, device="cpu"))
    save(build_model("small_conv", "linear", tuple(f"class {k}" for k in range(20)), settings), folder)
    return folder


def child(run: Path, names: Path, out: Path, mode: str) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, str(run), str(names), str(out), mode]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 1,000,000 images")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        import numpy as np
        from PIL import Image

        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "a.bmp")
        run = made_run(folder / "run")
        for count in (1_000, 5_000, 20_000, *([1_000_000] if args.large else [])):
            names = folder / f"{count}.txt"
            with names.open("w") as handle:
                handle.writelines("a.bmp\n" for _ in range(count))
            first = child(run, names, folder / f"out{count}", "new")
            again = child(run, names, folder / f"out{count}", "resume")
            assert first["images"] == again["images"] == count
            row = {"images": count, "seconds": round(first["seconds"], 2), "peak_rss_mb": first["peak_rss_mb"]}
            row |= {"images_per_second": round(count / first["seconds"]), "resume_s": round(again["seconds"], 2)}
            rows.append(row)
            print(row, flush=True)
    print(write("predict", rows))


if __name__ == "__main__":
    main()
