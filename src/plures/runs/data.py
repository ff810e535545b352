"""What a run trains, selects and tests on: rows by split, with the training labels observed as the experiment says."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from plures.config import Component, Experiment
from plures.data.checks.verify import verify_images
from plures.data.dataset import Dataset
from plures.data.masking import mask_labels
from plures.data.photos import is_address
from plures.data.read import AN_IMAGE, SEVERAL, find_format, read, seldom_seen
from plures.data.splits import mlspl_split, stratified_split
from plures.data.taxonomy import Taxonomy, read_taxonomy
from plures.errors import PluresError, Problem
from plures.labels import Labels
from plures.models.priors import NONE
from plures.runs.photos import Photos, contents, log, on_one_side, recall, with_contents

Select = Literal["val_map", "val_map_observed", "val_positives", "last"]
IN_MEMORY = "in_memory"  # the name of data that only the program which trained the run had
PATHS = ("images", "table")  # options of readers that are paths
SHOWN = 3  # contradictions of a hierarchy that are named in a line


@dataclass(frozen=True, eq=False)
class Prepared:
    """train: rows with the labels that training may see. val, test: rows with all labels known of them, or None.

    val_observed: what would have been observed of val's labels, [N_val, K]. train_known: everything that is known of
    train's labels, which training never sees: for measuring what it makes of what is hidden. Labels are observed once,
    on train and val together and in the order of the data, before val is cut off (as Cole et al. 2021 do). photos: of
    all rows, where these data begin a run.
    """

    train: Dataset
    val: Dataset | None
    val_observed: Labels | None
    test: Dataset | None
    train_known: Labels | None = None
    photos: Photos | None = None


def read_data(experiment: Experiment, *, skip_bad: bool = False, taxonomy: Taxonomy | None = None) -> Dataset:
    """The experiment's data, as its format gives them; every image is opened once, so that a broken one is known now
    and not in the middle of an epoch. taxonomy: instead of what the experiment says of classes."""
    if experiment.data.name == IN_MEMORY:
        raise PluresError(
            f"data={IN_MEMORY}: these are the settings of a run on a Dataset in memory, which only the program that"
            " trained it has; name DATA, or from Python pass the Dataset"
        )
    labelled = experiment.classes is None
    dataset = read(experiment.data.name, skip_bad=skip_bad, verify=True, labelled=labelled, **experiment.data.options)
    return with_classes(dataset, experiment.classes if taxonomy is None else taxonomy)


def with_taxonomy(dataset: Dataset, taxonomy: Taxonomy, source: str = "") -> Dataset:
    """The dataset with the classes of a taxonomy, its own first, and with what follows from its labels. source: the
    file that it came from, for the notices: what was added, and how many images contradict themselves."""
    more = [name for name in taxonomy.classes if name not in dataset.classes]
    dataset = dataset.with_classes(taxonomy.classes)
    if dataset.classes != taxonomy.classes:
        taxonomy = replace(taxonomy, classes=dataset.classes)
    labels, wrong = taxonomy.close(dataset.labels)
    notices = []
    if more and source:
        what = f"{Path(source).name} adds, to the classes of the data: {', '.join(more[:10])}"
        notices.append(Problem(source, None, what + ", ..." * (len(more) > 10), "classes of the data", "notice"))
    if wrong.any():
        rows = np.flatnonzero(wrong)
        examples = "; ".join(
            f"{dataset.called(row)}: {taxonomy.conflict(dataset.labels.values[row])}" for row in rows[:SHOWN].tolist()
        )
        many, stay = (
            ("images contradict", "stay as they are") if len(rows) > 1 else ("image contradicts", "stays as it is")
        )
        what = f"{len(rows):,} {many} the hierarchy and {stay} ({examples}{'; ...' * (len(rows) > SHOWN)})"
        notices.append(Problem(source or dataset.name, None, what, "labels that agree with it", "notice"))
    return replace(dataset, labels=labels, taxonomy=taxonomy, problems=(*dataset.problems, *notices))


def with_classes(dataset: Dataset, classes: Taxonomy | tuple[str, ...] | str | None) -> Dataset:
    """The dataset with the classes that an experiment names beside its own; of a file also with its taxonomy."""
    if isinstance(classes, Taxonomy):
        return _noticed_anew(with_taxonomy(dataset, classes))
    if isinstance(classes, str):
        return _noticed_anew(with_taxonomy(dataset, read_taxonomy(classes, dataset.classes), classes))
    return dataset if classes is None else dataset.with_classes(classes)


def _noticed_anew(dataset: Dataset) -> Dataset:
    """With the notices of seldom classes as they are now that labels were filled in, if reading gave any."""
    old = [problem for problem in dataset.problems if problem.expected in (AN_IMAGE, SEVERAL)]
    if not old:
        return dataset
    kept = [problem for problem in dataset.problems if problem not in old]
    return replace(dataset, problems=(*kept, *seldom_seen(dataset, old[0].file)))


def data_root(experiment: Experiment) -> str:
    """The folder that the experiment's data lie in; "" where they lie in none."""
    path = find_format(experiment.data.name)[1] if is_there(experiment.data) else ""
    if not path or is_address(path):
        return ""
    return path if os.path.isdir(path) else os.path.dirname(path) or os.curdir


