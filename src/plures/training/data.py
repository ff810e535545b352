"""What a run trains, selects and tests on: rows by split, with the training labels observed as the experiment says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.observing import observe
from plures.data.read import read
from plures.data.splits import mlspl_split, stratified_split
from plures.data.verify import verify_images
from plures.errors import PluresError
from plures.experiment import Experiment
from plures.labels import Labels

Select = Literal["val_map", "val_map_observed", "val_positives", "last"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """train: rows with the labels that training may see. val, test: rows with all labels known of them, or None.

    val_observed: what would have been observed of val's labels, [N_val, K]. train_known: everything that is known of
    train's labels, which training never sees: for measuring what it makes of what is hidden. Labels are observed once,
    on train and val together and in the order of the data, before val is cut off (as Cole et al. 2021 do).
    """

    train: Dataset
    val: Dataset | None
    val_observed: Labels | None
    test: Dataset | None
    train_known: Labels | None = None


def read_data(experiment: Experiment, *, skip_bad: bool = False) -> Dataset:
    """The experiment's data, as its format gives them; every image is opened once, so that a broken one is known now
    and not in the middle of an epoch."""
    return read(experiment.data.name, skip_bad=skip_bad, verify=True, **experiment.data.options)


def with_splits(dataset: Dataset, experiment: Experiment) -> Dataset:
    """The dataset with a train, val and test split: given ones are kept, missing ones are cut off.

    Without any split: test_share of all rows, then val_share of the rest. With a train split but no val: val_share
    of train. `split=mlspl` cuts as the official MLSPL code does, else seeded and stratified for several labels.
    """
    splits = np.full(len(dataset), "train", dtype="U16")
    if dataset.splits is not None and dataset.split_names():
        splits = dataset.splits.astype("U16")
        if "train" not in splits:
            raise PluresError(f"{dataset.name}: no split 'train' among {', '.join(dataset.split_names())}")
    else:
        splits[_cut(dataset, np.arange(len(dataset)), experiment.test_share, experiment)] = "test"
    if "val" not in splits:
        splits[_cut(dataset, np.flatnonzero(splits == "train"), experiment.val_share, experiment)] = "val"
    return Dataset(
        dataset.images, dataset.labels, dataset.classes, splits, dataset.boxes, dataset.name, dataset.problems
    )


def _cut(dataset: Dataset, rows: np.ndarray, share: float, experiment: Experiment) -> np.ndarray:
    """The rows, of these, that make up the share."""
    if len(rows) < 2:
        raise PluresError(f"{dataset.name}: {len(rows)} training images cannot be divided; give more or a split column")
    if experiment.split == "mlspl":
        return rows[mlspl_split(len(rows), share)[1]]
    names = stratified_split(dataset.labels.take(rows), {"rest": 1 - share, "cut": share}, seed=experiment.seed)
    return np.asarray(rows[names == "cut"])


def prepare(experiment: Experiment, dataset: Dataset | None = None, *, skip_bad: bool = False) -> Prepared:
    """Read (unless `dataset` is given), divide and observe. Raises PluresError where training would make no sense."""
    dataset = with_splits(dataset or read_data(experiment, skip_bad=skip_bad), experiment)
    splits = dataset.splits
    assert splits is not None
    pool = dataset.take(np.isin(splits, ["train", "val"]))  # in the order of the data
    observed = observe(pool, experiment.supervision.name, **experiment.supervision.options)
    assert pool.splits is not None
    in_train, in_val = pool.splits == "train", pool.splits == "val"
    if not observed.take(in_train).present.any():
        raise PluresError(
            f"{dataset.name}: no training image has a known tag under supervision={experiment.supervision.name};"
            " there is nothing to learn from"
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

    Raises PluresError if the data cannot give what the rule, or patience, wants.
    """
    if experiment.patience is not None and (experiment.select == "last" or prepared.val is None):
        why = "select=last compares no epochs" if experiment.select == "last" else "the data have no validation split"
        raise PluresError(f"patience={experiment.patience} waits for a better validation score, but {why}")
    if experiment.select != "auto":
        if experiment.select != "last" and prepared.val is None:
            raise PluresError(f"select={experiment.select} wants a validation split, and the data have none")
        if experiment.select == "val_positives":
            assert prepared.val_observed is not None
            if not prepared.val_observed.present.any() or prepared.val_observed.complete:
                raise PluresError(
                    "select=val_positives wants validation images of which some labels are present and some unknown"
                    f" under supervision={experiment.supervision.name}; use select=val_map"
                )
        return experiment.select
    if prepared.val is None:
        return "last"
    return "val_map" if prepared.val.labels.absent.any() else "val_map_observed"
