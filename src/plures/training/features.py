"""Frozen features: computed once for given images, embedder and preprocessing, kept on disk, memory-mapped after."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plures.data.dataset import Dataset
from plures.data.images import Transform
from plures.data.loading import ImageBatches, Order
from plures.files import writing
from plures.models.model import Model
from plures.models.output import grid_boxes


def needs_only_mean(model: Model) -> bool:
    """Whether the head's logits depend on the mean of the features alone, so that the mean is enough to keep."""
    return bool(getattr(model.head, "mean_is_enough", False))


@torch.inference_mode()
def token_boxes(model: Model, pooled: bool) -> Tensor:
    """Where the regions of the features lie, [P, 4]; the whole image if pooled."""
    if pooled:
        return grid_boxes(1, 1)
    size = model.preprocessing.image_size
    blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=next(model.parameters()).device)
    return model.eval().tokens(blank).boxes.clone()


def cache_folder() -> Path:
    """Where features are kept: $PLURES_CACHE, or plures in the user's cache folder."""
    root = os.environ.get("PLURES_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plures"


def feature_key(model: Model, dataset: Dataset, pooled: bool) -> str:
    """A hash of all that the features depend on: weights, preprocessing, pooling; names, sizes and times of files."""
    digest = hashlib.sha256(f"{model.preprocessing} {pooled}".encode())
    for name, value in sorted(cast(nn.Module, model.embedder).state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    if isinstance(dataset.images, np.ndarray):
        digest.update(np.ascontiguousarray(dataset.images).data)
    else:
        for path in dataset.images:
            stat = os.stat(path) if os.path.exists(path) else None
            digest.update(f"{os.path.abspath(path)} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:32]


@torch.inference_mode()
def frozen_features(
    model: Model, dataset: Dataset, *, pooled: bool, device: torch.device, workers: int = 0, batch_size: int = 16
) -> NDArray[np.floating]:
    """Features of every image: [N, 1, D] float32 if pooled (the mean over regions), else [N, P, D] float16.

    Read from the cache where they are there; written there otherwise. Raises Unreadable on an image that cannot
    be read.
    """
    path = cache_folder() / "features" / f"{feature_key(model, dataset, pooled)}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as temporary:
            _compute(model, dataset, temporary, pooled, device, workers, batch_size)
    features: NDArray[np.floating] = np.load(path, mmap_mode="r" if path.stat().st_size > 2**31 else None)
    return features


def _compute(
    model: Model, dataset: Dataset, path: Path, pooled: bool, device: torch.device, workers: int, batch_size: int
) -> None:
    preprocessing = model.preprocessing
    transform = Transform(preprocessing.image_size, "none", preprocessing.interpolation)
    batches = ImageBatches(dataset, transform, Order(len(dataset), batch_size), workers)
    model = model.to(device).eval()
    table: Any = None
    with path.open("wb"):  # a name without the .npy that numpy would add
        pass
    for batch in batches.epoch(0):
        features = model.tokens(batch.inputs.to(device)).features  # [B, P, D]
        features = features.mean(1, keepdim=True).float() if pooled else features.half()
        rows = features.cpu().numpy()
        if table is None:
            table = np.lib.format.open_memmap(path, "w+", rows.dtype, (len(dataset), *rows.shape[1:]))
        table[batch.index.numpy()] = rows
    table.flush()
