"""What observed positives alone say: the uniform-choice likelihood by hand and by brute force, bounds, recall."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from plures.errors import PluresError
from plures.labels import Labels, mask_to_single_positive
from plures.metrics import uniform_choice
from plures.metrics.average_precision import average_precision
from plures.metrics.positives_only import evaluate_positives, expected_average_precision, weighted_recall
from plures.metrics.thresholds import sigmoid
from plures.metrics.uniform_choice import UniformChoice, fit_uniform_choice, most_tags


def synthetic(n=1500, classes=6, seed=0, scale=1.0, shift=0.0, offset=-1.5):
    """Logits that are right up to scale and shift, labels drawn from them, one of each row observed."""
    random = np.random.default_rng(seed)
    true = 3 * random.normal(size=(n, classes)) + offset
    present = random.random(true.shape) < sigmoid(true)
    keep = present.any(1)
    labels = Labels.from_masks(present[keep])
    return (true[keep] - shift) / scale, labels, mask_to_single_positive(labels, seed)


def by_brute_force(p, observed):
    """Chance of observing exactly these (of m drawn evenly without replacement), and each cell's presence then."""
    from math import comb

    total, presence, nothing = 0.0, np.zeros(len(p)), np.prod(1 - p)
    for row in itertools.product((0, 1), repeat=len(p)):
        y = np.array(row, bool)
        if not y[observed == 1].all() or y[observed == 0].any():
            continue
        chance = np.prod(np.where(y, p, 1 - p)) / comb(int(y.sum()), int((observed == 1).sum()))
        total += chance
        presence += chance * y
    return total / (1 - nothing), presence / total


@pytest.mark.parametrize("observed", [[1, -1, -1, -1], [-1, -1, 1, -1], [1, -1, 1, -1], [1, 0, -1, -1], [1, 1, 1, 1]])
def test_likelihood_and_presence_equal_the_sum_over_all_label_sets(observed):
    z = np.array([[0.3, -1.2, 2.0, 0.0]])
    seen = Labels(np.array([observed], np.int8))
    likelihood, presence, _ = uniform_choice._posterior(z, seen)
    chance, expected = by_brute_force(sigmoid(z[0]), np.array(observed))
    assert np.exp(likelihood[0]) == pytest.approx(chance, rel=1e-10)
    np.testing.assert_allclose(presence[0], expected, rtol=1e-10)


def test_one_and_two_sure_labels_by_hand():
    sure = np.array([[40.0, 40.0, -40.0], [40.0, -40.0, -40.0]])
    seen = Labels(np.array([[1, -1, -1], [1, -1, -1]], np.int8))
    likelihood, presence, _ = uniform_choice._posterior(sure, seen)
    np.testing.assert_allclose(np.exp(likelihood), [0.5, 1.0], rtol=1e-9)
    np.testing.assert_allclose(presence, [[1, 1, 0], [1, 0, 0]], atol=1e-9)


def test_gradient_is_that_of_the_likelihood():
    random = np.random.default_rng(0)
    values = np.array([[1, -1, -1, 0, -1], [-1, -1, 1, -1, -1]], np.int8)
    seen = Labels(values)

    def likelihood(z):
        return uniform_choice._posterior(z.reshape(2, 5), seen)[0].sum()

    def gradient(z):
        z = z.reshape(2, 5)
        _, presence, something = uniform_choice._posterior(z, seen)
        return (presence - sigmoid(z) / something[:, None]).ravel()

    assert check_grad(likelihood, gradient, random.normal(size=10)) < 1e-5


def test_extreme_logits_stay_finite():
    z = np.array([[1e4, -1e4, 1e4], [-1e4, -1e4, -1e4]])
    likelihood, presence, _ = uniform_choice._posterior(z, Labels(np.array([[-1, 1, -1], [1, -1, -1]], np.int8)))
    assert np.isfinite(presence).all()
    assert not np.isnan(likelihood).any()


