"""What many runs trained together share: their features and labels, and one Adam.

Adam does not care how gradients are scaled but for its rate, so weights are held divided by their learning rate: one
fused step of rate 1 then serves runs of every rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.config import Experiment
from plures.data.loading import Order
from plures.labels import Labels
from plures.losses.base import Loss
from plures.runs.data import Select

Features = NDArray[np.floating[Any]]
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's own
AT_ONCE = 2**20  # weights whose gradient is computed and then applied, as memory is needed for it


@dataclass(frozen=True, eq=False)
class FrozenData:
    """What runs have in common. train: [N, D] features; val: [M, D] features with their known labels, or None."""

    train: Features
    val: Features | None = None
    val_labels: Labels | None = None


@dataclass(frozen=True, eq=False)
class HeadRun:
    """One run: an experiment, the labels it sees, its loss (made ready for them) and its first weights.

    labels: [N, K], what training may see; val_observed: [M, K] for selection by observed labels.
    weight: [K, D], bias: [K], as nn.Linear has them. select: the rule that picks the best epoch.
    """

    experiment: Experiment
    data: FrozenData
    labels: Labels
    loss: Loss
    weight: Tensor
    bias: Tensor
    select: Select = "last"
    val_observed: Labels | None = None

    @property
    def order(self) -> Order:
        e = self.experiment
        return Order(len(self.labels), e.batch_size, shuffle_seed=e.seed, drop_last=e.drop_last)


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Numbers below 1e-38 count as zero in this thread. The processor is a hundred times slower on them, and the
    gradients of confident logits are full of them."""
    before = float(torch.tensor(1e-40) * 1.0) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
AdamPart = tuple[int, slice, Lists, Tensor | None, Tensor | None]


class StackedAdam:
    """Weights [S, M, D] and biases [S, M] of M = L K outputs, and their Adam; both are held over their rates.

    decay: [R], weight decay times the rate of each run: what `weight_decay` adds to the gradient of the real weights
    under adam, and what share of them it takes away at each step under adamw. apart: [R], which runs are adamw.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, decay: Tensor, apart: Tensor, shape: tuple[int, int, int], device: Any
    ) -> None:
        S, M, D = shape
        self.weight = weight.float().to(device).reshape(S, M, D).contiguous()
        self.bias = bias.float().to(device).reshape(S, 1, M).contiguous()
        self._turned = self.weight.transpose(1, 2)  # [S, D, M], a view
        self._steps = torch.zeros((), device=device)
        self._bias_slope = torch.empty_like(self.bias)
        moments = torch.zeros_like(self.weight), torch.zeros_like(self.weight)

        def per_output(decay: Tensor) -> Tensor | None:
            values = decay.float().repeat_interleave(S * M // len(decay)).view(S, M, 1).to(device)
            return values if bool(decay.any()) else None

        added, taken = per_output(decay * ~apart), per_output(decay * apart)
        rows = max(1, AT_ONCE // D)
        gradient = torch.empty(min(rows, M), D, device=device)
        self._parts: list[AdamPart] = []
        for s in range(S):
            for outputs in (slice(m, min(m + rows, M)) for m in range(0, M, rows)):
                weight, first, second = (tensor[s, outputs] for tensor in (self.weight, *moments))
                by_gradient, apart_of_it = (None if v is None else v[s, outputs] for v in (added, taken))
                adam = [weight], [gradient[: len(weight)]], [first], [second]
                self._parts.append((s, outputs, adam, by_gradient, apart_of_it))
        of_bias = self.bias, self._bias_slope, torch.zeros_like(self.bias), torch.zeros_like(self.bias)
        for tensors, one in zip(self._parts[-1][2], of_bias, strict=True):
            tensors.append(one)

    def logits(self, x: Tensor) -> Tensor:
        """x [S, B, D] -> [S, B, M], over the rates. From 16 images on, x as the right factor is up to twice as fast."""
        if x.shape[1] < 16:
            return torch.baddbmm(self.bias, x, self._turned)
        return torch.baddbmm(self.bias.transpose(1, 2), self.weight, x.transpose(1, 2)).transpose(1, 2)

    def step(self, x: Tensor, gradient: Tensor, rate: float) -> None:
        """One step with the gradient of the logits [S, B, M]."""
        self._steps += 1
        torch.sum(gradient, 1, keepdim=True, out=self._bias_slope)
        for s, outputs, adam, added, taken in self._parts:
            weight, slope = adam[0][0], adam[1][0]
            torch.mm(gradient[s, :, outputs].T, x[s], out=slope)
            if taken is not None:
                weight.mul_(1 - rate * taken)
            if added is not None:
                slope.addcmul_(weight, added)
            fused_adam(*adam, self._steps, rate)


def fused_adam(
    values: list[Tensor], slopes: list[Tensor], first: list[Tensor], second: list[Tensor], steps: Tensor, rate: float
) -> None:
    """What torch.optim.Adam(fused=True) calls, without its hundred microseconds of checks."""
    torch._fused_adam_(
        values, slopes, first, second, [], [steps] * len(values), amsgrad=False, beta1=BETA1, beta2=BETA2, lr=rate,
        weight_decay=0.0, eps=ADAM_EPS, maximize=False,
    )  # fmt: skip


class Rows:
    """Features [N, D] by rows, in memory or memory-mapped."""

    def __init__(self, features: Features, device: torch.device) -> None:
        self.features, self.device = features, device
        self.tensor = None if isinstance(features, np.memmap) else torch.from_numpy(features).to(device, torch.float32)

    def __getitem__(self, index: Tensor) -> Tensor:
        """index [S, B] -> [S, B, D]."""
        if self.tensor is not None:
            return self.tensor.index_select(0, index.view(-1)).view(*index.shape, -1)
        return torch.from_numpy(np.asarray(self.features[index.cpu().numpy()], np.float32)).to(self.device)

    def logits(self, weight: Tensor, bias: Tensor) -> Tensor:
        """weight [M, D], bias [M] -> [N, M]."""
        if self.tensor is not None:
            return torch.addmm(bias, self.tensor, weight.T)
        found = []
        for start in range(0, len(self.features), 16_384):
            rows = torch.arange(start, min(start + 16_384, len(self.features)), device=self.device)
            found.append(torch.addmm(bias, self[rows[None]][0], weight.T))
        return torch.cat(found)


def stack_labels(labels: Sequence[Labels], device: torch.device) -> tuple[Tensor, Tensor]:
    """Distinct label tables under each other, int8 [V N, K], and the row where each run's begins, [R]."""
    tables: dict[int, int] = {}
    kept: list[Tensor] = []
    starts = []
    for one in labels:
        if id(one) not in tables:
            tables[id(one)] = sum(len(table) for table in kept)
            kept.append(torch.from_numpy(one.values))
        starts.append(tables[id(one)])
    return torch.cat(kept).to(device), torch.tensor(starts, device=device)
