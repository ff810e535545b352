"""Components from outside plures: by module:attribute, by entry point; and what a stranger's run folder may not do."""

import json
import os
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch

import plures
from plures import registry as registry_module
from plures.config import Experiment, recipe_settings
from plures.data.dataset import formats
from plures.errors import PluresError
from plures.losses import losses
from plures.models import build_model, load, save
from plures.models.backbones import backbones
from plures.models.heads import heads
from plures.models.outputs import Tokens
from plures.models.priors import priors
from plures.registry import ALLOW

SOURCE = '''
"""A package that somebody wrote."""
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn
import plures
Path("was_imported").write_text("")

@dataclass(eq=False)
class Twice(plures.losses.Loss):
    """Twice the assume-negative loss."""
    factor: float = 2.0
    def compute(self, output, labels, context):
        terms = plures.losses.AssumeNegative().compute(output, labels, context)
        return {name: self.factor * term for name, term in terms.items()}

class Tiny(nn.Module):
    """A backbone that gives a feature map."""
    width, image_size, mean, std = 4, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    def __init__(self, image_size=16):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
    def forward(self, images):
        return self.conv(images)

class Mean(nn.Module):
    def __init__(self, width, classes, scale=1.0):
        super().__init__()
        self.linear, self.scale = nn.Linear(width, classes), scale
    def forward(self, tokens, maps=True):
        return plures.Output(self.linear(tokens.features.mean(1)) * self.scale)

class Scenes:
    """The built-in scenes, few of them."""
    def __init__(self, size=32):
        self.size = size
    def recognises(self, path):
        return not path
    def read(self, path):
        made = plures.read("scenes", train=12, val=6, test=6, size=self.size)
        return made, []

class Headless(nn.Module):
    pass

def function():
    pass
'''
KINDS = {"Twice": losses, "Tiny": backbones, "Mean": heads, "Scenes": formats}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on the path that was not imported yet; registries forget it with the test."""
    (tmp_path / "lib/strange").mkdir(parents=True)
    (tmp_path / "lib/strange/__init__.py").write_text("")
    (tmp_path / "lib/strange/made.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ALLOW, raising=False)
    for registry in KINDS.values():
        monkeypatch.setattr(registry, "_imported", {})
    yield tmp_path
    _forget()


def _forget():
    """As in a new process."""
    for registry in KINDS.values():
        registry._imported.clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "strange"]:
        del sys.modules[name]


SETTINGS = {
    "loss": {"name": "strange.made:Twice", "factor": 3.0},
    "backbone": "strange.made:Tiny",
    "head": "strange.made:Mean",
    "data": "strange.made:Scenes",
}


def test_a_run_of_ones_own_components_is_found_again_by_those_who_allow_it(package, monkeypatch):
    """Trained, named in its files, then in a new process: refused in one line, and found where it is allowed."""
    run = plures.train(Experiment(**SETTINGS, epochs=1, workers=0), "run")
    began = plures.evaluate(run.path).map
    assert "name: strange.made:Twice" in (run.path / "experiment.yaml").read_text()
    assert json.loads((run.path / "model.json").read_text())["parts"]["backbone"] == "strange.made:Tiny"
    _forget()
    (package / "was_imported").unlink()
    refused = r"names code outside plures, {} 'strange.made:\w+', and to import it is to run it.*ALLOW_IMPORTS=str"
    with pytest.raises(PluresError, match=r"model\.json " + refused.format("backbone")):
        load("run")
    for door in (plures.evaluate, Experiment.load, lambda _: plures.train(Experiment(), "run", resume=True)):
        with pytest.raises(PluresError, match=r"experiment\.yaml " + refused.format("backbone")):
            door("run/experiment.yaml" if door == Experiment.load else "run")
    with pytest.raises(PluresError, match="names code outside plures"):
        recipe_settings("run/experiment.yaml")
    assert not (package / "was_imported").exists()
    monkeypatch.setenv(ALLOW, "other, strange")
    assert plures.evaluate("run").map == pytest.approx(began)
    _forget()
    monkeypatch.setenv(ALLOW, "strang")
    with pytest.raises(PluresError, match="names code outside plures"):
        load("run")
    __import__("strange.made")
    assert load("run").classes == run_classes("run")


def run_classes(folder):
    return tuple(json.loads(open(f"{folder}/model.json").read())["classes"])


def test_another_process_of_the_same_program_finds_them(package):
    """An Experiment that is sent to a worker imports what it names."""
    sent = pickle.dumps(Experiment(**SETTINGS))
    _forget()
    pickle.loads(sent)
    assert losses.make("strange.made:Twice").factor == 2


def test_the_command_line_names_them(package):
    words = ["loss=strange.made:Twice", "loss.factor=3", "backbone=strange.made:Tiny", "head=strange.made:Mean"]
    code = [sys.executable, "-m", "plures.cli", "train", "strange.made:Scenes", *words, "epochs=1", "--out", "cli"]
    path = os.pathsep.join(p for p in [str(package / "lib"), os.environ.get("PYTHONPATH", "")] if p)
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(code, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    again = [sys.executable, "-m", "plures.cli", "evaluate", "cli"]
    refused = subprocess.run(again, capture_output=True, text=True, env=env)
    assert refused.returncode == 2
    assert "PLURES_ALLOW_IMPORTS=strange" in " ".join(refused.stderr.split())
    assert subprocess.run(again, capture_output=True, env=env | {ALLOW: "strange"}).returncode == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "strange.made:Twise"}, "cannot import strange.made:Twise .*AttributeError"),
        ({"loss": "strange.nowhere:Twice"}, "cannot import strange.nowhere:Twice .ModuleNotFoundError.*PYTHONPATH"),
        ({"loss": "strange.made:Tiny"}, "strange.made:Tiny is not a subclass of plures.losses.Loss"),
        ({"loss": "strange.made:function"}, "is not a subclass of plures.losses.Loss"),
        ({"loss": "os:system"}, "os:system is not a subclass of plures.losses.Loss"),
        ({"head": "strange.made:Scenes"}, "strange.made:Scenes is not a torch.nn.Module"),
        ({"loss": {"name": "strange.made:Twice", "facto": 1}}, "has no option 'facto'; did you mean 'factor'"),
        ({"loss": "rolee"}, "unknown loss 'rolee'; did you mean 'role'.*one of your own is named as module:attribute"),
        ({"backbone": "tinyyy_net"}, "unknown backbone 'tinyyy_net'.*module:attribute, as in my_package.mine:Mine"),
    ],
)
def test_what_is_wrong_with_a_component_is_one_line(package, settings, message):
    with pytest.raises(PluresError, match=message) as said:
        Experiment(**settings)
    assert "\n" not in str(said.value)


def test_a_file_cannot_have_a_function_called(package, monkeypatch):
    """os is imported in every process, but os:system is no loss."""
    (package / "evil.yaml").write_text("loss: {name: 'os:system', command: 'touch ran'}\n")
    with pytest.raises(PluresError, match="os:system is not a subclass"):
        Experiment.load("evil.yaml")
    assert not (package / "ran").exists()


def test_a_format_of_ones_own_with_a_path(package):
    assert len(plures.read("strange.made:Scenes", size=40)) == 24
    with pytest.raises(PluresError, match="no file or folder 'photos'"):
        plures.read("strange.made:Scenes:photos")
    with pytest.raises(PluresError, match="is not a class with recognises"):
        plures.read("strange.made:Tiny:photos")


def test_a_backbone_may_give_a_map_and_must_say_its_size(package):
    Experiment(**SETTINGS)
    model = build_model("strange.made:Tiny", "linear", ("a", "b"))
    tokens = model.tokens(torch.zeros(2, 3, 16, 24))
    assert isinstance(tokens, Tokens)
    assert tokens.features.shape == (2, 6, 4)
    save(model, "saved")
    assert torch.equal(load("saved")(torch.zeros(1, 3, 16, 16)).logits, model.eval()(torch.zeros(1, 3, 16, 16)).logits)
    with pytest.raises(PluresError, match="lacks width, image_size, mean, std"):
        build_model("strange.made:Headless", "linear", ("a",))


def test_entry_points_are_found_by_name_and_a_broken_one_stops_nobody(package, monkeypatch):
    def installed(group):
        good = EntryPoint("twice", "strange.made:Twice", group)
        broken = EntryPoint("broken", "strange.made:Nothing", group)
        theirs = EntryPoint("wan", "strange.made:Twice", group)  # a name of plures stays plures's
        return [good, broken, theirs] if group == "plures.losses" else []

    monkeypatch.setattr(registry_module, "entry_points", installed)
    monkeypatch.setattr(losses, "_loaded", False)
    monkeypatch.setattr(losses, "_points", {})
    assert {"twice", "broken", "wan"} <= set(losses.names())
    assert Experiment(loss={"name": "twice", "factor": 3}).loss.options == {"factor": 3}
    assert losses["twice"].title == "Twice the assume-negative loss."
    assert type(losses.make("wan")).__name__ == "WAN"
    with pytest.raises(PluresError, match=r"loss 'broken': cannot import strange.made:Nothing"):
        Experiment(loss="broken")
    with pytest.warns(UserWarning, match="loss 'broken'"):
        listed = [entry.name for entry in losses]
    assert "twice" in listed
    assert "broken" not in listed


def test_every_kind_has_its_group_of_entry_points():
    groups = {registry.group for registry in (*KINDS.values(), priors)}
    assert groups == {"plures.losses", "plures.backbones", "plures.heads", "plures.priors", "plures.formats"}