def test_number_of_labels_is_found_again_though_the_logits_are_shifted():
    for offset in (-3.0, -1.0):
        logits, labels, observed = synthetic(scale=0.7, shift=1.5, offset=offset)
        curve = fit_uniform_choice(logits, observed)
        presence = curve.presence(logits, observed)
        assert presence.sum(1).mean() == pytest.approx(labels.present.sum(1).mean(), rel=0.06)
        assert np.abs(presence.mean(0) - labels.present.mean(0)).max() < 0.06


def test_better_scores_are_likelier():
    logits, _, observed = synthetic()
    noise = np.random.default_rng(1).normal(size=logits.shape)
    values = [fit_uniform_choice(logits + size * noise, observed).likelihood for size in (0, 2, 5)]
    assert values == sorted(values, reverse=True)


def test_ranks_bound_the_number_of_labels():
    logits, labels, observed = synthetic()
    true = labels.present.sum(1).mean()
    perfect = labels.present + 0.01 * np.random.default_rng(0).random(logits.shape)
    assert most_tags(perfect, observed) == pytest.approx(true, rel=0.05)
    assert most_tags(logits, observed) > true
    assert most_tags(np.zeros((4, 3)), Labels(np.array([[1, -1, -1]] * 4, np.int8))) == 5  # ties count against


def test_weighted_recall_by_hand():
    tagged = np.array([[1, 0], [0, 0], [1, 0]], bool)
    positives = np.array([[1, 0], [1, 0], [1, 0]], bool)
    recall, low, high = weighted_recall(tagged, positives, np.array([2.0, 1.0, 1.0]))
    assert recall[0] == pytest.approx(0.75)
    assert low[0] < 0.75 < high[0]
    assert np.isnan([recall[1], low[1], high[1]]).all()
    wilson = weighted_recall(np.ones((10, 1), bool), np.ones((10, 1), bool), np.ones(10))
    assert wilson[1][0] == pytest.approx(10 / (10 + 1.959964**2), rel=1e-6)  # Wilson's interval of 10 of 10


def test_recall_intervals_cover_about_as_often_as_they_say():
    many, population, _ = synthetic(60_000, seed=999)
    truth = (many[population.present] >= 0.5).mean()  # every class is alike here
    covered = 0
    for seed in range(200):
        logits, labels, observed = synthetic(300, seed=seed)
        _, low, high = weighted_recall(logits >= 0.5, observed.present, labels.present.sum(1).astype(float))
        covered += low[0] <= truth <= high[0]
    assert 0.91 <= covered / 200 <= 0.99


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_expected_average_precision_is_the_plain_one_for_known_labels(seed):
    random = np.random.default_rng(seed)
    present = random.random(30) < 0.3
    present[0] = True
    scores = random.permutation(30).astype(float)
    plain = average_precision(scores[:, None], Labels.from_masks(present[:, None]))[0]
    assert expected_average_precision(scores, present.astype(float)) == pytest.approx(plain)


def test_report_of_positives(tmp_path):
    logits, labels, observed = synthetic()
    values = observed.values.copy()
    values[:, 5] = -1
    names = tuple("abcdef")
    report = evaluate_positives(logits, Labels(values), names, level=0.9)
    assert report.labels == "single-positive"
    assert report.left_out == {"f": "no held-out positive"}
    true = np.mean(average_precision(logits, labels)[:5])
    assert report.map_low < true < report.map_high
    assert report.map == pytest.approx(true, abs=0.06)
    assert np.isnan(report.per_class[5].recall)
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored["per_class"][5]["recall"] is None
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["estimated_from"] == "positives only"


def test_nothing_observed_is_an_error():
    with pytest.raises(PluresError, match="no held-out image has an observed positive"):
        fit_uniform_choice(np.zeros((2, 2)), Labels(np.full((2, 2), -1, np.int8)))


def test_rows_without_an_observation_keep_their_probability():
    curve = UniformChoice(1.0, np.zeros(2), 0.0)
    presence = curve.presence(np.array([[0.0, 1.0]]), Labels(np.array([[-1, 0]], np.int8)))
    np.testing.assert_allclose(presence, [[0.5, 0.0]])
