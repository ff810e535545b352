"""Many linear heads on the same frozen features, trained together: one matrix product per step for all of them.

Runs that differ in loss, learning rate, batch size, seed or observed labels share the features, the gather of each
batch (where they share its order) and one Adam step. The results are those of `train`, one run after another, up to
the order in which floats are summed: the batches come from the same `Order`, the first weights from the same seed.

Three things make it fast. The gradient of a linear layer is closed form, so a loss sees only logits, of all runs at
once, and the common ones know their gradient themselves (stacked_losses.py). Adam does not care how gradients are
scaled but for its rate, so weights are held divided by their learning rate: one fused step of rate 1 then serves runs
of every rate (stacked.py). And rows are gathered for many steps at a time.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plures.config import Experiment
from plures.losses.context import Context
from plures.sweeps.vectorized.heads import FrozenData, HeadRun, Rows, StackedAdam, denormals_as_zero, stack_labels
from plures.sweeps.vectorized.losses import LossBlock, OneRun, alike
from plures.sweeps.vectorized.scores import Validation
from plures.training.schedules import schedules
from plures.training.stages import Best

__all__ = ["FrozenData", "HeadRun", "TrainedHead", "train_together", "why_not"]
ADAMS = ("adam", "adamw")  # adamw: weight decay apart from the gradient
RUNS_AT_ONCE = 64  # of one group: beyond, the weights of all leave the cache and nothing is gained
WORTH_A_THREAD = 2**17  # weights: with fewer, two threads are in each other's way
STEPS_AT_ONCE = 32  # whose rows are gathered at once


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
    e = experiment.of(experiment.stages[0])
    reasons = {
        f"stages={experiment.stage_names}": experiment.stage_names != "probe",
        f"head={e.head.name}": e.head.name != "linear",
        f"optimizer={e.optimizer.name} with its options": e.optimizer.name not in ADAMS or bool(e.optimizer.options),
        f"select={e.select}": e.select == "val_positives",
        "head.boost": e.head.options.get("boost", 1) != 1,
        "clip": e.clip is not None,
        "ema": e.ema is not None,
        f"threshold={e.threshold}": e.threshold == "chosen",
        "patience": e.patience is not None,
        "history": e.history,
        f"precision={e.precision}": e.precision != "32-true",
        "start": e.start is not None,
        "teacher": e.teacher is not None,
        f"rounds={e.rounds}": e.rounds > 1,
        f"prior={e.prior.name}": e.prior.name != "none",
        f"log={e.log}": e.log != "none",
        f"a loss that needs {' and '.join(sorted(needs))}": not set(needs) <= {"label_state"},
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def train_together(
    runs: Sequence[HeadRun],
    device: torch.device | str = "cpu",
    *,
    threads: int | None = None,
    kept: Callable[[int, TrainedHead], None] = lambda place, head: None,
) -> list[TrainedHead]:
    """Train all runs, those of one batch size and length in step with each other. The result is in their order.

    threads: groups trained at the same time; None: as many as torch uses. kept: called with a run's place and result as
    soon as its group is done.
    A run whose weights are no longer numbers stops with its reason in `failed`; the others go on.
    """
    found: dict[int, TrainedHead] = {}
    stopped = Event()  # by Ctrl-C, or a group that failed: no thread continues then

    def train_group(places: list[int]) -> None:
        with denormals_as_zero():
            group = Group([runs[i] for i in places], torch.device(device))
            for _ in range(group.epochs):
                group.train_epoch(stopped)
                if stopped.is_set():
                    return
        for place, head in zip(places, group.heads, strict=True):
            found[place] = head
            kept(place, head)

    threads = threads or torch.get_num_threads()
    groups = [part for places in _groups(runs) for part in _divided(places, runs, threads)]
    groups.sort(key=lambda places: -len(places) * len(runs[places[0]].order))  # the longest first
    if threads == 1 or len(groups) == 1:
        for places in groups:
            train_group(places)
    else:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                list(pool.map(train_group, groups))
            finally:
                stopped.set()
    return [found[place] for place in range(len(runs))]


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
        lane = sorted(lane, key=lambda i: alike(runs[i].loss))
        for start in range(0, len(lane), RUNS_AT_ONCE):
            part = lane[start : start + RUNS_AT_ONCE]
            groups[(key[:-1], tuple(alike(runs[i].loss) for i in part))].append(part)
    result = []
    for parts in groups.values():
        orders = max(1, RUNS_AT_ONCE // len(parts[0]))
        result += [[i for part in parts[s : s + orders] for i in part] for s in range(0, len(parts), orders)]
    return result


def _divided(places: list[int], runs: Sequence[HeadRun], threads: int) -> list[list[int]]:
    """A group as one for each thread, as far as each still has weights enough to be worth its steps."""
    weights = runs[places[0]].weight.numel() * len(places)
    orders = len({runs[i].experiment.seed for i in places})
    lanes = np.array(places).reshape(orders, -1)  # [S, L]
    along = 0 if orders >= threads else 1
    parts = min(threads, lanes.shape[along], weights // WORTH_A_THREAD)
    return [part.ravel().tolist() for part in np.array_split(lanes, max(parts, 1), axis=along)]


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
        self.features = Rows(first.data.train, device)
        self.labels, starts = stack_labels([run.labels for run in runs], device)
        self.label_rows = starts.view(self.S, 1, self.L)
        if bool((self.label_rows == self.label_rows[..., :1]).all()):
            self.label_rows = self.label_rows[..., :1]  # looked up once for all L runs
        per_run = torch.tensor([run.experiment.lr * run.experiment.head_lr for run in runs], dtype=torch.float64)
        self.rates = per_run.repeat_interleave(self.K).float().view(self.S, 1, self.L * self.K).to(device)
        self.adam = StackedAdam(
            torch.stack([r.weight for r in runs]).double() / per_run[:, None, None],
            torch.stack([r.bias for r in runs]).double() / per_run[:, None],
            torch.tensor([r.experiment.weight_decay for r in runs]).double() * per_run,
            torch.tensor([r.experiment.optimizer.name == "adamw" for r in runs]),
            (self.S, self.L * self.K, self.D),
            device,
        )
        self.blocks = [
            LossBlock(list(range(i, j)), runs, self.rates, device)
            for i, j in _stretches([alike(run.loss) for run in runs[: self.L]])
        ]
        self.validation = Validation(runs, device) if first.data.val is not None else None
        self.heads = [TrainedHead(run.weight, run.bias) for run in runs]

    def train_epoch(self, stopped: Event) -> None:
        """One pass over the training rows, then the epoch's scores; keeps the best weights of each run."""
        started, steps = time.perf_counter(), len(self.orders[0])
        batches = [order.batches(self.epoch) for order in self.orders]
        factor = 1.0
        for first in range(0, steps, STEPS_AT_ONCE):
            if stopped.is_set():
                return
            some = [np.concatenate(order[first : first + STEPS_AT_ONCE]) for order in batches]
            for i, (index, x, given) in enumerate(self._gather(torch.from_numpy(np.stack(some))), first):
                step = self.epoch * steps + i
                factor = self.schedule(step, steps, self.epochs)
                context = Context(self.epoch, self.epochs, step / (self.epochs * steps))
                self._step(index, x, given, context, factor)
        self._after_epoch()
        self._score(factor, time.perf_counter() - started)
        self.epoch += 1

    def _gather(self, index: Tensor) -> Iterable[tuple[Tensor, Tensor, Any]]:
        """index [S, n B] of n steps -> for each index [S, B], features [S, B, D] and what each block is given."""
        index = index.to(self.device)
        rows = (index[:, :, None] + self.label_rows).view(-1)
        labels = self.labels.index_select(0, rows).view(*index.shape, -1, self.K)
        labels = labels.expand(-1, -1, self.L, -1)
        B = self.orders[0].batch_size
        given = zip(*(block.given(labels, B) for block in self.blocks), strict=True)
        return zip(torch.split(index, B, 1), torch.split(self.features[index], B, 1), given, strict=True)

    def _step(self, index: Tensor, x: Tensor, given: Any, context: Context, factor: float) -> None:
        """One step of all runs; index [S, B], x [S, B, D], given: of each block."""
        logits = self.adam.logits(x)
        slopes = [
            block.learn(logits, mine, index, context, factor) for block, mine in zip(self.blocks, given, strict=True)
        ]
        self.adam.step(x, slopes[0] if len(slopes) == 1 else torch.cat(slopes, 2), factor)

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
            if not loss.needs_scores(context):
                continue
            weight, bias = self._weights()
            for place, position in block.places():
                logits = self.features.logits(weight[position], bias[position])
                state = None if block.memory is None else OneRun(block.memory, place * self.N, self.N)
                loss.after_epoch(logits, self.runs[position].labels, replace(context, label_state=state))

    @torch.no_grad()
    def _score(self, factor: float, seconds: float) -> None:
        weight, bias = self._weights()
        sound = torch.isfinite(weight.sum((1, 2)) + bias.sum(1)).cpu().numpy()  # [R]
        scores = {} if self.validation is None else self.validation(weight, bias)
        for r, (run, head) in enumerate(zip(self.runs, self.heads, strict=True)):
            if head.failed:
                continue
            if not sound[r]:
                rate = run.experiment.lr
                head.failed = f"the weights became nan in epoch {self.epoch + 1}; try a smaller lr than {rate:g}"
                continue
            mine = {name: float(values[r]) for name, values in scores.items()}
            score = mine.get(run.select, math.nan)
            if head.best.better(score):
                head.best = Best(score, self.epoch)
                head.weight, head.bias = weight[r].cpu().clone(), bias[r].cpu().clone()
            rates = {"lr": run.experiment.lr * factor, "seconds": round(seconds / len(self.runs), 4)}
            head.records.append({"stage": "probe", "epoch": self.epoch, **rates, **mine, "best_epoch": head.best.epoch})


def _stretches(names: Sequence[str]) -> list[tuple[int, int]]:
    """[i, j) of every stretch of equal names."""
    ends = [i for i in range(1, len(names)) if names[i] != names[i - 1]]
    return list(zip([0, *ends], [*ends, len(names)], strict=True))
