import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score

from metrics.reference_metrics import ENTRIES, UNTIED, inputs
from plures.errors import PluresError
from plures.labels import UNKNOWN, Labels
from plures.metrics import counts as module
from plures.metrics.counts import averages, count_tags, predict_tags
from plures.metrics.ranking import ranking

NAME = {"ids": lambda entry: entry["name"]}
CASES = {
    "mlgcn_threshold_0.5": {"threshold": 0.5},
    "mlgcn_top3_and_0.5": {"threshold": 0.5, "top": 3},
    "mlgcn_top3_forced": {"threshold": None, "top": 3},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("entry", ENTRIES, **NAME)
def test_mlgcn_equals_the_published_evaluator(entry, case):
    """Scores of different classes of an image tie in these inputs; the evaluator leaves their order to torch.topk."""
    if case not in entry:
        pytest.skip("top-k with ties is not recorded")
    scores, labels = inputs(entry)
    if "top" in CASES[case]:
        chosen = torch.topk(torch.from_numpy(scores), 3, dim=1).indices.numpy()
        np.put_along_axis(scores, chosen, np.take_along_axis(scores, chosen, 1) + 1e-13, 1)
    result = averages(count_tags(scores, labels, **CASES[case]), "mlgcn")
    expected = {name: np.nan if value is None else value for name, value in entry[case].items()}
    got = {name: getattr(result, name) for name in expected}
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-12)


@pytest.mark.parametrize("entry", ENTRIES, **NAME)
def test_textbook_equals_the_recorded_ratios(entry):
    scores, labels = inputs(entry)
    counts = count_tags(scores, labels, 0.5)
    result, expected = averages(counts), entry["textbook_threshold_0.5"]
    assert counts.tagged.tolist() == entry["n_pred_at_0.5"]
    assert pytest.approx(expected["OP"], rel=1e-12) == result.OP
    assert pytest.approx(expected["OR"], rel=1e-12) == result.OR
    assert pytest.approx(expected["CR_over_classes_with_positives"], rel=1e-12) == result.CR
    scored = (~np.isnan(result.precision)).sum()  # the record counts a class that is never predicted as 0
    assert result.CP * scored / labels.classes == pytest.approx(expected["CP"], rel=1e-12)


def test_names_of_undefined_classes():
    entry = ENTRIES[1]
    scores, labels = inputs(entry)
    names = averages(count_tags(scores, labels)).undefined(tuple(f"c{k}" for k in range(20)))
    assert names == {"precision": ["c6"], "recall": ["c3", "c11"], "f1": []}


def test_macro_and_micro_equal_scikit_learn():
    random = np.random.default_rng(0)
    labels = Labels((random.random((200, 6)) < 0.3).astype(np.int8))
    scores = random.random((200, 6))
    threshold = np.linspace(0.2, 0.7, 6)
    result = averages(count_tags(scores, labels, threshold))
    truth, tags = labels.present, scores >= threshold
    for average, got in (
        ("macro", (result.CP, result.CR, result.macro_f1)),
        ("micro", (result.OP, result.OR, result.micro_f1)),
        (None, (result.precision, result.recall, result.f1)),
    ):
        expected = [f(truth, tags, average=average) for f in (precision_score, recall_score, f1_score)]
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert pytest.approx(2 * result.CP * result.CR / (result.CP + result.CR)) == result.CF1


def test_by_hand_with_unknown_cells():
    """Row 0: hit and an unknown tag. Row 1: a false tag and a miss."""
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.2, 0.4]])
    labels = Labels(np.array([[1, UNKNOWN, 0], [0, 1, UNKNOWN]], np.int8))
    counts = count_tags(scores, labels, 0.5)
    assert counts.hits.tolist() == [1, 0, 0]
    assert counts.predicted.tolist() == [2, 0, 0]
    assert counts.positives.tolist() == [1, 1, 0]
    assert counts.known.tolist() == [2, 1, 1]
    assert counts.tagged.tolist() == [2, 1, 0]
    result = averages(counts)
    np.testing.assert_equal(result.precision, [0.5, np.nan, np.nan])
    np.testing.assert_equal(result.recall, [1.0, 0.0, np.nan])
    assert (result.CP, result.CR, result.OP, result.OR) == (0.5, 0.5, 0.5, 0.5)


def test_top_k_is_among_the_known_and_ties_go_to_the_first():
    scores = np.array([[0.9, 0.5, 0.5, 0.1]])
    known = np.array([[False, True, True, True]])
    assert predict_tags(scores, None, 2).tolist() == [[True, True, False, False]]
    assert predict_tags(scores, None, 2, known).tolist() == [[False, True, True, False]]
    assert predict_tags(scores, None, 9, known).tolist() == [[False, True, True, True]]
    assert predict_tags(scores, 0.5, 3).tolist() == [[True, True, True, False]]


