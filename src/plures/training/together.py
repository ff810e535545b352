"""Many linear heads on the same frozen features, trained together: one matrix product a step for all of them.

Runs that differ in loss, learning rate, batch size, seed or observed labels share the features, the gather of each
batch (where they share its order) and one Adam step. The results are those of `train`, one run after another, up to
the order in which floats are summed: the batches come from the same `Order`, the first weights from the same seed.

Three things make it fast. The gradient of a linear layer is closed form, so autograd sees only logits [R, B, K].
A loss whose value is a mean over images is called once for all runs, on [R B, K] (ROW_WISE); any other through
torch.vmap, or where that refuses, run by run. And Adam does not care how gradients are scaled but for its rate, so
weights are held divided by their learning rate: one fused step of rate 1 then serves runs of every rate.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
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
from plures.losses.context import ActsAfterEpoch, Context, Loss, RemembersLabels
from plures.losses.em import AsymmetricPseudoLabels, EntropyMaximisation
from plures.losses.expected_negative import ExpectedNegatives
from plures.losses.gce import GeneralisedCrossEntropy
from plures.losses.gr import GeneralisedRobust
from plures.losses.hill import Hill, SelfPacedLossCorrection
from plures.losses.iu import IgnoreUnknown
from plures.losses.pr import PairwiseRanking
from plures.losses.vlpl import VisionLanguagePseudoLabels
from plures.metrics.average_precision import find_definition
from plures.models.output import Output
from plures.training.data import Select
from plures.training.fit import Best
from plures.training.label_state import LabelMemory
from plures.training.schedules import schedules

Features = NDArray[np.floating[Any]]
Scores = NDArray[np.float32]
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's own
AT_ONCE = 2**17  # weights whose gradient is computed and applied while it is in the processor's cache
RUNS_AT_ONCE = 64  # of one group: beyond, the weights of all leave the cache and nothing is gained

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


@dataclass(eq=False)
class TrainedHead:
    """weight [K, D], bias [K] of the best epoch; records: one an epoch; failed: why there are none, or empty."""

    weight: Tensor
    bias: Tensor
    best: Best = field(default_factory=Best)
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""


def why_not(experiment: Experiment, needs: Iterable[str]) -> str:
    """Why this experiment cannot be trained here (empty: it can). needs: what its loss needs."""
    e = experiment
    reasons = {
        f"mode={e.mode}": e.mode != "frozen",
        f"head={e.head.name}": e.head.name != "linear",
        f"optimizer={e.optimizer.name} with its options": e.optimizer.name != "adam" or bool(e.optimizer.options),
        "clip": e.clip is not None,
        "ema": e.ema is not None,
        f"precision={e.precision}": e.precision != "32-true",
        "start": e.start is not None,
        "tensorboard": e.tensorboard,
        f"a loss that needs {' and '.join(sorted(needs))}": not set(needs) <= {"label_state"},
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def train_together(
    runs: Sequence[HeadRun],
    device: torch.device | str = "cpu",
    told: Callable[[int, int], None] = lambda done, of: None,
) -> list[TrainedHead]:
    """Train all runs, those of one batch size and length in step with each other. The result is in their order.

    told: called after every epoch of a group with the epochs done and those there are, over all runs.
    A run whose weights are no longer numbers stops with its reason in `failed`; the others go on.
    """
    found: list[TrainedHead | None] = [None] * len(runs)
    done, total = 0, sum(run.experiment.epochs for run in runs)
    for places in _groups(runs):
        group = Group([runs[i] for i in places], torch.device(device))
        for _ in range(group.epochs):
            group.train_epoch()
            done += len(places)
            told(done, total)
        for place, head in zip(places, group.heads, strict=True):
            found[place] = head
    return [head for head in found if head is not None]


def _groups(runs: Sequence[HeadRun]) -> list[list[int]]:
    """Which runs can go in step: the same data, batches, epochs and schedule; in each group every order of batches
    has the same losses in the same sequence, so that a block of runs with one loss is a slice."""
    lanes: dict[Any, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        e = run.experiment
        shared = (e.batch_size, e.epochs, str(e.schedule), e.drop_last, e.average_precision, len(run.labels))
        lanes[(id(run.data), *shared, e.seed)].append(i)
    groups: dict[Any, list[list[int]]] = defaultdict(list)
    for key, lane in lanes.items():
        lane = sorted(lane, key=lambda i: repr(runs[i].loss))
        for start in range(0, len(lane), RUNS_AT_ONCE):
            part = lane[start : start + RUNS_AT_ONCE]
            groups[(key[:-1], tuple(repr(runs[i].loss) for i in part))].append(part)
    result = []
    for parts in groups.values():
        orders = max(1, RUNS_AT_ONCE // len(parts[0]))
        result += [[i for part in parts[s : s + orders] for i in part] for s in range(0, len(parts), orders)]
    return result


class Group:
    """Runs in step. S orders of batches, L runs in each, R = S L runs; weights [S, L K, D], held over their rates."""

    def __init__(self, runs: Sequence[HeadRun], device: torch.device) -> None:
        self.runs, self.device = runs, device
        first = runs[0]
        e = first.experiment
        self.epochs, self.epoch = e.epochs, 0
        self.orders = list({run.experiment.seed: run.order for run in runs}.values())
        self.S, self.L = len(self.orders), len(runs) // len(self.orders)
        self.N, self.K, self.D = len(first.labels), first.labels.classes, first.weight.shape[1]
        self.schedule = schedules.make(e.schedule.name, **e.schedule.options)
        self.features = _Rows(first.data.train, device)
        self.labels, self.label_rows = _stack_labels([run.labels for run in runs], device)
        rates = torch.tensor([run.experiment.lr * run.experiment.head_lr for run in runs], dtype=torch.float64)
        self.rates = rates.repeat_interleave(self.K).float().view(self.S, 1, self.L * self.K).to(device)
        self.adam = StackedAdam(
            torch.stack([r.weight for r in runs]).double() / rates[:, None, None],
            torch.stack([r.bias for r in runs]).double() / rates[:, None],
            torch.tensor([r.experiment.weight_decay for r in runs]).double() * rates,
            (self.S, self.L * self.K, self.D),
            device,
        )
        self.blocks = [
            Block(list(range(i, j)), runs, self.S, self.L, device)
            for i, j in _stretches([repr(run.loss) for run in runs[: self.L]])
        ]
        self.validation = Validation(runs) if first.data.val is not None else None
        self.heads = [TrainedHead(run.weight, run.bias) for run in runs]

    def train_epoch(self) -> None:
        """One pass over the training rows, then the epoch's scores; keeps the best weights of each run."""
        started, steps = time.perf_counter(), len(self.orders[0])
        batches = [order.batches(self.epoch) for order in self.orders]
        factor = 1.0
        for i in range(steps):
            step = self.epoch * steps + i
            factor = self.schedule(step, steps, self.epochs)
            index = torch.from_numpy(np.stack([order[i] for order in batches])).to(self.device)  # [S, B]
            context = Context(self.epoch, self.epochs, step / (self.epochs * steps))
            self._step(index, context, factor)
        self._after_epoch()
        self._score(factor, time.perf_counter() - started)
        self.epoch += 1

    def _step(self, index: Tensor, context: Context, factor: float) -> None:
        S, L, K, B = self.S, self.L, self.K, index.shape[1]
        x = self.features[index]  # [S, B, D]
        logits = self.adam.logits(x).mul_(self.rates)  # [S, B, L K]
        leaf = logits.view(S, B, L, K).transpose(1, 2).contiguous().requires_grad_()  # [S, L, B, K]
        rows = (index[:, None, :] + self.label_rows.view(S, L, 1)).view(-1)
        labels = self.labels.index_select(0, rows).view(S, L, B, K)
        parts = [block.total(leaf, labels, index, context) for block in self.blocks]
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
        learned = [leaf for block in self.blocks for leaf in block.leaves]
        gradient, *of_states = torch.autograd.grad(total, [leaf, *learned])
        self.adam.step(x, gradient.transpose(1, 2).reshape(S, B, L * K), factor)
        for block in self.blocks:
            block.step(of_states, factor)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """The weights [R, K, D] and biases [R, K] themselves."""
        R, K = self.S * self.L, self.K
        rates = self.rates.view(R, K)
        return self.adam.weight.view(R, K, self.D) * rates[..., None], self.adam.bias.view(R, K) * rates

    @torch.no_grad()
    def _after_epoch(self) -> None:
        """Let losses look at their scores of the whole training set, as `fit` does."""
        context = Context(self.epoch, self.epochs, (self.epoch + 1) / self.epochs)
        for block in self.blocks:
            loss = block.loss
            if not isinstance(loss, ActsAfterEpoch) or not loss.wants_scores(context):
                continue
            weight, bias = self._weights()
            for place, position in block.places():
                logits = self.features.logits(weight[position], bias[position])
                state = None if block.memory is None else _Part(block.memory, place * self.N, self.N)
                loss.after_epoch(logits, self.runs[position].labels, replace(context, label_state=state))

    @torch.no_grad()
    def _score(self, factor: float, seconds: float) -> None:
        weight, bias = self._weights()
        sound = torch.isfinite(weight.sum((1, 2)) + bias.sum(1)).cpu().numpy()  # [R]
        scores = {} if self.validation is None else self.validation(weight, bias, self.device)
        for r, (run, head) in enumerate(zip(self.runs, self.heads, strict=True)):
            if head.failed:
                continue
            if not sound[r]:
                rate = run.experiment.lr
                head.failed = (
                    f"the weights are no longer numbers in epoch {self.epoch + 1}; try a smaller lr ({rate:g})"
                )
                continue
            mine = {name: float(values[r]) for name, values in scores.items()}
            score = mine.get(run.select, math.nan)
            if head.best.better(score):
                head.best = Best(score, self.epoch)
                head.weight, head.bias = weight[r].cpu().clone(), bias[r].cpu().clone()
            rates = {"lr": run.experiment.lr * factor, "seconds": round(seconds / len(self.runs), 4)}
            head.records.append(
                {"phase": "frozen", "epoch": self.epoch, **rates, **mine, "best_epoch": head.best.epoch}
            )


