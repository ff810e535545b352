"""Where a Query2Label head looks: pictures of ten VOC photos, and how often it points into the objects' boxes.

    PLURES_SHARED=... python benchmarks/heatmap_pictures.py --out runs/heatmaps

Trains query2label on frozen MobileNetV2 features with all labels (as in voc12_heads.py, seed 0; minutes), with its
encoder and without, draws OUT/with_encoder.png and OUT/without_encoder.png (each photo, then a heat map for each label
that it carries), and writes benchmarks/results/heatmaps.csv: the pointing game on every test image, beside pointing to
the image's centre. The pictures show other people's photographs: keep them out of the repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write
from PIL import Image
from voc12 import FREQUENT, settings
from voc12_heads import HEADS, LOSSES

from plures import Dataset, Experiment, Model, Run, load, read
from plures.data.photos import to_image
from plures.metrics.localisation import Localisation, localisation
from plures.metrics.report import Report
from plures.runs.data import with_splits
from plures.scoring.heatmaps import overlay, paint, region_weights
from plures.training.train import train

PHOTOS, COLUMNS, SIDE, MAP = 10, 4, 300, 112


def trained(out: Path, encoder_layers: int) -> Run:
    """The run in this folder, trained first if it is not there."""
    if (out / "experiment.yaml").is_file():
        return Run(out)
    values = {**settings("linear", "bce", 1e-3, 0), **HEADS["query2label"], **LOSSES["bce"]}
    values["head"] = {**HEADS["query2label"]["head"], "encoder_layers": encoder_layers}
    return train(Experiment(**values), out)


@torch.inference_mode()
def looked_at(model: Model, images: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [B, K], weights [B, K, P] and boxes [P, 4] of images."""
    transform = model.transform
    output = model(torch.stack([transform(to_image(image)) for image in images]))
    assert output.boxes is not None
    return output.logits.sigmoid().numpy(), region_weights(output).numpy(), output.boxes.numpy()


def chosen(dataset: Dataset) -> list[int]:
    """Ten rows: for each frequent class the first photo not taken yet that shows it and another class."""
    several = dataset.labels.present.sum(1) >= 2
    rows: list[int] = []
    for name in FREQUENT:
        shows = dataset.labels.present[:, dataset.classes.index(name)] & several
        rows += [int(r) for r in np.flatnonzero(shows) if r not in rows][:1]
    return rows[:PHOTOS]


def draw(model: Model, dataset: Dataset, rows: list[int], path: Path) -> None:
    """The contact sheet."""
    scores, weights, boxes = looked_at(model, [dataset.images[r] for r in rows])
    pictures = []
    for i, row in enumerate(rows):
        photo = to_image(dataset.images[row])
        line = [photo]
        for k in np.flatnonzero(dataset.labels.present[row])[: COLUMNS - 1]:
            heat = paint(weights[i, k], boxes, photo.height, photo.width)
            line.append(overlay(photo, heat, dataset.classes[k], float(scores[i, k])))
        pictures += line + [Image.new("RGB", (1, 1), "white")] * (COLUMNS - len(line))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(pictures) // COLUMNS) * SIDE), "white")
    for place, picture in enumerate(pictures):
        picture.thumbnail((SIDE - 8, SIDE - 8))
        sheet.paste(picture.convert("RGB"), (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
    sheet.save(path)


def boxes_by_label(dataset: Dataset) -> dict[tuple[int, int], np.ndarray]:
    """The true boxes [M, 4] of each (row, column) that has any."""
    assert dataset.boxes is not None
    truth: dict[tuple[int, int], list[np.ndarray]] = {}
    of_row, of_column = dataset.boxes.row.tolist(), dataset.boxes.column.tolist()
    for row, column, corners in zip(of_row, of_column, dataset.boxes.corners, strict=True):
        truth.setdefault((row, column), []).append(corners)
    return {place: np.array(boxes) for place, boxes in sorted(truth.items())}


def pointing(model: Model, dataset: Dataset) -> Localisation:
    """How the model's maps of the labels that are there meet their boxes."""
    truth = boxes_by_label(dataset)

    def judged() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(dataset), 16):
            rows = range(start, min(start + 16, len(dataset)))
            _, weights, boxes = looked_at(model, [dataset.images[r] for r in rows])
            for row, column in (p for p in truth if p[0] in rows):
                yield paint(weights[row - start, column], boxes, MAP, MAP), truth[row, column]

    return localisation(judged())


def pointing_to_the_centre(dataset: Dataset) -> Localisation:
    """The same of a map whose middle pixel alone is hot."""
    centre = np.zeros((MAP + 1, MAP + 1))
    centre[MAP // 2, MAP // 2] = 1
    return localisation((centre, boxes) for boxes in boxes_by_label(dataset).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/heatmaps"))
    out = parser.parse_args().out
    found: dict[str, Localisation] = {}
    scores: dict[str, float | str] = {}
    for name, layers in (("with_encoder", 1), ("without_encoder", 0)):
        run = trained(out / name, layers)
        dataset = with_splits(read(run.experiment.data.name), run.experiment).split("test")
        model, rows = load(run.path), chosen(dataset)
        draw(model, dataset, rows, out / f"{name}.png")
        print(out / f"{name}.png", *(Path(str(dataset.images[r])).name for r in rows))
        found[name], scores[name] = pointing(model, dataset), round(100 * Report.load(run.path / "report.json").map, 1)
    found["image centre"], scores["image centre"] = pointing_to_the_centre(dataset), ""
    results = [
        {
            "maps of": name,
            "test20": scores[name],
            "pointing": round(100 * f.pointing, 1),
            "energy_in_boxes": round(100 * f.energy, 1),
            "maps": f.maps,
        }
        for name, f in found.items()
    ]
    print(*results, write("heatmaps", results), sep="\n")


if __name__ == "__main__":
    main()
