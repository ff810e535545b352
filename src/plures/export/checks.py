"""What an exported file must do before it is written: agree with the model it was made of; and what 8 bits cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.photos import to_pixels
from plures.errors import WorkFailed
from plures.export.formats import Outputs, Runner
from plures.metrics.report import evaluate_scores
from plures.metrics.thresholds import sigmoid
from plures.models.model import Model
from plures.models.outputs import checked_logits
from plures.pace import Pace
from plures.scoring.predictor import Predictor

BATCHES = (1, 3)  # images
MOST_IMAGES = 2000  # on which the cost of 8 bits is measured


@dataclass(frozen=True)
class Agreement:
    """How a file agrees with the torch model fed by its own transform.

    exact, resized: the largest difference of a logit's sigmoid and of a map's share, on images of the model's own size
    and on others, where a resize may round a pixel to the next level. calibrated: the largest difference of a score
    from the calibration of the file's own logit. tags: cells called otherwise than the file's own logits say.
    """

    exact: float
    resized: float
    calibrated: float
    tags: int
    images: int
    sizes: tuple[tuple[int, int], ...]  # height, width


@dataclass(frozen=True)
class Cost:
    """mAP in percent on the same images before and after; nan where nothing could be scored."""

    before: float
    after: float
    images: int
    split: str


def sizes_to_check(side: int) -> tuple[tuple[int, int], ...]:
    """(height, width): the model's own, a larger one of another shape, a smaller one."""
    return ((side, side), (side + side // 3 + 5, 2 * side + 1), (max(1, side // 2 + 1), max(1, side - 3)))


def agreement(run: Runner, model: Predictor, maps: bool) -> Agreement:
    """Compare several batch sizes and image sizes with the model itself. Raises WorkFailed on a wrong shape."""
    side, thresholds = model.preprocessing.image_size, model.thresholds
    sizes = sizes_to_check(side)
    worst = {True: 0.0, False: 0.0}  # by whether the image has the model's own size
    calibrated, tags, images = 0.0, 0, 0
    with Pace("comparing the file with the model", len(sizes) * sum(BATCHES)) as pace:
        for number, (height, width), batch in ((n, size, b) for n, size in enumerate(sizes) for b in BATCHES):
            pictures = patterns(batch, height, width, seed=number)
            logits, weights = expected(model, pictures)
            got = run(pictures)
            _refuse_shapes(got, logits, weights if maps else None)
            of_maps = _largest(got["maps"] - weights) if maps else 0.0
            own = height == width == side
            worst[own] = max(worst[own], _largest(sigmoid(got["logits"]) - sigmoid(logits)), of_maps)
            calibrated = max(calibrated, _largest(got["scores"] - thresholds.probabilities(got["logits"])))
            tags += int((got["tags"] != thresholds.called(got["logits"])).sum())
            images += batch
            pace.step(batch)
    return Agreement(worst[True], worst[False], calibrated, tags, images, sizes)


def _largest(difference: NDArray[np.floating]) -> float:
    """Its largest size; nan, which no comparison would notice, counts as infinite."""
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max())


def _refuse_shapes(got: Outputs, logits: NDArray[np.float64], maps: NDArray[np.float32] | None) -> None:
    shapes = dict.fromkeys(("scores", "tags", "logits"), logits.shape)
    if maps is not None:
        shapes["maps"] = maps.shape
    for name, shape in shapes.items():
        if name not in got or got[name].shape != shape:
            found = got[name].shape if name in got else "nothing"
            raise WorkFailed(f"the exported file gives {name} {found} where the model gives {shape}; nothing written")


def expected(model: Predictor, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """What plures itself says of uint8 images [B, 3, H, W], resized by its transform: logits [B, K], maps [B, K, P]."""
    logits, weights, _ = model.look(torch.stack([model.transform(torch.from_numpy(image)) for image in images]))
    return logits.astype(np.float64), weights


def patterns(batch: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Pictures with edges, gradients and noise, always the same: uint8 [B, 3, H, W]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    pictures = []
    for _ in range(batch * 3):
        waves = np.sin(random.uniform(2, 40) * x + random.uniform(0, 6)) * np.cos(random.uniform(2, 40) * y)
        edge = np.where(x + random.uniform(-1, 1) * y > random.uniform(0, 1), 60.0, -60.0)
        pictures.append(128 + 60 * waves + edge + random.normal(0, 20, (height, width)))
    stacked = np.stack(pictures).reshape(batch, 3, height, width)
    return np.clip(np.round(stacked), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------- real photographs


def pixels_of(
    model: Model, images: Sequence[str] | NDArray[np.uint8], batch_size: int, what: str = "reading"
) -> Iterator[NDArray[np.uint8]]:
    """Batches uint8 [B, 3, S, S] of these images, resized as the model expects them; what: the work, for its pace."""
    transform = model.transform
    with Pace(what, len(images)) as pace:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            yield torch.stack([transform(to_pixels(image, transform.decoding_size)) for image in batch]).numpy()
            pace.step(len(batch))


def some(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` row numbers of `count`, always the same, in order."""
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def cost(run: Runner, model: Predictor, dataset: Dataset, split: str, definition: str) -> Cost:
    """mAP of the model and of the file on (at most MOST_IMAGES of) the dataset's images."""
    dataset = dataset.take(some(len(dataset), MOST_IMAGES))
    before, after = [], []
    for pixels in pixels_of(model, dataset.images, 16, "measuring what 8 bits cost"):
        logits = checked_logits(model.score(torch.from_numpy(pixels)).logits)
        before.append(model.thresholds.probabilities(logits))
        after.append(run(pixels)["scores"].astype(np.float64))
    maps = [
        100 * evaluate_scores(np.concatenate(s), dataset.labels, dataset.classes, definition, bootstrap=0).map
        for s in (before, after)
    ]
    return Cost(maps[0], maps[1], len(dataset), split)
