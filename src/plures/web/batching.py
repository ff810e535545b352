"""Many requests, one model: images that wait at the same time are scored together, by one thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plures.errors import WorkFailed


class Full(WorkFailed):
    """More images wait than the queue holds."""


class Stopped(WorkFailed):
    """The server is stopping; it takes no more images."""


@dataclass(frozen=True)
class Waiting:
    """An image [3, S, S] on its way, and where its answer goes."""

    pixels: Tensor
    maps: bool
    answer: Future[Any] = field(default_factory=Future)


class Batcher:
    """A thread that gathers waiting images into batches and scores them.

    score: images uint8 [B, 3, S, S] and whether maps are wanted -> a list of B answers. max_batch: images at once;
    max_wait: seconds that the first image of a batch waits for others; max_queue: images that may wait.
    watch: called with the size of each batch.
    """

    def __init__(
        self,
        score: Callable[[Tensor, bool], list[Any]],
        max_batch: int = 16,
        max_wait: float = 0.005,
        max_queue: int = 256,
        watch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._score, self._max_batch, self._max_wait, self._watch = score, max_batch, max_wait, watch
        self._max_queue = max_queue
        self._queue: queue.Queue[Waiting | None] = queue.Queue()
        self._lock, self._stopping = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name="plures-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many images wait."""
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def submit(self, images: list[Tensor], maps: bool) -> list[Future[Any]]:
        """Queue all of a request's images [3, S, S], or none; a cancelled answer is not worked for.

        Raises Full or Stopped.
        """
        with self._lock:
            if self._stopping:
                raise Stopped("the server is stopping; ask again later")
            if self._queue.qsize() + len(images) > self._max_queue:
                raise Full(f"{self._queue.qsize():,} images wait already, and {self._max_queue:,} may; ask again later")
            items = [Waiting(pixels, maps) for pixels in images]
            for item in items:
                self._queue.put(item)
        return [item.answer for item in items]

    def stop(self) -> None:
        """Take no more images, score those that wait, end the thread."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        last = False
        while not last:
            batch, last = self._gather()
            for maps in (False, True):  # maps cost more: those who do not want them do not pay
                chosen = [item for item in batch if item.maps is maps and item.answer.set_running_or_notify_cancel()]
                if chosen:
                    self._answer(chosen, maps)

    def _gather(self) -> tuple[list[Waiting], bool]:
        """The next batch, and whether it is the last."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch, until = [first], time.monotonic() + self._max_wait
        while len(batch) < self._max_batch:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False

    def _answer(self, batch: list[Waiting], maps: bool) -> None:
        try:
            answers = self._score(torch.stack([item.pixels for item in batch]), maps)
            for item, answer in zip(batch, answers, strict=True):
                item.answer.set_result(answer)
        except Exception as error:  # one bad batch must not end the thread that all others wait for
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
        self._watch(len(batch))
