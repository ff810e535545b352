"""A run's model, ready to score images: on its device, in the precision asked for, with its thresholds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.config import Experiment
from plures.data.loading import arrived, crossing, loader
from plures.data.photos import Transform, Unreadable, to_pixels
from plures.errors import BadData, PluresError, Problem
from plures.metrics.thresholds import Thresholds
from plures.models.batch_halving import BatchHalver, joined
from plures.models.model import Model
from plures.models.model import load as load_model
from plures.models.outputs import Output, checked_logits
from plures.models.priors import Fused
from plures.models.priors.file import FromFile
from plures.pace import Pace
from plures.runs.run import Run
from plures.scoring.device import make_fabric, thresholds_of
from plures.scoring.eight_bits import to_int8
from plures.scoring.features import refuse_maps, refuse_other_input
from plures.scoring.heatmaps import Floats, regions_of
from plures.scoring.logits import by_name
from plures.scoring.predictions import Predictions, Regions
from plures.scoring.sources import Item, items_of

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
    weights: Floats | None
    boxes: Floats | None
    bad: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        return [self.asked[row] for row in self.rows]


class Predictor(Model):
    """A trained model that knows how photographs become its input and from which score on a class is called.

    What `plures.load` gives: an `nn.Module` on uint8 images [B, 3, H, W] (see `plures.Model`), and besides

    Attributes:
        thresholds: from which probability on each class is called, and the calibration of probabilities.
        transform: a photograph (PIL) -> uint8 [3, H, W], as the model was trained.
        precision: float32, bfloat16 or int8, in which `predict` computes.

    Example:
        >>> model = plures.load("runs/first")  # doctest: +SKIP
        >>> model.predict(["a.jpg", "b.jpg"])  # doctest: +SKIP
        Predictions of 2 images, 20 classes
          a.jpg: person 0.93, sofa 0.71
          b.jpg: cat 0.88
    """

    def __init__(self, model: Model, thresholds: Thresholds, precision: Precision = "float32") -> None:
        super().__init__(model.backbone, model.head, model.classes, model.preprocessing, model.parts, model.taxonomy)
        self.thresholds, self.precision = thresholds, precision
        self.device = next(model.parameters()).device
        self.to(self.device).eval()
        self._with_maps = BatchHalver(partial(self._run, maps=True), joined)  # maps need more memory
        self._without = BatchHalver(partial(self._run, maps=False), joined)

    def _fitting(self, item: tuple[int, Item]) -> tuple[int, Item]:
        name, image = item[1]
        refuse_other_input(self, len(image) if _is_features(image) else None, name)
        return item

    @property
    def _named(self) -> Fused | None:
        return by_name(self)  # a prior that looks up the images' names

    @torch.inference_mode()
    def score(self, images: Tensor, maps: bool = False) -> Output:
        """uint8 images [B, 3, H, W] -> Output, in `precision`; a batch that does not fit into memory is halved."""
        return (self._with_maps if maps else self._without)(images)

    def look(self, images: Tensor) -> tuple[NDArray[np.float32], Floats, Floats]:
        """uint8 images [B, 3, H, W] -> logits [B, K], weights [B, K, P] of regions and their boxes [P, 4]."""
        output = self.score(images, maps=True)
        return checked_logits(output.logits), *regions_of(output)

    def _run(self, images: Tensor, maps: bool) -> Output:
        half = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            if self._named is not None:
                return self._named.head(self.tokens(images.to(self.device)), maps=maps)  # type: ignore[no-any-return]
            output: Output = self(images.to(self.device, non_blocking=True), maps=maps)
        return output

    def predict(
        self,
        images: Any,
        *,
        threshold: float | None = None,
        batch_size: int = 32,
        workers: int = 0,
        skip_bad: bool = False,
    ) -> Predictions:
        """Tags and scores of images.

        Args:
            images: a path or address, a folder, a list (.txt) or table of paths; a PIL image; an array [H, W, 3] or
                [H, W], uint8 or float in [0, 1]; a tensor [3, H, W]; a batch of arrays or tensors; or a sequence of
                any of these.
            threshold: one probability in (0, 1) for every class; None: the model's own thresholds.
            batch_size: images scored at once. workers: processes that decode files.
            skip_bad: leave unreadable images out (`Predictions.skipped` names them).

        Returns:
            Predictions, in the order of the images. Scores of N images are held in memory; for millions use
            `plures.predict`, which writes them to files.

        Raises:
            BadData: if images cannot be read, naming each. PluresError: if something given is no image.
        """
        if threshold is not None and not 0 < threshold < 1:
            raise PluresError(f"threshold={threshold:g}: a probability between 0 and 1 was expected, such as 0.5")
        thresholds = (
            self.thresholds if threshold is None else Thresholds.constant(self.classes, threshold, self.taxonomy)
        )
        total = len(images) if isinstance(images, list | tuple) else None
        scored = list(self.stream(((0, item) for item in items_of(images)), batch_size, workers, total=total))
        bad = [one for s in scored for one in s.bad]
        if bad and not skip_bad:
            raise BadData([Problem(name, None, reason) for name, reason in bad])
        logits = np.concatenate([s.logits for s in scored]) if scored else np.empty((0, len(self.classes)), np.float32)
        scores = thresholds.probabilities(logits)
        names = [name for s in scored for name in s.names]
        kept = [image for s in scored for image in s.images]
        return Predictions(names, self.classes, logits, scores, thresholds.called(logits), kept, self._regions, bad)

    def embed(self, images: Any, *, batch_size: int = 32) -> NDArray[np.float32]:
        """Embeddings of images, float32 [N, D]: the mean of the backbone's features over the regions of an image.

        images: as `predict` takes them. Raises BadData if one cannot be read.
        """
        found = list[NDArray[np.float32]]()

        @torch.inference_mode()
        def run(pixels: Tensor) -> Tensor:
            features = self.tokens(pixels.to(self.device)).features[..., : self.backbone.width]
            return features.mean(1).float().cpu()

        compute = BatchHalver(run, torch.cat)
        for _, _, _, pixels, _, bad in self._decoded(((0, item) for item in items_of(images)), batch_size, 0):
            if bad:
                raise BadData([Problem(name, None, reason) for name, reason in bad], skippable=False)
            found.append(compute(arrived(pixels)).numpy())
        return np.concatenate(found) if found else np.empty((0, 0), np.float32)

    def _regions(self, image: Any) -> Regions:
        """Weights [K, P] and boxes [P, 4] of the regions of one image."""
        pixels = self.transform(to_pixels(image, self.transform.decoding_size))[None]
        weights, boxes = regions_of(self.score(pixels, maps=True))
        return weights[0], boxes

    def _decoded(self, items: Iterable[tuple[int, Item]], batch_size: int, workers: int) -> Any:
        """Batches of decoded images, see `_collate`."""
        return loader(_Decode(self.transform), _batches(map(self._fitting, items), batch_size), workers, _collate)

    def _fused(self, logits: Tensor, names: list[str]) -> Tensor:
        """The logits [B, K] of images of these names, with what a prior that finds them by name says."""
        if self._named is None:
            return logits
        evidence = cast(FromFile, self._named.prior).of(names)
        return self._named.fuse(logits.float(), evidence)

    def stream(
        self,
        items: Iterable[tuple[int, Item]],
        batch_size: int = 32,
        workers: int = 0,
        maps: bool = False,
        total: int | None = None,
    ) -> Iterator[Scored]:
        """Score (part, image) one after another, in batches that never span two parts. total: how many, if known."""
        if maps:
            refuse_maps(self)
        with Pace("scoring", total) as pace:
            for part, asked, rows, pixels, images, bad in self._decoded(items, batch_size, workers):
                weights = boxes = None
                if pixels is None:
                    logits = np.empty((0, len(self.classes)), np.float32)
                else:
                    output = self.score(arrived(pixels), maps)
                    logits = checked_logits(self._fused(output.logits, [asked[row] for row in rows]))
                    if maps:
                        weights, boxes = regions_of(output)
                pace.step(len(asked))
                yield Scored(part, asked, rows, images, logits, weights, boxes, bad)


def load(
    run: str | os.PathLike[str] | Run,
    *,
    device: str | torch.device | None = None,
    threshold: float | None = None,
    precision: Precision = "float32",
    calibration: Iterable[Item] = (),
) -> Predictor:
    """A trained model, ready for photographs.

    Args:
        run: a run folder, or any folder with a saved model (`model.json`, `model.safetensors`).
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None: as the run's experiment says (`auto`: a GPU where there is one).
        threshold: one probability in (0, 1) for every class; None: those saved with the run, else the experiment's.
        precision: bfloat16 or int8 (CPU) are faster on machines that have instructions for them, and not exact.
        calibration: images for int8, as (name, image).

    Returns:
        The model in evaluation mode, on its device.

    Raises:
        PluresError: if there is no model, or the precision is not available on the device.
    """
    if not isinstance(run, Run):
        run = Run(Path(run)) if (Path(run) / "experiment.yaml").is_file() else run
    folder = run.path if isinstance(run, Run) else Path(run)
    place = (
        make_fabric(run.experiment if isinstance(run, Run) else Experiment()).device
        if device is None
        else torch.device(device)
    )
    model = load_model(folder, place)
    if isinstance(run, Run):
        thresholds = thresholds_of(run, model.classes, threshold)
    else:
        thresholds = Thresholds.load(folder, model.classes, model.taxonomy) or Thresholds.constant(
            model.classes, threshold or 0.5, model.taxonomy
        )
    predictor = Predictor(model, thresholds, precision)
    if precision == "int8":
        if place.type != "cpu":
            raise PluresError("--precision int8 is for CPUs; on a GPU use --precision bfloat16")
        decoded = (_decode(item, predictor.transform)[0] for item in _first(calibration, CALIBRATION))
        images = [image for image in decoded if image is not None]
        to_int8(predictor, torch.stack(images) if images else None)
    return predictor


# ----------------------------------------------------------------------------------------------------------- decoding


class _Decode(torch.utils.data.Dataset[Any]):
    """A dataset whose index is the item itself, so that the list of items need not be held anywhere."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __getitem__(self, item: tuple[int, Item]) -> tuple[int, Item, Tensor | None, str]:
        return item[0], item[1], *_decode(item[1], self.transform)


def _is_features(image: str | NDArray[Any]) -> bool:
    return isinstance(image, np.ndarray) and image.ndim == 1


def _decode(item: Item, transform: Transform) -> tuple[Tensor | None, str]:
    """The pixels uint8 [3, H, W], or None and the reason."""
    name, image = item
    try:
        name.encode()
    except UnicodeEncodeError:
        return None, "its name is not UTF-8; rename the file, for example with `convmv -f latin1 -t utf8`"
    if _is_features(image):
        return torch.from_numpy(np.asarray(image, np.float32)), ""
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
