"""One training step and one inference of the full-size patch model (640 x 640, 130 patches, 248,850 parameters).

python benchmarks/patch_model.py            # two minutes on 2 idle cores
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import torch
from environment import write

from plures.labels import TensorLabels
from plures.losses import Context, losses
from plures.models.model import build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model("patches", "codebook", tuple(str(k) for k in range(80))).to(device)
    loss = losses.make("wn", reduction="image")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = torch.randint(0, 256, (args.batch, 3, 640, 640), dtype=torch.uint8, device=device)
    values = torch.full((args.batch, 80), -1, dtype=torch.int8, device=device)
    values[:, 0] = 1
    labels = TensorLabels(values)

    def train() -> None:
        sum(loss(model(images, maps=False), labels, Context()).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    def infer() -> None:
        with torch.inference_mode():
            model(images, maps=False)

    rows: list[dict[str, Any]] = []
    for name, step in (("train", train), ("infer", infer)):
        model.train(name == "train")
        step()
        seconds = []
        for _ in range(args.steps):
            started, cpu = time.perf_counter(), time.process_time()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - started, time.process_time() - cpu))
        wall, cpu = min(seconds)
        rows.append(
            {
                "what": name,
                "batch": args.batch,
                "threads": torch.get_num_threads(),
                "seconds_min": round(wall, 2),
                "cpu_seconds": round(cpu, 2),
                "images_per_second": round(args.batch / wall, 2),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
        print(rows[-1])
    print(write("patch_model", rows))


if __name__ == "__main__":
    main()
