"""Batches: the rows of a Dataset, or of cached features, in an order that follows from (seed, epoch)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from plures.data.dataset import Dataset
from plures.data.images import Transform, Unreadable, View, random_for, to_image


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows. inputs: uint8 images [B, 3, H, W] or features [B, P, D]; labels: int8 [B, K]; index: int64 [B].

    views: float32 [B, 4], where in its image each input lies (`images.View`), or None: the whole image as it is.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    views: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = (t.to(device, non_blocking=True) for t in (self.inputs, self.labels, self.index))
        views = None if self.views is None else self.views.to(device, non_blocking=True)
        return Batch(*moved, views=views)


@dataclass(frozen=True)
class Order:
    """Which rows make up the batches of an epoch. shuffle_seed None: in row order, for evaluation."""

    rows: int
    batch_size: int
    shuffle_seed: int | None = None
    drop_last: bool = False

    def __len__(self) -> int:
        return self.rows // self.batch_size if self.drop_last else math.ceil(self.rows / self.batch_size)

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of every batch, in the order of this epoch."""
        order = np.arange(self.rows)
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, epoch]).permutation(self.rows)
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]


class FeatureBatches:
    """Batches of cached features: [N, P, D] in memory or memory-mapped, labels int8 [N, K]."""

    def __init__(self, features: NDArray[np.floating], labels: NDArray[np.int8], order: Order) -> None:
        self.order = order
        self._features, self._labels = features, torch.from_numpy(labels)
        self._tensor = None if isinstance(features, np.memmap) else torch.from_numpy(features)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for rows in self.order.batches(epoch):
            index = torch.from_numpy(rows)
            if self._tensor is not None:
                inputs = self._tensor[index]
            else:
                inputs = torch.from_numpy(np.asarray(self._features[rows]))
            yield Batch(inputs, self._labels[index], index)


class _Rows(TorchDataset[tuple[Tensor, View] | Unreadable]):
    """One item a (epoch, row); an unreadable image comes back as a value, so that it crosses processes whole."""

    def __init__(self, dataset: Dataset, transform: Transform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, View] | Unreadable:
        epoch, row = item
        try:
            image = to_image(self.dataset.images[row])
        except Unreadable as error:
            return error
        random = None if self.transform.augment == "none" else random_for(self.seed, epoch, row)
        return self.transform.with_view(image, random)


class _EpochRows:
    """Batch sampler whose epoch is set from outside; items are (epoch, row)."""

    def __init__(self, order: Order) -> None:
        self.order, self.epoch = order, 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for rows in self.order.batches(self.epoch):
            yield [(self.epoch, int(row)) for row in rows]


def _stack(items: list[tuple[Tensor, View] | Unreadable]) -> tuple[Tensor, Tensor] | Unreadable:
    images, views = [], []
    for item in items:
        if isinstance(item, Unreadable):
            return item
        images.append(item[0])
        views.append(item[1])
    return torch.stack(images), torch.tensor(views, dtype=torch.float32)  # [B, 3, H, W], [B, 4]


class ImageBatches:
    """Batches of images, decoded by worker processes (workers 0: in this process).

    Raises Unreadable, naming the file, at the batch that needs an image which cannot be read.
    """

    def __init__(
        self, dataset: Dataset, transform: Transform, order: Order, workers: int = 0, seed: int = 0, pin: bool = False
    ) -> None:
        self.order, self._labels = order, torch.from_numpy(dataset.labels.values)
        self._sampler = _EpochRows(order)
        self._loader = DataLoader(
            _Rows(dataset, transform, seed),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=_stack,
            persistent_workers=workers > 0,
            pin_memory=pin,
        )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self._sampler.epoch = epoch
        for rows, loaded in zip(self.order.batches(epoch), self._loader, strict=True):
            if isinstance(loaded, Unreadable):
                raise loaded
            index = torch.from_numpy(rows)
            yield Batch(loaded[0], self._labels[index], index, loaded[1])


def default_workers(dataset: Dataset) -> int:
    """Processes for decoding: none for images in memory or few of them, else one a core up to eight."""
    if dataset.in_memory or len(dataset) < 200:
        return 0
    return min(8, os.cpu_count() or 1)
