"""What plures trains where nobody says what: chosen from the pictures, said in a line, written into the run."""

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from plures.config import Component, Experiment, recipe_settings
from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.thresholds import Thresholds
from plures.training.auto import choose_model
from plures.training.progress import Quiet
from plures.training.train import train

SCRATCH = ("small_conv", "codebook", "finetune", "adam", 0.5)
SOLVED = ("timm", "linear", "ridge", "adam", "chosen")
STEPS = ("timm", "linear", "probe", "adamw", "chosen")
PRETRAINED = {"backbone": {"name": "timm", "model": "resnet18", "pretrained": True}}


def pictures(side, count=4):
    """Arrays in memory, wider than high."""
    images = np.zeros((count, side // 2, side, 3), np.uint8)
    return Dataset(images, Labels(np.ones((count, 1), np.int8)), ("a",))


def chosen(dataset, **settings):
    e, line = choose_model(Experiment(**{"data": "photos", **settings}), lambda: dataset)
    return (e.backbone.name, e.head.name, e.stage_names, e.optimizer.name, e.threshold), line, e


@pytest.mark.parametrize(
    ("side", "settings", "expected"),
    [
        (200, {}, SOLVED),
        (65, {}, SOLVED),
        (64, {}, SCRATCH),
        (16, {}, SCRATCH),
        (200, {"data": "scenes"}, SCRATCH),
        (200, {"loss": "least_squares"}, SOLVED),
        (200, {"loss": "role"}, STEPS),
        (200, {"history": True}, STEPS),
        (200, {"optimizer": "sgd"}, ("timm", "linear", "probe", "sgd", "chosen")),
        (200, {"head": "codebook"}, ("timm", "codebook", "probe", "adam", 0.5)),
        (200, {"stages": "finetune"}, ("timm", "codebook", "finetune", "adam", 0.5)),
        (200, {"stages": "probe,finetune"}, ("timm", "linear", "probe,finetune", "adam", "chosen")),
        (200, {"backbone": "small_conv"}, SCRATCH),
        (200, {"backbone": "timm"}, ("timm", *SCRATCH[1:])),
        (16, PRETRAINED, SOLVED),
        (200, {**PRETRAINED, "threshold": 0.3}, (*SOLVED[:4], 0.3)),
        (16, {"threshold": "chosen"}, (*SCRATCH[:4], "chosen")),
        (16, {"stages": "ridge"}, ("small_conv", "linear", "ridge", "adam", 0.5)),
    ],
)
def test_the_choice(side, settings, expected):
    assert chosen(pictures(side), **settings)[0] == expected


def test_the_choice_is_written_out_and_stands():
    """What experiment.yaml holds chooses the same again, and without a word."""
    for settings in ({}, {"loss": "role"}, {"stages": "probe,finetune"}, {"image_size": 96}):
        for side in (32, 200):
            e = chosen(pictures(side), **settings)[2]
            again, line = choose_model(Experiment(**e.to_dict()), lambda: pytest.fail("nothing is left to choose"))
            assert again == e
            assert line == ""


def test_the_reason_names_what_was_chosen_and_the_other_way():
    assert chosen(pictures(200))[1] == (
        "photographs: frozen features of tf_efficientnet_lite2.in1k and a closed-form head; train from scratch with"
        " backbone=small_conv"
    )
    assert chosen(pictures(48))[1].startswith("pictures of 48 pixels: small_conv trained from scratch; for features")
    assert chosen(pictures(48), data="scenes")[1].startswith("scenes: small_conv")
    assert "takes no steps: epochs, lr without effect;" in chosen(pictures(200), epochs=3, lr=0.1)[1]
    assert "a linear head trained by adamw" in chosen(pictures(200), loss="role")[1]
    assert chosen(pictures(200), backbone="small_conv")[1] == ""


def test_named_settings_of_steps_stay():
    assert [(e.lr, e.weight_decay) for e in (chosen(pictures(200), loss="role")[2],)] == [(3e-4, 10.0)]
    named = chosen(pictures(200), loss="role", lr=1e-3, weight_decay=0.0)[2]
    assert (named.lr, named.weight_decay) == (1e-3, 0.0)
    line = Experiment(data="photos", loss="role").change(
        ["epochs=3"]
    )  # the command line names nothing more than it says
    assert choose_model(line, lambda: pictures(200))[0].weight_decay == 10.0
    assert chosen(pictures(32), loss="role")[2].weight_decay == 0.0


def test_a_file_of_weights_is_the_model_that_it_is_called_after():
    e = chosen(pictures(16), backbone={"name": "auto", "weights": "w/resnet18.a1_in1k.safetensors"})[2]
    assert e.backbone == Component(
        name="timm", options={"model": "resnet18", "weights": "w/resnet18.a1_in1k.safetensors"}
    )
    e = Experiment(data="photos").change(["backbone.weights=1e3"])
    e = choose_model(e, lambda: pictures(200))[0]
    assert e.backbone.options == {"model": "tf_efficientnet_lite2.in1k", "weights": "1e3"}


def test_the_recipe_photos_is_the_default():
    for settings in ({}, {"loss": "role"}, {"head": "linear"}, {"stages": "probe,finetune"}):
        values = recipe_settings("photos") | {"recipe": None, "data": "photos"} | settings
        recipe = choose_model(Experiment(**values), lambda: pictures(16))[0]
        plain = choose_model(Experiment(**settings, data="photos"), lambda: pictures(200))[0]
        assert recipe == plain
    quick = Experiment(**(recipe_settings("quick") | {"recipe": None, "data": "photos"}))
    assert choose_model(quick, lambda: pictures(16))[0] == chosen(pictures(200))[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """30 photographs of 80 pixels, red or blue, each with one tag, and weights for a tiny network."""
    folder = tmp_path_factory.mktemp("photos")
    rng, rows = np.random.default_rng(0), ["image,tags"]
    for i in range(30):
        pixels = rng.integers(0, 120, (60, 80, 3), np.uint8)
        pixels[..., 2 * (i % 2)] += 120
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{('red', 'blue')[i % 2]}")
    (folder / "tags.csv").write_text("\n".join(rows))
    save_file(timm.create_model("test_resnet").state_dict(), folder / "test_resnet.safetensors")
    return folder


class Heard(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


COMMON = {"device": "cpu", "workers": 0, "image_size": 64}


@pytest.mark.parametrize(("complete", "source"), [(False, "positives"), (True, "clean")])
def test_thresholds_are_chosen_at_the_end(photos, tmp_path, monkeypatch, complete, source):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    data = {"name": str(photos / "tags.csv"), "complete": complete}
    backbone, heard = {"name": "auto", "weights": str(photos / "test_resnet.safetensors")}, Heard()
    run = train(Experiment(data=data, backbone=backbone, **COMMON), tmp_path / "run", callback=heard)
    assert run.experiment.stage_names == "ridge"
    assert run.experiment.backbone.options["model"] == "test_resnet"
    kept = Thresholds.load(run.path, ("blue", "red"))
    assert kept is not None
    assert kept.method.startswith(source)
    assert any("frozen features of test_resnet" in line for line in heard.lines)
    assert any(line.startswith("thresholds chosen on") for line in heard.lines)
    report = (run.path / "report.json").read_text()
    assert f'"threshold": {kept.values[0]}' in report


def test_without_the_weights_nothing_is_left_and_a_way_is_named(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("plures.models.weights.hub_access.answers", lambda address: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PluresError, match=r"give backbone\.weights=FILE.*from scratch with backbone=small_conv"):
        train(Experiment(data=str(photos / "tags.csv"), **COMMON), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_small_pictures_on_disk_need_no_weights(tmp_path):
    for i in range(12):
        Image.new("RGB", (40, 64), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "tags.csv").write_text("image,tags\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(12)))
    e = Experiment(data=str(tmp_path / "tags.csv"), epochs=1, batch_size=4, device="cpu", workers=0)
    run = train(e, tmp_path / "run")
    assert run.experiment.backbone == Component(name="small_conv")
    assert run.experiment.threshold == 0.5
