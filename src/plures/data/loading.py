"""Batches: the rows of a Dataset, or of cached features, in an order that follows from (seed, epoch)."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from plures.data.dataset import Dataset
from plures.data.photos import WHOLE, Transform, Unreadable, View, random_for, to_pixels
from plures.system import EndsWithParent


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows. inputs: uint8 images [B, 3, H, W] or features [B, P, D]; labels: int8 [B, K]; index: int64 [B].

    views: float32 [B, 4], where in its image each input lies (`images.View`), or None: the whole image as it is.
    total, share, last: of its `Piece`, where several processes or pieces make up a step; total 0: this is all.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    views: Tensor | None = None
    total: int = 0
    share: float = 1.0
    last: bool = True

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        inputs, labels, index = (t.to(device, non_blocking=True) for t in (self.inputs, self.labels, self.index))
        views = None if self.views is None else self.views.to(device, non_blocking=True)
        return replace(self, inputs=inputs, labels=labels, index=index, views=views)


@dataclass(frozen=True, eq=False)
class Piece:
    """What one process loads at once. rows: int64 [B]; total: rows of this piece over all processes; share: of them in
    the step; last: whether the step ends with it. A process whose share is empty loads one row, which nobody counts."""

    rows: NDArray[np.int64]
    total: int
    share: float
    last: bool


@dataclass(frozen=True)
class Order:
    """Which rows make up the batches of an epoch. shuffle_seed None: in row order, for evaluation.

    A batch is what one optimizer step learns from. `accumulate` divides it into pieces that are loaded one after
    another (less memory), `processes` divides each piece among as many processes, of which this one is `rank`; neither
    changes the rows that each step sees.
    """

    rows: int
    batch_size: int
    shuffle_seed: int | None = None
    drop_last: bool = False
    accumulate: int = 1
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        """How many batches, that is steps."""
        return self.rows // self.batch_size if self.drop_last else math.ceil(self.rows / self.batch_size)

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of every batch, of all processes, in the order of this epoch."""
        order = np.arange(self.rows)
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, epoch]).permutation(self.rows)
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]

    def pieces(self, epoch: int) -> Iterator[Piece]:
        """What this process loads, in the order of this epoch."""
        for batch in self.batches(epoch):
            parts = [part for part in np.array_split(batch, self.accumulate) if len(part)]
            for place, part in enumerate(parts, 1):
                mine = np.array_split(part, self.processes)[self.rank]
                rows = mine if len(mine) else part[:1]
                yield Piece(rows, len(part), len(part) / len(batch), place == len(parts))


