"""A run's model, ready to score images: on its device, in the precision asked for, with its thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.data.loading import arrived, crossing, loader
from plures.data.photos import Transform, Unreadable, to_pixels
from plures.errors import PluresError
from plures.models.batch_halving import BatchHalver, joined
from plures.models.model import Model, load
from plures.models.outputs import Output, checked_logits
from plures.pace import Pace
from plures.runs.run import Run
from plures.scoring.device import make_fabric, thresholds_of
from plures.scoring.eight_bits import to_int8
from plures.scoring.heatmaps import region_weights
from plures.scoring.sources import Item

Precision = Literal["float32", "bfloat16", "int8"]
CALIBRATION = 64  # images that show an int8 model the range of its activations


@dataclass(frozen=True, eq=False)
class Scored:
    """A batch that was scored. part: which part it belongs to; asked: names of all its images; of those that could be
    read: rows (places in `asked`), logits [B, K], and for heat maps weights [B, K, P] and boxes [P, 4] (else None)."""

    part: int
    asked: list[str]
    rows: list[int]
    images: list[Any]
    logits: NDArray[np.float32]
    weights: NDArray[np.floating[Any]] | None
    boxes: NDArray[np.floating[Any]] | None
    bad: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        return [self.asked[row] for row in self.rows]


class Scorer:
    """Scores batches of images with a run's best weights.

    threshold: one for every class; None: those saved with the run, or else the experiment's. calibration: images for
    int8. Raises PluresError where a precision is not available.
    """

    def __init__(
        self,
        run: Run,
        *,
        threshold: float | None = None,
        precision: Precision = "float32",
        calibration: Iterable[Item] = (),
    ) -> None:
        self.device = make_fabric(run.experiment).device
        self.model: Model = load(run.path).to(self.device).eval()
        self.thresholds = thresholds_of(run, self.model.classes, threshold)
        self.precision = precision
        self._with_maps = BatchHalver(partial(self._run, maps=True), joined)  # maps need more memory
        self._without = BatchHalver(partial(self._run, maps=False), joined)
        if precision == "int8":
            if self.device.type != "cpu":
                raise PluresError("--precision int8 is for CPUs; on a GPU use --precision bfloat16")
            images = [image for image, _ in map(self._decoded, _first(calibration, CALIBRATION)) if image is not None]
            to_int8(self.model, torch.stack(images) if images else None)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.classes

    @property
    def transform(self) -> Transform:
        """How an image becomes this model's input."""
        p = self.model.preprocessing
        return Transform(p.image_size, "none", p.interpolation)

    def _decoded(self, item: Item) -> tuple[Tensor | None, str]:
        return _decode(item, self.transform)

    @torch.inference_mode()
    def __call__(self, images: Tensor, maps: bool = False) -> Output:
        """uint8 images [B, 3, H, W] -> Output."""
        return (self._with_maps if maps else self._without)(images)

    def _run(self, images: Tensor, maps: bool) -> Output:
        half = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            output: Output = self.model(images.to(self.device, non_blocking=True), maps=maps)
        return output

    def stream(
        self, items: Iterable[tuple[int, Item]], batch_size: int = 32, workers: int = 0, maps: bool = False
    ) -> Iterator[Scored]:
        """Score (part, image) one after another, in batches that never span two parts."""
        batches = loader(_Decode(self.transform), _batches(items, batch_size), workers, _collate)
        with Pace("scoring") as pace:
            for part, asked, rows, pixels, images, bad in batches:
                weights = boxes = None
                if pixels is None:
                    logits = np.empty((0, len(self.classes)), np.float32)
                else:
                    output = self(arrived(pixels), maps)
                    logits = checked_logits(output.logits)
                    if maps and output.boxes is not None:
                        weights = region_weights(output).float().cpu().numpy()
                        boxes = output.boxes.float().cpu().numpy()
                pace.step(len(asked))
                yield Scored(part, asked, rows, images, logits, weights, boxes, bad)


# ----------------------------------------------------------------------------------------------------------- decoding


class _Decode(torch.utils.data.Dataset[Any]):
    """A dataset whose index is the item itself, so that the list of items need not be held anywhere."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __getitem__(self, item: tuple[int, Item]) -> tuple[int, Item, Tensor | None, str]:
        return item[0], item[1], *_decode(item[1], self.transform)


def _decode(item: Item, transform: Transform) -> tuple[Tensor | None, str]:
    """The pixels uint8 [3, H, W], or None and the reason."""
    name, image = item
    try:
        name.encode()
    except UnicodeEncodeError:
        return None, "its name is not UTF-8; rename the file, for example with `convmv -f latin1 -t utf8`"
    try:
        return transform(to_pixels(image, transform.decoding_size)), ""
    except Unreadable as error:
        return None, str(error).removeprefix(f"{name}: ")


def _batches(items: Iterable[tuple[int, Item]], batch_size: int) -> Iterator[list[tuple[int, Item]]]:
    batch: list[tuple[int, Item]] = []
    for item in items:
        if batch and (len(batch) == batch_size or item[0] != batch[0][0]):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _collate(items: list[tuple[int, Item, Tensor | None, str]]) -> tuple[Any, ...]:
    """One tensor per batch crosses from worker to main process, not one per image."""
    asked = [item[0] for _, item, _, _ in items]
    rows = [row for row, (_, _, image, _) in enumerate(items) if image is not None]
    pixels = [items[row][2] for row in rows]
    bad = [(item[0], reason) for _, item, image, reason in items if image is None]
    stacked = crossing(torch.stack(cast(list[Tensor], pixels))) if pixels else None
    return items[0][0], asked, rows, stacked, [items[row][1][1] for row in rows], bad


def _first(items: Iterable[Item], count: int) -> list[Item]:
    return [item for item, _ in zip(items, range(count), strict=False)]


# ------------------------------------------------------------------------------------------------- sent as bytes


def run_bytes(run: Run) -> dict[str, bytes]:
    """The files that a model needs, as bytes, so that a machine that does not see the run folder can score with it."""
    names = ("experiment.yaml", "model.json", "model.safetensors", "thresholds.json")
    return {name: (run.path / name).read_bytes() for name in names if (run.path / name).is_file()}


def run_from_bytes(files: dict[str, bytes], folder: str | Path) -> Run:
    """Put `run_bytes` into a folder and open it as a run."""
    for name, content in files.items():
        (Path(folder) / name).write_bytes(content)
    return Run(folder)