def is_there(data: Component) -> bool:
    """Whether there are data of this name; those at an address, or named with a *, are taken to be."""
    if data.name == IN_MEMORY:
        return False
    try:
        path = find_format(data.name)[1]
    except PluresError:
        return False
    return not path or is_address(path) or "*" in path or os.path.exists(path)


def found_from_anywhere(data: Component) -> Component:
    """The data with absolute paths, which mean the same from every folder."""
    if not is_there(data):
        return data
    path, name = find_format(data.name)[1], data.name
    if path and not is_address(path):
        start = data.name.removesuffix(path) if data.name.endswith(path) else ""  # else a folder further below
        name = start + os.path.abspath(path)
    options = {
        key: os.path.abspath(value) if key in PATHS and isinstance(value, str) and value else value
        for key, value in data.options.items()
    }
    return Component(name=name, options=options)


def with_splits(dataset: Dataset, experiment: Experiment) -> Dataset:
    """The dataset with a train, val and test split: given ones are kept, missing ones are cut off.

    Without any split: test_share of all rows, then val_share of the rest. With a train split but no val: val_share
    of train. `split=mlspl` cuts as the official MLSPL code does, copies of a photograph included; else seeded and
    stratified for several labels, copies on one side (`photos.on_one_side`), near-exact ones if the experiment says so.
    """
    dataset = with_contents(dataset)
    splits = np.full(len(dataset), "train", dtype="U16")
    drawn = np.zeros(len(dataset), np.bool_)
    if dataset.splits is not None and dataset.split_names():
        splits = dataset.splits.astype("U16")
        if "train" not in splits:
            raise PluresError(f"{dataset.name}: no split 'train' among {', '.join(dataset.split_names())}")
    else:
        drawn[:] = True
        splits[_cut(dataset, np.arange(len(dataset)), experiment.test_share, experiment)] = "test"
    if "val" not in splits:
        rows = np.flatnonzero(splits == "train")
        drawn[rows] = True
        splits[_cut(dataset, rows, experiment.val_share, experiment)] = "val"
    move, near = experiment.split != "mlspl", experiment.group_near_copies
    return replace(dataset, splits=on_one_side(dataset, splits, drawn, move=move and bool(drawn.any()), near=near))


def _cut(dataset: Dataset, rows: np.ndarray, share: float, experiment: Experiment) -> np.ndarray:
    """The rows, of these, that make up the share."""
    if len(rows) < 2:
        raise PluresError(f"{dataset.name}: {len(rows)} training images cannot be divided; give more or a split column")
    if experiment.split == "mlspl":
        return rows[mlspl_split(len(rows), share)[1]]
    names = stratified_split(dataset.labels.take(rows), {"rest": 1 - share, "cut": share}, seed=experiment.seed)
    return np.asarray(rows[names == "cut"])


def prepare(experiment: Experiment, dataset: Dataset | None = None, *, skip_bad: bool = False) -> Prepared:
    """Read (unless `dataset` is given), divide and mask. Raises PluresError where training would make no sense."""
    dataset = dataset or read_data(experiment, skip_bad=skip_bad)
    for before in experiment.runs_before:
        dataset = _after(before, dataset, experiment)
    dataset = with_splits(dataset, experiment)
    return replace(mask_splits(experiment, dataset), photos=Photos.of(dataset, data_root(experiment)))


