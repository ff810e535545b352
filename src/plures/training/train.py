"""`plures.train`: from an Experiment to a run folder with a trained and evaluated model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from plures.config import AUTO, CHOSEN, TAGS, Component, Experiment
from plures.data.dataset import Dataset
from plures.data.loading import FeatureBatches, ImageBatches, Order, default_workers
from plures.data.photos import Transform, Unreadable
from plures.data.read import sayings
from plures.errors import PluresError
from plures.losses.context import OF_REGIONS
from plures.metrics.choosing import Objective
from plures.metrics.threshold_choice import from_expected, from_logits, source_of
from plures.metrics.thresholds import Thresholds
from plures.models.heads import FitsFeatures
from plures.models.model import Model, build_model, load, save, without_prior
from plures.runs.card import write_card
from plures.runs.data import (
    IN_MEMORY,
    Prepared,
    Select,
    found_from_anywhere,
    is_there,
    mask_splits,
    prepare,
    selection,
    without_unreadable,
)
from plures.runs.own_data import recalled
from plures.runs.photos import Photos
from plures.runs.run import ENVIRONMENT, Record, Run, environment
from plures.scoring.device import make_fabric
from plures.scoring.features import feature_statistics, frozen_features, needs_only_mean, token_boxes
from plures.scoring.logits import (
    Batches,
    HeadOnFeatures,
    Net,
    Scores,
    logits_of,
    logits_of_dataset,
    parts_of_dataset,
)
from plures.scoring.measure import report_of, validation_map
from plures.training.allocator import keep_freed_memory
from plures.training.auto import choose_loss, choose_model, make_loss
from plures.training.fusing import fused, prior_of
from plures.training.given_features import fit_to_data
from plures.training.history import ScoreHistory
from plures.training.loop import fit
from plures.training.peak import warning
from plures.training.probabilities import HiddenLabels
from plures.training.progress import Callback, Quiet
from plures.training.self_training import check_rounds, with_teacher
from plures.training.stages import Best, Stage
from plures.training.trackers import Tracker


def train(
    experiment: Experiment,
    out: str | Path,
    *,
    dataset: Dataset | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    callback: Callback | None = None,
) -> Run:
    """Train as the experiment says, into the folder `out`, and evaluate the best epoch on the test split.

    dataset: images in hand instead of `experiment.data`; an experiment that names no data then says `in_memory`.
    resume: continue after the last whole epoch of the run that `out` holds (its own experiment counts, the given one is
    ignored). skip_bad: leave unusable rows out.
    Under torchrun all processes train one model, and the first of them writes (`scoring/distributed.py`).
    Raises PluresError on bad input, WorkFailed if training cannot continue; what was kept before stays intact.
    """
    callback = callback or Quiet()
    if resume:
        run = Run(out)
        if run.imported:
            raise PluresError(
                f"{out} holds imported weights and no training to resume; start a run from them:"
                f" plures train DATA --recipe {out}/experiment.yaml start={out} --out RUN"
            )
        experiment, prepared = run.experiment, _begun(run, dataset, skip_bad)
    else:
        Run.refuse_existing(out)
        if dataset is not None and not ("data" in experiment.model_fields_set and is_there(experiment.data)):
            experiment = experiment.model_copy(update={"data": Component(name=IN_MEMORY)})
        prepared = prepare(experiment, dataset, skip_bad=skip_bad)
        experiment, reason = choose_model(fit_to_data(experiment, prepared.train), lambda: prepared.train)
        if reason:
            callback.say(reason)
    left_out = [problem for problem in prepared.train.problems if problem.severity == "error"]
    if left_out:
        first = f"{left_out[0].file}: {left_out[0].what}"
        callback.say(f"left out {len(left_out):,} unusable rows, the first: {first}")
    if experiment.rounds > 1 and not resume:
        check_rounds(experiment, prepared)
        Training(experiment, prepared, Quiet())  # a mistake leaves no folder behind
        resume, run = True, Run.create(out, experiment)
    again = partial(train, dataset=dataset, skip_bad=skip_bad, callback=callback)
    prepared, added = with_teacher(experiment, prepared, run if resume else None, callback, again)
    unread: dict[str, str] | None = {} if skip_bad else None
    training = Training(experiment, prepared, callback, unread)
    fabric = training.fabric
    for line in sayings(training.prepared.train):
        training.callback.say(line)
    if not resume and fabric.is_global_zero:
        Run.create(out, experiment)  # only now: a mistake above leaves no folder behind
    fabric.barrier()
    run = Run(out)
    with run.locked() if fabric.is_global_zero else nullcontext():
        if added is not None and fabric.is_global_zero:
            added.save(run)
        state = run.load_checkpoint() if resume else None
        while True:
            try:
                training.go(run, state)
                break
            except Unreadable:  # since the images were verified: deleted meanwhile, or a disk's fault
                state = run.load_checkpoint()
                if unread is None or fabric.world_size > 1:
                    raise
                prepared, found = without_unreadable(prepared, state is None)
                if not found:
                    raise
                unread |= found
                training = Training(experiment, prepared, callback, unread)
    if unread:
        path, reason = next(iter(unread.items()))
        callback.say(
            f"left out {len(unread):,} photographs that became unreadable meanwhile, the first: {path}: {reason}"
        )
    return run


def _begun(run: Run, dataset: Dataset | None, skip_bad: bool) -> Prepared:
    """The data that a run began with. Photographs that are new since are left out: it continues as it began."""
    if not (run.path / ENVIRONMENT).is_file():  # it was killed before it began
        return prepare(run.experiment, dataset, skip_bad=skip_bad)
    whole, place = recalled(run, {}, skip_bad, dataset)
    return mask_splits(run.experiment, whole if (place >= 0).all() else whole.take(place >= 0))


def record_data(run: Run, prepared: Prepared, loss: str) -> None:
    """Write what a run begins with: its photographs with their splits, and its environment."""
    photos = prepared.photos
    assert photos is not None
    for before in [Photos.load(Path(path)) for path in run.experiment.runs_before]:
        photos = photos if before is None else photos.started_from(before)
    photos.save(run.path)
    source = found_from_anywhere(run.experiment.data).model_dump()  # with absolute paths
    data = {"source": source, "photographs": len(photos.contents), **photos.hashes()}
    taxonomy = prepared.train.taxonomy
    known = {} if taxonomy is None else {"taxonomy": taxonomy.to_dict()}
    run.write_json(ENVIRONMENT, {**environment(prepared.train), **data, "loss": loss, **known})


def start_from(model: Model, run: str) -> None:
    """Fill the model with the weights of a run folder. Raises PluresError unless it is the same model."""
    other = without_prior(load(run))
    if (other.parts.backbone, other.parts.head) != (model.parts.backbone, model.parts.head):
        raise PluresError(
            f"start={run}: {other.parts.backbone} with {other.parts.head} cannot fill {model.parts.backbone} with"
            f" {model.parts.head}; use --recipe {run}/experiment.yaml"
        )
    if other.classes != model.classes:
        raise PluresError(
            f"start={run}: it knows {len(other.classes)} classes ({', '.join(other.classes[:3])}, ...), the data have"
            f" {len(model.classes)} ({', '.join(model.classes[:3])}, ...); they must be the same in the same order"
        )
    try:
        model.load_state_dict(other.state_dict())
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise PluresError(f"start={run}: {line[:300]}; use --recipe {run}/experiment.yaml") from None


LABEL_STATE = "label_state.safetensors"  # of the first stage's best epoch, for losses that carry it over


class Training:
    """One training run: builds the parts, runs the stages, keeps the best weights in the run folder."""

    run: Run
    hidden_logits: Scores  # of the training rows whose hidden labels are known, after the last epoch

    def __init__(
        self, experiment: Experiment, prepared: Prepared, callback: Callback, unread: dict[str, str] | None = None
    ) -> None:
        """unread: see `ImageBatches`, for the training rows."""
        self.experiment, self.prepared, self.callback, self.unread = experiment, prepared, callback, unread
        e = experiment
        self.select: Select = selection(e, prepared)
        self.fabric = make_fabric(e)
        if self.fabric.device.type == "cpu":
            keep_freed_memory()
        if not self.fabric.is_global_zero:
            self.callback = Quiet()
        torch.manual_seed(e.seed)
        self.model = build_model(
            e.backbone.name, e.head.name, prepared.train.classes, e.backbone.options, e.head.options, e.image_size
        ).to(self.fabric.device)
        self.model.taxonomy = prepared.train.taxonomy
        if e.start is not None:
            start_from(self.model, e.start)
        if e.stage_names == "finetune" and e.start is None and getattr(self.head, "standardise", False):
            raise PluresError(
                "head.standardise=true takes its statistics from frozen features; use stages=probe or"
                " stages=probe,finetune, or start from such a run"
            )
        if not e.frozen and getattr(self.model.backbone, "folded_norm", False):
            raise PluresError(
                "the backbone's weights come with batch norms folded into the convolutions, and training would spoil"
                " its features; set backbone.frozen_norm=true"
            )
        part = e.loss
        if e.loss.name == AUTO:
            part, reason = choose_loss(prepared.train.labels, e)
            self.callback.say(f"loss=auto: {part.name}, since {reason}")
        self.loss_name = part.name
        self.loss = make_loss(e, prepared.train.labels, self.head)
        self.records: list[Record] = []
        self.val_batches: Batches | None = None
        self.hidden = HiddenLabels.of(prepared.train, prepared.train_known, e.seed)
        self.hidden_batches: Batches | None = None
        self.tracker = Tracker(e) if e.log != "none" and self.fabric.is_global_zero else None
        self.prior = prior_of(e, self.model, prepared)
        self.untagged = not prepared.train.labels.present.any()  # then the prior is all there is

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self.model.head)

    def go(self, run: Run, state: Record | None) -> None:
        """Run the stages that are left after this checkpoint, then evaluate the best weights."""
        self.run, e = run, self.experiment
        workers = default_workers(self.prepared.train) if e.workers is None else e.workers
        if short := warning(self.model, self.prepared.train, e, workers):
            self.callback.say(short)
        if self.prepared.photos is None:
            run.refuse_other_labels(self.prepared.train)
        elif self.fabric.is_global_zero:
            record_data(run, self.prepared, self.loss_name)
        self.prepared = replace(self.prepared, photos=None)  # memory for the training
        if e.backbone.name == "small_conv" and not self.prepared.train.in_memory:
            self.callback.say("backbone small_conv is made for small pictures; for photographs leave backbone out")
        names = [stage.name for stage in e.stages]
        stages = () if self.untagged else e.stages
        if self.untagged:
            self.keep_best(self.model)
            self._finish(Best())
        first = 0 if state is None else int(state["stage"])
        if state is not None:
            done = [r for r in self.run.log if names.index(r["stage"]) <= first]
            self.records = [r for r in done if r["stage"] != names[first] or r["epoch"] <= state["epoch"]]
            if self.hidden is not None:
                self.hidden.read(run, self.records)
        loss = self.loss
        for number, part in enumerate(stages):
            if number < first:
                continue
            if number > 0:
                self._start_from_best()
            self.loss = loss
            if part.name == "ridge" and self.loss_name != "least_squares":  # whatever the next stage learns by
                squares = e.model_copy(update={"loss": Component(name="least_squares")})
                self.loss = make_loss(squares, self.prepared.train.labels, self.head)
            stage = self._stage(e.of(part), number)
            best = fit(stage, self.loss, self.fabric, self, self.callback, state if number == first else None)
        if stages:
            self._finish(best)
        if self.fabric.is_global_zero:
            write_card(run)
        if self.tracker is not None:
            self.tracker.close()

    def _stage(self, e: Experiment, number: int) -> Stage:
        """e: the settings of this stage alone."""
        train, last = self.prepared.train, number == len(self.experiment.stages) - 1
        order = Order(len(train), e.batch_size, shuffle_seed=e.seed + 7919 * number, drop_last=e.drop_last)
        order = replace(order, accumulate=e.accumulate)
        if len(order) == 0:
            raise PluresError(f"{len(train)} training images make no batch of {e.batch_size} with drop_last=true")
        make = self._feature_batches if e.frozen else self._image_batches
        val = self.prepared.val
        self.val_batches = None if val is None else make(val, Order(len(val), 64))
        if self.hidden is not None:
            some, in_order = train.take(self.hidden.rows), Order(len(self.hidden.rows), 64)
            images = self._image_batches
            self.hidden_batches = self._some_features(train, self.hidden) if e.frozen else images(some, in_order)
        kept = self.run.path / LABEL_STATE if self.loss.carries_state else None
        net: nn.Module = HeadOnFeatures(self.head, token_boxes(self.model, self._pooled)) if e.frozen else self.model
        batches = make(train, order)
        if isinstance(self.head, FitsFeatures) and isinstance(batches, FeatureBatches):
            mean, deviation = feature_statistics(batches.features)
            self.head.fit_features(mean.to(self.fabric.device), deviation.to(self.fabric.device))
        return Stage(
            name=e.stage_names,
            number=number,
            net=net.to(self.fabric.device),
            head=self.head,
            batches=batches,
            train_labels=train.labels,
            settings=e,
            in_order=make(train, Order(len(train), 64)),
            memory_from=kept if number > 0 and self.experiment.stages[0].name == "probe" else None,
            memory_to=kept if e.frozen and not last else None,
            history=ScoreHistory(len(train), len(train.classes)) if e.history else None,
        )

    def _image_batches(self, dataset: Dataset, order: Order) -> Batches:
        e = self.experiment
        augment = e.augmentation if order.shuffle_seed is not None else "none"
        p = self.model.preprocessing
        transform = Transform(p.image_size, augment, p.interpolation)
        workers = default_workers(dataset) if e.workers is None else e.workers
        order, pin = self._mine(order), self.fabric.device.type == "cuda"
        unread = None if dataset is self.prepared.val else self.unread  # a grey image must not be scored
        return ImageBatches(dataset, transform, order, workers, seed=e.seed, pin=pin, unread=unread)

    def _feature_batches(self, dataset: Dataset, order: Order) -> Batches:
        workers = default_workers(dataset) if self.experiment.workers is None else self.experiment.workers
        with self.fabric.rank_zero_first(local=True):  # one process computes them, the others read
            features = self._features(dataset, workers)
        return FeatureBatches(features, dataset.labels.values, self._mine(order))

    def _features(self, dataset: Dataset, workers: int) -> NDArray[np.floating[Any]]:
        device, engine = self.fabric.device, self.experiment.engine
        return frozen_features(self.model, dataset, pooled=self._pooled, device=device, workers=workers, engine=engine)

    def _mine(self, order: Order) -> Order:
        """This process's share of the order."""
        return replace(order, rank=self.fabric.global_rank, processes=self.fabric.world_size)

    def _some_features(self, train: Dataset, hidden: HiddenLabels) -> Batches:
        """The sample's rows of the features that are there already."""
        workers = default_workers(train) if self.experiment.workers is None else self.experiment.workers
        features = self._features(train, workers)
        rows = hidden.rows
        return FeatureBatches(np.asarray(features[rows]), train.labels.values[rows], self._mine(Order(len(rows), 64)))

    @property
    def _pooled(self) -> bool:
        return needs_only_mean(self.model) and not OF_REGIONS & self.loss.needs

    def _start_from_best(self) -> None:
        """The next stage starts with the best weights of the first."""
        self.fabric.barrier()  # the first process has written them
        self.model.load_state_dict(load(self.run.path).state_dict())

    # ------------------------------------------------------------------------------------- as a Checkpointer

    def score(self, net: Net) -> dict[str, float]:
        """mAP in percent on the validation rows, by their known labels and by the observed ones."""
        if self.hidden_batches is not None:
            self.hidden_logits = logits_of(net, self.hidden_batches, self.fabric)  # type: ignore[arg-type]
        if self.val_batches is None or self.prepared.val is None:
            return {"score": float("nan")}
        logits = logits_of(net, self.val_batches, self.fabric)  # type: ignore[arg-type]
        metrics = validation_map(logits, self.prepared.val.labels, self.prepared.val_observed, self.experiment)
        return {**metrics, "score": metrics.get(self.select, float("nan"))}

    def keep_best(self, net: nn.Module) -> None:
        """Save the whole model with the weights that were just scored (those of the average, where there is one)."""
        if not self.fabric.is_global_zero:
            return
        if not isinstance(net, HeadOnFeatures):
            save(net, self.run.path)  # type: ignore[arg-type]
            return
        own = self.head
        self.model._modules["head"] = net.head
        save(self.model, self.run.path)
        self.model._modules["head"] = own

    def keep_state(self, state: Record, record: Record) -> None:
        self.records.append(record)
        if not self.fabric.is_global_zero:
            return
        self.run.write_log(self.records)
        if self.hidden is not None:
            self.hidden.record(record["stage"], record["epoch"], self.hidden_logits)
            self.hidden.write(self.run)
        if self.tracker is not None:
            self.tracker.record(self.run.path, record)
        self.run.save_checkpoint(state)

    def _finish(self, best: Best) -> None:
        """Evaluate the best weights on the test split (or, without one, on the validation split)."""
        where = "test" if self.prepared.test is not None else "val"
        dataset = self.prepared.test or self.prepared.val
        if dataset is None and self.prior is None:
            return
        self.fabric.barrier()  # the first process has written the weights
        model = load(self.run.path).to(self.fabric.device)
        if self.prior is not None:
            model = fused(model, self.prior, self.prepared, self.experiment, self.fabric, self.callback.say)
            self.keep_best(model)
        if dataset is None:
            return
        choose = self.experiment.threshold == CHOSEN or self.untagged
        thresholds = self._choose_thresholds(model) if choose else None
        logits = logits_of_dataset(model, dataset, self.experiment, self.fabric)
        parts = parts_of_dataset(model, dataset, self.experiment, self.fabric)
        report = report_of(logits, dataset, self.experiment, thresholds, baselines=parts)
        score = None if math.isnan(best.score) else best.score  # JSON knows no nan
        selected = {"by": self.select, "epoch": None if self.untagged else best.epoch, "score": score}
        if self.fabric.is_global_zero:
            self.run.write_json("report.json", {**report.to_dict(), "split": where, "selected": selected})

    def _choose_thresholds(self, model: Model) -> Thresholds | None:
        """Thresholds chosen on the validation images, saved in the run; None where their labels allow no choice."""
        val, observed = self.prepared.val, self.prepared.val_observed
        if self.untagged:
            logits = logits_of_dataset(model, self.prepared.train, self.experiment, self.fabric)
            expected = from_expected(logits, model.classes, self.experiment.expected_tags or TAGS, model.taxonomy)
            self.callback.say(
                f"thresholds for {expected.objective.removeprefix('tags=')} tags per image (expected_tags)"
            )
            if self.fabric.is_global_zero:
                expected.save(self.run.path)
            return expected
        if val is None or observed is None or (source := source_of(val.labels)) is None:
            self.callback.say(f"thresholds: {self.experiment.cut:g} for all, as no validation image has a known tag")
            return None
        logits = logits_of_dataset(model, val, self.experiment, self.fabric)
        labels = val.labels if source == "clean" else observed
        choice = from_logits(
            logits, labels, val.classes, source=source, objective=Objective("f1"), taxonomy=model.taxonomy
        )
        if self.fabric.is_global_zero:
            choice.thresholds.save(self.run.path)
        known = "estimated from positives" if choice.estimated else "from known labels"
        self.callback.say(
            f"thresholds chosen on {choice.images:,} validation images: {choice.tags_called:.2f} tags per image called,"
            f" {choice.tags_present:.2f} present ({known})"
        )
        return choice.thresholds
