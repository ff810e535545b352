"""Reading photos: decode, resize to 448, flip, batch of uint8 or float; images a second on one core.

    python benchmarks/images.py                      # PLURES_SHARED names the folder with data/voc12; a minute

Three pipelines over the same files in the same run: `official` as the MLSPL and Query2Label code reads (PIL decodes the
whole photo, torchvision Resize, RandomHorizontalFlip, ToTensor, Normalize); timm's evaluation transform
(create_transform, bicubic); `plures` (JPEGs decoded at a half, quarter or eighth where that still leaves 448 pixels,
uint8 batches, normalised in the model). Large photos are VOC photos enlarged to 4000 x 3000 and saved as JPEG (quality
90).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import write
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as T

from plures.data.photos import Transform, open_image, random_for

SHARED = Path(os.environ.get("PLURES_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, BATCH = 448, 10


def pipelines() -> dict[str, Callable[[str], torch.Tensor]]:
    official = T.Compose([T.Resize((SIZE, SIZE)), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
    timm = create_transform((3, SIZE, SIZE), crop_mode="squash", crop_pct=1.0, interpolation="bicubic")
    ours = Transform(SIZE, "flip")
    return {
        "official": lambda path: official(Image.open(path).convert("RGB")),
        "timm": lambda path: timm(Image.open(path).convert("RGB")),
        "plures": lambda path: ours(open_image(path, ours.decoding_size), random_for(0, 0, 1)),
    }


def measure(kind: str, files: list[str], rounds: int) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {name: [] for name in pipelines()}
    for _ in range(rounds):  # in turns, so that what else the machine does falls on all alike
        for name, read in pipelines().items():
            started = time.process_time()
            for start in range(0, len(files), BATCH):
                torch.stack([read(path) for path in files[start : start + BATCH]])
            rates[name].append(len(files) / (time.process_time() - started))
    rows = []
    for name, found in rates.items():
        row = {"photos": kind, "pipeline": name, "n": len(files), "rounds": rounds}
        row |= {"images_per_cpu_second": round(statistics.median(found), 1), "least": round(min(found), 1)}
        row |= {"most": round(max(found), 1)}
        row["times_official"] = round(statistics.median(found) / statistics.median(rates["official"]), 2)
        row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--large", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(map(str, (SHARED / "data" / "voc12" / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.jpg")))
    step = len(files) // args.photos
    rows = measure("VOC, long side 384", files[::step][: args.photos], args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        large = []
        for path in files[:: len(files) // args.large][: args.large]:
            large.append(f"{folder}/{Path(path).name}")
            Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(large[-1], quality=90)
        rows += measure("12 megapixels", large, args.rounds)
    print(write("images", rows))


if __name__ == "__main__":
    main()
