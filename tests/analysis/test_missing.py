"""Ranking missing and wrong tags; scores by models that did not see the labels."""

import csv

import numpy as np
import pytest
from PIL import Image

from plures import Experiment, Run, train
from plures.analysis.missing import against_prior, rank_missing, remembered, score, suggest, write_suggestions
from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.thresholds import sigmoid
from plures.models.model import load
from plures.runs.data import prepare
from plures.runs.own_data import own_data
from plures.scoring.device import make_fabric
from plures.scoring.logits import logits_of_dataset
from plures.training.cross_fitting import divide, out_of_fold

P = np.array([[0.9, 0.2, 0.1], [0.8, 0.7, 0.05], [0.1, 0.6, 0.02]])
L = Labels(np.array([[1, -1, -1], [-1, 0, -1], [1, -1, 0]], np.int8))


def test_unknown_cells_by_probability():
    found = rank_missing(P, L, images=["a", "b", "c"], classes=["x", "y", "z"])
    assert [(s.image, s.tag) for s in found] == [("b", "x"), ("c", "y"), ("a", "y"), ("a", "z"), ("b", "z")]
    assert [s.rank for s in found] == [1, 2, 3, 4, 5]
    assert [s.score for s in found] == pytest.approx([0.8, 0.6, 0.2, 0.1, 0.05])
    assert {s.kind for s in found} == {"missing"}
    assert [(s.row, s.column) for s in rank_missing(P, L, top=2)] == [(1, 0), (2, 1)]


def test_known_cells_that_look_wrong():
    wrong = [s for s in rank_missing(P, L, with_wrong=True) if s.kind == "wrong"]
    assert [(s.row, s.column, s.rank) for s in wrong] == [(2, 0, 1), (1, 1, 2)]  # present at .1; absent at .7
    assert all(s.score > 0.5 for s in wrong)


def test_the_prior_takes_out_how_usual_a_class_is():
    by_hand = (0.1 / 0.9) / ((0.17 / 3) / (1 - 0.17 / 3))
    assert against_prior(P)[0, 2] == pytest.approx(by_hand / (1 + by_hand))
    p = np.full((10, 2), [0.5, 0.01])
    p[0] = [0.6, 0.3]  # a little more than usual in a frequent class, much more in a rare one
    labels = Labels(np.full((10, 2), -1, np.int8))
    assert (rank_missing(p, labels, top=1)[0].column, rank_missing(p, labels, top=1, normalise="prior")[0].column) == (
        0,
        1,
    )


def test_ties_and_top_are_a_prefix_of_the_whole():
    random = np.random.default_rng(0)
    p = random.integers(1, 5, (50, 7)) / 5
    labels = Labels(random.integers(-1, 2, (50, 7)).astype(np.int8))
    whole = [(s.row, s.column) for s in rank_missing(p, labels)]
    assert len(whole) == labels.unknown.sum()
    assert [(s.row, s.column) for s in rank_missing(p, labels, top=37)] == whole[:37]


def test_sure_scores_still_differ():
    p = np.array([[1 - 1e-10, 1 - 1e-12]])
    assert [s.column for s in rank_missing(p, Labels(np.array([[-1, -1]], np.int8)))] == [1, 0]


def test_what_cannot_be_ranked():
    with pytest.raises(ValueError, match="nan"):
        rank_missing(np.where(P > 0.8, np.nan, P), L)
    with pytest.raises(ValueError, match="labels"):
        rank_missing(P[:2], L)
    with pytest.raises(PluresError, match="normalisation"):
        rank_missing(P, L, normalise="odds")
    assert rank_missing(P, Labels(np.zeros((3, 3), np.int8))) == []


# ------------------------------------------------------------------------------------------------- with a trained run

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (40, 60, 230)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """80 pictures with one or two coloured halves, one tag each; in every tenth the tag is wrong. And what is true."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    rows, truth = [], {}
    for i in range(80):
        tags = [str(t) for t in random.permutation(list(COLOURS))[: random.integers(1, 3)]]
        pixels = random.integers(0, 50, (32, 32, 3), dtype=np.uint8)
        for slot, tag in enumerate(tags):
            pixels[:, 16 * slot : 16 * slot + 16] = COLOURS[tag]
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        said = next(c for c in COLOURS if c not in tags) if i % 10 == 9 else tags[0]
        rows.append([f"{i:03d}.png", said, "test" if i >= 70 else "train"])
        truth[f"{i:03d}.png"] = set(tags)
    with (folder / "tags.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["image", "tags", "split"], *rows])
    return folder, truth


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Run:
    experiment = Experiment(
        data=str(photos[0] / "tags.csv"),
        group_near_copies=False,  # these pictures are alike
        backbone={"name": "small_conv", "image_size": 32},
        head="linear",
        loss="role",
        stages="probe",
        epochs=30,
        lr=0.5,  # features of an untrained backbone are nearly the same for all
        select="last",
        batch_size=8,
        device="cpu",
        workers=0,
    )
    with pytest.MonkeyPatch.context() as m:
        m.setenv("PLURES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield train(experiment, tmp_path_factory.mktemp("runs") / "run")


def test_folds_hold_every_row_once_and_every_class_evenly():
    labels = Labels(np.where(np.arange(60)[:, None] % 3 == np.arange(3), 1, -1).astype(np.int8))
    fold = divide(labels, 5)
    assert np.bincount(fold).tolist() == [12] * 5
    assert all(labels.present[fold == f].sum(0).tolist() == [4, 4, 4] for f in range(5))


def test_cross_fitted_scores_do_not_know_the_label(run):
    """Turn one row's label round: its own score must not move, as no model that scores it has seen it."""
    data = prepare(run.experiment, own_data(run, {}, False)).train
    values = data.labels.values.copy()
    before = out_of_fold(run, data, 4)
    row = int(np.flatnonzero(divide(data.labels, 4) == 2)[0])
    swapped = values.copy()
    swapped[row] = np.roll(values[row], 1)
    with pytest.MonkeyPatch.context() as m:  # the folds may depend on the labels; here they must not
        m.setattr("plures.training.cross_fitting.divide", lambda labels, folds, seed=0: divide(data.labels, 4))
        after = out_of_fold(run, data.with_labels(Labels(swapped)), 4)
    assert np.isfinite(before).all()
    assert np.allclose(before[row], after[row], atol=1e-6)
    assert not np.allclose(before, after, atol=1e-3)  # the others' scores do move


