"""`plures predict --precision`: what bfloat16 and int8 cost in mAP on photographs, and what they gain in images/s.

    python benchmarks/precision.py RUN...              # finished runs on the VOC-12 sample; two minutes a run
    python benchmarks/precision.py RUN --limit 300     # fewer photographs

A run's model scores the test photographs of the run's own data in each precision, through the same `Predictor` as
`plures predict`; int8 measures its ranges on the first 64 photographs, as there. Photographs are decoded beforehand, so
that seconds are those of the model, on one thread; the precisions take turns, eight batches at a time. `difference` is
mAP less mAP in float32, in percent points, with its 95% interval (paired bootstrap over images, 1,000 resamples), over
the classes with 10 photographs or more: a class with two moves the mean by points. `map_all`: over all classes.
`tags_changed`: how many tags of an image are other than in float32. Rows of other runs already in the CSV stay.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np
import torch
from environment import read_rows, write

from plures.data.dataset import Dataset
from plures.data.photos import to_image
from plures.labels import Labels
from plures.metrics.average_precision import mean_average_precision
from plures.metrics.intervals import bootstrap_difference
from plures.runs.own_data import own_data
from plures.runs.run import Run
from plures.scoring.predictor import Predictor, load

PRECISIONS = ("float32", "bfloat16", "int8")
BATCH, STRETCH = 32, 256  # images a batch, and before the next precision's turn


def photographs(run: Run, limit: int | None) -> Dataset:
    """The test photographs of the run's own data; limit: this many of them, evenly spread."""
    data = own_data(run, {}, False).split("test")
    return data.take(np.linspace(0, len(data) - 1, min(limit or len(data), len(data))).astype(int))


def frequent(labels: Labels) -> tuple[np.ndarray, Labels]:
    """The classes with 10 photographs or more, and the labels of these."""
    often = np.flatnonzero(labels.present.sum(0) >= 10)
    return often, Labels(labels.values[:, often])


def logits_in_turns(scorers: list[Predictor], images: torch.Tensor) -> tuple[list[np.ndarray], list[float]]:
    """Logits [N, K] of images uint8 [N, 3, H, W] by each scorer, and the seconds of each."""
    found: list[list[torch.Tensor]] = [[] for _ in scorers]
    seconds = [0.0] * len(scorers)
    for scorer in scorers:
        scorer.score(images[:BATCH])  # the first batch prepares kernels
    for start in range(0, len(images), STRETCH):
        for place, scorer in enumerate(scorers):
            began = time.perf_counter()
            for batch in images[start : start + STRETCH].split(BATCH):
                found[place].append(scorer.score(batch).logits.double())
            seconds[place] += time.perf_counter() - began
    return [torch.cat(parts).numpy() for parts in found], seconds


def measured(path: str, limit: int | None) -> list[dict[str, Any]]:
    run = Run(path)
    data = photographs(run, limit)
    items = [(str(image), str(image)) for image in data.images]
    scorers = [load(run, precision=p, calibration=items if p == "int8" else ()) for p in PRECISIONS]
    transform = scorers[0].transform
    began = time.perf_counter()
    images = torch.stack([transform(to_image(image, transform.decoding_size)) for _, image in items])
    decoding = time.perf_counter() - began
    logits, seconds = logits_in_turns(scorers, images)
    tags = [scorers[0].thresholds.called(found) for found in logits]
    rows = []
    often, labels = frequent(data.labels)
    for place, precision in enumerate(PRECISIONS):
        apart = bootstrap_difference(logits[0][:, often], logits[place][:, often], labels, resamples=1000)
        model = scorers[0].model.parts
        row = {
            "run": run.path.name,
            "backbone": model.backbone_options.get("model", model.backbone),
            "head": model.head,
        }
        row |= {"precision": precision, "n": len(data), "classes": len(often)}
        row["map"] = round(100 * mean_average_precision(logits[place][:, often], labels).value, 2)
        row["map_all"] = round(100 * mean_average_precision(logits[place], data.labels).value, 2)
        row |= {name: round(100 * getattr(apart, value), 2) for name, value in
                (("difference", "value"), ("low", "low"), ("high", "high"))}  # fmt: skip
        row["tags_changed"] = round(float((tags[place] != tags[0]).sum(1).mean()), 3)
        row |= {"images_per_second": round(len(data) / seconds[place], 1)}
        row |= {"times_float32": round(seconds[0] / seconds[place], 2)}
        rows.append(row | {"decoded_per_second": round(len(data) / decoding, 1), "threads": torch.get_num_threads()})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="finished run folders")
    parser.add_argument("--limit", type=int, help="this many photographs instead of all")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    names = {Run(path).path.name for path in args.runs}
    rows = [row for row in read_rows("precision") if row["run"] not in names]
    for path in args.runs:
        rows += measured(path, args.limit)
    print(write("precision", rows))


if __name__ == "__main__":
    main()
