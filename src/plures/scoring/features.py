"""Frozen features: computed once for given images, backbone and preprocessing, kept on disk, memory-mapped after."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plures.data.dataset import Dataset
from plures.data.loading import ImageBatches, Order
from plures.data.photos import DECODED_OVER_WANTED, PIXELS
from plures.errors import PluresError, WorkFailed
from plures.files import claim, clear_left, writing
from plures.models.backbones.features import Features
from plures.models.batch_halving import BatchHalver
from plures.models.model import STARTING_POINT, Model
from plures.models.outputs import grid_boxes
from plures.models.priors import Fused, Prior
from plures.pace import Pace
from plures.runs.photos import contents
from plures.scoring import cache, engines
from plures.scoring.cache import cache_folder
from plures.scoring.heatmaps import NoHeatMap
from plures.system import lock

COMPUTED_BY = ("pillow", "timm")  # versions that decode and resize otherwise, or build another network of a name
NETWORK = ("model", "model_options", "shared", "config")  # options of a prior that its own features depend on
SAVED_EVERY = 10.0  # seconds of computing that a kill may cost


def needs_only_mean(model: Model) -> bool:
    """Whether the head's logits depend on the mean of the features alone, so that the mean is enough to keep."""
    return bool(getattr(model.head, "mean_is_enough", False))


def refuse_other_input(model: Model, width: int | None, what: str) -> None:
    """Raise PluresError unless the model takes features of this width (None: photographs). what: which data."""
    own = model.backbone.width if isinstance(model.backbone, Features) else None
    if own == width:
        return
    came = "photographs" if width is None else f"features of {width:,} numbers per image"
    takes = "photographs" if own is None else f"features of {own:,} numbers per image"
    how = "" if own is None else "; give features:FILE, computed as those that it was trained on"
    raise PluresError(f"{what}: {came}, but the model takes {takes}{how}")


def refuse_features(model: Model, what: str) -> None:
    """Raise PluresError for a model of features, for what takes photographs."""
    if isinstance(model.backbone, Features):
        raise PluresError(
            f"{what} takes photographs, but the model takes features of {model.backbone.width:,} numbers per image; use"
            " plures predict with features:FILE, or train on the photographs"
        )


def refuse_maps(model: Model) -> None:
    """Raise NoHeatMap for a model of features, which has no regions to look at."""
    if isinstance(model.backbone, Features):
        raise NoHeatMap("no heat map: the model was trained on features, which do not say where in the photograph")


@torch.inference_mode()
def token_boxes(model: Model, pooled: bool) -> Tensor:
    """Where the regions of the features lie, [P, 4]; the whole image if pooled."""
    if pooled or isinstance(model.backbone, Features):
        return grid_boxes(1, 1)
    size = model.preprocessing.image_size
    blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=next(model.parameters()).device)
    return model.eval().tokens(blank).boxes.clone()


def feature_key(
    model: Model, dataset: Dataset, pooled: bool, device: str = "cpu", engine: engines.Engine = "torch"
) -> str:
    """A hash of all that the features depend on: the backbone with its options and weights, preprocessing, pooling and
    what they are kept as, the kind of device, the engine, the versions of what decodes, resizes and computes; names,
    sizes and times of files.

    Not of what they do not depend on: the head, the classes, where the weights came from, workers and batch size.
    Features are always computed in the weights' own precision, whatever `precision` is trained with.
    """
    return _joined(backbone_key(model, pooled, device), *engines.made_by(engine), images_key(dataset))


