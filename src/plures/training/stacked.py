"""What many runs trained together share: their features and labels, one Adam, and their losses called at once.

Autograd sees only the logits [R, B, K] of R runs. A loss whose value is a mean over images is called once for all runs
that have it, on [R B, K] (ROW_WISE); any other through torch.vmap, or, where that refuses, run by run. Adam does not
care how gradients are scaled but for its rate, so weights are held divided by their learning rate: one fused step of
rate 1 then serves runs of every rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.data.loading import Order
from plures.experiment import Experiment
from plures.labels import Labels, TensorLabels
from plures.losses.assume_negative import AssumeNegative, SmoothedAssumeNegative, WeakAssumeNegative
from plures.losses.asymmetric import Asymmetric
from plures.losses.bce import BinaryCrossEntropy, SmoothedBinaryCrossEntropy
from plures.losses.context import Context, Loss, RemembersLabels
from plures.losses.em import AsymmetricPseudoLabels, EntropyMaximisation
from plures.losses.expected_negative import ExpectedNegatives
from plures.losses.gce import GeneralisedCrossEntropy
from plures.losses.gr import GeneralisedRobust
from plures.losses.hill import Hill, SelfPacedLossCorrection
from plures.losses.iu import IgnoreUnknown
from plures.losses.pr import PairwiseRanking
from plures.losses.vlpl import VisionLanguagePseudoLabels
from plures.models.output import Output
from plures.training.data import Select
from plures.training.label_state import LabelMemory

Features = NDArray[np.floating[Any]]
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's own
AT_ONCE = 2**17  # weights whose gradient is computed and applied while it is in the processor's cache

ROW_WISE = (
    AssumeNegative, SmoothedAssumeNegative, WeakAssumeNegative, Asymmetric, BinaryCrossEntropy,
    SmoothedBinaryCrossEntropy, IgnoreUnknown, PairwiseRanking, Hill, SelfPacedLossCorrection, GeneralisedRobust,
    GeneralisedCrossEntropy, EntropyMaximisation, AsymmetricPseudoLabels, ExpectedNegatives, VisionLanguagePseudoLabels,
)  # fmt: skip
"""Losses that are a mean (or sum) over images of something that depends on one image alone, at every epoch."""


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


AdamPart = tuple[int, slice, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


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
        self._bias_moments = torch.zeros_like(self.bias), torch.zeros_like(self.bias)
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
                slope = gradient[: len(weight)]
                self._parts.append((s, outputs, slope, weight, first, second, by_gradient, apart_of_it))

    def logits(self, x: Tensor) -> Tensor:
        """x [S, B, D] -> [S, B, M], over the rates."""
        return torch.baddbmm(self.bias, x, self._turned)

    def step(self, x: Tensor, gradient: Tensor, rate: float) -> None:
        """One step with the gradient of the logits [S, B, M]."""
        self._steps += 1
        for s, outputs, slope, weight, first, second, added, taken in self._parts:
            torch.mm(gradient[s, :, outputs].T, x[s], out=slope)
            if taken is not None:
                weight.mul_(1 - rate * taken)
            if added is not None:
                slope.addcmul_(weight, added)
            fused_adam(weight, slope, first, second, self._steps, rate)
        fused_adam(self.bias, gradient.sum(1, keepdim=True), *self._bias_moments, self._steps, rate)


def fused_adam(value: Tensor, slope: Tensor, first: Tensor, second: Tensor, steps: Tensor, rate: float) -> None:
    """What torch.optim.Adam(fused=True) calls, without its hundred microseconds of checks."""
    torch._fused_adam_(
        [value], [slope], [first], [second], [], [steps], amsgrad=False, beta1=BETA1, beta2=BETA2, lr=rate,
        weight_decay=0.0, eps=ADAM_EPS, maximize=False,
    )  # fmt: skip


class LossBlock:
    """The runs of a group that have one loss: columns [a, b) of the L runs of every order; R of them in all."""

    def __init__(self, columns: list[int], runs: Sequence[HeadRun], S: int, L: int, device: torch.device) -> None:
        self.columns, self.S, self.L = slice(columns[0], columns[-1] + 1), S, L
        self.width, self.N = len(columns), len(runs[0].labels)
        self.R = S * self.width
        self.loss: Loss = runs[columns[0]].loss
        self.row_wise = isinstance(self.loss, ROW_WISE)
        mine = [runs[position] for _, position in self.places()]
        self.memory = StackedMemory.of(self.loss, mine, device) if isinstance(self.loss, RemembersLabels) else None
        self.offsets = (torch.arange(self.R, device=device) * self.N).view(S, 1, self.width)
        self.mapped = True  # until vmap refuses the loss
        averaged = self.row_wise and getattr(self.loss, "reduction", "mean") != "sum"
        self.weight = torch.tensor(float(self.R) if averaged else 1.0, device=device)
        self.leaf: Tensor | None = None

    def places(self) -> list[tuple[int, int]]:
        """(place in this block, position in the group) of each run."""
        columns = range(self.columns.start, self.columns.stop)
        return [(s * self.width + c, s * self.L + j) for s in range(self.S) for c, j in enumerate(columns)]

    def total(self, logits: Tensor, labels: Tensor, index: Tensor, context: Context) -> Tensor:
        """The losses of these runs; times `weight` their sum. logits, labels: [S, B, L, K]; index: [S, B].

        `leaf` then holds the rows of a learned label state that the total depends on.
        """
        x, y = logits[:, :, self.columns], labels[:, :, self.columns]
        S, B, width, K = x.shape
        state, rows = None, None
        if self.memory is not None:
            rows = (index[:, :, None] + self.offsets).view(-1)  # [S B width], in the stacked label state
            state = self.memory.rows(rows)  # [S B width, K]
        self.leaf = state if state is not None and state.requires_grad else None
        if self.row_wise:
            kept = _Given(state)
            value = self._value(x.reshape(-1, K), y.reshape(-1, K), rows, kept, context)
            if kept.written is not None and self.memory is not None and rows is not None:
                self.memory.write(rows, kept.written)
            return value
        each = [t.transpose(1, 2).reshape(self.R, B, K) for t in (x, y)]
        each.append(index[:, None, :].expand(S, width, B).reshape(self.R, B))
        if state is not None:
            each.append(state.view(S, B, width, K).transpose(1, 2).reshape(self.R, B, K))
        values, written = self._each_run(each, context)
        if self.memory is not None and rows is not None and not self.memory.learned:
            self.memory.write(rows, written.view(S, width, B, K).transpose(1, 2).reshape(-1, K))
        return values.sum()

    def _value(self, x: Tensor, y: Tensor, index: Tensor | None, state: _Given, context: Context) -> Tensor:
        first, *others = self.loss(
            Output(x), TensorLabels(y), replace(context, index=index, label_state=state)
        ).values()
        return sum(others, first)

    def _each_run(self, given: list[Tensor], context: Context) -> tuple[Tensor, Tensor]:
        """The loss of every run [R], and what each wrote into its label state [R, B, K] (its labels, if nothing)."""

        def one(x: Tensor, y: Tensor, index: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            kept = _Given(state)
            value = self._value(x, y, index, kept, context)
            unwritten = y if state is None else state
            return value, unwritten if kept.written is None else kept.written

        if self.mapped:
            try:
                values, written = torch.vmap(one)(*given)
                return values, written
            except RuntimeError:  # data-dependent control flow, or an operation that cannot be batched
                self.mapped = False
        results = [one(*run) for run in zip(*given, strict=True)]
        return torch.stack([value for value, _ in results]), torch.stack([state for _, state in results])


class _Given:
    """A label state of the rows in hand: what a loss reads, and what it then writes."""

    def __init__(self, state: Tensor | None) -> None:
        self.state = state
        self.written: Tensor | None = None

    def rows(self, index: Tensor) -> Tensor:
        assert self.state is not None
        return self.state

    def write(self, index: Tensor, values: Tensor) -> None:
        self.written = values.detach()


class StackedMemory:
    """The label states of R runs in one table [R N, K]; a learned one is held over its rate, as weights are."""

    def __init__(self, table: Tensor, rates: Tensor, learned: bool, dense_adam: bool, device: torch.device) -> None:
        self.learned, self.dense = learned, dense_adam
        self._rates = rates.repeat_interleave(len(table) // len(rates))[:, None].to(device)  # [R N, 1]
        if learned:
            table = table / self._rates.cpu()
        self._read: tuple[Tensor, Tensor] | None = None
        if dense_adam:
            self._table = table.to(device)
            self._slope, self._first, self._second = (torch.zeros_like(self._table) for _ in range(3))
            self._steps = torch.zeros((), device=device)
        else:
            self._memory = LabelMemory(table, learned=learned, device=device)

    @classmethod
    def of(cls, loss: RemembersLabels, runs: Sequence[HeadRun], device: torch.device) -> StackedMemory:
        """The first states of these runs, which have the same loss."""
        table = torch.cat([loss.initial_state(run.labels, run.experiment.seed) for run in runs])
        faster = getattr(loss, "state_lr_multiplier", 1.0)
        rates = torch.tensor([run.experiment.lr * faster for run in runs])
        return cls(table, rates, loss.learned, bool(getattr(loss, "dense_adam", False)), device)

    def rows(self, index: Tensor) -> Tensor:
        """index [n] -> [n, K]; a leaf that wants gradient if the memory is learned."""
        if not self.learned:
            return self._memory.rows(index)
        held = self._table[index] if self.dense else self._memory.rows(index)
        self._read = index, held
        return (held.detach() * self._rates[index]).requires_grad_()

    def write(self, index: Tensor, values: Tensor) -> None:
        self._memory.write(index, values)

    def step(self, gradient: Tensor, factor: float) -> None:
        """One Adam step with the gradient [n, K] of the rows last read."""
        assert self._read is not None
        index, held = self._read
        if not self.dense:
            held.grad = gradient
            self._memory.apply_gradient(factor)
            return
        self._steps += 1
        self._slope.index_copy_(0, index, gradient)
        fused_adam(self._table, self._slope, self._first, self._second, self._steps, factor)
        self._slope.index_fill_(0, index, 0.0)


class OneRun:
    """The label state of one run of a block, as a loss that acts after the epoch sees it."""

    def __init__(self, memory: StackedMemory, offset: int, N: int) -> None:
        self.memory, self.offset = memory, offset

    def rows(self, index: Tensor) -> Tensor:
        return self.memory.rows(index + self.offset)

    def write(self, index: Tensor, values: Tensor) -> None:
        self.memory.write(index + self.offset, values)


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