def test_blocks_do_not_change_the_counts(monkeypatch):
    random = np.random.default_rng(1)
    scores, labels = random.random((50, 7)), Labels(random.integers(-1, 2, (50, 7), np.int8))
    whole, ranks = count_tags(scores, labels, 0.4, 3), ranking(scores, labels)
    monkeypatch.setattr(module, "BLOCK_CELLS", 20)
    monkeypatch.setattr("plures.metrics.ranking.BLOCK_CELLS", 20)
    part = count_tags(scores, labels, 0.4, 3)
    for name in ("hits", "predicted", "positives", "known", "tagged"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))
    assert ranking(scores, labels) == ranks


def test_bad_input_is_one_clear_line():
    labels = Labels(np.zeros((2, 3), np.int8))
    with pytest.raises(PluresError, match=r"one per class \[3\], got shape \[2\]"):
        count_tags(np.zeros((2, 3)), labels, [0.1, 0.2])
    with pytest.raises(PluresError, match="threshold, a top-k, or both"):
        count_tags(np.zeros((2, 3)), labels, None)
    with pytest.raises(PluresError, match="k of 1 or more"):
        count_tags(np.zeros((2, 3)), labels, None, 0)
    with pytest.raises(PluresError, match="unknown convention 'x'"):
        averages(count_tags(np.zeros((2, 3)), labels), "x")
    with pytest.raises(PluresError, match="k of 1 or more"):
        ranking(np.zeros((2, 3)), labels, (0,))


# ----------------------------------------------------------------------------------------------------- ranking


def logged_by_mlspl(entry, k):
    return [entry["elijahcole_metrics"][f"{name}_{k}"] for name in ("prec_at", "rec_at", "top")]


@pytest.mark.parametrize("entry", UNTIED, **NAME)
def test_ranking_equals_the_log_of_mlspl(entry):
    """Between the best and the worst order of classes that tie in an image: the record depends on numpy's sort."""
    scores, labels = inputs(entry)
    for best, worst in zip(
        ranking(scores + 1e-13 * labels.present, labels, convention="mlspl"),
        ranking(scores - 1e-13 * labels.present, labels, convention="mlspl"),
        strict=True,
    ):
        recorded = logged_by_mlspl(entry, best.k)
        top, bottom = ([r.precision, r.recall, r.hit] for r in (best, worst))
        assert (np.array(bottom) <= np.array(recorded) + 1e-12).all()
        assert (np.array(recorded) <= np.array(top) + 1e-12).all()
        assert np.subtract(top, bottom).max() < 0.03  # the range is narrow enough to mean something


def test_ranking_equals_the_formula_of_mlspl():
    random = np.random.default_rng(2)
    scores, labels = random.random((100, 9)), Labels((random.random((100, 9)) < 0.2).astype(np.int8))
    assert (labels.present.sum(1) == 0).any()
    for result in ranking(scores, labels, convention="mlspl"):
        best = np.argsort(-scores, axis=1)[:, : result.k]
        hits = np.take_along_axis(labels.present, best, 1).sum(1)
        recall = hits / np.maximum(labels.present.sum(1), 1)
        expected = [hits.mean() / result.k, recall.mean(), (hits > 0).mean()]
        assert [result.precision, result.recall, result.hit] == pytest.approx(expected, rel=1e-12)


def test_ranking_by_hand():
    """Image 0: the best is unknown, the next a hit, one of two present found at 1. Image 1 has no present tag."""
    scores = np.array([[0.9, 0.8, 0.7, 0.1], [0.5, 0.1, 0.2, 0.3]])
    labels = Labels(np.array([[UNKNOWN, 1, 0, 1], [0, 0, UNKNOWN, UNKNOWN]], np.int8))
    one, five = ranking(scores, labels, (1, 5))
    assert (one.precision, one.recall, one.hit, one.images) == (0.5, 0.5, 1.0, 1)
    assert (five.precision, five.recall) == (pytest.approx((2 / 3 + 0) / 2), 1.0)
    assert ranking(scores, labels, (1,), "mlspl")[0].recall == 0.25


def test_ranking_leaves_out_images_that_cannot_fail():
    """Image 0 has one observed tag and nothing else is known; image 1 has a known absent tag, which ranks first."""
    scores = np.array([[0.1, 0.9], [0.1, 0.9]])
    observed = Labels(np.array([[1, UNKNOWN], [1, UNKNOWN]], np.int8))
    for result in ranking(scores, observed, (1, 2)):
        assert np.isnan([result.precision, result.recall, result.hit]).all()
    one = ranking(scores, Labels(np.array([[1, UNKNOWN], [1, 0]], np.int8)), (1,))[0]
    assert (one.precision, one.recall, one.hit) == (0, 0, 0)


def test_ranking_of_no_images_is_nan():
    result = ranking(np.zeros((0, 3)), Labels(np.zeros((0, 3), np.int8)), (2,))[0]
    assert np.isnan([result.precision, result.recall, result.hit]).all()