def _after(start: str, dataset: Dataset, experiment: Experiment) -> Dataset:
    """The data of a run that learns from another one (`start`, `teacher`): divided as that one divided them, where they
    are the same data without splits of their own; where they have splits, none that it was trained on is judged."""
    before = Photos.load(Path(start))
    dataset = with_contents(dataset)
    if before is None or not np.isin(contents(dataset), before.contents).any():
        return dataset
    if not dataset.split_names():
        return recall(before, dataset, data_root(experiment), experiment, start)[0]
    assert dataset.splits is not None
    seen, splits = np.isin(contents(dataset), before.trained), dataset.splits.astype("U16")
    judged = seen & ~np.isin(splits, ["train", ""])
    if judged.any():
        log.warning(f"left out {int(judged.sum()):,} photographs of validation and test: {start} was trained on them")
    splits[judged] = ""
    if "val" not in splits:  # as that one cut it off
        splits[(splits == "train") & np.isin(contents(dataset), before.contents[before.splits == "val"])] = "val"
    if "val" not in splits:
        fresh = np.flatnonzero((splits == "train") & ~seen)
        if len(fresh) > 1:
            splits[_cut(dataset, fresh, experiment.val_share, experiment)] = "val"
        else:
            log.warning(f"{start} was trained on all of these photographs: validation numbers will flatter")
    return replace(dataset, splits=splits)


def mask_splits(experiment: Experiment, dataset: Dataset) -> Prepared:
    """Data that are divided already, with the training labels observed as the experiment says."""
    splits = dataset.splits
    assert splits is not None
    pool = dataset.take(np.isin(splits, ["train", "val"]))  # in the order of the data
    observed = mask_labels(pool, experiment.supervision.name, **experiment.supervision.options)
    assert pool.splits is not None
    in_train, in_val = pool.splits == "train", pool.splits == "val"
    if experiment.prior.name == NONE and not observed.take(in_train).present.any():
        raise PluresError(
            f"{dataset.name}: no training image has a known tag under supervision={experiment.supervision.name};"
            " there is nothing to learn from; a prior tags without any (prior=imagenet, text or FILE)"
        )
    return Prepared(
        train=pool.with_labels(observed).take(in_train),
        val=pool.take(in_val) if in_val.any() else None,
        val_observed=observed.take(in_val) if in_val.any() else None,
        test=dataset.split("test") if "test" in splits else None,
        train_known=pool.labels.take(in_train),
    )


def without_unreadable(prepared: Prepared, train: bool) -> tuple[Prepared, dict[str, str]]:
    """The same without the images that cannot be read now, of the training rows only if `train`; and these images,
    {path: reason}."""
    p, found = prepared, dict[str, str]()

    def kept(dataset: Dataset) -> NDArray[np.bool_]:
        keep = np.ones(len(dataset), np.bool_)
        for row, problem in verify_images(dataset, decode=True):
            keep[row], found[problem.file] = False, problem.what
        return keep

    if train:
        keep = kept(p.train)
        known = None if p.train_known is None else p.train_known.take(keep)
        p = replace(p, train=p.train.take(keep), train_known=known)
    if p.val is not None:
        keep = kept(p.val)
        observed = None if p.val_observed is None else p.val_observed.take(keep)
        p = replace(p, val=p.val.take(keep) if keep.any() else None, val_observed=observed if keep.any() else None)
    if p.test is not None:
        keep = kept(p.test)
        p = replace(p, test=p.test.take(keep) if keep.any() else None)
    return p, found


def selection(experiment: Experiment, prepared: Prepared) -> Select:
    """The rule that picks the best epoch, with `auto` resolved: by the known labels of the validation rows where
    these say what is absent as well as what is present, else by the observed ones; `last` without such rows.

    Raises PluresError if the data cannot give what the rule, or patience, requires.
    """
    if experiment.patience is not None and (experiment.select == "last" or prepared.val is None):
        why = "select=last compares no epochs" if experiment.select == "last" else "the data have no validation split"
        raise PluresError(f"patience={experiment.patience} waits for a better validation score, but {why}")
    if experiment.select != "auto":
        if experiment.select != "last" and prepared.val is None:
            raise PluresError(f"select={experiment.select} requires a validation split, and the data have none")
        if experiment.select == "val_positives":
            assert prepared.val_observed is not None
            if not prepared.val_observed.present.any() or prepared.val_observed.complete:
                raise PluresError(
                    "select=val_positives requires validation images of which some labels are present and some unknown"
                    f" under supervision={experiment.supervision.name}; use select=val_map"
                )
        return experiment.select
    if prepared.val is None:
        return "last"
    return "val_map" if prepared.val.labels.absent.any() else "val_map_observed"
