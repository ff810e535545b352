"""`plures thresholds` on a small run, end to end: chosen, saved, used by evaluate; what cannot be done says why."""

import json
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plures.analysis.evaluate import evaluate, evaluate_positives_only
from plures.analysis.thresholds import choose_thresholds, from_logits
from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.export.graph import Graph
from plures.labels import Labels, mask_to_single_positive
from plures.metrics.choosing import Objective
from plures.metrics.report import evaluate_scores
from plures.metrics.thresholds import Thresholds, sigmoid
from plures.models.outputs import Output
from plures.runs.run import Run
from plures.training.train import train

SCENES = {"name": "scenes", "train": 96, "val": 64, "test": 48}
SMALL = {"data": SCENES, "device": "cpu", "workers": 0, "lr": 2e-3, "loss": "wan"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with one positive per scene, whose best epoch was chosen by held-out positives."""
    experiment = Experiment(**SMALL, epochs=2, supervision="single_positive", select="val_positives")
    return train(experiment, tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture(autouse=True)
def without_thresholds(run):
    (run / "thresholds.json").unlink(missing_ok=True)


def test_best_epoch_is_the_one_whose_observed_labels_are_likeliest(run):
    log = Run(run).log
    scores = [record["val_positives"] for record in log]
    assert all(np.log(0.1) - 1 < score < 0 for score in scores)
    selected = json.loads((run / "report.json").read_text())["selected"]
    assert selected["by"] == "val_positives"
    assert selected["epoch"] == int(np.argmax(scores))


def test_command_writes_a_table_two_sentences_and_a_file(plures, run):
    code, out, err = plures("thresholds", run, "--objective", "tags=2", "--global", "--calibrate", "temperature")
    assert (code, err) == (0, f"next: plures predict {run} PHOTOS --out found.csv\n")
    assert "Assumes: " in out
    assert "Guarantees: On these 64 images" in out
    assert "estimated from positives" in out
    stored = json.loads((run / "thresholds.json").read_text())
    assert stored["method"] == "positives, global"
    assert stored["objective"] == "tags=2"
    assert stored["calibration"]["kind"] == "affine"
    report = evaluate(run, split="val")
    assert report.tags_predicted == pytest.approx(2, abs=0.02)
    assert len({c.threshold for c in report.per_class}) == 1
    half = evaluate(run, split="val", threshold=0.999999)
    assert half.tags_predicted != report.tags_predicted
    assert report.map == pytest.approx(half.map)


def test_clean_f1_beats_one_half_where_it_was_chosen(run):
    before = evaluate(run, split="val").averages["macro_f1"]
    choice = choose_thresholds(run, source="clean")
    after = evaluate(run, split="val")
    assert after.averages["macro_f1"] > before
    assert after.averages["macro_f1"] == pytest.approx(np.mean([c.f1 for c in choice.per_class]))
    assert not choice.estimated


def test_reviewed_table_with_unknown_cells(plures, run, tmp_path):
    from plures.data.read import read

    scenes = read("scenes", **{k: v for k, v in SCENES.items() if k != "name"}).split("val")
    values = np.where(np.random.default_rng(0).random(scenes.labels.values.shape) < 0.3, -1, scenes.labels.values)
    reviewed = Dataset(scenes.images, Labels(values.astype(np.int8)), scenes.classes)
    choice = choose_thresholds(run, reviewed, source="reviewed", objective="recall=0.8")
    recalls = [c.recall for c in choice.per_class if not c.pooled]
    assert min(recalls) >= 0.8
    code, _, err = plures("thresholds", run, "--from", "reviewed")
    assert code == 2
    assert "needs the table of reviewed images" in err


def test_evaluation_with_positives_only(plures, run, tmp_path):
    code, out, err = plures("evaluate", run, "--positives-only", "--json", tmp_path / "report.json")
    assert (code, err) == (0, f"next: plures report {run}\n")
    assert "single-positive" in out
    assert "estimated" in out
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["images"] == 48
    assert stored["map_low"] <= stored["map"] <= stored["map_high"]
    assert sum(c["observed"] for c in stored["per_class"]) == 48  # one a scene: nothing else was looked at


def test_what_cannot_be_done_says_why(plures, run):
    for arguments, words in (
        (["--from", "positive"], "did you mean 'positives'"),
        (["--objective", "f2"], "objective 'f2' is unknown"),
        (["--calibrate", "platt"], "choose from: isotonic, none, temperature"),
    ):
        code, _, err = plures("thresholds", run, *arguments)
        assert code == 2
        assert words in err
    logits, labels = np.zeros((5, 2), np.float32), Labels(np.array([[1, -1]] * 5, np.int8))
    with pytest.raises(PluresError, match="known to be absent; use --from positives"):
        from_logits(logits, labels, ("a", "b"), source="clean", objective=Objective("f1"))
    full = Labels(np.array([[1, 0]] * 5, np.int8))
    with pytest.raises(PluresError, match="use --from clean"):
        from_logits(logits, full, ("a", "b"), source="positives", objective=Objective("f1"))
    assert not (run / "thresholds.json").exists()


def test_full_supervision_has_nothing_to_estimate(run):
    full = Run(run)
    full.experiment = full.experiment.change(["supervision=full"])
    with pytest.raises(PluresError, match="evaluate without --positives-only"):
        evaluate_positives_only(full)


def test_damaged_thresholds_stop_evaluation_in_one_line(plures, run):
    (run / "thresholds.json").write_text('{"thresholds": {')
    code, _, err = plures("evaluate", run)
    assert code == 2
    assert "choose again with `plures thresholds`" in err


# ------------------------------------------------------------------------------------------------- one rule everywhere


@st.composite
def held_out(draw):
    """Logits with ties and extremes, and complete labels in which every class is there and not there."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, classes = draw(st.integers(3, 30)), draw(st.integers(1, 4))
    present = random.random((images, classes)) < 0.4
    present[0], present[1] = True, False
    logits = draw(st.sampled_from([0.1, 3.0, 40.0])) * (random.normal(size=present.shape) + present)
    if draw(st.booleans()):
        logits = np.round(logits)
    return logits.astype(np.float32), Labels.from_masks(present), tuple(f"c{k}" for k in range(classes))


class Given(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.from_numpy(logits)

    def forward(self, pixels, maps):
        return Output(self.logits)


@given(
    held_out(),
    st.sampled_from(["none", "temperature", "isotonic"]),
    st.sampled_from(["f1", "precision=0.7", "recall=0.5", "tags=1"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_same_tags_are_called_when_chosen_after_reload_and_in_the_exported_graph(
    drawn, calibrating, objective, per_class
):
    logits, labels, classes = drawn
    aim = Objective.parse(objective)
    choice = from_logits(
        logits, labels, classes, source="clean", objective=aim, per_class=per_class, calibrating=calibrating
    )
    with tempfile.TemporaryDirectory() as folder:
        choice.thresholds.save(folder)
        back = Thresholds.load(folder, classes)
    called = back.called(logits)
    np.testing.assert_array_equal(called, choice.thresholds.called(logits))
    np.testing.assert_array_equal(called, Graph(Given(logits), back, False)(torch.zeros(1))[1].numpy())
    report = evaluate_scores(logits, labels, classes, threshold=back.cuts, bootstrap=0)
    for chosen, evaluated in zip(choice.per_class, report.per_class, strict=True):
        for name in ("precision", "recall", "f1"):
            assert getattr(evaluated, name) == pytest.approx(getattr(chosen, name), nan_ok=True)
    assert report.tags_predicted == pytest.approx(choice.tags_called)


@given(held_out(), st.sampled_from(["none", "temperature"]), st.booleans(), st.sampled_from(["f1", "recall=0.5"]))
@settings(max_examples=60, deadline=None)
def test_another_processor_calls_the_same_tags(drawn, calibrating, per_class, objective):
    """A cut lies in the middle between two logits, so that noise smaller than that flips nothing."""
    logits, labels, classes = drawn
    aim = Objective.parse(objective)
    chosen = from_logits(
        logits, labels, classes, source="clean", objective=aim, per_class=per_class, calibrating=calibrating
    ).thresholds
    steps = np.diff(np.unique(logits))
    noise = 0.4 * min(steps.min(initial=1.0), 1.0)
    for sign in (-1, 1):
        moved = (logits.astype(np.float64) + sign * noise).astype(np.float32)
        np.testing.assert_array_equal(chosen.called(moved), chosen.called(logits))


def synthetic(n=600, classes=5):
    random = np.random.default_rng(0)
    true = 3 * random.normal(size=(n, classes)) - 1.5
    present = random.random(true.shape) < sigmoid(true)
    present[:, 4] = False
    keep = present.any(1)
    labels = Labels.from_masks(present[keep])
    return (true[keep] / 2 + 1).astype(np.float32), labels, mask_to_single_positive(labels)


def test_positives_come_near_the_oracle_and_say_which_class_is_pooled():
    logits, labels, observed = synthetic()
    names = tuple("abcde")

    def f1(thresholds):
        called = thresholds.called(logits)
        return 2 * (called & labels.present).sum() / (called.sum() + labels.present.sum())

    kinds = {"source": "positives", "objective": Objective("f1"), "per_class": False}
    choice = from_logits(logits, observed, names, **kinds)
    oracle = from_logits(logits, labels, names, **{**kinds, "source": "clean"})
    assert f1(choice.thresholds) > f1(oracle.thresholds) - 0.01
    assert f1(Thresholds.constant(names)) < f1(choice.thresholds) - 0.03
    each = from_logits(logits, observed, names, **{**kinds, "per_class": True})
    assert [c.pooled for c in each.per_class] == ["", "", "", "", "no held-out positive"]
    assert each.per_class[4].threshold == choice.per_class[4].threshold
    assert np.isnan(each.per_class[4].recall)
    assert "1 of 5 classes have fewer than 20" in each.warning


@pytest.mark.parametrize("recall", [0.8, 0.95])
def test_recall_from_positives_holds_for_all_labels(recall):
    logits, labels, observed = synthetic(3000)
    choice = from_logits(logits, observed, tuple("abcde"), source="positives", objective=Objective("recall", recall))
    called = choice.thresholds.called(logits)
    reached = (called & labels.present).sum(0)[:4] / labels.present.sum(0)[:4]
    assert (reached > recall - 0.03).all()
    assert (reached < recall + 0.05).all()
