"""`plures.predict`: every image's scores and tags, one row an image, written as it goes; heat maps on request."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from plures.data.images import IMAGE_SUFFIXES, Transform, Unreadable, list_images, to_image
from plures.data.read import read
from plures.errors import BadData, PluresError, Problem
from plures.files import writing
from plures.inference.heatmaps import overlay, paint, region_weights
from plures.models.model import Model, load
from plures.training.evaluate import make_fabric
from plures.training.run import Run

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one image. scores: {class: probability}; tags: classes at or above the threshold."""

    image: str
    scores: dict[str, float]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What a prediction run did: images scored, images left out with the reason, tags an image on average."""

    images: int
    tags_per_image: float
    problems: tuple[Problem, ...]


def predict(
    run: str | Path | Run,
    source: str | Path,
    out: str | Path,
    *,
    heatmaps: str | Path | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    skip_bad: bool = False,
) -> Summary:
    """Score the images of `source` (an image, a folder of images, or data as `train` takes them) into one file.

    out: .csv or .tsv (image, tags, a column a class), .jsonl or .parquet. heatmaps: a folder that gets a picture for
    each tag of each image. threshold in (0, 1): the experiment's unless given. skip_bad: leave unreadable images
    out; otherwise they raise BadData before anything is written.
    """
    run = run if isinstance(run, Run) else Run(run)
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise PluresError(f"{out}: cannot tell the format from '{out.suffix}'; use {', '.join(SUFFIXES)}")
    threshold = run.experiment.threshold if threshold is None else threshold
    if not 0 < threshold < 1:
        raise PluresError(f"threshold={threshold:g}: a probability between 0 and 1 was expected, such as 0.5")
    images, names = find_images(source, skip_bad)
    model = load(run.path).to(make_fabric(run.experiment).device).eval()
    pictures, stems = None if heatmaps is None else Path(heatmaps), _stems(names)
    problems: list[Problem] = []
    count = tags = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out) as temporary, _writer(temporary, out.suffix.lower(), model.classes) as write:
        for rows, logits, weights, boxes in _scored(
            model, images, names, batch_size, workers, pictures is not None, problems
        ):
            scores = 1 / (1 + np.exp(-logits))  # [B, K]
            predictions = [
                _prediction(names[r], s, model.classes, threshold) for r, s in zip(rows, scores, strict=True)
            ]
            write(predictions)
            count, tags = count + len(predictions), tags + sum(len(p.tags) for p in predictions)
            if pictures is not None:
                for i, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
                    _draw(pictures / stems[row], images[row], prediction, weights[i], boxes, model.classes)
        if problems and not skip_bad:
            raise BadData(problems)
    return Summary(count, tags / count if count else float("nan"), tuple(problems))


def find_images(source: str | Path, skip_bad: bool = False) -> tuple[Sequence[str] | NDArray[np.uint8], list[str]]:
    """The images that a source stands for, and their names: paths, or row numbers of images in memory."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return [str(path)], [str(path)]
    if path.is_dir():
        images = list_images(path)
        return images, images
    dataset = read(str(source), skip_bad=skip_bad, labelled=False)
    if isinstance(dataset.images, np.ndarray):
        return dataset.images, [f"{i:06d}" for i in range(len(dataset))]
    return dataset.images, [str(image) for image in dataset.images]


def _prediction(name: str, scores: NDArray[np.floating], classes: tuple[str, ...], threshold: float) -> Prediction:
    order = [int(i) for i in np.argsort(-scores, kind="stable")]
    tags = tuple(classes[i] for i in order if scores[i] >= threshold)
    return Prediction(name, {c: round(float(s), 6) for c, s in zip(classes, scores, strict=True)}, tags)