def backbone_key(model: Model, pooled: bool, device: str) -> str:
    """A hash of how an image becomes its features."""
    parts, backbone = model.parts, cast(nn.Module, model.backbone)
    options = {name: value for name, value in parts.backbone_options.items() if name not in STARTING_POINT}
    said = {
        "backbone": parts.backbone,
        "options": options,
        "preprocessing": asdict(model.preprocessing),
        "kept as": "mean float32" if pooled else "float16",
        "decoded": [DECODED_OVER_WANTED, PIXELS],
        "versions": {name: version(name) for name in COMPUTED_BY},
        "computed": [device, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, "folded"],
    }
    state = dict(backbone.state_dict())
    network = cast(Prior, model.head.prior).network if isinstance(model.head, Fused) else None
    if network is not None:  # its features lie beside
        said["prior"] = [model.parts.prior, {k: model.parts.prior_options.get(k) for k in NETWORK}]
        state |= {f"prior.{name}": value for name, value in network.state_dict().items()}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def images_key(dataset: Dataset) -> str:
    """A hash of the images: their pixels in memory, or names, sizes and times of their files."""
    digest = hashlib.sha256()
    if isinstance(dataset.images, np.ndarray):
        digest.update(f"{dataset.images.dtype} {dataset.images.shape}".encode())
        if dataset.images.dtype == object:  # of several sizes
            digest.update(contents(dataset).tobytes())
        else:
            digest.update(np.ascontiguousarray(dataset.images).data)
    else:
        shards: dict[str, str] = {}
        for path in map(str, dataset.images):
            file, _, place = path.rpartition("#")  # FILE#PLACE: a photo in a shard
            if not place or os.path.exists(path):
                state = state_of(path)
            else:
                state = shards[file] = shards.get(file) or state_of(file)
            digest.update(f"{os.path.abspath(path)} {state}\n".encode())
    return digest.hexdigest()


def _joined(*keys: str) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]


def state_of(path: str) -> str:
    """Size and time of a file, None of what is not on this machine's disks."""
    stat = os.stat(path) if os.path.exists(path) else None
    return f"{stat and (stat.st_size, stat.st_mtime_ns)}"


@torch.inference_mode()
def frozen_features(
    model: Model,
    dataset: Dataset,
    *,
    pooled: bool,
    device: torch.device,
    workers: int = 0,
    batch_size: int = 16,
    engine: str = "auto",
) -> NDArray[np.floating]:
    """Features of every image: [N, 1, D] float32 if pooled (the mean over regions), else [N, P, D] float16.

    Those that come with the data as they are; else read from the cache where they are there, and written there
    otherwise. engine: auto, torch, onnxruntime or openvino, see `scoring/engines.py`. Raises Unreadable on an image
    that cannot be read, PluresError on data of another kind than the model's or an engine that is not there.
    """
    refuse_other_input(model, None if dataset.features is None else dataset.features.shape[1], dataset.name or "data")
    if dataset.features is not None:
        return dataset.features[:, None]
    device = torch.device(device)
    backbone, images = backbone_key(model, pooled, device.type), images_key(dataset)

    def kept(by: engines.Engine) -> Path:
        return cache_folder() / "features" / f"{_joined(backbone, *engines.made_by(by), images)}.npy"

    chosen = engines.chosen(engine, model, device, len(dataset))
    path, plain = kept(chosen), kept("torch")
    if engine == "auto" and not path.is_file() and plain.is_file():
        path = plain  # of a network that cannot be exported
    if not path.is_file():
        with _alone(path):
            if not path.is_file():  # another process may have finished them meanwhile
                model = model.to(device).eval()
                graph = cache_folder() / "engines" / f"{_joined(backbone, *engines.made_by(chosen))}.onnx"
                try:
                    compute = engines.feature_function(model, pooled, chosen, graph)
                except WorkFailed:
                    if engine != "auto" or chosen == "torch":
                        raise
                    same: Any = {"pooled": pooled, "device": device, "workers": workers, "batch_size": batch_size}
                    return frozen_features(model, dataset, **same, engine="torch")
                _compute(model, dataset, path, compute, pooled, workers, batch_size)
                network = model.parts.backbone_options.get("model", model.parts.backbone)
                cache.describe(path, data=dataset.name, backbone=network, engine=chosen)
    cache.touch(path)
    try:
        features: NDArray[np.floating] = np.load(path, mmap_mode="r" if path.stat().st_size > 2**31 else None)
    except (OSError, ValueError, EOFError) as error:
        raise WorkFailed(f"{path}: damaged ({error}); remove the file, and the features are computed anew") from None
    return features


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process computes, others wait for it; the lock goes with the process, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lock(path.with_suffix(".lock"), None)
    except OSError as error:
        raise WorkFailed(f"{path.parent}: features cannot be kept there ({error.strerror}); set PLURES_CACHE") from None
    with held:
        clear_left(path.parent)
        yield


