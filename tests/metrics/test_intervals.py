import numpy as np
import pytest

from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.average_precision import DEFINITIONS, average_precision
from plures.metrics.intervals import (
    bootstrap_average_precision,
    bootstrap_difference,
    bootstrap_map,
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
        np.testing.assert_allclose(fast[r], slow, rtol=1e-12)


def test_a_draw_is_as_many_images_and_reproducible():
    draws = np.concatenate(multiplicities(300, 21, seed=1), axis=1)
    assert draws.shape == (300, 21)
    assert (draws.sum(0, dtype=int) == 300).all()
    assert np.var(draws) == pytest.approx(1, abs=0.1)  # about Poisson(1)
    np.testing.assert_array_equal(draws, np.concatenate(multiplicities(300, 21, seed=1), axis=1))
    assert (draws != np.concatenate(multiplicities(300, 21, seed=2), axis=1)).any()


def test_a_class_that_loses_its_positives_is_nan_there():
    values = np.zeros((30, 2), np.int8)
    values[0, 0] = 1
    values[:15, 1] = 1
    samples = bootstrap_average_precision(np.random.default_rng(0).random((30, 2)), Labels(values), resamples=100)
    lost = np.isnan(samples[:, 0])
    assert 20 < lost.sum() < 55  # (1 - 1/30) ** 30 = 36%
    assert not np.isnan(samples[:, 1]).any()
    assert bootstrap_map(np.zeros((30, 2)), Labels(values), resamples=100).resamples == 100


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
