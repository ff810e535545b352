"""The losses of runs trained together, called at once, and their label states in one table.

A loss declares how it can be computed (the class attributes of `Loss`). One in closed form is asked for its gradient,
for all runs at once; where nothing joins its cells (`per_cell`), what does not change from step to step is worked out
for many steps beforehand. For any other, autograd sees only the logits: a loss whose value is a mean over images
(`per_image`) is called once for all runs that have it, on [R B, K]; the rest go through torch.vmap, or, where that
refuses, run by run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from plures.labels import TensorLabels
from plures.losses.base import Loss
from plures.losses.bce import WeightedBCE
from plures.losses.context import Context
from plures.losses.label_memory import LabelMemory
from plures.losses.log_terms import scale
from plures.models.outputs import Output
from plures.sweeps.vectorized.heads import HeadRun, fused_adam

NO_INDEX = torch.empty(0, dtype=torch.long)  # for a label state whose rows are already at hand


class LossBlock:
    """The runs of a group that have one loss: columns [a, b) of the L runs of every order; R of them in all."""

    def __init__(self, columns: list[int], runs: Sequence[HeadRun], rates: Tensor, device: torch.device) -> None:
        """rates: [S, 1, L K], of every output of the group."""
        S, _, M = rates.shape
        self.K = runs[0].labels.classes
        self.columns, self.S, self.L = slice(columns[0], columns[-1] + 1), S, M // self.K
        self.width, self.N = len(columns), len(runs[0].labels)
        self.outputs = slice(self.columns.start * self.K, self.columns.stop * self.K)
        self.rates = rates[..., self.outputs]
        self.R = S * self.width
        self.loss: Loss = runs[columns[0]].loss
        self.per_cell = self.loss if isinstance(self.loss, WeightedBCE) and self.loss.per_cell else None
        mine = [runs[position] for _, position in self.places()]
        self.memory = StackedMemory.of(self.loss, mine, device) if "label_state" in self.loss.needs else None
        self.offsets = (torch.arange(self.R, device=device) * self.N).view(S, 1, self.width)
        self.mapped = True  # until vmap refuses the loss
        averaged = self.loss.per_image and getattr(self.loss, "reduction", "mean") != "sum"
        self.weight = torch.tensor(float(self.R) if averaged else 1.0, device=device)

    def places(self) -> list[tuple[int, int]]:
        """(place in this block, position in the group) of each run."""
        columns = range(self.columns.start, self.columns.stop)
        return [(s * self.width + c, s * self.L + j) for s in range(self.S) for c, j in enumerate(columns)]

    def given(self, labels: Tensor, batch: int) -> list[tuple[Tensor, ...]]:
        """What is learned from, made for many steps of this batch size at once: labels [S, n B, L, K] -> for each step
        the labels [S, B, width, K]; of a loss in closed form the weights of its cells [B, S, width, K]; of one
        per cell what `_turns_and_weights` makes of these."""
        y = labels[:, :, self.columns]
        once = y[:, :, :1] if y.stride(2) == 0 else y
        if self.per_cell is not None:
            return self._turns_and_weights(self.per_cell, TensorLabels(once), batch)
        if not self.loss.closed_form:
            return [(part,) for part in torch.split(y, batch, 1)]
        weights = self.loss.weights(TensorLabels(once.movedim(1, 0)))
        parts = (torch.split(weight.expand(-1, -1, self.width, -1).contiguous(), batch) for weight in weights)
        return list(zip(*parts, strict=True))

    def learn(
        self, logits: Tensor, given: tuple[Tensor, ...], index: Tensor, context: Context, factor: float
    ) -> Tensor:
        """The gradient [S, B, width K] of each run's loss by its logits; a label state is learned at once.

        logits: [S, B, L K], over their rates; given: of this step; index: [S, B]; factor: of the schedule.
        """
        held = logits if self.width == self.L else logits[..., self.outputs]
        if self.per_cell is not None:
            turn, weight = given
            return _per_cell(held, turn, weight, self.per_cell.eps)
        x = (held * self.rates).view(*index.shape, self.width, self.K)
        state, rows = None, None
        if self.memory is not None:
            rows = (index[:, :, None] + self.offsets).view(-1)  # [S B width], in the stacked label state
            state = self.memory.rows(rows)  # [S B width, K]
        if self.loss.closed_form:
            yes, no = given
            by_logits, by_state = self._closed_form(x, yes, no, state, context)
        else:
            (y,) = given
            by_logits, by_state = self._autograd(x, y, index, rows, state, context)
        if by_state is not None and self.memory is not None:
            self.memory.step(by_state, factor)
        return by_logits.flatten(2)

    def _turns_and_weights(self, loss: WeightedBCE, labels: TensorLabels, batch: int) -> list[tuple[Tensor, ...]]:
        """Labels [S, n B, width, K], or [S, n B, 1, K] if all runs see the same -> what `_per_cell` takes by step."""
        yes, no = loss.weights(labels)
        shape = torch.Size((batch, self.K))
        share = scale(shape, loss.reduction) / shape.numel()
        rates = self.rates.view(self.S, 1, self.width, self.K)
        absent = rates if loss.eps == 0 else -rates  # what turns a held logit into z where a cell counts as absent
        if loss.both_sides:
            turn, weight = torch.stack([-absent, absent]), torch.stack([-yes, no])
        else:  # a cell counts as one of the two
            turn, weight = torch.where(yes > 0, -absent, absent)[None], (no - yes)[None]
        full = (len(turn), self.S, yes.shape[1], self.width * self.K)
        turn, weight = (t.expand(-1, -1, full[2], self.width, -1).reshape(full) for t in (turn, weight * share))
        turns, weights = torch.split(turn, batch, 2), list(torch.split(weight, batch, 2))
        left = weights[-1].shape[2]
        if left < batch and loss.reduction != "sum":  # the last batch of an epoch
            weights[-1] = weights[-1] * (batch / left)
        return list(zip(turns, weights, strict=True))

    @torch.no_grad()
    def _closed_form(
        self, x: Tensor, yes: Tensor, no: Tensor, state: Tensor | None, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        if state is not None:
            kept = _Given(state.view(x.shape).movedim(1, 0))
            context = replace(context, index=NO_INDEX, label_state=kept)
        by_logits, by_state = self.loss.gradient(x.movedim(1, 0), yes, no, context)
        return by_logits.movedim(0, 1), None if by_state is None else by_state.movedim(0, 1).reshape(-1, x.shape[-1])

    def _autograd(
        self, x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None, state: Tensor | None, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        x = x.detach().requires_grad_()
        wanted = [x] if state is None or not state.requires_grad else [x, state]
        total = self._total(x, y, index, rows, state, context)
        by_logits, *by_state = torch.autograd.grad(total, wanted, self.weight)
        return by_logits, by_state[0] if by_state else None

    def _total(
        self, x: Tensor, y: Tensor, index: Tensor, rows: Tensor | None, state: Tensor | None, context: Context
    ) -> Tensor:
        """The losses of these runs; times `weight` their sum."""
        S, B, width, K = x.shape
        if self.loss.per_image:
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
        known = replace(context, index=index, label_state=state)
        first, *others = self.loss.compute(Output(x), TensorLabels(y), known).values()
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


def _per_cell(held: Tensor, turn: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`slope` in fewer steps. held: logits [S, B, M] over their rates; turn, weight: [1 or 2, S, B, M], of each way in
    which a cell counts what makes it z, the logit of the error (of being right, if there is an eps), and how much."""
    p = torch.sigmoid(held * turn)
    each = p.mul_(weight) if eps == 0 else torch.ops.aten.sigmoid_backward(weight, p).div_(p + eps)
    return each[0] if len(each) == 1 else each.sum(0)


