"""teacher=RUN: what it adds, where that is kept, and what it may not do."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from plures.analysis.evaluate import judged
from plures.config import Experiment
from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.thresholds import sigmoid
from plures.models.model import load
from plures.report.page import trained_on
from plures.report.scored import scored
from plures.runs.data import mask_splits, prepare
from plures.runs.photos import Photos, contents
from plures.runs.run import Run
from plures.training import cross_fitting
from plures.training.cross_fitting import out_of_fold
from plures.training.progress import Quiet
from plures.training.self_training import PRECISION, choose
from plures.training.train import train
from training.test_train import SMALL, coloured

DATA = coloured(160)
SINGLE = {**SMALL, "supervision": "single_positive"}


class Says(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


class Stops(Quiet):
    """A Callback that stops the run after its first epoch."""

    def epoch(self, record):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    experiment = Experiment(**SINGLE, loss="gr")
    return train(experiment, tmp_path_factory.mktemp("self") / "teacher", dataset=DATA)


@pytest.fixture(scope="module")
def student(teacher):
    says = Says()
    experiment = Experiment(**SINGLE, loss="an", teacher=str(teacher.path), teacher_threshold=0.4)
    return train(experiment, teacher.path.parent / "student", dataset=DATA, callback=says), says.lines


def test_unknown_cells_above_the_threshold_are_added_and_counted(teacher, student):
    run, lines = student
    prepared = mask_splits(run.experiment, DATA)
    with torch.inference_mode():
        images = torch.from_numpy(np.asarray(prepared.train.images)).permute(0, 3, 1, 2)
        scores = sigmoid(load(teacher.path)(images).logits.numpy())
    expected = (scores >= 0.4) & prepared.train.labels.unknown
    assert 0 < expected.sum() < prepared.train.labels.unknown.sum()
    tags = pd.read_parquet(run.path / "added_tags.parquet")
    summary = json.loads((run.path / "self_training.json").read_text())
    given = np.zeros_like(expected)
    given[tags["row"], [DATA.classes.index(name) for name in tags["class"]]] = True
    np.testing.assert_array_equal(given, expected)
    right = int((expected & prepared.train_known.present).sum())
    assert (summary["added"], summary["known"], summary["right"]) == (expected.sum(), expected.sum(), right)
    seen = json.loads((run.path / "environment.json").read_text())["train_labels"]
    assert seen["present"] == prepared.train.labels.present.sum() + expected.sum()
    assert seen["absent"] == 0
    assert any(f"{expected.sum()} tags added" in line and f"{right} are right" in line for line in lines)
    assert f"{expected.sum()} tags added" in (run.path / "model_card.md").read_text()


def test_the_report_says_what_was_added(student):
    run = student[0]
    page = trained_on(scored(run, judged(run, DATA, None, {}, False), 2))
    assert page["added by the teacher"].endswith("are right")


def test_a_resumed_run_does_not_ask_its_teacher_again(teacher, student, tmp_path):
    gone = tmp_path / "teacher"
    gone.symlink_to(teacher.path)
    experiment = Experiment(**SINGLE, loss="an", teacher=str(gone), teacher_threshold=0.4)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "run", dataset=DATA, callback=Stops())
    added = (tmp_path / "run" / "added_tags.parquet").read_bytes()
    gone.unlink()
    resumed = train(Run(tmp_path / "run").experiment, tmp_path / "run", dataset=DATA, resume=True)
    assert (resumed.path / "added_tags.parquet").read_bytes() == added
    weights = [load(path).state_dict() for path in (resumed.path, student[0].path)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_no_image_that_the_teacher_was_trained_on_is_judged(teacher, tmp_path):
    bare = replace(DATA, splits=None)
    first = train(Experiment(**SINGLE, loss="gr", seed=1), tmp_path / "first", dataset=bare)
    experiment = Experiment(**SINGLE, loss="an", seed=2, teacher=str(first.path), teacher_threshold=0.9)
    second = train(experiment, tmp_path / "second", dataset=bare)
    before, after = (
        dict(zip(p.contents.tolist(), p.splits, strict=True)) for p in map(Photos.load, (first.path, second.path))
    )
    assert before == after


def test_a_validation_split_that_the_teacher_cut_off_is_kept(teacher, tmp_path):
    halves = replace(DATA, splits=np.where(DATA.splits == "val", "train", DATA.splits))
    first = train(Experiment(**SINGLE, loss="gr", seed=1), tmp_path / "first", dataset=halves)
    experiment = Experiment(**SINGLE, loss="an", seed=2, teacher=str(first.path), teacher_threshold=0.9)
    prepared = [prepare(e, halves) for e in (first.experiment, experiment)]
    before, after = ([set(contents(part)) for part in (p.train, p.val, p.test)] for p in prepared)
    assert before == after


def test_cross_fitting_leaves_the_teacher_out(student):
    rows = mask_splits(student[0].experiment, DATA).train
    assert np.isfinite(out_of_fold(student[0], rows, 2)).all()


def test_the_threshold_is_the_lowest_at_which_the_estimate_is_good_enough():
    random = np.random.default_rng(0)
    p = random.beta(0.3, 0.9, (4000, 6))
    present = random.random(p.shape) < p
    values = np.full(p.shape, -1, np.int8)
    for row in np.flatnonzero(present.any(1)):
        values[row, random.choice(np.flatnonzero(present[row]))] = 1
    logits, observed = np.log(p / (1 - p)).astype(np.float32), Labels(values)
    threshold, precision = choose(logits, observed)
    unknown = observed.unknown & observed.present.any(1)[:, None]
    above = unknown & (p >= threshold)
    assert precision == pytest.approx(PRECISION, abs=0.005)
    assert present[above].mean() == pytest.approx(PRECISION, abs=0.03)
    assert choose(logits, observed, 0.5)[1] == pytest.approx(present[unknown & (p >= 0.5)].mean(), abs=0.03)
    assert np.isnan(choose(logits, observed, 1 - 1e-12)[1])


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """A run stopped after the first round and two of its folds, and resumed."""
    out, asked = tmp_path_factory.mktemp("rounds") / "run", []
    with pytest.MonkeyPatch.context() as m:
        real = cross_fitting._retrained

        def fold(experiment, dataset, rest, held_out, callback):
            asked.append((dataset.images[rest], held_out))
            if len(asked) == 3:
                raise KeyboardInterrupt
            return real(experiment, dataset, rest, held_out, callback)

        m.setattr(cross_fitting, "_retrained", fold)
        experiment = Experiment(**SINGLE, loss="gr", rounds=2, teacher_threshold=0.4)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, out, dataset=DATA)
        first = (out / "first_round" / "model.safetensors").stat().st_mtime_ns
        run = train(Run(out).experiment, out, dataset=DATA, resume=True)
    assert (out / "first_round" / "model.safetensors").stat().st_mtime_ns == first
    return run, asked


def test_two_rounds_ask_each_fold_once_and_only_models_that_did_not_see_it(two_rounds):
    run, asked = two_rounds
    train_rows = mask_splits(run.experiment, DATA).train
    held = np.concatenate([rows for place, (_, rows) in enumerate(asked) if place != 2])  # the third was interrupted
    np.testing.assert_array_equal(np.sort(held), np.arange(len(train_rows)))
    for rest, rows in asked:
        assert not {a.tobytes() for a in rest} & {train_rows.images[i].tobytes() for i in rows}


def test_two_rounds_add_what_the_folds_are_sure_of(two_rounds):
    run = two_rounds[0]
    prepared = mask_splits(run.experiment, DATA)
    unknown = prepared.train.labels.unknown
    expected = unknown & (sigmoid(np.load(run.path / "first_round" / "folds.npy")) >= 0.4)
    assert 0 < expected.sum() < unknown.sum()
    summary = json.loads((run.path / "self_training.json").read_text())
    right = int((expected & prepared.train_known.present).sum())
    assert (summary["added"], summary["right"]) == (expected.sum(), right)
    assert summary["teacher"] == "cross-fitted on 5 folds"
    seen = json.loads((run.path / "environment.json").read_text())["train_labels"]
    assert seen["present"] == prepared.train.labels.present.sum() + expected.sum()
    assert Run(run.path / "first_round").experiment.rounds == 1


def test_frozen_features_take_two_rounds(tmp_path):
    experiment = Experiment(
        data=f"features:{features_file(tmp_path)}", supervision="single_positive", stages="ridge", rounds=2
    )
    run = train(experiment, tmp_path / "run")
    tags = pd.read_parquet(run.path / "added_tags.parquet")
    summary = json.loads((run.path / "self_training.json").read_text())
    assert summary["added"] == len(tags) == summary["known"]
    assert len(tags) > 0
    assert summary["right"] / summary["known"] > 0.8


def features_file(folder):
    """300 images of 8 features, of which class k is present with a chance that feature k gives."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 8)).astype(np.float32)
    y = np.hstack([x[:, :4] > 0, (x[:, :4] > 0).sum(1, keepdims=True) == 0])
    np.savez(folder / "f.npz", features=x, labels=y.astype(np.int8), classes=list("abcde"))
    return folder / "f.npz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "nowhere"}, "nowhere: no run here"),
        ({"teacher_threshold": 0.5}, "no effect without a teacher"),
        ({"teacher": "TEACHER", "supervision": "full"}, "nothing to add"),
        ({"rounds": 2, "supervision": "full"}, "nothing to add"),
        ({"rounds": 2, "teacher": "TEACHER"}, "a run has one teacher"),
        ({"rounds": 3}, "rounds"),
        ({"rounds": 2, "loss": "en_scl", "head": "codebook"}, "needs"),
    ],
)
def test_what_cannot_be_taught_is_refused(teacher, tmp_path, changes, message):
    given = {k: str(teacher.path) if v == "TEACHER" else v for k, v in changes.items()}
    with pytest.raises(PluresError, match=message):
        train(Experiment(**{**SINGLE, "loss": "an", **given}), tmp_path / "run", dataset=DATA)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_refused(teacher, tmp_path):
    other = replace(DATA, classes=("red", "green", "violet"))
    with pytest.raises(PluresError, match="it knows 3 classes"):
        train(Experiment(**SINGLE, loss="an", teacher=str(teacher.path)), tmp_path / "run", dataset=other)
