"""Inference where memory is short: a batch that does not fit is run in halves, which changes no score.

Training is not helped this way: statistics and losses of a batch depend on what is in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from plures.errors import WorkFailed, out_of_memory
from plures.models.outputs import Output

T = TypeVar("T")


class BatchHalver(Generic[T]):
    """A function of batches that tries again with half as many rows where memory runs out, and keeps to that.

    run: inputs [B, ...] -> a result of these B rows; join: the results of the pieces -> that of the whole batch.
    Says once, in the log `plures`, that it halves. Raises WorkFailed if a single row does not fit.
    """

    def __init__(self, run: Callable[[Tensor], T], join: Callable[[list[T]], T]) -> None:
        self._run, self._join = run, join
        self._most: int | None = None  # rows that may fit, once that is known

    def __call__(self, inputs: Tensor) -> T:
        """The result of all rows, in their order."""
        pieces: list[T] = []
        done = 0
        while done < len(inputs) or not pieces:
            piece = inputs[done : done + (self._most or len(inputs))]
            try:
                pieces.append(self._run(piece))
            except Exception as error:
                if not out_of_memory(error):
                    raise
            else:
                done += len(piece)
                continue
            self._halve(len(piece))  # only here, where the error no longer holds what it had allocated
        return pieces[0] if len(pieces) == 1 else self._join(pieces)

    def _halve(self, rows: int) -> None:
        if rows < 2:
            raise WorkFailed("out of memory on a single image; use a smaller image_size, or another device") from None
        first, self._most = self._most is None, rows // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if first:
            _say(rows)


@cache
def _say(rows: int) -> None:
    logging.getLogger("plures").warning(
        "out of memory on a batch of %d images; continuing in halves, slower but with the same scores", rows
    )


def joined(outputs: list[Output]) -> Output:
    """The Output of a batch from those of its pieces."""
    first = outputs[0]
    parts = {
        name: torch.cat([getattr(output, name) for output in outputs])
        for name in ("logits", "attention", "region_logits", "embeddings")
        if getattr(first, name) is not None
    }
    return replace(first, **parts)