def alike(loss: Loss) -> str:
    """The same for losses that compute the same: class and options; one with tensors of its own is only like itself."""
    own = id(loss) if loss.state_dict() else ""
    return f"{type(loss).__module__}.{type(loss).__qualname__}({loss.extra_repr()}){own}"


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
    def of(cls, loss: Loss, runs: Sequence[HeadRun], device: torch.device) -> StackedMemory:
        """The first states of these runs, which have the same loss."""
        table = torch.cat([loss.initial_state(run.labels, run.experiment.seed) for run in runs])
        faster = getattr(loss, "state_lr_multiplier", 1.0)
        rates = torch.tensor([run.experiment.lr * faster for run in runs])
        return cls(table, rates, loss.learned, bool(getattr(loss, "dense_adam", False)), device)

    def rows(self, index: Tensor) -> Tensor:
        """index [n] -> [n, K]; a leaf that requires gradient if the memory is learned."""
        if not self.learned:
            return self._memory.rows(index)
        held = self._table.index_select(0, index) if self.dense else self._memory.rows(index)
        self._read = index, held
        return (held.detach() * self._rates.index_select(0, index)).requires_grad_()

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
        fused_adam([self._table], [self._slope], [self._first], [self._second], self._steps, factor)
        self._slope.index_fill_(0, index, 0.0)


class OneRun:
    """The label state of one run of a block, as a loss that acts after the epoch sees it."""

    def __init__(self, memory: StackedMemory, offset: int, N: int) -> None:
        self.memory, self.offset = memory, offset

    def rows(self, index: Tensor) -> Tensor:
        return self.memory.rows(index + self.offset)

    def write(self, index: Tensor, values: Tensor) -> None:
        self.memory.write(index + self.offset, values)
