"""When cached features are those of the photos in hand."""

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from plures.data.dataset import Dataset
from plures.labels import Labels
from plures.models.backbones import backbones
from plures.models.model import STARTING_POINT, build_model, load, save
from plures.scoring import features
from plures.scoring.features import COMPUTED_BY, feature_key, frozen_features


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
    put = os.replace

    def killed(source, target):
        put(source, target)
        if str(target).endswith(".npy"):
            raise SystemExit

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        frozen_features(model, data, pooled=True, device=torch.device("cpu"))
    (file,) = (tmp_path / "features").glob("*.npy")
    assert not list(file.parent.glob("*.rows"))
    assert np.load(file).any(axis=2).all()


# ---------------------------------------------------------------------- the key holds what changes a feature, no more

TIMM = {"model": "test_resnet", "image_size": 64}
CHANGES = {  # what is set -> options of the backbone, and of the model
    "model": ({"model": "test_efficientnet"}, {}),
    "image_size": ({"image_size": 96}, {}),
    "model_options": ({"model_options": {"output_stride": 16}}, {}),
    "another value of an option": ({"model_options": {"output_stride": 8}}, {}),
    "mean": ({"mean": (0.0, 0.0, 0.0)}, {}),
    "std": ({"std": (1.0, 1.0, 1.0)}, {}),
    "frozen_norm": ({"frozen_norm": True}, {}),
    "interpolation": ({}, {"interpolation": "bicubic"}),
}


def built(options=None, head="linear", classes=("a", "b"), **others):
    torch.manual_seed(0)
    return build_model("timm", head, classes, {**TIMM, **(options or {})}, **others)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "one.png"
    Image.new("RGB", (8, 8)).save(file)
    return photos(file)


def test_every_option_of_every_backbone_is_in_the_key(picture):
    """A new option is in it without a thought: the whole mapping is hashed, beside where weights came from."""
    model = built()
    known = feature_key(model, picture, True)
    for entry in backbones:
        for option in set(entry.options) - set(STARTING_POINT):
            parts = replace(model.parts, backbone_options={**model.parts.backbone_options, option: "other"})
            other = copy.copy(model)
            other.parts = parts
            assert feature_key(other, picture, True) != known, option


@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_change_features_change_the_key(picture, name):
    options, others = CHANGES[name]
    keys = {feature_key(built(), picture, True), feature_key(built(options, **others), picture, True)}
    assert len(keys) == 2


def test_two_values_of_one_option_are_two_keys(picture):
    """Output strides leave the weights as they are, and the features not (44.8 or 41.3 mAP, whichever was cached)."""
    strides = [built({"model_options": {"output_stride": stride}}) for stride in (8, 16, 32)]
    states = [model.state_dict() for model in strides]
    assert all(torch.equal(states[0][name], other[name]) for other in states for name in other)
    assert len({feature_key(model, picture, True) for model in strides}) == 3


def test_weights_versions_and_engine_are_in_the_key(picture, monkeypatch):
    model = built()
    known = feature_key(model, picture, True)
    keys = [known, feature_key(model, picture, False), feature_key(model, picture, True, "cuda")]
    keys.append(feature_key(built().double(), picture, True))
    with torch.no_grad():
        next(iter(model.backbone.parameters())).add_(1)
    keys.append(feature_key(model, picture, True))
    for package in COMPUTED_BY:
        monkeypatch.setattr(features, "version", lambda name, changed=package: "9.9" if name == changed else "1.0")
        keys.append(feature_key(built(), picture, True))
    monkeypatch.undo()
    monkeypatch.setattr(features, "DECODED_OVER_WANTED", 3)
    keys.append(feature_key(built(), picture, True))
    assert len(set(keys)) == len(keys)


def test_what_changes_no_feature_changes_no_key(picture, tmp_path):
    """Head, classes, and where the weights came from: their content counts. A saved model keeps its key."""
    model = built()
    known = feature_key(model, picture, True)
    state = {name.removeprefix("backbone."): value for name, value in model.backbone.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    same = [built(head="codebook"), built(classes=("x", "y", "z")), built({"weights": str(tmp_path / "w.safetensors")})]
    same.append(built({"weights": str(tmp_path / "w.safetensors"), "pretrained": False}))
    save(model, tmp_path)
    assert [feature_key(other, picture, True) == known for other in [*same, load(tmp_path)]] == [True] * 5
    listed = built({"mean": (0.5, 0.5, 0.5), "frozen": ("conv1",)})
    save(listed, tmp_path)
    assert feature_key(load(tmp_path), picture, True) == feature_key(listed, picture, True)


def test_arrays_of_other_shape_with_the_same_bytes_are_other_images(model):
    labels = Labels(np.array([[1, 0]], np.int8))
    images = np.arange(32 * 32 * 3, dtype=np.int64).astype(np.uint8).reshape(1, 32, 32, 3)
    keys = {
        feature_key(model, Dataset(one, labels, ("a", "b")), True) for one in (images, images.reshape(1, 16, 64, 3))
    }
    assert len(keys) == 2
