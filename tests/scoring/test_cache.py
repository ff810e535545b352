"""The cache of features is bounded, says what it holds, and can be emptied."""

import os

import numpy as np
import pytest
import torch

from plures.data.dataset import Dataset
from plures.labels import Labels
from plures.models.model import build_model
from plures.scoring import cache
from plures.scoring.features import frozen_features
from plures.system import lock

ONE = 40 * 64 * 4 + 128  # bytes of a table below


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model():
    return build_model("small_conv", "linear", ("a",), {"image_size": 16, "width": 64})


def compute(model, seed):
    images = np.random.default_rng(seed).integers(0, 256, (40, 16, 16, 3), np.uint8)
    data = Dataset(images, Labels(np.ones((40, 1), np.int8)), ("a",), name=f"data {seed}")
    return frozen_features(model, data, pooled=True, device=torch.device("cpu"))


def names():
    return [one.what["data"] for one in cache.held()]


def age(name, days):
    (one,) = [one for one in cache.held() if one.what["data"] == name]
    os.utime(one.path, (one.used - days * 86400,) * 2)


def test_the_least_recently_used_goes_first_and_reading_is_use(folder, model, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE_GB", str(2.5 * ONE / 1e9))
    first = compute(model, 0)
    compute(model, 1)
    age("data 0", 5)
    age("data 1", 3)
    assert names() == ["data 0", "data 1"]
    assert np.array_equal(compute(model, 0), first)
    compute(model, 2)
    assert names() == ["data 0", "data 2"]
    assert not [p for p in (folder / "features").glob("*.json") if not p.with_suffix(".npy").exists()]


def test_what_is_being_computed_stays_and_a_table_above_the_limit_is_kept(folder, model, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE_GB", "0")
    compute(model, 0)
    (one,) = cache.held()
    with lock(one.path.with_suffix(".lock"), None):
        compute(model, 1)
        assert sorted(names()) == ["data 0", "data 1"]
    compute(model, 2)
    assert names() == ["data 2"]


def test_doctor_says_what_it_holds_and_clears_it(folder, model, plures):
    assert plures("doctor", "--cache")[:2][0] == 0
    compute(model, 7)
    age("data 7", 2.5)
    code, out, _ = plures("doctor", "--cache")
    assert code == 0
    assert all(word in out for word in ("data 7", "small_conv", "torch", "2 days ago", "at most 20 GB"))
    code, out, _ = plures("doctor", "--cache", "--clear")
    assert (code, "removed 1 files" in out, cache.held()) == (0, True, [])
    assert list((folder / "features").iterdir()) == []
    code, out, err = plures("doctor", "--clear")
    assert (code, out) == (2, "")
    assert "plures doctor --cache --clear" in err


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_one_line(folder, plures, monkeypatch, text):
    monkeypatch.setenv("PLURES_CACHE_GB", text)
    code, _, err = plures("doctor", "--cache")
    assert code == 2
    assert f"PLURES_CACHE_GB={text}: expected a number of gigabytes" in err