class _Images(torch.utils.data.Dataset[Tensor | Unreadable]):
    def __init__(self, images: Sequence[str] | NDArray[np.uint8], transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor | Unreadable:
        try:
            return self.transform(to_image(self.images[row]))
        except Unreadable as error:
            return error


@torch.inference_mode()
def _scored(
    model: Model,
    images: Sequence[str] | NDArray[np.uint8],
    names: list[str],
    batch_size: int,
    workers: int,
    maps: bool,
    problems: list[Problem],
) -> Iterator[tuple[list[int], NDArray[np.float64], NDArray[np.floating], NDArray[np.floating]]]:
    """Rows, logits [B, K], region weights [B, K, P] (empty without maps) and boxes [P, 4] of each batch."""
    p = model.preprocessing
    source = _Images(images, Transform(p.image_size, "none", p.interpolation))
    loader = DataLoader(source, batch_size=batch_size, num_workers=workers, collate_fn=list)
    device = model.mean.device
    row = 0
    for items in loader:
        good: dict[int, Tensor] = {}
        for item in items:
            if isinstance(item, Unreadable):
                problems.append(Problem(names[row], None, str(item).removeprefix(f"{names[row]}: ")))
            else:
                good[row] = item
            row += 1
        if good:
            output = model(torch.stack(list(good.values())).to(device), maps=maps)
            weights = region_weights(output).float().cpu().numpy() if maps else np.empty(0)
            boxes = output.boxes.float().cpu().numpy() if maps else np.empty(0)
            yield list(good), output.logits.double().cpu().numpy(), weights, boxes


def _stems(names: list[str]) -> list[str]:
    """What pictures of each image are called: its name without folder and suffix, with its row where two share one."""
    stems = [Path(name).stem for name in names]
    times = Counter(stems)
    return [stem if times[stem] == 1 else f"{stem}-{row}" for row, stem in enumerate(stems)]


def _draw(
    stem: Path,
    image: str | NDArray[np.uint8],
    prediction: Prediction,
    weights: NDArray[np.floating],
    boxes: NDArray[np.floating],
    classes: tuple[str, ...],
) -> None:
    """One picture for each tag of the image, at the image's own size: STEM.TAG.png."""
    picture = to_image(image)
    for tag in prediction.tags:
        heat = paint(weights[classes.index(tag)], boxes, picture.height, picture.width)
        safe = re.sub(r"[^\w.-]+", "_", tag)
        with writing(stem.with_name(f"{stem.name}.{safe}.png")) as temporary:
            overlay(picture, heat, tag, prediction.scores[tag]).save(temporary, format="PNG")


# ----------------------------------------------------------------------------------------------- the kinds of file


class _Write(Protocol):
    def __call__(self, predictions: list[Prediction]) -> None: ...


@contextmanager
def _writer(path: Path, suffix: str, classes: tuple[str, ...]) -> Iterator[_Write]:
    """A function that appends predictions to a file of this kind."""
    if suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as handle:
            yield lambda predictions: _write_lines(handle, predictions)
        return
    columns = [f"score of {c}" if c in ("image", "tags") else c for c in classes]
    schema = pa.schema([("image", pa.string()), ("tags", pa.string()), *((c, pa.float32()) for c in columns)])
    if suffix == ".parquet":
        sink: Any = pa.parquet.ParquetWriter(path, schema)
    else:
        options = pa.csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",", quoting_style="needed")
        sink = pa.csv.CSVWriter(path, schema, write_options=options)
    with sink:
        yield lambda predictions: sink.write_table(_table(predictions, schema, classes))


def _write_lines(handle: IO[str], predictions: list[Prediction]) -> None:
    for p in predictions:
        handle.write(json.dumps({"image": p.image, "tags": p.tags, "scores": p.scores}, ensure_ascii=False) + "\n")


def _table(predictions: list[Prediction], schema: pa.Schema, classes: tuple[str, ...]) -> pa.Table:
    columns: list[list[Any]] = [[p.image for p in predictions], [";".join(p.tags) for p in predictions]]
    columns += [[p.scores[c] for p in predictions] for c in classes]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
