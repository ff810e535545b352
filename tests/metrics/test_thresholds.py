"""Choosing thresholds: by hand, as properties, and the promise of recall over many draws; damaged files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plures.errors import PluresError
from plures.metrics.calibrating import calibrate, calibration_error
from plures.metrics.choosing import ALWAYS, NEVER, Curve, Objective, Pool, choose, conformal_cut
from plures.metrics.thresholds import LEAST, Calibration, Thresholds, probabilities_at, sigmoid
from plures.metrics.thresholds import NEVER as ABOVE_ONE

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
PRESENT = np.array([1.0, 1.0, 0.0, 1.0, 0.0])


def pool(scores, present, weights=None):
    known = np.ones(scores.shape, bool)
    return Pool(scores, present.astype(float), known, present > 0.5, weights)


def test_cuts_by_hand():
    curve = Curve.of(SCORES, PRESENT)
    assert curve.best_f1() == pytest.approx(0.55)  # 2 * 3 / (4 + 3); at two: 4 / 5 is less
    assert curve.at_precision(0.9) == pytest.approx(0.75)
    assert curve.at_precision(0.75) == pytest.approx(0.55)  # precision falls to 2 / 3 between and rises again
    assert curve.at_count(2.2) == pytest.approx(0.75)
    assert curve.at_count(0.2) == NEVER
    assert Curve.of(SCORES, np.zeros(5)).at_precision(0.5) == NEVER
    assert Curve.of(SCORES, np.zeros(5)).best_f1() == NEVER


def test_equal_scores_are_called_together():
    curve = Curve.of(np.array([0.5, 0.5, 0.2]), np.array([1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(curve.called, [2, 3])
    assert curve.at_precision(0.9) == NEVER


def test_no_cut_lies_on_a_score():
    scores = np.array([0.9, 0.8, 0.6, 0.55])
    cuts = Curve.of(scores, np.ones(4)).cuts
    np.testing.assert_allclose(cuts, [0.85, 0.7, 0.575, 0.45])  # the last as far below as the middle gap, 0.1
    np.testing.assert_allclose(Curve.of(scores[:1], np.ones(1)).cuts, [-0.1])
    cells = pool(scores[:, None], np.array([[True], [False], [True], [False]]))
    assert cells.conformal_cut(0.6) == pytest.approx(0.575)  # the positive at 0.6 is reached by all that is above 0.55
    assert not np.isin(cells.conformal_cut(0.4), scores)


def test_conformal_cut_by_hand():
    nine = np.arange(1, 10) / 10
    assert conformal_cut(nine, 0.9) == pytest.approx(0.1)  # floor(0.1 * 10) = 1: the smallest
    assert conformal_cut(nine, 0.7) == pytest.approx(0.3)
    assert np.isnan(conformal_cut(nine[:8], 0.9))  # eight cannot promise 90%
    assert np.isnan(conformal_cut(np.empty(0), 0.9))
    assert conformal_cut(nine, 0.7, np.full(9, 2.5)) == pytest.approx(0.3)  # only ratios of weights count
    heavy = np.where(nine < 0.15, 3.0, 1.0)  # missing the first would miss 3 of 11, plus the new one's 3
    assert conformal_cut(nine, 0.7, heavy) == pytest.approx(0.1)


def test_conformal_recall_holds_over_many_draws():
    random, hits, tries = np.random.default_rng(0), 0, 4000
    for _ in range(tries):
        scores = random.gamma(2, size=31)  # no shape is assumed
        hits += scores[30] >= conformal_cut(scores[:30], 0.9)
    assert hits / tries >= 0.9 - 0.01
    assert hits / tries <= 0.96  # 1 - floor(3.1) / 31


def test_weights_restore_recall_over_all_labels():
    """Labels in company are observed half as often and score lower: unweighted cuts miss too many of them."""
    random, plain, weighted, tries = np.random.default_rng(1), 0, 0, 3000
    for _ in range(tries):
        two = random.random(200) < 0.5
        seen = ~two | (random.random(200) < 0.5)
        scores = random.normal(size=200) - 2 * two
        new_two = random.random() < 0.5
        new = random.normal() - 2 * new_two
        plain += new >= conformal_cut(scores[seen], 0.8)
        weighted += new >= conformal_cut(scores[seen], 0.8, np.where(two, 2.0, 1.0)[seen])
    assert weighted / tries >= 0.79
    assert plain / tries < 0.78


arrays = st.integers(0, 10_000).map(
    lambda seed: (
        np.round(np.random.default_rng(seed).random((25, 3)), 2) + 0.01,
        np.random.default_rng(seed + 1).random((25, 3)) < 0.4,
    )
)


@given(arrays, st.floats(0.05, 0.9), st.floats(0.01, 0.09), st.booleans())
@settings(max_examples=60, deadline=None)
def test_more_recall_lowers_and_more_tags_lower_thresholds(drawn, value, step, per_class):
    scores, present = drawn
    for kind, factor in (("recall", 1), ("tags", 3)):
        low, high = (
            choose(pool(scores, present), Objective(kind, factor * v), per_class=per_class).values
            for v in (value, value + step)
        )
        if kind == "tags" or not np.isnan(conformal_cut(scores[:, 0], value + step)):
            assert (high <= low + 1e-12).all() or kind == "recall"
    cells = pool(scores, present)
    assert (
        choose(cells, Objective("recall", value + step), per_class=False).values
        <= choose(cells, Objective("recall", value), per_class=False).values
    ).all()


@given(arrays)
@settings(max_examples=60, deadline=None)
def test_chosen_f1_is_the_best_there_is(drawn):
    scores, present = drawn
    cut = choose(pool(scores, present), Objective("f1")).values

    def f1(threshold, k):
        called = scores[:, k] >= threshold
        return 2 * (called & present[:, k]).sum() / max(called.sum() + present[:, k].sum(), 1)

    for k in np.flatnonzero(present.any(0)):
        assert f1(cut[k], k) == pytest.approx(max(f1(t, k) for t in scores[:, k]))


def test_a_class_without_positives_takes_the_common_threshold_and_says_so():
    scores = np.stack([SCORES, SCORES], 1)
    present = np.stack([PRESENT, np.zeros(5)], 1)
    for objective in ("f1", "precision=0.6", "tags=1", "recall=0.7"):
        aim = Objective.parse(objective)
        cuts, common = choose(pool(scores, present), aim), choose(pool(scores, present), aim, per_class=False)
        np.testing.assert_array_equal(cuts.pooled, [False, True])
        assert cuts.values[1] == common.values[1]
        assert "positive" in cuts.reason
    cuts = choose(pool(scores, present), Objective("recall", 0.9))
    assert cuts.pooled.all()
    assert (cuts.values == ALWAYS).all()  # three positives promise no 90%: everything is called


def test_matching_priors_makes_precision_equal_recall():
    random = np.random.default_rng(0)
    present = (random.random((400, 2)) < [0.1, 0.5]).astype(float)
    scores = random.random((400, 2)) + 0.5 * present
    cut = choose(pool(scores, present), Objective("f1"), match_priors=True).values
    np.testing.assert_array_equal((scores >= cut).sum(0), present.sum(0))


@pytest.mark.parametrize("text", ["f2", "precision", "precision=1", "recall=0", "tags=-1", "tags=x", "f1=0.5"])
def test_unknown_objectives_say_what_there_is(text):
    with pytest.raises(PluresError, match=r"use f1, precision=0.9"):
        Objective.parse(text)


def test_objectives_read_back():
    for text in ("f1", "precision=0.9", "recall=0.85", "tags=1.5"):
        assert str(Objective.parse(text)) == text


# ------------------------------------------------------------------------------------------------------ calibration


def drawn_labels(scale=2.0, shift=-1.0):
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 3)) * 2
    return logits, random.random(logits.shape) < sigmoid(scale * logits + shift)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibration_finds_the_truth(kind):
    logits, present = drawn_labels()
    calibration = calibrate(logits, present.astype(float), np.ones(present.shape, bool), kind)
    assert calibration_error(sigmoid(logits), present) > 0.05
    fresh, truth = np.linspace(-3, 3, 13)[:, None].repeat(3, 1), None
    truth = sigmoid(2 * fresh - 1)
    assert np.abs(calibration(fresh) - truth).max() < (0.02 if kind == "temperature" else 0.09)
    assert (np.diff(calibration(fresh), axis=0) >= 0).all()


def test_a_rare_class_takes_the_common_curve():
    logits, present = drawn_labels()
    present[:, 2] = False
    calibration = calibrate(logits, present.astype(float), np.ones(present.shape, bool), "isotonic")
    assert calibration(np.full((1, 3), 3.0))[0, 2] > 0.5


def test_nothing_known_cannot_be_calibrated():
    with pytest.raises(PluresError, match="nothing to calibrate on"):
        calibrate(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2), bool), "temperature")


# ---------------------------------------------------------------------------------------------- the file, the logits

CALIBRATIONS = {
    "none": None,
    "affine": Calibration("affine", np.array([0.5, 2.0]), np.array([1.0, -3.0])),
    "isotonic": Calibration(
        "isotonic",
        points=(
            (np.array([-1.0, 0.0, 2.0]), np.array([0.1, 0.4, 0.9])),
            (np.array([0.0, 1.0, 3.0]), np.array([0.2, 0.2, 0.6])),
        ),
    ),
}


def made(kind="none", values=(0.4, 0.25)):
    words = ("clean", "f1", "a.", "b.")
    return Thresholds(("cat", "dog"), np.array(values), *words, CALIBRATIONS[kind])


@pytest.mark.parametrize("kind", CALIBRATIONS)
@pytest.mark.parametrize("values", [(0.4, 0.25), (0.05, 0.1), (ABOVE_ONE, 0.95), (0.85, LEAST)])
def test_logits_call_what_probabilities_call(kind, values):
    thresholds = made(kind, values)
    logits = (np.random.default_rng(0).normal(size=(300, 2)) * 4).astype(np.float32)
    probabilities = thresholds.probabilities(logits)
    clear = np.abs(probabilities - thresholds.values) > 1e-6
    np.testing.assert_array_equal(thresholds.called(logits)[clear], (probabilities >= thresholds.values)[clear])
    assert clear.mean() > 0.9


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_saved_thresholds_come_back_in_the_order_of_the_classes(tmp_path, kind):
    thresholds = made(kind)
    thresholds.save(tmp_path)
    back = Thresholds.load(tmp_path, ("dog", "cat"))
    np.testing.assert_array_equal(back.values, [0.25, 0.4])
    np.testing.assert_array_equal(back.cuts, thresholds.cuts[::-1])
    logits = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(back.probabilities(logits[:, ::-1]), thresholds.probabilities(logits)[:, ::-1])
    assert (back.method, back.objective, back.assumes, back.guarantees) == ("clean", "f1", "a.", "b.")
    assert Thresholds.load(tmp_path / "elsewhere", ("cat", "dog")) is None


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_infinite_cuts_are_words_and_come_back(tmp_path, kind):
    classes, cuts = ("cat", "dog"), np.array([np.inf, -np.inf], np.float32)
    values = probabilities_at(cuts, CALIBRATIONS[kind])
    Thresholds(classes, values, "m", "f1", "a.", "b.", CALIBRATIONS[kind], cuts).save(tmp_path)
    stored = json.loads((tmp_path / "thresholds.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored["cut_logits"] == {"cat": "never", "dog": "always"}
    back = Thresholds.load(tmp_path, classes)
    np.testing.assert_array_equal(back.cuts, cuts)
    assert back.values[0] > 1
    assert back.values[1] > 0
    assert back.called(np.array([[1e30, -1e30]], np.float32)).tolist() == [[False, True]]


def test_files_of_the_first_version_and_edited_files_go_by_their_probabilities(tmp_path):
    path = tmp_path / "thresholds.json"
    made("affine", (0.3, ABOVE_ONE)).save(tmp_path)
    stored = json.loads(path.read_text())
    old = {key: value for key, value in stored.items() if key != "cut_logits"}
    path.write_text(json.dumps(old))
    np.testing.assert_array_equal(Thresholds.load(tmp_path, ("cat", "dog")).cuts, made("affine", (0.3, ABOVE_ONE)).cuts)
    stored["thresholds"]["dog"] = 0.7  # by hand
    path.write_text(json.dumps(stored))
    np.testing.assert_array_equal(Thresholds.load(tmp_path, ("cat", "dog")).cuts, made("affine", (0.3, 0.7)).cuts)


DAMAGES = {
    "cut short": lambda d: None,
    "a list": lambda d: [1],
    "no method": lambda d: {k: v for k, v in d.items() if k != "method"},
    "no number": lambda d: d | {"thresholds": {"cat": "x", "dog": 1}},
    "not a number": lambda d: d | {"thresholds": {"cat": float("nan"), "dog": 0.5}},
    "negative": lambda d: d | {"thresholds": {"cat": -1, "dog": 0.5}},
    "a cut of no kind": lambda d: d | {"cut_logits": {"cat": "often", "dog": 1}},
    "no cut": lambda d: d | {"cut_logits": {"cat": 1}},
    "scale of one class": lambda d: d | {"calibration": {"kind": "affine", "scale": [1.0], "offset": [0.0]}},
    "scale of 0": lambda d: d | {"calibration": {"kind": "affine", "scale": [1, 0], "offset": [0, 0]}},
    "falling curve": lambda d: d | {"calibration": {"kind": "isotonic", "points": [[[0, 1], [1, 0]]] * 2}},
    "empty curve": lambda d: d | {"calibration": {"kind": "isotonic", "points": [[[], []]] * 2}},
    "unknown kind": lambda d: d | {"calibration": {"kind": "magic", "points": [[[0], [0]]] * 2}},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_one_clear_line(tmp_path, damage):
    made().save(tmp_path)
    path = tmp_path / "thresholds.json"
    changed = DAMAGES[damage](json.loads(path.read_text()))
    path.write_text(path.read_text()[:40] if changed is None else json.dumps(changed))
    with pytest.raises(PluresError, match=r"thresholds.json: not thresholds .*choose again with `plures thresholds`"):
        Thresholds.load(tmp_path, ("cat", "dog"))


def test_thresholds_of_other_classes_are_refused(tmp_path):
    made().save(tmp_path)
    with pytest.raises(PluresError, match="made for other classes"):
        Thresholds.load(tmp_path, ("cat", "horse"))
