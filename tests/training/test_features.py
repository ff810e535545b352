"""When cached features are those of the photos in hand."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from plures.data.dataset import Dataset
from plures.labels import Labels
from plures.models.model import build_model
from plures.training import features
from plures.training.features import feature_key, frozen_features


@pytest.fixture(scope="module")
def model():
    return build_model("small_conv", "linear", ("a", "b"), {"image_size": 32, "width": 32})


def photos(*paths):
    labels = Labels(np.array([[1, 0]] * len(paths), np.int8))
    return Dataset([str(path) for path in paths], labels, ("a", "b"), name="photos")


@pytest.mark.parametrize("places", [("",), ("#0:10", "#10:20")])
def test_the_key_follows_the_file_also_of_a_photo_in_a_shard(model, tmp_path, places):
    file = tmp_path / "one.png"
    Image.new("RGB", (8, 8)).save(file)
    data = photos(*(f"{file}{place}" for place in places))
    first = feature_key(model, data, True)
    assert feature_key(model, data, True) == first
    assert feature_key(model, data, False) != first
    os.utime(file, (1, 1))
    assert feature_key(model, data, True) != first


def test_photos_of_one_shard_differ_by_their_place(model, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"1")
    keys = {feature_key(model, photos(f"{tmp_path}/x.tar#{n}:5"), True) for n in range(3)}
    assert len(keys) == 3
    assert len({feature_key(model, photos(f"s3://bucket/x.tar#{n}:5"), True) for n in range(2)}) == 2


def test_a_kill_as_the_features_take_their_place_leaves_no_count_of_rows(model, tmp_path, monkeypatch):
    """The count would vouch for the next table that is begun under this name, and its empty rows be taken for done."""
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path))
    monkeypatch.setattr(features, "SAVED_EVERY", 0.0)
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    data = Dataset(images, Labels(np.array([[1, 0]] * 40, np.int8)), ("a", "b"))
    replace = os.replace

    def killed(source, target):
        replace(source, target)
        if str(target).endswith(".npy"):
            raise SystemExit

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        frozen_features(model, data, pooled=True, device=torch.device("cpu"))
    (file,) = (tmp_path / "features").glob("*.npy")
    assert not list(file.parent.glob("*.rows"))
    assert np.load(file).any(axis=2).all()
