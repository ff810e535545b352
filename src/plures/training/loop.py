"""The training loop, to be read in one sitting: phases of epochs of steps, each epoch scored, kept and logged.

Everything random follows from (seed, phase, epoch), so that a run which was killed and resumed ends with the same
weights, bit for bit on a CPU, as one that was not.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from plures.config import EXACT, Experiment
from plures.errors import Diverged, PluresError, WorkFailed, out_of_memory
from plures.labels import TensorLabels
from plures.losses.base import Loss
from plures.losses.context import OF_REGIONS, Context
from plures.losses.label_memory import LabelMemory, load_table
from plures.models.outputs import Output
from plures.scoring.distributed import gather, gather_output, world_size
from plures.scoring.logits import logits_of
from plures.training.optim import make_optimizer, parameter_groups, set_lr
from plures.training.progress import Callback
from plures.training.ridge import fit_exactly
from plures.training.schedules import Schedule, schedules
from plures.training.stages import Best, Keeper, Stage


class Step(nn.Module):
    """Forward and loss in one module, so that precision and compilation wrap both."""

    loss: Loss

    def __init__(self, net: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.net = net
        self.__dict__["loss"] = loss  # no submodule: several processes would broadcast its memory at every step
        self.maps, self.looks_again = bool(OF_REGIONS & loss.needs), "changed_logits" in loss.needs

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor,
        index: Tensor,
        views: Tensor | None,
        epoch: int,
        epochs: int,
        progress: float,
        total: int,
    ) -> dict[str, Tensor]:
        output: Output = self.net(inputs, maps=self.maps)
        changed = self._look_again(inputs, output, TensorLabels(labels))
        if world_size() > 1:
            output = gather_output(output, frozenset(self.loss.needs), total)
            labels, index = gather(labels, total), gather(index, total)
            views = None if views is None else gather(views, total)
            changed = None if changed is None else gather(changed, total)
        context = Context(epoch, epochs, progress, index, self.loss.memory, views, changed)
        return self.loss.compute(output, TensorLabels(labels), context)

    @torch.no_grad()
    def _look_again(self, inputs: Tensor, output: Output, labels: TensorLabels) -> Tensor | None:
        """Logits [b, K] of the inputs as the loss changes them, if it does."""
        if not self.looks_again:
            return None
        again: Output = self.net(self.loss.changed_inputs(inputs, output, labels), maps=False)
        return again.logits


@dataclass
class TrainState:
    """What moves during a phase: the wrapped step, its optimizer, the running average and the loss with its memory."""

    module: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None
    loss: Loss
    schedule: Schedule

    @property
    def memory(self) -> LabelMemory | None:
        return self.loss.memory


def fit(
    phase: Stage,
    experiment: Experiment,
    loss: Loss,
    fabric: Fabric,
    keeper: Keeper,
    watch: Callback,
    resume: dict[str, Any] | None = None,
) -> Best:
    """Train one phase and return its best epoch. `resume`: the state that `keep_state` was last given, if any.

    The phase ends early where `patience` epochs in turn were no better than the best one.
    Raises WorkFailed if the loss is no longer a number, or memory runs out.
    """
    if experiment.optimizer.name == EXACT:
        return fit_exactly(phase, experiment, loss, fabric, keeper, watch, resume)
    machine = _build(phase, experiment, loss, fabric)
    first = 0 if resume is None else _load_state(resume, phase, machine, fabric)
    watch.phase(phase.name, phase.epochs, len(phase.batches), first)
    for epoch in range(first, phase.epochs):
        if experiment.patience is not None and epoch - 1 - phase.best.epoch >= experiment.patience:
            watch.say(f"{phase.name}: no better score for {experiment.patience} epochs; stopped after epoch {epoch}")
            break
        torch.manual_seed(_seed(experiment.seed, phase.number, epoch))
        record = train_epoch(epoch, phase, experiment, machine, fabric, watch)
        net = phase.net if machine.average is None else machine.average.module
        _look_back(epoch, phase, machine, fabric)
        metrics = keeper.score(net)
        score = metrics.pop("score")
        if phase.best.better(score):
            phase.best = Best(score, epoch)
            keeper.keep_best(net)
            if phase.memory_to is not None and machine.memory is not None and fabric.is_global_zero:
                machine.memory.save(phase.memory_to)
        record |= {**metrics, "best_epoch": phase.best.epoch}
        keeper.keep_state(_state(phase, epoch, machine, fabric), record)
        watch.epoch(record)
    return phase.best


def train_epoch(
    epoch: int, phase: Stage, experiment: Experiment, machine: TrainState, fabric: Fabric, watch: Callback
) -> dict[str, Any]:
    """One pass over the training batches. Returns the epoch's record: mean of every loss term, lr, speed."""
    phase.net.train()
    steps, images, started = len(phase.batches), 0, time.perf_counter()
    sums: dict[str, Tensor] = {}
    factor = 1.0
    i = 0
    for batch in phase.batches.epoch(epoch):
        done = epoch * steps + i
        factor = machine.schedule(done, steps, phase.epochs)
        set_lr(machine.optimizer, factor)
        with _clear_errors(phase.name, epoch):
            batch = batch.to(fabric.device)
            progress = done / (phase.epochs * steps)
            given = (batch.inputs, batch.labels, batch.index, batch.views)
            with fabric.no_backward_sync(cast(Any, machine.module), enabled=not batch.last):
                terms = machine.module(*given, epoch, phase.epochs, progress, batch.total)
                total = torch.stack(list(terms.values())).sum()
                scale = _loss_scale(fabric)
                fabric.backward(total * batch.share)
        for name, value in {**terms, "loss": total}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() * batch.share
        images += batch.total or len(batch.index)
        if batch.last:
            with _clear_errors(phase.name, epoch):  # the first step allocates what the optimizer keeps
                _optimizer_step(machine, experiment, fabric)
            machine.loss.step(phase.lr * factor, loss_scale=scale)
            if machine.average is not None:
                machine.average.update_parameters(phase.net)
            i += 1
            watch.step(i, images)
    seconds = time.perf_counter() - started
    means = {name: float(value) / steps for name, value in sums.items()}
    if not math.isfinite(means["loss"]):
        raise Diverged(
            f"the loss became {means['loss']} in epoch {epoch + 1} of {phase.name}; the epochs before it are kept;"
            f" try a smaller lr (now {phase.lr:g}) or clip=1"
        )
    rate = round(images / seconds, 1) if seconds > 0 else math.nan  # clocks can stand still
    speed = {"lr": phase.lr * factor, "images_per_second": rate, "seconds": round(seconds, 3)}
    return {"phase": phase.name, "epoch": epoch, **means, **speed}


