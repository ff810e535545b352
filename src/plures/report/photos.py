"""Photos of a report: the best and the worst, where the model saw what, small enough to live inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.photos import to_image
from plures.labels import Labels
from plures.metrics.thresholds import Thresholds
from plures.models.model import Model
from plures.scoring.heatmaps import NoHeatMap, overlay
from plures.scoring.logits import Seen, look

SIDE, QUALITY = 320, 72  # of a picture in the page: 10 to 30 KB each
MAPS = 2  # heat maps beside a photo


@dataclass(frozen=True)
class Picture:
    """A JPEG as a data URI; kind: right, wrong, missed, below (its threshold) or "" for the photo itself."""

    uri: str
    words: str
    kind: str = ""


@dataclass(frozen=True)
class Photo:
    """A photo with its true tags and pictures: itself, then heat maps."""

    name: str
    tags: str
    pictures: tuple[Picture, ...]


def margins(logits: NDArray[np.floating], labels: Labels) -> NDArray[np.float64]:
    """[N]: logit of the lowest-scored present tag minus that of the highest-scored absent one; nan without either."""
    lowest = np.where(labels.present, logits, np.inf).min(1, initial=np.inf)
    highest = np.where(labels.absent, logits, -np.inf).max(1, initial=-np.inf)
    return np.where(np.isfinite(lowest) & np.isfinite(highest), lowest - highest, np.nan)


def best_and_worst(
    logits: NDArray[np.floating], labels: Labels, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the images with the largest margins (among those with two tags or more, if there are enough) and of those
    with the smallest."""
    margin = margins(logits, labels)
    defined = np.flatnonzero(~np.isnan(margin))
    order = defined[np.argsort(margin[defined], kind="stable")]
    several = order[labels.present[order].sum(1) >= 2]
    best = (several if len(several) >= count else order)[::-1][:count]
    return best, order[: min(count, len(order) - len(best))]


def show(
    model: Model,
    dataset: Dataset,
    rows: NDArray[np.int64],
    experiment: Experiment,
    thresholds: Thresholds,
) -> list[Photo]:
    """The photos of these rows with heat maps of the tags that say most: missed, wrongly called, rightly called."""
    if not len(rows):
        return []
    chosen = dataset.take(rows)
    seen = look_at(model, chosen, experiment)
    if seen is None:
        return [_photo(chosen, n, None, thresholds) for n in range(len(rows))]
    return [_photo(chosen, n, seen[n], thresholds) for n in range(len(rows))]


def look_at(model: Model, dataset: Dataset, experiment: Experiment) -> list[Seen] | None:
    """Where the model saw what in a few photos; None where its head gives no maps."""
    whole = experiment.change(["stages=finetune"])  # a few photos are not worth a file of features
    try:
        return list(look(model, dataset, whole))
    except NoHeatMap:
        return None


def _photo(dataset: Dataset, n: int, seen: Seen | None, thresholds: Thresholds) -> Photo:
    image = None if dataset.features is not None else to_image(dataset.images[n])
    present, absent = dataset.labels.present[n], dataset.labels.absent[n]
    tags = ", ".join(dataset.classes[k] for k in np.flatnonzero(present)) or "no tag"
    pictures = [Picture(data_uri(image), "the photo")] if image is not None else []
    if seen is not None and image is not None:
        p = thresholds.probabilities(seen.logits[None])[0]
        called = thresholds.called(seen.logits)
        order = np.argsort(-p)
        ranked = margins(seen.logits[None], dataset.labels.take([n]))[0] > 0  # every true tag above every absent one
        missed = "below its threshold" if ranked else "missed"
        kinds = {missed: present & ~called, "wrong": absent & called, "right": present & called}
        chosen = [(kind, k) for kind, mask in kinds.items() for k in order if mask[k]]
        top = [k for k in order if absent[k]][:1]  # the highest-scored absent tag, called or not
        if not kinds["wrong"].any() and kinds[missed].any():
            chosen[1:1] = [("not there", k) for k in top]
        for kind, k in chosen[:MAPS]:
            words = f"{kind}: {dataset.classes[k]} {p[k]:.2f}"
            pictures.append(Picture(data_uri(overlay(image, seen.heat(int(k)))), words, kind.split()[0]))
    name = (
        f"image {n}"
        if isinstance(dataset.images, np.ndarray)
        else str(dataset.images[n]).replace("\\", "/").rsplit("/", 1)[-1]
    )
    return Photo(name, tags, tuple(pictures))


def data_uri(image: Image.Image) -> str:
    """A small JPEG of the image as a data URI; small images are enlarged without smoothing."""
    small = image.convert("RGB")
    scale = SIDE / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    small = small.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
