"""Cross-fitting: scores of the training rows by models that did not see those rows' labels.

A model that trained on a table repeats the table: what is tagged scores high, what is not tagged low, missing tags
included. Dividing the rows into folds and scoring each fold with a model trained on the others takes that away
(Northcutt et al. 2021, Confident Learning, arXiv 1911.00068, section 3, asks for such out-of-sample probabilities).
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.loading import FeatureBatches, Order
from plures.data.splits import stratified_split
from plures.errors import PluresError
from plures.files import writing
from plures.labels import Labels
from plures.losses.context import OF_REGIONS
from plures.models.heads import FitsFeatures, heads
from plures.models.model import Model, load, without_prior
from plures.models.outputs import checked_logits
from plures.models.priors import Fused
from plures.runs.photos import contents, copies
from plures.runs.run import Run
from plures.scoring.device import make_fabric
from plures.scoring.features import feature_statistics, frozen_features, needs_only_mean, token_boxes
from plures.scoring.logits import HeadOnFeatures, Net, Scores, logits_of, logits_of_dataset, prior_of_dataset
from plures.training.auto import make_loss
from plures.training.loop import fit
from plures.training.progress import Callback, Quiet
from plures.training.stages import Stage


def out_of_fold(
    run: Run,
    dataset: Dataset,
    folds: int = 5,
    *,
    seed: int = 0,
    callback: Callback | None = None,
    workers: int = 0,
    kept: Path | None = None,
) -> Scores:
    """Logits [N, K] of these training rows, each by a model of the run's kind that was trained on the other folds.

    dataset: the rows with the labels that training may see, its classes in the model's order. On frozen features only
    the head is trained anew (seconds); otherwise the whole model is (`folds` trainings of the run's length).
    The best epoch of the run is used where the head is trained anew, the last one otherwise.
    kept: a .npy file that the logits are saved in after each fold, and those that are in it are not computed again.
    Raises PluresError if there are fewer than two folds, or fewer images than folds.
    """
    if folds < 2 or len(dataset) < folds:
        raise PluresError(
            f"cross-fitting requires 2 folds or more and an image in each, got {folds} for {len(dataset)}"
        )
    fold_of = divide(dataset.labels, folds, seed)
    first = copies(contents(dataset))
    if first is not None:  # a copy in another fold would bring its labels along
        fold_of = fold_of[first]
    logits = _begun(kept, dataset.labels.values.shape)
    frozen = run.experiment.frozen
    head_only = _HeadOnly(run, dataset, workers) if frozen else None
    for fold in range(folds):
        held_out = np.flatnonzero(fold_of == fold)
        rest = np.flatnonzero(fold_of != fold)
        if np.isfinite(logits[held_out]).all():
            continue
        if head_only is not None:
            logits[held_out] = head_only.scores(rest, held_out, seed + fold, callback or Quiet())
        else:
            logits[held_out] = _retrained(run.experiment, dataset, rest, held_out, callback)
        if kept is not None:
            with writing(kept) as temporary, temporary.open("wb") as handle:
                np.save(handle, logits)
    return _with_prior(run, dataset, logits)


def _begun(kept: Path | None, shape: tuple[int, ...]) -> Scores:
    """The logits that were saved, nan where there are none yet."""
    if kept is not None and kept.is_file():
        with contextlib.suppress(OSError, ValueError, EOFError):
            logits = np.load(kept)
            if logits.shape == shape and logits.dtype == np.float32:
                return cast(Scores, logits)
    return np.full(shape, np.nan, np.float32)


def _with_prior(run: Run, dataset: Dataset, logits: Scores) -> Scores:
    """The logits [N, K] of other heads, fused with the run's prior as its own are."""
    fabric = make_fabric(run.experiment)
    model = load(run.path).to(fabric.device)
    if not isinstance(model.head, Fused):
        return logits
    evidence = torch.from_numpy(prior_of_dataset(model, dataset, run.experiment, fabric)).to(fabric.device)
    return checked_logits(model.head.fuse(torch.from_numpy(logits).to(fabric.device), evidence))


def divide(labels: Labels, folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold [N] of each row, every class shared out evenly."""
    shares = {str(fold): 1 / folds for fold in range(folds)}
    return stratified_split(labels, shares, seed=seed).astype(np.int64)


class _HeadOnly:
    """Trains new heads on the features of a run's frozen backbone, which are computed once."""

    def __init__(self, run: Run, dataset: Dataset, workers: int) -> None:
        self.experiment, self.dataset = run.experiment.of(run.experiment.stages[0]), dataset
        self.fabric = make_fabric(run.experiment)
        self.model: Model = without_prior(load(run.path)).to(self.fabric.device)
        loss = make_loss(self.experiment, dataset.labels, cast(nn.Module, self.model.head))
        pooled = needs_only_mean(self.model) and not OF_REGIONS & loss.needs
        self.boxes = token_boxes(self.model, pooled)
        self.features = frozen_features(
            self.model,
            dataset,
            pooled=pooled,
            device=self.fabric.device,
            workers=workers,
            engine=run.experiment.engine,
        )
        log = run.log
        self.epoch = int(log[-1]["best_epoch"]) if log else self.experiment.epochs - 1

    def scores(self, rest: NDArray[np.int64], held_out: NDArray[np.int64], seed: int, callback: Callback) -> Scores:
        """Logits [n, K] of the rows held out, by a head trained on the rest."""
        e = self.experiment
        torch.manual_seed(seed)
        parts = self.model.parts
        given = {"width": self.model.backbone.width, "classes": len(self.model.classes)}
        head = heads.make(parts.head, given, **parts.head_options)
        labels = self.dataset.labels.take(rest)
        order = Order(len(rest), e.batch_size, shuffle_seed=seed, drop_last=e.drop_last)
        learning = self._batches(rest, order)
        if isinstance(head, FitsFeatures):
            head.fit_features(*feature_statistics(learning.features))
        stage = Stage(
            name="cross-fit",
            number=0,
            net=HeadOnFeatures(cast(nn.Module, head), self.boxes).to(self.fabric.device),
            head=cast(nn.Module, head),
            batches=learning,
            train_labels=labels,
            settings=e,
            in_order=self._batches(rest, Order(len(rest), 64)),
        )
        checkpointer = _ScoresOf(self._batches(held_out, Order(len(held_out), 64)), self.fabric, self.epoch)
        with contextlib.suppress(_Enough):
            fit(stage, make_loss(e, labels, cast(nn.Module, head)), self.fabric, checkpointer, callback)
        assert checkpointer.logits is not None
        return checkpointer.logits

    def _batches(self, rows: NDArray[np.int64], order: Order) -> FeatureBatches:
        return FeatureBatches(np.ascontiguousarray(self.features[rows]), self.dataset.labels.values[rows], order)


class _Enough(Exception):
    """The epoch whose scores are wanted is over."""


class _ScoresOf:
    """A Checkpointer that keeps the held-out rows' logits after one epoch, and ends training there."""

    def __init__(self, batches: FeatureBatches, fabric: Any, epoch: int) -> None:
        self.batches, self.fabric, self.last = batches, fabric, epoch
        self.epoch = 0
        self.logits: Scores | None = None

    def score(self, net: Net) -> dict[str, float]:
        if self.epoch == self.last:
            self.logits = logits_of(cast(nn.Module, net), self.batches, self.fabric)
        self.epoch += 1
        return {"score": float("nan")}

    def keep_best(self, net: nn.Module) -> None:
        pass

    def keep_state(self, state: dict[str, Any], record: dict[str, Any]) -> None:
        if self.logits is not None:
            raise _Enough


def _retrained(
    experiment: Experiment,
    dataset: Dataset,
    rest: NDArray[np.int64],
    held_out: NDArray[np.int64],
    callback: Callback | None,
) -> Scores:
    """Logits [n, K] of the rows held out, by a model trained on the rest from the start."""
    from plures.training.train import train  # which cross-fits a teacher

    plain: dict[str, Any] = {
        "supervision": "as_given",
        "select": "last",
        "patience": None,
        "history": False,
        "log": "none",
    }
    plain |= {"teacher": None, "rounds": 1, "teacher_threshold": None}  # it has seen the labels of the rows held out
    plain |= {"prior": "none"}  # joined afterwards
    again = Experiment(**{**experiment.to_dict(), **plain})
    rows = np.concatenate([rest, held_out])
    splits = np.array(["train"] * len(rest) + ["val"] * len(held_out))
    divided = replace(dataset.take(rows), splits=splits)
    with tempfile.TemporaryDirectory() as folder:
        fold = train(again, Path(folder) / "fold", dataset=divided, callback=callback)
        fabric = make_fabric(again)
        model = load(fold.path).to(fabric.device)
        return logits_of_dataset(model, dataset.take(held_out), again, fabric)