def _optimizer_step(machine: TrainState, experiment: Experiment, fabric: Fabric) -> None:
    """One step with the gradients gathered so far."""
    if experiment.clip is not None:
        fabric.clip_gradients(machine.module, machine.optimizer, max_norm=experiment.clip)
    machine.optimizer.step()
    machine.optimizer.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------------- small parts


def _seed(*numbers: int) -> int:
    """One seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _loss_scale(fabric: Fabric) -> float:
    """What 16-bit training multiplies the loss, and so every gradient, by at this step; 1 without."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _build(phase: Stage, experiment: Experiment, loss: Loss, fabric: Fabric) -> TrainState:
    e, carried = experiment, None
    if phase.memory_from is not None and loss.carries_state:
        carried = load_table(phase.memory_from, torch.Size(phase.train_labels.values.shape))
    loss = loss.remember(phase.train_labels, e.seed, fabric.device, carried)
    step: nn.Module = Step(phase.net, loss)
    if fabric.world_size > 1 and fabric.device.type == "cuda":  # statistics of the whole batch, as in one process
        step = nn.SyncBatchNorm.convert_sync_batchnorm(step)  # type: ignore[no-untyped-call]
    step = step.to(memory_format=torch.channels_last if e.channels_last else torch.contiguous_format)
    groups = parameter_groups(phase.net, phase.head, phase.lr, e.head_lr, e.weight_decay)
    optimizer = make_optimizer(e.optimizer.name, e.optimizer.options, groups)
    module, optimizer = fabric.setup(cast(nn.Module, torch.compile(step)) if e.compile else step, optimizer)
    average = None
    if e.ema is not None:
        blend = get_ema_multi_avg_fn(e.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(phase.net, multi_avg_fn=blend, use_buffers=True)
    return TrainState(module, optimizer, average, loss, schedules.make(e.schedule.name, **e.schedule.options))


def _look_back(epoch: int, phase: Stage, machine: TrainState, fabric: Fabric) -> None:
    """Score the whole training set after an epoch, where the loss or the history requires it."""
    context = Context(epoch, phase.epochs, (epoch + 1) / phase.epochs, None, machine.memory)
    required = machine.loss.needs_scores(context)
    if not required and phase.history is None:
        return
    logits = logits_of(phase.net, phase.in_order, fabric)
    if phase.history is not None:
        phase.history.add(logits)
    if required:
        machine.loss.after_epoch(torch.from_numpy(logits).to(fabric.device), phase.train_labels, context)


def _state(phase: Stage, epoch: int, machine: TrainState, fabric: Fabric) -> dict[str, Any]:
    """Everything that decides how the phase continues after this epoch."""
    return {
        "phase": phase.number,
        "epoch": epoch,
        "best": {"score": phase.best.score, "epoch": phase.best.epoch},
        "net": phase.net.state_dict(),
        "optimizer": machine.optimizer.state_dict(),
        "average": None if machine.average is None else machine.average.state_dict(),
        "memory": None if machine.memory is None else machine.memory.state_dict(),
        "history": None if phase.history is None else phase.history.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),
    }


def _load_state(state: dict[str, Any], phase: Stage, machine: TrainState, fabric: Fabric) -> int:
    """Put a saved state back; returns the epoch to continue with."""
    phase.best = Best(**state["best"])
    phase.net.load_state_dict(state["net"])
    machine.optimizer.load_state_dict(state["optimizer"])
    if machine.average is not None:
        machine.average.load_state_dict(state["average"])
    if machine.memory is not None:
        machine.memory.load_state_dict(state["memory"])
    if phase.history is not None:
        phase.history.load_state_dict(state["history"])
    fabric.strategy.precision.load_state_dict(state["precision"])
    return int(state["epoch"]) + 1


class _clear_errors:  # noqa: N801 (used as a statement)
    """Turns "out of memory" and a batch too small for batch norm into one clear line."""

    def __init__(self, phase: str, epoch: int) -> None:
        self.where = f"epoch {epoch + 1} of {phase}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if out_of_memory(error):
            raise WorkFailed(
                f"out of memory in {self.where}; the epochs before it are kept; use accumulate=2 or more (the same"
                " batch in pieces), or a smaller batch_size or image_size"
            ) from None
        if isinstance(error, RuntimeError) and "without overflow" in str(error):
            raise Diverged(f"lr is too large for 32-bit numbers in {self.where}; try a much smaller lr") from None
        if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
            raise PluresError(
                f"a batch of one image in {self.where} is too little for this network's batch norm; use drop_last=true,"
                " another batch_size or a larger image_size"
            ) from None
