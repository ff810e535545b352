"""Several processes that train as one (torchrun): every loss sees the whole batch, whichever process holds its rows.

Each process runs the network on its rows; what the loss needs of the Output is gathered, and every process computes the
loss of the whole batch. Losses that look at the batch as a whole (expected positives, the largest losses, ...) and the
label memory then do what they do in one process, and the weights differ from those by the order of sums alone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plures.data.loading import shares_of
from plures.models.outputs import Output

OF_THE_OUTPUT = ("attention", "region_logits", "embeddings")


def world_size() -> int:
    """How many processes torchrun started for this work; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Gather(torch.autograd.Function):
    """Rows of all processes, in the order of their ranks; the gradient goes back to the process a row came from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, total: int) -> Tensor:
        world, rank = dist.get_world_size(), dist.get_rank()
        counts = shares_of(total, world)
        ctx.start, ctx.count, ctx.shape, ctx.world = sum(counts[:rank]), counts[rank], rows.shape, world
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: counts[rank]] = rows[: counts[rank]]
        gathered = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(gathered, padded)
        return torch.cat([one[:count] for one, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Times the number of processes, by which the mean over processes divides the gradients of the weights."""
        mine = gradients[0].new_zeros(ctx.shape)
        mine[: ctx.count] = gradients[0][ctx.start : ctx.start + ctx.count] * ctx.world
        return mine, None


def gather(rows: Tensor, total: int) -> Tensor:
    """[b, ...] of this process -> [total, ...] of all, divided as `Order.pieces` divides them. total 0: as it is."""
    if total == 0 or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows, total)
    return gathered


def gather_output(output: Output, needs: frozenset[Any], total: int) -> Output:
    """The Output of the whole batch: logits, and of the rest what the loss needs."""
    rest = {name: getattr(output, name) if name in needs else None for name in OF_THE_OUTPUT}
    whole = {name: None if value is None else gather(value, total) for name, value in rest.items()}
    return replace(output, logits=gather(output.logits, total), **whole)