def test_too_few_folds(run):
    data = prepare(run.experiment, own_data(run, {}, False)).train
    with pytest.raises(PluresError, match="2 folds"):
        out_of_fold(run, data, 1)


def test_suggestions_find_hidden_tags_and_wrong_ones(run, photos):
    found, data = suggest(run, with_wrong=True)
    assert isinstance(data, Dataset)
    assert found[0].method == "model + cross-fit 5 + label state"
    missing = [s for s in found if s.kind == "missing"]
    assert len(missing) == data.labels.unknown.sum() == 160
    name = lambda s: s.image.rsplit("/", 1)[-1]  # noqa: E731
    right = [s.tag in photos[1][name(s)] for s in missing]
    assert np.mean(right[:20]) > np.mean(right) + 0.3
    wrong = [s for s in found if s.kind == "wrong"]
    assert np.mean([s.tag not in photos[1][name(s)] for s in wrong[:4]]) > 0.5


def test_what_a_run_remembers_is_read_where_it_fits(run):
    shape = (len(prepare(run.experiment, own_data(run, {}, False)).train), 3)
    assert remembered(run, shape, with_state=True)["label state"].shape == shape
    assert remembered(run, shape, with_state=False) == {}  # it kept no history
    assert remembered(run, (shape[0] + 1, 3), with_state=True) == {}


def test_the_mean_over_the_epochs_is_averaged_in_where_the_run_kept_it(run, tmp_path):
    changes = {"history": True, "loss": "wan", "epochs": 3}
    other = train(Experiment(**{**run.experiment.to_dict(), **changes}), tmp_path / "run")
    data = own_data(other, {}, False)
    prepared = prepare(other.experiment, data).train
    history = remembered(other, prepared.labels.values.shape, with_state=False)["history"]
    own = logits_of_dataset(load(other.path), prepared, other.experiment, make_fabric(other.experiment))
    found = score(other, None, cross_fit=0, options={}, skip_bad=False)
    assert found.method == "model + history"
    rows = np.flatnonzero(found.dataset.splits == "train")
    assert np.allclose(found.probabilities[rows], sigmoid((own + history) / 2), atol=1e-5)
    assert not np.allclose(own, history, atol=1e-3)


def test_end_to_end_is_trained_anew(run, photos, tmp_path):
    changes = {"stages": "finetune", "epochs": 1, "loss": "an", "lr": 1e-3, "select": "auto", "patience": 1}
    other = train(Experiment(**{**run.experiment.to_dict(), **changes}), tmp_path / "run")
    data = prepare(other.experiment, own_data(other, {}, False)).train.take(np.arange(20))
    assert np.isfinite(out_of_fold(other, data, 2)).all()


def test_the_command_writes_a_table_with_pictures(plures, run, photos, tmp_path):
    out = tmp_path / "review.csv"
    code, text, err = plures(
        "suggest", run.path, "--out", out, "--top", 5, "--heatmaps", tmp_path / "heat", "--with-wrong"
    )
    assert code == 0, err
    assert "5 tags probably missing" in text
    with out.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["image", "tag", "kind", "score", "rank", "method", "heatmap"]
    assert [r["rank"] for r in rows if r["kind"] == "missing"] == list("12345")
    for row in rows:
        assert (tmp_path / row["image"]).resolve().is_file()
        assert Image.open(tmp_path / row["heatmap"]).size == (32, 32)
    assert plures("suggest", run.path, "--cross-fit", 1)[0] == 2
    assert plures("suggest", run.path, "--out", tmp_path / "x.txt")[0] == 2


def test_other_data_is_scored_by_models_that_did_not_see_it(run, photos, tmp_path):
    """The same table by its path: training rows are cross-fitted as in the run's own data."""
    own, _ = suggest(run, cross_fit=0)
    given, _ = suggest(run, str(photos[0] / "tags.csv"), cross_fit=3)
    assert given[0].method == "model + cross-fit 3"
    assert {(s.row, s.column) for s in own} == {(s.row, s.column) for s in given}


def test_a_file_of_another_kind(tmp_path):
    with pytest.raises(PluresError, match="csv"):
        write_suggestions([], tmp_path / "a.json", Dataset(["a"], L.take([0]), ("x", "y", "z")))
