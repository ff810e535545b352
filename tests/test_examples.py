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
    "thresholds_from_positives.py": "runs/first",
    "suggest_and_merge.py": "runs/first tags.csv completed.csv",
}


def test_every_example_is_run_here_or_elsewhere():
    elsewhere = {"onnx_inference.py"}  # tests/inference/test_export.py
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(ARGUMENTS) | elsewhere


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_an_example_is_under_forty_lines(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40


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
    assert "hopeful" in Path("runs/mine/experiment.yaml").read_text()


def test_thresholds_from_positives(run):
    assert "tags a photo" in run("thresholds_from_positives.py")
    assert Path("runs/first/thresholds.json").is_file()


def test_suggest_and_merge(run):
    said = run("suggest_and_merge.py")
    assert "completed.csv: " in said
    known = sum(line.count("photos/") for line in Path("answers.csv").read_text().splitlines())
    assert known == 50
    rows = Path("completed.csv").read_text().splitlines()
    assert len(rows) == 41  # the answers are about the table's own photos
