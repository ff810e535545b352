"""The training loop, to be read in one sitting: stages of epochs of steps, each epoch scored, kept and logged.

Everything random follows from (seed, stage, epoch), so that a run which was killed and resumed ends with the same
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
from plures.training.ridge import fit_ridge
from plures.training.schedules import Schedule, schedules
from plures.training.stages import Best, Checkpointer, Stage


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
    """What moves during a stage: the wrapped step, its optimizer, the running average and the loss with its memory."""

    module: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None
    loss: Loss
    schedule: Schedule

    @property
    def memory(self) -> LabelMemory | None:
        return self.loss.memory


def fit(
    stage: Stage,
    loss: Loss,
    fabric: Fabric,
    checkpointer: Checkpointer,
    callback: Callback,
    resume: dict[str, Any] | None = None,
) -> Best:
    """Train one stage and return its best epoch. `resume`: the state that `keep_state` was last given, if any.

    The stage ends early where `patience` epochs in turn were no better than the best one.
    Raises WorkFailed if the loss is no longer a number, or memory runs out.
    """
    e = stage.settings
    if e.ridge:
        return fit_ridge(stage, loss, fabric, checkpointer, callback, resume)
    machine = _build(stage, loss, fabric)
    first = 0 if resume is None else _load_state(resume, stage, machine, fabric)
    callback.stage(stage.name, e.epochs, len(stage.batches), first)
    for epoch in range(first, e.epochs):
        if e.patience is not None and epoch - 1 - stage.best.epoch >= e.patience:
            callback.say(f"{stage.name}: no better score for {e.patience} epochs; stopped after epoch {epoch}")
            break
        torch.manual_seed(_seed(e.seed, stage.number, epoch))
        record = train_epoch(epoch, stage, machine, fabric, callback)
        net = stage.net if machine.average is None else machine.average.module
        _look_back(epoch, stage, machine, fabric)
        metrics = checkpointer.score(net)
        score = metrics.pop("score")
        if stage.best.better(score):
            stage.best = Best(score, epoch)
            checkpointer.keep_best(net)
            if stage.memory_to is not None and machine.memory is not None and fabric.is_global_zero:
                machine.memory.save(stage.memory_to)
        record |= {**metrics, "best_epoch": stage.best.epoch}
        checkpointer.keep_state(_state(stage, epoch, machine, fabric), record)
        callback.epoch(record)
    return stage.best


def train_epoch(epoch: int, stage: Stage, machine: TrainState, fabric: Fabric, callback: Callback) -> dict[str, Any]:
    """One pass over the training batches. Returns the epoch's record: mean of every loss term, lr, speed."""
    stage.net.train()
    e = stage.settings
    steps, images, started = len(stage.batches), 0, time.perf_counter()
    sums: dict[str, Tensor] = {}
    factor = 1.0
    i = 0
    for batch in stage.batches.epoch(epoch):
        done = epoch * steps + i
        factor = machine.schedule(done, steps, e.epochs)
        set_lr(machine.optimizer, factor)
        with _clear_errors(stage.name, epoch):
            batch = batch.to(fabric.device)
            progress = done / (e.epochs * steps)
            given = (batch.inputs, batch.labels, batch.index, batch.views)
            with fabric.no_backward_sync(cast(Any, machine.module), enabled=not batch.last):
                terms = machine.module(*given, epoch, e.epochs, progress, batch.total)
                total = torch.stack(list(terms.values())).sum()
                scale = _loss_scale(fabric)
                fabric.backward(total * batch.share)
        for name, value in {**terms, "loss": total}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() * batch.share
        images += batch.total or len(batch.index)
        if batch.last:
            with _clear_errors(stage.name, epoch):  # the first step allocates what the optimizer keeps
                _optimizer_step(machine, e.clip, fabric)
            machine.loss.step(e.lr * factor, loss_scale=scale)
            if machine.average is not None:
                machine.average.update_parameters(stage.net)
            i += 1
            callback.step(i, images)
    seconds = time.perf_counter() - started
    means = {name: float(value) / steps for name, value in sums.items()}
    if not math.isfinite(means["loss"]):
        raise Diverged(
            f"the loss became {means['loss']} in epoch {epoch + 1} of {stage.name}; the epochs before it are kept;"
            f" try a smaller lr (now {e.lr:g}) or clip=1"
        )
    rate = round(images / seconds, 1) if seconds > 0 else math.nan  # clocks can stand still
    speed = {"lr": e.lr * factor, "images_per_second": rate, "seconds": round(seconds, 3)}
    return {"stage": stage.name, "epoch": epoch, **means, **speed}


