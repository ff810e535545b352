"""What scaled JPEG decoding costs: the same photographs decoded in part and in full, scored by the same model.

    python benchmarks/decoding.py RUN              # a finished run on the VOC-12 sample; some minutes
    python benchmarks/decoding.py RUN --limit 200  # fewer photographs

`open_image` takes a JPEG at a half, a quarter or an eighth of its size where that leaves `margin` times the pixels that
the model wants on both sides; then comes the antialiased resize. plures asks for 2. The photographs of the sample are
384 pixels long, so at the model's own 224 none is scaled: the model is given 128, 96 and 64 pixels, where nearly all
are, as a 12-megapixel photo is for 448. A linear head on pooled features takes any size; it scores lower
there than at the size it was trained for. `difference` is mAP less mAP with full decoding, in percent points, with its
95% interval (paired bootstrap over images, 1,000 resamples), over the classes with 10 photographs or more; `pixels` the
mean difference of a pixel, of 255.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from environment import write
from PIL import Image
from precision import BATCH, frequent, photographs

from plures.data.photos import Transform, open_image
from plures.metrics.average_precision import mean_average_precision
from plures.metrics.intervals import bootstrap_difference
from plures.runs.run import Run
from plures.scoring.predictor import Predictor, load

SIZES = (128, 96, 64)
MARGINS = (1.0, 1.5, 2.0)


def pixels_of(files: list[str], size: int, at_least: int | None) -> torch.Tensor:
    """uint8 [N, 3, size, size]; at_least: see `open_image`."""
    transform = Transform(size)
    return torch.stack([transform(open_image(file, at_least)) for file in files])


def scored(scorer: Predictor, images: torch.Tensor, often: np.ndarray) -> np.ndarray:
    """Logits [N, classes in `often`]."""
    return torch.cat([scorer.score(batch).logits.double() for batch in images.split(BATCH)]).numpy()[:, often]


def scaled(files: list[str], at_least: int) -> int:
    """How many photographs are decoded smaller than they are."""
    count = 0
    for file in files:
        with Image.open(file) as image:
            full = image.size
            image.draft(None, (at_least, at_least))
            count += image.size != full
    return count


def timed(work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    began = time.process_time()
    return work(), time.process_time() - began


def compared(scorer: Predictor, files: list[str], labels: Any, size: int) -> list[dict[str, Any]]:
    """A row for full decoding and for each margin, at one input size."""
    often, labels = frequent(labels)
    images, seconds = timed(lambda: pixels_of(files, size, None))
    exact = scored(scorer, images, often)
    value = round(100 * mean_average_precision(exact, labels).value, 2)
    rows = [{"pixels_wanted": size, "decoding": "full", "n": len(files), "scaled": 0, "map": value}]
    rows[0] |= {"images_per_cpu_second": round(len(files) / seconds, 1)}
    print(rows[0], flush=True)
    for margin in MARGINS:
        at_least = round(margin * size)
        count = scaled(files, at_least)
        row: dict[str, Any] = {"pixels_wanted": size, "decoding": f"scaled, margin {margin:g}", "n": len(files)}
        row["scaled"] = count
        if count:
            small, seconds = timed(lambda at=at_least: pixels_of(files, size, at))
            found = scored(scorer, small, often)
            apart = bootstrap_difference(exact, found, labels, resamples=1000)
            row["map"] = round(100 * mean_average_precision(found, labels).value, 2)
            row |= {key: round(100 * getattr(apart, key), 3) for key in ("value", "low", "high")}
            row["difference"] = row.pop("value")
            row["pixels"] = round(float((small.float() - images.float()).abs().mean()), 2)
            row["images_per_cpu_second"] = round(len(files) / seconds, 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run folder")
    parser.add_argument("--limit", type=int, help="this many photographs instead of all")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    run = Run(args.run)
    data = photographs(run, args.limit)
    files = [str(image) for image in data.images]
    scorer = load(run)
    rows = [row for size in SIZES for row in compared(scorer, files, data.labels, size)]
    print(write("decoding", [{"run": run.path.name, **row} for row in rows]))


if __name__ == "__main__":
    main()
