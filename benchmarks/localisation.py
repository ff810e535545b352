"""Where four heads look, judged by true boxes that none of them has seen: pointing game, energy and box recall.

Each head is trained as in benchmarks/voc12_heads.py (frozen MobileNetV2 maps of 7 x 7 regions at 224 pixels; all labels
with bce, and one positive an image with gr), on VOC, and its maps of the labels that are there are judged on the VOC
test rows and on all photos of the COCO sample (the 20 classes that both name, by COCO's names). The share of the
hottest pixel that bounds a box is chosen for each head on the VOC validation rows by box recall, never on test.
`plain` is what `plures train` makes of the photographs without further settings, with both backbones; its maps are
averaged with their neighbours, which those of `linear` were not yet when they were measured. A flat map (equally hot
everywhere) is the line to beat: it points to the middle and its box is the whole photo.

    PLURES_SHARED=... python benchmarks/localisation.py --runs runs/localisation

Writes benchmarks/results/localisation.csv: mean and spread over seeds.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import read_rows, write
from voc12 import SHARED, photographs, settings
from voc12_heads import HEADS

from plures import Dataset, Experiment, Run, load
from plures.analysis.localise import true_boxes
from plures.labels import Labels
from plures.metrics.localisation import Judge, Localisation
from plures.runs.data import with_splits
from plures.runs.own_data import match_classes
from plures.scoring.logits import look
from plures.training.train import train

LOSSES: dict[str, dict[str, Any]] = {"bce": {"supervision": "full", "loss": "bce"}, "gr": {"loss": "gr"}}
LITE2 = str(SHARED / "weights" / "tf_efficientnet_lite2.safetensors")
PLAIN: dict[str, dict[str, Any]] = {
    "plain, MobileNetV2": {},
    "plain, EfficientNet-Lite2": {"backbone": {"name": "fast", "weights": LITE2}},
}
OF_PLAIN: dict[str, dict[str, Any]] = {"all labels": {"supervision": "full"}, "one positive": {}}
OF_DATA = ("data", "supervision", "split", "backbone", "device", "workers", "seed")
SHARES = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
VOC_NAME = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}
MEASURES = ("pointing", "energy", "box_hit", "box_recall", "parts_recall", "parts_precision")


def trained(folder: Path, head: str, loss: str, seed: int) -> Run:
    """The run in this folder, trained first if it is not there."""
    out = folder / f"{head}_{loss}_{seed}"
    if (out / "report.json").is_file():
        return Run(out)
    values = settings("linear", "an", 1e-3, seed)
    if head in PLAIN:
        experiment = Experiment(**{**{key: values[key] for key in OF_DATA}, **PLAIN[head], **OF_PLAIN[loss]})
    else:
        experiment = Experiment(**{**values, **HEADS[head], **LOSSES[loss]})
    return train(experiment, out, dataset=photographs(experiment.data.name))


def coco(classes: tuple[str, ...]) -> Dataset:
    """All photos of the COCO sample, with the VOC classes as columns."""
    dataset = photographs(f"coco:{SHARED / 'data' / 'coco'}")
    names = [VOC_NAME.get(name, name) for name in dataset.classes]
    columns = np.array([k for k, name in enumerate(names) if name in classes])
    assert dataset.boxes is not None
    kept = np.isin(dataset.boxes.column, columns)
    boxes = replace(
        dataset.boxes,
        row=dataset.boxes.row[kept],
        column=np.searchsorted(columns, dataset.boxes.column[kept]),
        corners=dataset.boxes.corners[kept],
    )
    labels = Labels(dataset.labels.values[:, columns])
    shared = replace(dataset, labels=labels, classes=tuple(names[k] for k in columns), boxes=boxes, splits=None)
    return match_classes(shared, classes)


def judged(run: Run, dataset: Dataset, shares: tuple[float, ...]) -> list[Localisation]:
    """How the run's maps meet the true boxes, for each share."""
    truth, judges = true_boxes(dataset), [Judge(share) for share in shares]
    for seen in look(load(run.path), dataset, run.experiment):
        for column, boxes in truth.get(seen.row, {}).items():
            heat = seen.heat(column)
            for judge in judges:
                judge.add(heat, boxes)
    return [judge.result() for judge in judges]


def flat(dataset: Dataset) -> Localisation:
    judge = Judge()
    for boxes in (b for of_row in true_boxes(dataset).values() for b in of_row.values()):
        judge.add(np.ones((101, 101), np.float32), boxes)
    return judge.result()


def row(data: str, head: str, loss: str, shares: list[float], found: list[Localisation]) -> dict[str, Any]:
    """Mean and spread over the seeds, in percent."""
    cells: dict[str, Any] = {"data": data, "head": head, "loss": loss, "n": len(found)}
    cells["share"] = "/".join(f"{share:g}" for share in shares)
    for name in MEASURES:
        values = np.array([100 * asdict(f)[name] for f in found])
        cells[name] = round(float(values.mean()), 1)
        cells[f"{name}_sd"] = round(float(values.std(ddof=1)), 1) if len(values) > 1 else ""
    return {**cells, "maps": found[0].maps, "boxes": found[0].boxes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/localisation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", default=[*HEADS, *PLAIN])
    args = parser.parse_args()
    torch.set_num_threads(1)
    again = {*args.heads, "flat map"}
    rows = [r for r in read_rows("localisation") if r["head"] not in again]  # what was measured before stays
    for head in args.heads:
        for loss in OF_PLAIN if head in PLAIN else LOSSES:
            found: dict[str, list[Localisation]] = {"voc12": [], "coco": []}
            chosen: list[float] = []
            for seed in range(args.seeds):
                run = trained(args.runs, head, loss, seed)
                data = with_splits(photographs(run.experiment.data.name), run.experiment)
                by_share = judged(run, data.split("val"), SHARES)
                chosen.append(SHARES[int(np.argmax([f.box_recall for f in by_share]))])
                print(head, loss, seed, "recall by share", [round(100 * f.box_recall, 1) for f in by_share], flush=True)
                for name, test in (("voc12", data.split("test")), ("coco", coco(data.classes))):
                    found[name] += judged(run, test, (chosen[-1],))
            rows += [row(name, head, loss, chosen, found[name]) for name in found]
            print(*rows[-2:], sep="\n", flush=True)
            write("localisation", rows)  # so that a benchmark which is stopped leaves what it measured
    voc = with_splits(photographs(run.experiment.data.name), run.experiment)
    rows += [row("voc12", "flat map", "", [], [flat(voc.split("test"))])]
    rows += [row("coco", "flat map", "", [], [flat(coco(voc.classes))])]
    rows.sort(key=lambda r: r["data"], reverse=True)
    print(write("localisation", rows))


if __name__ == "__main__":
    main()
