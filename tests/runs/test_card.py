"""The card says what the run's files say, is renewed with the thresholds, and leaves a person's edits alone."""

import json

import numpy as np
import pytest

import plures
from plures.analysis.thresholds import choose_thresholds
from plures.data.dataset import Dataset
from plures.runs.card import MARK, model_card, write_card
from plures.runs.run import Run, environment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = {"name": "scenes", "train": 40, "val": 20, "test": 20, "size": 32}
    experiment = plures.Experiment(data=data, supervision="single_positive", epochs=1, image_size=32, loss="auto")
    return plures.train(experiment, tmp_path_factory.mktemp("runs") / "one")


def card(run):
    return (run.path / "model_card.md").read_text()


def test_a_run_comes_with_its_card(run):
    text = card(run)
    report = json.loads((run.path / "report.json").read_text())
    assert text.startswith("---\nlibrary_name: plures\n")
    assert "40 images of `scenes`. The labels are *single-positive*" in text
    assert "(40 present, 0 absent, 360 unknown)" in text
    assert "What of them training saw was simulated: `single_positive`" in text
    assert f"mAP {100 * report['map']:.1f} percent (average precision `plain`" in text
    assert "On 20 images of split `test`, whose labels are *complete*" in text
    assert "Loss `gr`" in text  # what auto chose, not auto
    assert "weights as they were after epoch 1, chosen by" in text
    assert "0.5 for every class, which nobody has chosen" in text


def test_the_command_can_be_typed_again(run, monkeypatch):
    shown = plures.read("scenes", train=4, val=0, test=0, size=32)
    monkeypatch.setattr(
        "sys.argv", ["/home/some one/plures/cli/__main__.py", "train", "my photos/tags.csv", "--out", "r"]
    )
    assert environment(shown)["command"] == "plures train 'my photos/tags.csv' --out r"
    monkeypatch.setattr("sys.argv", ["/usr/bin/plures", "train"])
    assert environment(shown)["command"] == "plures train"


def test_the_card_follows_the_thresholds(run):
    choose_thresholds(run, objective="tags=1.5", per_class=False)
    text = card(run)
    assert "`positives, global` for `tags=1.5`" in text
    assert "nobody has chosen" not in text


def test_a_persons_edits_stay(run):
    before = card(run)
    own = before.replace(MARK + "\n", "") + "Mine.\n"
    (run.path / "model_card.md").write_text(own)
    write_card(run)
    assert card(run) == own
    (run.path / "model_card.md").write_text(before)


def test_undefined_is_said(run, tmp_path):
    d = plures.read("scenes", train=12, val=4, test=4, size=32)
    positives = Dataset(d.images, plures.Labels.from_masks(d.labels.present, np.zeros_like(d.labels.present)),
                        d.classes, d.splits, name="some.csv")  # fmt: skip
    other = plures.train(plures.Experiment(epochs=1, image_size=32, select="last"), tmp_path / "r", dataset=positives)
    text = model_card(Run(other.path))
    assert "mAP is undefined" in text
    assert "judged by incomplete labels" in text
    assert "Fewer than 10 positives" in text