class StackedAdam:
    """Weights [S, M, D] and biases [S, M] of M = L K outputs, and their Adam; both are held over their rates.

    decay: [R], weight decay times the rate of each run: what `weight_decay` adds to the gradient of the real weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor, decay: Tensor, shape: tuple[int, int, int], device: Any) -> None:
        S, M, D = shape
        self.weight = weight.float().to(device).reshape(S, M, D).contiguous()
        self.bias = bias.float().to(device).reshape(S, 1, M).contiguous()
        per_output = decay.float().repeat_interleave(S * M // len(decay)).view(S, M, 1).to(device)
        self.decay = per_output if bool(decay.any()) else None
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in (self.weight, self.bias)]
        self.steps = torch.zeros((), device=device)
        rows = max(1, AT_ONCE // D)
        self.parts = [(s, slice(m, min(m + rows, M))) for s in range(S) for m in range(0, M, rows)]
        self.gradient = torch.empty(min(rows, M), D, device=device)

    def logits(self, x: Tensor) -> Tensor:
        """x [S, B, D] -> [S, B, M], over the rates."""
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))

    def step(self, x: Tensor, gradient: Tensor, rate: float) -> None:
        """One step with the gradient of the logits [S, B, M]."""
        self.steps += 1
        first, second = self.moments[0]
        for s, outputs in self.parts:
            weight = self.weight[s, outputs]
            slope = torch.mm(gradient[s, :, outputs].T, x[s], out=self.gradient[: len(weight)])
            if self.decay is not None:
                slope.addcmul_(weight, self.decay[s, outputs])
            self._adam(weight, slope, first[s, outputs], second[s, outputs], rate)
        self._adam(self.bias, gradient.sum(1, keepdim=True), *self.moments[1], rate)

    def _adam(self, value: Tensor, slope: Tensor, first: Tensor, second: Tensor, rate: float) -> None:
        torch._fused_adam_(  # what torch.optim.Adam(fused=True) calls, without its hundred microseconds of checks
            [value], [slope], [first], [second], [], [self.steps], amsgrad=False, beta1=BETA1, beta2=BETA2, lr=rate,
            weight_decay=0.0, eps=ADAM_EPS, maximize=False,
        )  # fmt: skip


class Block:
    """The runs of a group that have one loss: columns [a, b) of the L runs of every order."""

    def __init__(self, columns: list[int], runs: Sequence[HeadRun], S: int, L: int, device: torch.device) -> None:
        self.columns, self.S, self.L = slice(columns[0], columns[-1] + 1), S, L
        self.width, self.N = len(columns), len(runs[0].labels)
        self.loss: Loss = runs[columns[0]].loss
        mine = [runs[position] for _, position in self.places()]
        self.memory = _Memory.of(self.loss, mine, device) if isinstance(self.loss, RemembersLabels) else None
        self.offsets = (torch.arange(len(mine), device=device) * self.N).view(S, self.width, 1)
        self.mapped = True  # until vmap refuses the loss
        self._leaf: Tensor | None = None

    def places(self) -> list[tuple[int, int]]:
        """(place in this block, position in the group) of each run."""
        columns = range(self.columns.start, self.columns.stop)
        return [(s * self.width + c, s * self.L + j) for s in range(self.S) for c, j in enumerate(columns)]

    @property
    def leaves(self) -> list[Tensor]:
        """The learned rows of the label state that the last total depends on."""
        return [] if self._leaf is None else [self._leaf]

    def total(self, logits: Tensor, labels: Tensor, index: Tensor, context: Context) -> Tensor:
        """The summed losses of these runs. logits, labels: [S, L, B, K]; index: [S, B]."""
        x, y = logits[:, self.columns], labels[:, self.columns]
        R, B, K = self.S * self.width, *x.shape[2:]
        rows = (index[:, None, :] + self.offsets).reshape(R * B)  # in the stacked label state
        state = None if self.memory is None else self.memory.rows(rows)  # [R B, K]
        self._leaf = state if state is not None and state.requires_grad else None
        if isinstance(self.loss, ROW_WISE):
            kept = _Given(state)
            terms = self._terms(x.reshape(R * B, K), y.reshape(R * B, K), rows, kept, context)
            if kept.written is not None and self.memory is not None:
                self.memory.write(rows, kept.written)
            return terms * (1 if getattr(self.loss, "reduction", "mean") == "sum" else R)
        each = [x.reshape(R, B, K), y.reshape(R, B, K), (rows.view(R, B) % self.N)]
        values, written = self._each_run(each if state is None else [*each, state.view(R, B, K)], context)
        if self.memory is not None and not self.memory.learned:
            self.memory.write(rows, written.reshape(R * B, K))
        return values.sum()

    def _terms(self, x: Tensor, y: Tensor, index: Tensor, state: _Given, context: Context) -> Tensor:
        terms = self.loss(Output(x), TensorLabels(y), replace(context, index=index, label_state=state))
        return torch.stack(list(terms.values())).sum()

    def _each_run(self, given: list[Tensor], context: Context) -> tuple[Tensor, Tensor]:
        """The loss of every run [R], and what each wrote into its label state [R, B, K] (its labels, if nothing)."""

        def one(x: Tensor, y: Tensor, index: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            kept = _Given(state)
            value = self._terms(x, y, index, kept, context)
            unwritten = y if state is None else state
            return value, unwritten if kept.written is None else kept.written

        if self.mapped:
            try:
                values, written = torch.vmap(one)(*given)
                return values, written
            except RuntimeError:  # data-dependent control flow, or an operation that cannot be batched
                self.mapped = False
        values, written = zip(*(one(*run) for run in zip(*given, strict=True)), strict=True)
        return torch.stack(values), torch.stack(written)

    def step(self, gradients: list[Tensor], factor: float) -> None:
        """One Adam step of the learned label state; takes its gradient off the front of the list."""
        if self._leaf is not None and self.memory is not None:
            self.memory.step(gradients.pop(0), factor)


class _Given:
    """A label state of the rows in hand: what a loss reads, and what it then writes."""

    def __init__(self, state: Tensor | None) -> None:
        self.state, self.written = state, None

    def rows(self, index: Tensor) -> Tensor:
        assert self.state is not None
        return self.state

    def write(self, index: Tensor, values: Tensor) -> None:
        self.written = values.detach()


class _Memory:
    """The label states of several runs in one table [R N, K]; a learned one is held over its rate, as weights are."""

    def __init__(self, table: Tensor, rates: Tensor, learned: bool, dense_adam: bool, device: torch.device) -> None:
        self.learned, self.rates = learned, rates.to(device)
        self._N = len(table) // len(rates)
        self.table = LabelMemory(table, learned=learned, dense_adam=dense_adam, device=device)

    @classmethod
    def of(cls, loss: RemembersLabels, runs: Sequence[HeadRun], device: torch.device) -> _Memory:
        """The first states of these runs, which have the same loss."""
        table = torch.cat([loss.initial_state(run.labels, run.experiment.seed) for run in runs])
        faster = getattr(loss, "state_lr_multiplier", 1.0)
        rates = torch.tensor([run.experiment.lr * faster if loss.learned else 1.0 for run in runs])
        if loss.learned:
            table /= rates.repeat_interleave(len(table) // len(runs))[:, None]
        return cls(table, rates, loss.learned, bool(getattr(loss, "dense_adam", False)), device)

    def rows(self, index: Tensor) -> Tensor:
        """index [n] -> [n, K]; a leaf that wants gradient if the memory is learned."""
        if not self.learned:
            return self.table.rows(index)
        self._held = self.table.rows(index)
        return (self._held.detach() * self.rates[index // self._N, None]).requires_grad_()

    def write(self, index: Tensor, values: Tensor) -> None:
        self.table.write(index, values)

    def step(self, gradient: Tensor, factor: float) -> None:
        self._held.grad = gradient
        self.table.apply_gradient(factor)


class _Part:
    """The label state of one run of a block, as a loss that acts after the epoch sees it."""

    def __init__(self, memory: _Memory, offset: int, N: int) -> None:
        self.memory, self.offset = memory, offset

    def rows(self, index: Tensor) -> Tensor:
        return self.memory.rows(index + self.offset)

    def write(self, index: Tensor, values: Tensor) -> None:
        self.memory.write(index + self.offset, values)


class _Rows:
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


class Validation:
    """mAP in percent of all runs on the validation rows: val_map by known labels, val_map_observed by observed ones.

    As `evaluate.validation_map`: a class of which nothing is known but positives is left out of the mean.
    """

    def __init__(self, runs: Sequence[HeadRun]) -> None:
        data, definition = runs[0].data, runs[0].experiment.average_precision
        assert data.val is not None
        assert data.val_labels is not None
        self.features = data.val
        everyone = np.arange(len(runs))
        self.known = [(everyone, Curves(data.val_labels, definition))]
        observed: dict[bytes, list[int]] = defaultdict(list)
        for r, run in enumerate(runs):
            if run.val_observed is not None:
                observed[run.val_observed.values.tobytes()].append(r)
        self.observed = [
            (np.array(places), Curves(Labels.from_masks(runs[places[0]].val_observed.present), definition))  # type: ignore[union-attr]
            for places in observed.values()
        ]

    def __call__(self, weight: Tensor, bias: Tensor, device: torch.device) -> dict[str, NDArray[np.float64]]:
        """weight [R, K, D], bias [R, K] -> [R] by name."""
        R, K, D = weight.shape
        logits = _Rows(self.features, device).logits(weight.reshape(R * K, D), bias.reshape(R * K))
        scores = logits.view(-1, R, K).permute(2, 1, 0).contiguous().cpu().numpy()  # [K, R, M]
        found = {}
        for name, judges in {"val_map": self.known, "val_map_observed": self.observed}.items():
            if judges:
                found[name] = np.full(R, np.nan)
            for places, curves in judges:
                found[name][places] = 100 * curves.mean(scores[:, places])
        return found


class Curves:
    """mAP of many sets of scores against the same labels [M, K]: one sort a class for all sets."""

    def __init__(self, labels: Labels, definition: str) -> None:
        self.average = find_definition(definition).average
        self.known = [np.flatnonzero(column) for column in ~labels.unknown.T]
        self.present = [np.flatnonzero(column) for column in labels.present.T]
        sizes = [(len(known), len(present)) for known, present in zip(self.known, self.present, strict=True)]
        self.scored = [not (known == present and 0 < known < len(labels)) for known, present in sizes]

    def mean(self, scores: Scores) -> NDArray[np.float64]:
        """scores [K, R, M] -> mean over classes of average precision [R], in [0, 1]; nan where no class has any."""
        per_class = np.full(scores.shape[:2], np.nan)  # [K, R]
        for k, (known, present) in enumerate(zip(self.known, self.present, strict=True)):
            if self.scored[k]:
                per_class[k] = self.average(*_curves(scores[k], known, present))
        counted = (~np.isnan(per_class)).sum(0)
        return np.divide(np.nansum(per_class, 0), counted, out=np.full(len(counted), np.nan), where=counted > 0)


def _curves(scores: Scores, known: NDArray[np.int64], present: NDArray[np.int64]) -> tuple[Any, Any]:
    """hits, taken [P, R] of one class from scores [R, M], as `metrics.average_precision.curve` has them; a score
    that several positives share stands once for each, which adds nothing to any average."""
    positives = torch.from_numpy(np.sort(scores[:, present], axis=1))  # [R, P]
    ordered = torch.from_numpy(np.sort(scores if len(known) == scores.shape[1] else scores[:, known], axis=1))
    hits = positives.shape[1] - torch.searchsorted(positives, positives)
    taken = ordered.shape[1] - torch.searchsorted(ordered, positives)
    return hits.T.double().numpy(), taken.T.double().numpy()


def _stack_labels(labels: Sequence[Labels], device: torch.device) -> tuple[Tensor, Tensor]:
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


def _stretches(names: Sequence[str]) -> list[tuple[int, int]]:
    """[i, j) of every stretch of equal names."""
    ends = [i for i in range(1, len(names)) if names[i] != names[i - 1]]
    return list(zip([0, *ends], [*ends, len(names)], strict=True))
