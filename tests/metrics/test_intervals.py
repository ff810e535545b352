import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.average_precision import DEFINITIONS, average_precision
from plures.metrics.intervals import (
    bootstrap_average_precision,
    bootstrap_difference,
    bootstrap_map,
    bootstrap_means,
    interval_of,
    multiplicities,
)


def data(images=80, classes=5, levels=1000, seed=0, unknown=True):
    random = np.random.default_rng(seed)
    values = random.choice(np.array([-1 if unknown else 0, 0, 0, 1], np.int8), (images, classes))
    scores = np.round(random.random((images, classes)) + 0.4 * (values == 1), 6)
    return np.floor(scores * levels) / levels, Labels(values)


@pytest.mark.parametrize("definition", sorted(DEFINITIONS))
@pytest.mark.parametrize("levels", [4, 10**6])
def test_equals_its_slow_twin_that_gathers_the_drawn_rows(definition, levels):
    scores, labels = data(levels=levels)
    fast = bootstrap_average_precision(scores, labels, definition, resamples=19, seed=3)
    draws = np.concatenate(multiplicities(len(labels), 19, seed=3), axis=1)  # [N, resamples]
    for r in range(19):
        rows = np.repeat(np.arange(len(labels)), draws[:, r])
        slow = average_precision(scores[rows], labels.take(rows), definition)
        slow[~(labels.take(rows).present.any(0) & labels.take(rows).absent.any(0))] = np.nan
        np.testing.assert_allclose(fast[r], slow, rtol=1e-12)


def test_a_draw_is_as_many_images_and_reproducible():
    draws = np.concatenate(multiplicities(300, 21, seed=1), axis=1)
    assert draws.shape == (300, 21)
    assert (draws.sum(0, dtype=int) == 300).all()
    assert np.var(draws) == pytest.approx(1, abs=0.1)  # about Poisson(1)
    np.testing.assert_array_equal(draws, np.concatenate(multiplicities(300, 21, seed=1), axis=1))
    assert (draws != np.concatenate(multiplicities(300, 21, seed=2), axis=1)).any()


@pytest.mark.parametrize("definition", ["plain", "mlspl"])
def test_a_class_that_a_resample_does_not_show_keeps_its_value(definition):
    values = np.zeros((30, 3), np.int8)
    values[0, 0] = 1
    values[:15, 1] = 1
    values[1:, 2] = 1
    scores, labels = np.random.default_rng(0).random((30, 3)), Labels(values)
    samples = bootstrap_average_precision(scores, labels, definition, resamples=100)
    for k in (0, 2):  # a single positive, a single negative
        assert 20 < np.isnan(samples[:, k]).sum() < 55  # (1 - 1/30) ** 30 = 36%
    assert not np.isnan(samples[:, 1]).any()
    whole, means = bootstrap_means(scores, labels, definition, resamples=100)
    np.testing.assert_allclose(means, np.where(np.isnan(samples), whole.per_class, samples).mean(1))
    flat = bootstrap_map(np.zeros((30, 3)), labels, definition, resamples=100)
    assert flat.resamples == 100
    assert flat.low <= flat.value <= flat.high


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_the_interval_holds_the_estimate_however_rare_the_classes(seed, positives):
    random = np.random.default_rng(seed)
    values = np.zeros((40, 6), np.int8)
    for k in range(6):
        values[random.choice(40, positives, replace=False), k] = 1
    found = bootstrap_map(random.normal(size=(40, 6)) + values, Labels(values), resamples=30, seed=seed)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_classes_that_cannot_fail_are_left_out_of_the_samples():
    scores, labels = data(60, 3)
    values = labels.values.copy()
    values[values[:, 1] == 0, 1] = -1
    found = bootstrap_map(scores, Labels(values), resamples=20)
    assert found == bootstrap_map(scores[:, [0, 2]], Labels(values[:, [0, 2]]), resamples=20)


def test_the_basic_interval_by_hand():
    found = interval_of(0.5, np.array([0.4, 0.8, np.nan]), level=0.999999)
    assert (found.low, found.high) == (pytest.approx(0.2, abs=1e-5), pytest.approx(0.6, abs=1e-5))
    assert interval_of(0.9, np.array([0.5, 0.95]), 0.999999, (0, 1)).high == 1
    above = interval_of(0.3, np.array([0.4, 0.5]), 0.999999)
    assert (above.low, above.high) == (pytest.approx(0.1, abs=1e-5), 0.3)  # widened to hold the value
    assert np.isnan(interval_of(float("nan"), np.array([0.4])).low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Many small data sets from one population: the mAP of a large sample lies in most of their 90% intervals."""
    truth = bootstrap_map(*data(40_000, 2, seed=99, levels=10**6, unknown=False), resamples=2).value
    inside = 0
    for seed in range(60):
        found = bootstrap_map(*data(250, 2, seed=seed, levels=10**6, unknown=False), resamples=100, level=0.9)
        inside += found.low <= truth <= found.high
    assert 46 <= inside <= 60


def test_a_difference_of_a_model_with_itself_is_zero_and_pairing_narrows():
    scores, labels = data(300, levels=10**6)
    same = bootstrap_difference(scores, scores, labels, resamples=20)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = scores + 0.1 * labels.present
    difference = bootstrap_difference(scores, better, labels, resamples=100)
    assert 0 < difference.low < difference.value < difference.high
    alone = bootstrap_map(scores, labels, resamples=100)
    assert difference.high - difference.low < 0.7 * (alone.high - alone.low)
    assert bootstrap_difference(better, scores, labels, resamples=100).low == pytest.approx(-difference.high)


def test_the_value_is_that_of_all_images():
    scores, labels = data()
    found = bootstrap_map(scores, labels, resamples=50, level=0.5)
    assert found.value == pytest.approx(average_precision(scores, labels).mean(), rel=1e-12)
    wide = bootstrap_map(scores, labels, resamples=50, level=0.95)
    assert wide.low < found.low < found.high < wide.high


def test_bad_input_is_one_clear_line():
    scores, labels = data()
    with pytest.raises(PluresError, match="2 resamples or more, got 1"):
        bootstrap_map(scores, labels, resamples=1)
    with pytest.raises(PluresError, match=r"in \(0, 1\), got 95"):
        bootstrap_difference(scores, scores, labels, level=95)
    with pytest.raises(PluresError, match="scores hold nan"):
        bootstrap_average_precision(np.full_like(scores, np.nan), labels)
