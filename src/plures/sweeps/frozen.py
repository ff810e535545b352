"""The runs of a sweep that are linear heads on frozen features: features once, heads together, light run folders.

A light run folder has everything that tables and reports read (experiment, environment, log, report), a model card, and
head.safetensors, the head alone; `complete` makes an ordinary run folder of it, which predicts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plures.config import AUTO, Experiment
from plures.data.checks.verify import readable_rows
from plures.data.dataset import Dataset
from plures.data.loading import default_workers
from plures.data.photos import Unreadable
from plures.errors import PluresError
from plures.files import read_json, writing
from plures.labels import Labels
from plures.losses import losses
from plures.models.heads.linear import Linear
from plures.models.model import SPEC, WEIGHTS, Model, build_model, described, save
from plures.runs.card import write_card
from plures.runs.data import Prepared, prepare, read_data, selection
from plures.runs.photos import with_contents
from plures.runs.run import Run
from plures.scoring.device import make_fabric
from plures.scoring.features import feature_key, feature_statistics, frozen_features
from plures.scoring.logits import Scores
from plures.scoring.measure import report_of
from plures.sweeps.sweep_run import SweepRun
from plures.sweeps.vectorized.training import FrozenData, HeadRun, TrainedHead, train_together, why_not
from plures.training.auto import choose_loss, make_loss
from plures.training.train import record_data

HEAD = "head.safetensors"
Features = NDArray[np.floating[Any]]


def trains_together(experiment: Experiment) -> bool:
    """Whether the engine can train this run."""
    if experiment.loss.name == AUTO:  # for the linear head it chooses among losses that need nothing
        return why_not(experiment, ()) == ""
    loss = losses.make(experiment.loss.name, **experiment.loss.options)
    return why_not(experiment, loss.needs) == ""


def train_frozen(runs: Sequence[SweepRun], dataset: Dataset | None, skip_bad: bool, threads: int) -> None:
    """Train these runs together; each folder is written as soon as its group is done."""
    by_data: dict[str, list[SweepRun]] = defaultdict(list)
    for run in runs:
        by_data[str((run.experiment.data, run.experiment.classes, run.experiment.device))].append(run)
    for mine in by_data.values():
        first = mine[0].experiment
        whole = dataset or read_data(first, skip_bad=skip_bad)
        while True:
            try:
                bench = SharedData(whole, make_fabric(first).device)
                made = [bench.head_run(run.experiment) for run in mine]
                break
            except Unreadable:  # since the images were verified
                keep = readable_rows(whole) if skip_bad else np.ones(len(whole), np.bool_)
                if keep.all():
                    raise
                whole = whole.take(keep)
        train_together(made, bench.device, threads=threads, kept=partial(bench.write, mine, made))


@dataclass(frozen=True, eq=False)
class Shared:
    """What runs on the same rows share: features of train and val, and of test; buffers of the head, made of them."""

    data: FrozenData
    test: Features | None
    buffers: dict[str, Tensor]


class SharedData:
    """A dataset with everything that its runs can share: splits, labels, features."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.dataset, self.device = with_contents(dataset), device
        self._prepared: dict[str, Prepared] = {}
        self._models: dict[str, Model] = {}
        self._keys: dict[str, str] = {}
        self._labels: dict[bytes, Labels] = {}
        self._features: dict[str, Features] = {}
        self._shared: dict[Any, Shared] = {}
        self._behind: dict[int, tuple[Shared, Prepared]] = {}

    def prepared(self, e: Experiment) -> Prepared:
        """Divided and observed as the experiment says, once for all experiments that say the same."""
        given = set(self.dataset.split_names())
        lots = e.seed if e.split == "stratified" and not {"train", "val"} <= given else None
        key = str((e.supervision, e.split, e.val_share, e.test_share, lots))
        if key not in self._prepared:
            self._prepared[key] = prepare(e, self.dataset)
        return self._prepared[key]

    def head_run(self, e: Experiment) -> HeadRun:
        """The run as the engine expects it, its first weights from its seed as in `train`."""
        prepared, model = self.prepared(e), self._model(e)
        shared = self._data(e, model, prepared)
        linear = cast(nn.Linear, cast(nn.Module, model.head).classifier)
        labels = self._one(prepared.train.labels)
        run = HeadRun(
            experiment=e.of(e.stages[0]),
            data=shared.data,
            labels=labels,
            loss=make_loss(e, labels, cast(nn.Module, model.head)),
            weight=linear.weight.detach().clone(),
            bias=linear.bias.detach().clone(),
            select=selection(e, prepared),
            val_observed=None if prepared.val_observed is None else self._one(prepared.val_observed),
        )
        self._behind[id(run)] = (shared, prepared)
        return run

    def test_logits(self, made: HeadRun, head: TrainedHead) -> tuple[Scores, Dataset]:
        """Logits [N, K] of a run's best epoch on the test rows (without any: the validation rows), and these rows."""
        shared, prepared = self._behind[id(made)]
        judged = prepared.test or prepared.val
        x = shared.test if prepared.test is not None else shared.data.val
        if judged is None or x is None:
            raise PluresError("neither test nor validation rows to score")
        return np.asarray(x, np.float32) @ head.weight.numpy().T + head.bias.numpy(), judged

    def _model(self, e: Experiment) -> Model:
        """The model that the experiment begins with, built once for all that begin with the same."""
        key = str((e.backbone, e.head, e.image_size, e.seed))
        if key not in self._models:
            self._models[key] = untrained(e, self.dataset.classes)
            self._models[key].taxonomy = self.dataset.taxonomy
        return self._models[key]

    def _feature_key(self, model: Model, e: Experiment) -> str:
        """`feature_key` of the whole data, which reads every weight and looks at every file, once for each model."""
        key = str((e.backbone, e.image_size, e.seed, e.engine))
        if key not in self._keys:
            self._keys[key] = e.engine + feature_key(model, self.dataset, True, self.device.type)
        return self._keys[key]

    def _one(self, labels: Labels) -> Labels:
        """The same object for equal labels."""
        return self._labels.setdefault(labels.values.tobytes(), labels)

    def _data(self, e: Experiment, model: Model, prepared: Prepared) -> Shared:
        """The features of the train and val rows, and of the test rows; computed for all rows of the data once."""
        key = self._feature_key(model, e)
        if key not in self._features:
            workers = default_workers(self.dataset) if e.workers is None else e.workers
            found = frozen_features(
                model, self.dataset, pooled=True, device=self.device, workers=workers, engine=e.engine
            )
            self._features[key] = found[:, 0]
        assert prepared.photos is not None
        splits = prepared.photos.splits
        standardise, normalise = (bool(e.head.options.get(name)) for name in ("standardise", "normalise"))
        place = (key, splits.tobytes(), standardise, normalise)
        if place not in self._shared:
            train, val, test = (_rows(self._features[key], splits == name) for name in ("train", "val", "test"))
            buffers: dict[str, Tensor] = {}
            head = cast(Linear, model.head)
            if standardise:
                head.fit_features(*feature_statistics(train))
                buffers = {"feature_mean": head.feature_mean, "feature_scale": head.feature_scale}
            if standardise or normalise:
                train, val, test = (
                    head.prepared(torch.tensor(x[:, None]).float())[:, 0].numpy() for x in (train, val, test)
                )
            known = None if prepared.val is None else prepared.val.labels
            data = FrozenData(train, None if prepared.val is None else val, known)
            self._shared[place] = Shared(data, None if prepared.test is None else test, buffers)
        return self._shared[place]

    def write(self, runs: Sequence[SweepRun], made_runs: Sequence[HeadRun], place: int, head: TrainedHead) -> None:
        """The light run folder of the run in this place; report.json last, as it says that the run is finished."""
        run, made = runs[place], made_runs[place]
        shared, prepared = self._behind[id(made)]
        folder = Run(run.folder) if run.begun() else Run.create(run.folder, run.experiment)
        part = run.experiment.loss
        if part.name == AUTO:
            part, _ = choose_loss(prepared.train.labels, run.experiment)
        record_data(folder, prepared, part.name)
        if head.failed:
            run.failed(head.failed)
            return
        folder.write_log(head.records)
        with writing(run.folder / HEAD) as temporary:
            state = {"classifier.weight": head.weight.contiguous(), "classifier.bias": head.bias}
            save_file({**state, **shared.buffers}, temporary)
        folder.write_json(SPEC, described(self._model(run.experiment)))
        if prepared.test is None and prepared.val is None:
            write_card(folder)
            return
        where = "test" if prepared.test is not None else "val"
        logits, judged = self.test_logits(made, head)
        report = report_of(logits, judged, run.experiment, estimate=False)
        score = None if math.isnan(head.best.score) else head.best.score
        selected = {"by": made.select, "epoch": head.best.epoch, "score": score}
        evaluation = {**report.to_dict(), "split": where, "selected": selected}
        write_card(folder, evaluation)
        folder.write_json("report.json", evaluation)


def untrained(e: Experiment, classes: tuple[str, ...]) -> Model:
    """The model as `train` begins with it."""
    torch.manual_seed(e.seed)
    return build_model(e.backbone.name, e.head.name, classes, e.backbone.options, e.head.options, e.image_size)


def complete(folder: str | Path) -> None:
    """Make an ordinary run folder of a light one: put its head on the backbone and save the whole model."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file() or not (folder / HEAD).is_file():
        return
    run = Run(folder)
    report = read_json(folder / "report.json")
    classes = tuple(one["name"] for one in report["per_class"])
    model = untrained(run.experiment, classes)
    model.taxonomy = run.taxonomy
    cast(nn.Module, model.head).load_state_dict(load_file(folder / HEAD))
    save(model, folder)
    write_card(run)


def _rows(features: Features, mask: NDArray[np.bool_]) -> Features:
    """The rows of a mask; a view where they lie together (so that memory-mapped features stay on disk)."""
    rows = np.flatnonzero(mask)
    together = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
    return features[rows[0] : rows[-1] + 1] if together else features[rows]
