"""The page of a run: whole, safe, without a network, and with the numbers of the evaluation."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.labels import Labels
from plures.metrics.intervals import bootstrap_map
from plures.metrics.ranking import ranking
from plures.metrics.reliability import reliability
from plures.report.measures import take_measures
from plures.report.photos import best_and_worst, margins
from plures.report.scored import score_run
from plures.runs.run import Run
from plures.scoring.measure import report_of
from plures.training.probabilities import read_probabilities
from plures.training.train import train

SCENES = {
    "data": {"name": "scenes", "train": 60, "val": 20, "test": 30},
    "supervision": "single_positive",
    "epochs": 2,
    "device": "cpu",
    "workers": 0,
    "backbone": {"name": "small_conv", "width": 16},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(Experiment(**SCENES), tmp_path_factory.mktemp("runs") / "one<run>\u202e").path


class Tags(HTMLParser):
    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self):
        super().__init__()
        self.open, self.all = [], []

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page(plures, run, tmp_path):
    code, out, err = plures("report", run, "--out", tmp_path / "r.html", "--resamples", "20")
    assert code == 0, err
    assert "opens without a network" in out
    text = (tmp_path / "r.html").read_text()
    assert "\u202e" not in text  # it would turn the direction of all that follows
    assert (tmp_path / "r.html").stat().st_size < 5e6
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    loads = [v for tag, attrs in parser.all for k, v in attrs.items() if k in ("src", "xlink:href") or tag == "link"]
    assert loads
    assert all(v.startswith(("data:", "#")) for v in loads)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "one&lt;run&gt;" in text
    assert "<run>" not in text
    assert "prefers-color-scheme: dark" in text
    report = report_of_run(run)
    assert f"<b>{100 * report['map']:.1f}</b>" in text
    for words in (
        "single-positive: one present tag per image",
        "complete: every class of every image is known",
        "AP definition",
        "Expected calibration error",
        "What becomes of the hidden positives",
        "Probable missing tags",
        "these labels are known here",
        "None was chosen for this run",
    ):
        assert words in text, words
    ids = re.findall(r'<(?:g|path|clipPath|defs|use)[^>]* id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_a_head_that_was_solved_for(plures, tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    solved = {"stages": {"name": "ridge", "l2": [0.5, 2.0]}, "head": "linear"}
    train(Experiment(**SCENES, **solved), tmp_path / "run")
    code, _, err = plures("report", tmp_path / "run", "--out", tmp_path / "r.html", "--resamples", "20")
    assert code == 0, err
    text = (tmp_path / "r.html").read_text()
    assert "trained with the loss least_squares" in text
    assert "ridge: in closed form for 2 strengths" in text
    assert "strength l2" in text


def report_of_run(run):
    import json

    return json.loads((run / "report.json").read_text())


def test_mistakes(plures, run, tmp_path):
    for arguments, words in (
        (("report", tmp_path), "no run here"),
        (("report", run, "--out", tmp_path / "r.pdf"), "expected a name that ends in .html"),
        (("report", run, "--split", "tset"), "did you mean 'test'"),
    ):
        code, _, err = plures(*arguments)
        assert code == 2
        assert words in err


def test_hidden_labels_are_logged_each_epoch_and_only_where_there_are_any(run, tmp_path):
    records = read_probabilities(Run(run))
    assert [r["epoch"] for r in records] == [0, 1]
    for r in records:
        assert r["observed_positives"]["count"] == r["rows"] == 60
        assert r["hidden_positives"]["count"] > 0
        assert sum(r["negatives"]["histogram"]) == pytest.approx(1, abs=1e-3)
        assert r["negatives"]["quantiles"] == sorted(r["negatives"]["quantiles"])
    full = train(Experiment(**{**SCENES, "supervision": "full", "loss": "bce", "epochs": 1}), tmp_path / "full")
    assert not (full.path / "probabilities.jsonl").exists()


# ------------------------------------------------------------------------------------------------------- the numbers


def some(n=80, k=8, unknown=0.2):
    random = np.random.default_rng(3)
    present = random.random((n, k)) < 0.4
    values = np.where(random.random((n, k)) < unknown, -1, present).astype(np.int8)
    logits = (random.normal(size=(n, k)) + 1.5 * present).astype(np.float32)
    return logits, Labels(values)


def test_measures_are_those_of_the_evaluation():
    logits, labels = some()
    classes = tuple("abcdefgh")
    report = report_of(logits, Dataset(["x"] * 80, labels, classes), Experiment())
    found = {m.name: m for m in take_measures(logits, labels, logits >= 0, report, resamples=60)}
    assert found["mAP"].value == report.map
    expected = bootstrap_map(logits, labels, "plain", 60, 0)
    assert (found["mAP"].interval.low, found["mAP"].interval.high) == pytest.approx((expected.low, expected.high))
    for name, value in report.averages.items():
        assert found[name].value == pytest.approx(value)
    assert found["tags per image"].value == pytest.approx(report.tags_predicted)
    for whole in ranking(logits, labels):
        assert found[f"P@{whole.k}"].value == whole.precision
        assert found[f"R@{whole.k}"].value == whole.recall
    for m in found.values():
        assert m.interval.low <= m.value <= m.interval.high
        assert np.std(m.samples) > 0


def test_samples_are_the_measure_of_the_drawn_images():
    logits, labels = some()
    report = report_of(logits, Dataset(["x"] * 80, labels, tuple("abcdefgh")), Experiment())
    found = {m.name: m for m in take_measures(logits, labels, logits >= 0, report, resamples=3, seed=7)}
    drawn = np.random.default_rng(7).integers(0, 80, 80)  # the first resample, as `multiplicities` draws
    again = report_of(logits[drawn], Dataset(["x"] * 80, labels.take(drawn), tuple("abcdefgh")), Experiment())
    assert found["CF1"].samples[0] == pytest.approx(again.averages["CF1"])
    assert found["tags per image"].samples[0] == pytest.approx(again.tags_predicted)
    assert found["R@3"].samples[0] == pytest.approx(ranking(logits[drawn], labels.take(drawn), (3,))[0].recall)


def test_reliability_by_hand():
    labels = Labels(np.array([[1, 0, -1], [1, 0, 1]], np.int8))
    found = reliability(np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.3]]), labels, bins=2)
    assert found.cells.tolist() == [3, 2]
    assert found.present.tolist() == pytest.approx([1 / 3, 1])
    assert found.probability.tolist() == pytest.approx([0.5 / 3, 0.9])
    assert found.error == pytest.approx((3 * (0.5 / 3) + 2 * 0.1) / 5)
    assert np.isnan(reliability(np.array([[0.5]]), Labels(np.array([[-1]], np.int8))).error)


def test_best_and_worst():
    labels = Labels(np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, -1]], np.int8))
    logits = np.array([[3.0, 2, 0], [9, 0, 0], [0, 1, 5], [1, 1, 1], [0, 0, 0]])
    assert margins(logits, labels)[:3].tolist() == [2, 9, -5]
    assert np.isnan(margins(logits, labels)[3:]).all()
    best, worst = best_and_worst(logits, labels, 1)
    assert (best.tolist(), worst.tolist()) == ([0], [2])  # row 1 has one tag alone


def test_without_a_test_split_the_validation_rows_are_scored(tmp_path):
    random = np.random.default_rng(0)
    lines = ["image,cat,dog,split"]
    for i in range(16):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{1 - i % 2},{'train' if i < 8 else 'val'}")
    (tmp_path / "tags.csv").write_text("\n".join(lines))
    e = Experiment(data=str(tmp_path / "tags.csv"), epochs=1, batch_size=4, image_size=32, device="cpu", workers=0)
    run = train(e, tmp_path / "run")
    scored = score_run(run.path, resamples=2)
    assert (scored.split, len(scored.dataset)) == ("val", 8)