def _compute(
    model: Model,
    dataset: Dataset,
    path: Path,
    of_images: Callable[[Tensor], Tensor],
    pooled: bool,
    workers: int,
    batch_size: int,
) -> None:
    """Fill a table beside `path` and put it in its place; what a killed process had filled is continued."""
    part, progress = path.with_suffix(".part"), path.with_suffix(".rows")
    table, done = _begun(part, progress, len(dataset))
    left = dataset.take(np.arange(done, len(dataset)))
    batches = ImageBatches(left, model.transform, Order(len(left), batch_size), workers)
    saved = time.monotonic()

    def run(images: Tensor) -> Tensor:
        features = of_images(images)  # [B, P, D], or [B, 1, D] if pooled
        return (features.float() if pooled else features.half()).cpu()

    compute = BatchHalver(run, torch.cat)
    with Pace("computing features", len(left)) as pace:
        for batch in batches.epoch(0) if len(left) else ():
            rows = compute(batch.inputs).numpy()
            if table is None:
                table = _claimed(part, rows.dtype, (len(dataset), *rows.shape[1:]))
            table[done : done + len(rows)] = rows
            done += len(rows)
            pace.step(len(rows))
            if time.monotonic() - saved > SAVED_EVERY:
                _save_progress(table, progress, done)
                saved = time.monotonic()
    table.flush()
    progress.unlink(missing_ok=True)  # first: left behind by a kill, it would vouch for the next table begun here
    os.replace(part, path)


def _claimed(part: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """A new table whose place on the disk is sure. Raises WorkFailed if there is not enough."""
    cache.make_room(math.prod(shape) * dtype.itemsize, part)
    table = np.lib.format.open_memmap(part, "w+", dtype, shape)
    try:
        with part.open("r+b") as handle:
            claim(handle.fileno(), part.stat().st_size)
    except OSError as error:
        part.unlink()
        size = math.prod(shape) * dtype.itemsize / 1e9
        raise WorkFailed(
            f"{part.parent}: no space for {size:.2f} GB of features ({error.strerror}); free some or set PLURES_CACHE"
        ) from None
    return table


def _begun(part: Path, progress: Path, rows: int) -> tuple[Any, int]:
    """The table that a killed process left, and how many of its rows are filled; None and 0 if it is of no use."""
    try:
        done, table = int(progress.read_text()), np.lib.format.open_memmap(part, "r+")
    except (OSError, ValueError):
        return None, 0
    return (table, done) if len(table) == rows and 0 < done <= rows else (None, 0)


def _save_progress(table: Any, progress: Path, done: int) -> None:
    """First the rows, then their number: after a kill, the number never says more than there is."""
    table.flush()
    with writing(progress) as temporary:
        temporary.write_text(str(done))


def feature_statistics(features: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, [D] each, of the mean tokens of features [N, P, D] or [N, D]."""
    total, squares = np.zeros(features.shape[-1]), np.zeros(features.shape[-1])
    for start in range(0, len(features), 4096):  # in parts: the features may be larger than the memory
        part = np.asarray(features[start : start + 4096], np.float64)
        part = part.mean(1) if part.ndim == 3 else part
        total += part.sum(0)
        squares += (part**2).sum(0)
    mean = total / len(features)
    deviation = np.sqrt(np.maximum(squares / len(features) - mean**2, 0))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
