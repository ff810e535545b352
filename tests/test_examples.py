"""Each example is short, and runs on tiny data."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest

import tiny_world

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {
    "make_photos.py": "made 12",
    "train_on_own_table.py": "tags.csv runs/own",
    "new_loss.py": "tags.csv runs/mine",
    "own_components.py": "named runs/own_components",
    "plain_loop.py": "",
    "lightning_module.py": "",
    "thresholds_from_positives.py": "runs/first",
    "suggest_and_merge.py": "runs/first tags.csv completed.csv",
}


def test_every_example_is_run_here_or_elsewhere():
    elsewhere = {"onnx_inference.py"}  # tests/inference/test_export.py
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(ARGUMENTS) | elsewhere


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_an_example_is_under_forty_lines(example):
    most = {"plain_loop.py": 30, "own_components.py": 60}.get(example.name, 40)  # the last one holds three
    assert len(example.read_text(encoding="utf-8").splitlines()) < most


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        tiny_world.shrink(patch)
        patch.chdir(folder)
        tiny_world.build(folder)
    return folder


@pytest.fixture
def run(world, tmp_path, monkeypatch, capsys):
    """Run an example with its arguments in a copy of the tiny world; gives what it printed."""
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as `python examples/NAME.py` does
    tiny_world.shrink(monkeypatch)

    def call(name):
        monkeypatch.setattr(sys, "argv", [name, *ARGUMENTS[name].split()])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


pytestmark = pytest.mark.slow


def test_make_photos(run):
    run("make_photos.py")
    made = list(Path("made").rglob("*.png"))
    assert len(made) == 12
    rows = Path("truth.csv").read_text().splitlines()
    assert len(rows) == 13
    assert all(any(p.parent.name in row and str(p) in row for row in rows) for p in made)


def test_train_on_own_table(run):
    said = run("train_on_own_table.py")
    assert "40 images, " in said
    assert Path("runs/own/model_card.md").is_file()


def test_new_loss(run):
    assert "mAP" in run("new_loss.py")
    assert "name: new_loss:Hopeful" in Path("runs/mine/experiment.yaml").read_text()


def test_own_components(run):
    Path("named").mkdir()
    for n, photo in enumerate(sorted(Path("photos").rglob("*.png"))):
        shutil.copy(photo, Path("named") / f"{photo.parent.name}_{n:02}.png")
    classes = sorted({photo.name.split("_")[0] for photo in Path("named").iterdir()})
    assert str(tuple(classes)) in run("own_components.py")
    assert '"head": "own_components:Brightest"' in Path("runs/own_components/model.json").read_text()


def test_plain_loop(run):
    assert "of all labels are right" in run("plain_loop.py")


def test_lightning_module(run):
    pytest.importorskip("lightning.pytorch")
    said = run("lightning_module.py")
    assert "['criterion.memory.table', 'criterion.memory.first', 'criterion.memory.second'" in said


def test_thresholds_from_positives(run):
    assert "tags per photo" in run("thresholds_from_positives.py")
    assert Path("runs/first/thresholds.json").is_file()


def test_suggest_and_merge(run):
    said = run("suggest_and_merge.py")
    assert "completed.csv: " in said
    known = sum(line.count("photos/") for line in Path("answers.csv").read_text().splitlines())
    assert known == 50
    rows = Path("completed.csv").read_text().splitlines()
    assert len(rows) == 41  # the answers are about the table's own photos
