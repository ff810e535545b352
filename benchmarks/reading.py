"""From a file to a model's pixels: what plures does now against Pillow's resize before, in one run, and what mAP loses.

    python benchmarks/reading.py [--photos 300] [--shared ../shared]

`before` is the road up to version 2 of `plures.data.photos.PIXELS`: Pillow decodes and resizes, then a copy. Both
take turns on the same VOC-12 photographs on one thread; the fastest of five rounds counts (CPU time). `mAP` judges the
same linear head (ridge on pooled features of a frozen MobileNetV2, in closed form, learned on the old pixels) on 1,000
other photographs read both ways. Rows go to results/reading.csv.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write
from PIL import Image
from torch import Tensor

from plures.data.photos import Transform, open_image, open_pixels
from plures.data.read import read
from plures.metrics.average_precision import average_precision
from plures.models.model import build_model

Road = Any


def before(file: str, size: int) -> Tensor:
    image = open_image(file, 2 * size).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def now(file: str, size: int) -> Tensor:
    return Transform(size)(open_pixels(file, 2 * size))


def speed(name: str, files: list[str], size: int) -> dict[str, Any]:
    """Photographs a second and core on both roads."""
    best = dict.fromkeys((before, now), float("inf"))
    for _ in range(5):
        for road in best:
            began = time.process_time()
            for file in files:
                road(file, size)
            best[road] = min(best[road], (time.process_time() - began) / len(files))
    row = {"what": name, "size": size, "n": len(files), "before": round(1 / best[before]), "now": round(1 / best[now])}
    return row | {"ratio": round(best[before] / best[now], 2)}


def moved(data: Any, weights: Path, size: int) -> dict[str, Any]:
    """mAP in percent of one head on both kinds of pixels, and how the pixels differ."""
    options = {"model": "mobilenetv2_100", "image_size": size, "weights": str(weights)}
    options |= {"model_options": {"pad_type": "same", "bn_eps": 1e-3}, "mean": [0.5] * 3, "std": [0.5] * 3}
    model = build_model("timm", "linear", data.classes, options).eval()
    train, test = (
        data.split(name).take(np.linspace(0, len(data.split(name)) - 1, 1000).astype(int)) for name in ("train", "test")
    )

    def features(files: list[str], road: Road) -> tuple[np.ndarray, Tensor]:
        images = torch.stack([road(file, size) for file in files])
        with torch.inference_mode():
            return torch.cat([model.tokens(b).features.mean(1) for b in images.split(50)]).double().numpy(), images

    x, _ = features(train.images, before)
    mean, scale = x.mean(0), x.std(0) + 1e-9
    x = (x - mean) / scale
    head = np.linalg.solve(x.T @ x + 300 * np.eye(x.shape[1]), x.T @ (2.0 * train.labels.present - 1))
    frequent = np.flatnonzero(test.labels.present.sum(0) >= 8)
    maps, pixels = [], []
    for road in (before, now):
        found, images = features(test.images, road)
        scores = (found - mean) / scale @ head
        maps.append(100 * float(average_precision(scores, test.labels)[frequent].mean()))
        pixels.append(images.int())
    apart = (pixels[0] - pixels[1]).abs()
    row = {"what": "mAP", "size": size, "n": len(test), "before": round(maps[0], 3), "now": round(maps[1], 3)}
    return row | {"levels": int(apart.max()), "differ_percent": round(100 * float(apart.ne(0).float().mean()), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("PLURES_SHARED", "../shared")))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = read(f"voc:{args.shared / 'data' / 'voc12' / 'VOCdevkit' / 'VOC2012'}")
    rows = [speed("VOC", [str(file) for file in data.images[: args.photos]], 448)]
    print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        large = [str(Path(folder) / f"{number}.jpg") for number in range(12)]
        for file, source in zip(large, data.images, strict=False):
            open_image(source).resize((4000, 3000), Image.Resampling.BICUBIC).save(file, quality=90)
        rows.append(speed("12 megapixels", large, 448))
        print(rows[-1], flush=True)
    rows.append(moved(data, args.shared / "weights" / "mobilenetv2_100.safetensors", 128))
    print(rows[-1], flush=True)
    print(write("reading", rows))


if __name__ == "__main__":
    main()
