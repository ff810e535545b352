"""Splits: equality with the official cut, and how even the stratified one is."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plures.data.splits import mlspl_split, stratified_split
from plures.errors import PluresError
from plures.labels import Labels

CUTS = json.loads((Path(__file__).parents[1] / "reference" / "split.json").read_text())["entries"]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut['n']}-{cut['val_frac']}-{cut['seed']}")
def test_cut_is_that_of_the_official_code(cut):
    train, val = mlspl_split(cut["n"], cut["val_frac"], cut["seed"])
    assert (len(train), len(val)) == (cut["n_train"], cut["n_val"])
    assert val[: len(cut["val_first"])].tolist() == cut["val_first"]
    for rows, name in ((train, "train"), (val, "val")):
        assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == cut[f"sha256_{name}"]


def test_every_class_is_shared_out():
    generator = np.random.default_rng(0)
    present = generator.random((5000, 30)) < np.geomspace(0.002, 0.5, 30)
    names = stratified_split(Labels.from_masks(present), {"train": 0.7, "val": 0.1, "test": 0.2}, seed=3)
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        rows = names == name
        assert rows.mean() == pytest.approx(share, abs=0.002)
        off = np.abs(present[rows].sum(0) - share * present.sum(0))
        assert off.max() <= np.maximum(2.0, 0.03 * present.sum(0)).max()
        assert (off[present.sum(0) < 30] <= 2).all()


def test_rare_classes_are_better_off_than_by_lot():
    present = np.zeros((1000, 50), bool)
    generator = np.random.default_rng(0)
    for column in range(50):
        present[generator.permutation(1000)[:5], column] = True
    names = stratified_split(Labels.from_masks(present), {"train": 0.8, "val": 0.2}, seed=0)
    assert (present[names == "val"].sum(0) > 0).mean() >= 0.95  # by lot: 1 - 0.8^5 = 0.67


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 6), st.integers(0, 3))
def test_all_rows_get_a_split_and_a_seed_decides(rows, classes, seed):
    present = np.random.default_rng(seed).random((rows, classes)) < 0.3
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    names = stratified_split(Labels.from_masks(present), shares, seed)
    assert set(names.tolist()) <= set(shares)
    assert len(names) == rows
    for name, share in shares.items():
        assert abs((names == name).sum() - share * rows) <= classes + 2
    again = stratified_split(Labels.from_masks(present), shares, seed)
    assert (names == again).all()
    if rows > 30:
        assert (names != stratified_split(Labels.from_masks(present), shares, seed + 1)).any()


def test_unknown_counts_as_not_present():
    values = np.full((10, 1), -1, np.int8)
    values[:4] = 1
    names = stratified_split(Labels(values), {"a": 0.5, "b": 0.5})
    assert (names[:4] == "a").sum() == 2
    assert (names == "a").sum() == 5


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_shares_must_make_sense(shares):
    with pytest.raises(PluresError, match="sum to 1"):
        stratified_split(Labels.from_masks(np.eye(3, dtype=bool)), shares)
    with pytest.raises(PluresError, match="share"):
        mlspl_split(10, 1.0)