def _optimizer_step(machine: TrainState, clip: float | None, fabric: Fabric) -> None:
    """One step with the gradients gathered so far."""
    if clip is not None:
        fabric.clip_gradients(machine.module, machine.optimizer, max_norm=clip)
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


def _build(stage: Stage, loss: Loss, fabric: Fabric) -> TrainState:
    e, carried = stage.settings, None
    if stage.memory_from is not None and loss.carries_state:
        carried = load_table(stage.memory_from, torch.Size(stage.train_labels.values.shape))
    loss = loss.remember(stage.train_labels, e.seed, fabric.device, carried)
    step: nn.Module = Step(stage.net, loss)
    if fabric.world_size > 1 and fabric.device.type == "cuda":  # statistics of the whole batch, as in one process
        step = nn.SyncBatchNorm.convert_sync_batchnorm(step)  # type: ignore[no-untyped-call]
    step = step.to(memory_format=torch.channels_last if e.channels_last else torch.contiguous_format)
    groups = parameter_groups(stage.net, stage.head, e.lr, e.head_lr, e.weight_decay)
    optimizer = make_optimizer(e.optimizer.name, e.optimizer.options, groups)
    module, optimizer = fabric.setup(cast(nn.Module, torch.compile(step)) if e.compile else step, optimizer)
    average = None
    if e.ema is not None:
        blend = get_ema_multi_avg_fn(e.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(stage.net, multi_avg_fn=blend, use_buffers=True)
    return TrainState(module, optimizer, average, loss, schedules.make(e.schedule.name, **e.schedule.options))


def _look_back(epoch: int, stage: Stage, machine: TrainState, fabric: Fabric) -> None:
    """Score the whole training set after an epoch, where the loss or the history requires it."""
    epochs = stage.settings.epochs
    context = Context(epoch, epochs, (epoch + 1) / epochs, None, machine.memory)
    required = machine.loss.needs_scores(context)
    if not required and stage.history is None:
        return
    logits = logits_of(stage.net, stage.in_order, fabric)
    if stage.history is not None:
        stage.history.add(logits)
    if required:
        machine.loss.after_epoch(torch.from_numpy(logits).to(fabric.device), stage.train_labels, context)


def _state(stage: Stage, epoch: int, machine: TrainState, fabric: Fabric) -> dict[str, Any]:
    """Everything that decides how the stage continues after this epoch."""
    return {
        "stage": stage.number,
        "epoch": epoch,
        "best": {"score": stage.best.score, "epoch": stage.best.epoch},
        "net": stage.net.state_dict(),
        "optimizer": machine.optimizer.state_dict(),
        "average": None if machine.average is None else machine.average.state_dict(),
        "memory": None if machine.memory is None else machine.memory.state_dict(),
        "history": None if stage.history is None else stage.history.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),
    }


def _load_state(state: dict[str, Any], stage: Stage, machine: TrainState, fabric: Fabric) -> int:
    """Put a saved state back; returns the epoch to continue with."""
    stage.best = Best(**state["best"])
    stage.net.load_state_dict(state["net"])
    machine.optimizer.load_state_dict(state["optimizer"])
    if machine.average is not None:
        machine.average.load_state_dict(state["average"])
    if machine.memory is not None:
        machine.memory.load_state_dict(state["memory"])
    if stage.history is not None:
        stage.history.load_state_dict(state["history"])
    fabric.strategy.precision.load_state_dict(state["precision"])
    return int(state["epoch"]) + 1


class _clear_errors:  # noqa: N801 (used as a statement)
    """Turns "out of memory" and a batch too small for batch norm into one clear line."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.where = f"epoch {epoch + 1} of {stage}"

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