def shares_of(total: int, processes: int) -> list[int]:
    """How many of `total` rows each process has, as `Order.pieces` divides them."""
    return [total // processes + (rank < total % processes) for rank in range(processes)]


class FeatureBatches:
    """Batches of cached features: [N, P, D] in memory or memory-mapped, labels int8 [N, K]."""

    def __init__(self, features: NDArray[np.floating], labels: NDArray[np.int8], order: Order) -> None:
        self.order = order
        self.features, self._labels = features, torch.from_numpy(labels)
        self._tensor = None if isinstance(features, np.memmap) else torch.from_numpy(features)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for piece in self.order.pieces(epoch):
            index = torch.from_numpy(piece.rows)
            if self._tensor is not None:
                inputs = self._tensor[index]
            else:
                inputs = torch.from_numpy(np.asarray(self.features[piece.rows]))
            yield Batch(inputs, self._labels[index], index, None, piece.total, piece.share, piece.last)


class _Rows(TorchDataset[tuple[Tensor, View] | Unreadable]):
    """One item a (epoch, row); an unreadable image comes back as a value, so that it crosses processes whole."""

    def __init__(self, dataset: Dataset, transform: Transform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, View] | Unreadable:
        epoch, row = item
        try:
            image = to_pixels(self.dataset.images[row], self.transform.decoding_size)
        except Unreadable as error:
            return error
        random = None if self.transform.augment == "none" else random_for(self.seed, epoch, row)
        return self.transform.with_view(image, random)


class _EpochRows:
    """Batch sampler from the epoch set outside, for training (a shuffled order) on and on; items are (epoch, row)."""

    def __init__(self, order: Order) -> None:
        self.order, self.first, self.drawn = order, 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        endless = self.order.shuffle_seed is not None
        for epoch in itertools.count(self.first) if endless else (self.first,):
            for piece in self.order.pieces(epoch):
                self.drawn += 1
                yield [(epoch, int(row)) for row in piece.rows]


class _Loaded(NamedTuple):
    """What workers send: the images [R, 3, H, W] and views [R, 4] that could be read, their places in the batch [R],
    and by place why others could not."""

    images: Any  # as `crossing` sends them
    views: NDArray[np.float32]
    places: list[int]
    unread: dict[int, Unreadable]


def _stack(items: list[tuple[Tensor, View] | Unreadable]) -> _Loaded:
    unread = {place: item for place, item in enumerate(items) if isinstance(item, Unreadable)}
    good = [item for item in items if not isinstance(item, Unreadable)]
    places = [place for place in range(len(items)) if place not in unread]
    images = crossing(torch.stack([image for image, _ in good])) if good else None
    return _Loaded(images, np.array([view for _, view in good], np.float32), places, unread)


# ----------------------------------------------------------------------------------------------- between processes


def loader(
    rows: Any, batches: Any, workers: int, collate: Callable[[list[Any]], Any], pin: bool = False, keep: bool = False
) -> DataLoader[Any]:
    """torch's DataLoader with worker processes that end with this one. What `collate` gives may hold `crossing`
    tensors. keep: the workers, between epochs."""
    return DataLoader(
        rows,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=keep and workers > 0,
        pin_memory=pin,
        worker_init_fn=EndsWithParent(),
    )


def crossing(images: Tensor) -> Tensor | NDArray[Any]:
    """A tensor on its way from a worker: through shared memory, or where that is full (Docker gives 64 MB) as an array,
    which goes through a pipe."""
    if get_worker_info() is None:
        return images
    try:
        images.share_memory_()  # type: ignore[no-untyped-call]
        return images
    except RuntimeError:
        return images.numpy()


def arrived(images: Any) -> Any:
    """What `crossing` sent: a tensor, or None for none."""
    if isinstance(images, np.ndarray):
        _say_full()
        return torch.from_numpy(images)
    return images


@cache
def _say_full() -> None:
    logging.getLogger("plures").warning(
        "shared memory (/dev/shm) is full; images take a slower way between processes (docker: --shm-size=1g)"
    )


class ImageBatches:
    """Batches of images, decoded by worker processes (workers 0: in this process).

    In training, workers begin the next epoch while this one is judged, so that nothing waits between epochs.
    unread: where to note images that cannot be read, {path: reason}. In a shuffled order, which is for training,
    another image of the batch stands in for each, with its own row and labels; in row order a grey one, so that the
    rows keep their places. Without `unread`, or where no image of a batch can be read, raises Unreadable, naming the
    file.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        order: Order,
        workers: int = 0,
        seed: int = 0,
        pin: bool = False,
        unread: dict[str, str] | None = None,
    ) -> None:
        self.dataset, self.unread = dataset, unread
        self.order, self._labels = order, torch.from_numpy(dataset.labels.values)
        self._sampler = _EpochRows(order)
        self._loader = loader(_Rows(dataset, transform, seed), self._sampler, workers, _stack, pin, keep=True)
        self._stream: Iterator[Any] | None = None  # stands at the beginning of epoch `_next`, or is None
        self._next = 0

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        stream, self._stream = self._stream, None  # an epoch that is left in the middle starts anew
        if stream is None or epoch != self._next:
            self._sampler.first = epoch
            stream = iter(self._loader)
        for piece, loaded in zip(self.order.pieces(epoch), stream, strict=False):
            images, views, rows = arrived(loaded.images), torch.from_numpy(loaded.views), piece.rows
            if loaded.unread:
                images, views, rows = self._filled(loaded, images, views, rows)
            index = torch.from_numpy(rows)
            yield Batch(images, self._labels[index], index, views, piece.total, piece.share, piece.last)
        if self.order.shuffle_seed is not None:
            self._stream, self._next = stream, epoch + 1

    def _filled(
        self, loaded: _Loaded, images: Tensor | None, views: Tensor, rows: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """A whole batch of one with images that could not be read: images, views, and the row that each shows."""
        if self.unread is None or images is None:
            raise next(iter(loaded.unread.values()))
        for place, reason in loaded.unread.items():
            path = str(self.dataset.images[rows[place]])
            self.unread[path] = str(reason).removeprefix(f"{path}: ")
        if self.order.shuffle_seed is None:
            grey = torch.full((len(rows), *images.shape[1:]), 127, dtype=torch.uint8)
            whole = torch.tensor([WHOLE] * len(rows), dtype=torch.float32)
            grey[loaded.places], whole[loaded.places] = images, views
            return grey, whole, rows
        shown = np.arange(len(rows)) % len(loaded.places)  # which of the readable ones, at places that are not
        shown[loaded.places] = np.arange(len(loaded.places))
        return images[shown], views[shown], rows[np.array(loaded.places)[shown]]


def default_workers(dataset: Dataset) -> int:
    """Processes for decoding: none for images in memory or few of them, else one a core up to eight."""
    if dataset.in_memory or len(dataset) < 200:
        return 0
    return min(8, os.cpu_count() or 1)
