"""PartialLabelRidge: scikit-learn's own checks, what it chooses, and what it refuses."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array
from sklearn.utils.estimator_checks import check_estimator

from plures.sklearn import PartialLabelRidge

OTHERWISE = {}  # checks of scikit-learn that do not pass, with the reason


def world(rows=300, classes=4, width=12, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, width)).astype(np.float32)
    truth = (X @ rng.normal(size=(width, classes)) > 1.5).astype(np.int8)
    return X, truth


def one_positive(truth, seed=0):
    rng = np.random.default_rng(seed)
    Y = np.full(truth.shape, -1)
    for row, found in enumerate(truth):
        if found.any():
            Y[row, rng.choice(np.flatnonzero(found))] = 1
    return Y


def test_complete_labels_equal_ridge_of_scikit_learn():
    X, truth = world()
    ours = PartialLabelRidge(alphas=0.3, normalize=False).fit(X, truth)
    scaled = StandardScaler().fit_transform(X)
    theirs = Ridge(alpha=0.3 * len(X)).fit(scaled, 6.0 * truth - 3)
    np.testing.assert_allclose(ours.decision_function(X), theirs.predict(scaled), rtol=1e-3, atol=1e-3)


def test_one_positive_per_row_ranks_what_was_hidden():
    X, truth = world(rows=600)
    Y = one_positive(truth)
    model = PartialLabelRidge().fit(X[:400], Y[:400])
    assert model.score(X[400:], truth[400:]) > 0.85
    assert model.alpha_ in model.alphas
    called = model.predict(X[400:])
    assert set(np.unique(called)) <= {0, 1}
    assert abs(called.sum() / truth[400:].sum() - 1) < 0.5  # about as many tags as there are


def test_it_takes_no_unknown_cell_as_surely_absent():
    X, truth = world(rows=400)
    Y = one_positive(truth)
    light = PartialLabelRidge(alphas=1.0).fit(X, Y).decision_function(X)
    heavy = PartialLabelRidge(alphas=1.0, unknown_weight=1.0).fit(X, Y).decision_function(X)
    assert light.mean() > heavy.mean() + 0.5


def test_probabilities_and_predictions_agree():
    X, truth = world()
    model = PartialLabelRidge().fit(X, truth)
    p = model.predict_proba(X)
    assert p.shape == truth.shape
    assert 0 <= p.min() <= p.max() <= 1
    np.testing.assert_array_equal(model.predict(X), model.thresholds_.called(model.decision_function(X)))
    for scores, called in zip(p.T, model.predict(X).T == 1, strict=True):
        assert scores[called].min() >= scores[~called].max()


def test_it_composes_as_scikit_learn_estimators_do():
    X, truth = world(rows=120)
    scores = cross_val_score(make_pipeline(StandardScaler(), PartialLabelRidge(alphas=1.0)), X, truth, cv=3)
    assert (scores > 0.7).all()
    assert clone(PartialLabelRidge(cv=5, objective="recall=0.9")).get_params()["cv"] == 5


def test_a_data_frame_names_the_classes():
    pandas = pytest.importorskip("pandas")
    X, truth = world(classes=3)
    model = PartialLabelRidge().fit(X, pandas.DataFrame(truth, columns=["cat", "dog", "sofa"]))
    assert list(model.classes_) == ["cat", "dog", "sofa"]


@pytest.mark.parametrize(
    ("Y", "words"),
    [
        (np.full((300, 4), 2), "other values"),
        (np.full((300, 4), 0.5), "other values"),
        (np.full((300, 4), np.nan), "other values"),
        (np.full((300, 4), -1), "no present label"),
        (np.ones(300, int), "got shape"),
        (np.ones((299, 4), int), "one row per image"),
    ],
)
def test_wrong_labels_are_one_clear_line(Y, words):
    with pytest.raises(ValueError, match=words):
        PartialLabelRidge().fit(world()[0], Y)


@pytest.mark.parametrize(("options", "words"), [({"alphas": 0.0}, "above 0"), ({"cv": 1}, "folds")])
def test_wrong_options_are_one_clear_line(options, words):
    X, truth = world()
    with pytest.raises(ValueError, match=words):
        PartialLabelRidge(**options).fit(X, truth)


class AnyTarget(PartialLabelRidge):
    """Takes the targets that scikit-learn's checks make up (numbers, one column) as present above their mean."""

    def fit(self, X, y):
        Y = None if y is None else check_array(y, ensure_2d=False, dtype=None, input_name="y")
        if Y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        Y = np.asarray(Y, float).reshape(len(Y), -1)
        return super().fit(X, (Y.mean(0) <= Y).astype(int))

    def score(self, X, y):
        Y = np.asarray(y, float).reshape(len(y), -1)
        return super().score(X, (Y.mean(0) <= Y).astype(int))


@pytest.mark.slow
def test_checks_of_scikit_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(AnyTarget(cv=2, alphas=1.0), expected_failed_checks=OTHERWISE, on_fail=None)
    assert {f["check_name"]: f["exception"] for f in found if f["status"] == "failed"} == {}
    assert {f["check_name"] for f in found if f["status"] == "xfail"} == set(OTHERWISE)  # none that passes is excused
    assert sum(f["status"] == "passed" for f in found) >= 40
