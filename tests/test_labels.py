"""Labels: the codes, the masks, observing as the official code does, and the counts."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from plures.errors import PluresError
from plures.labels import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    Labels,
    co_occurrence,
    complete,
    count,
    mask_all,
    mask_to_fraction,
    mask_to_single_positive,
)

REFERENCE = Path(__file__).parent / "reference"
ENTRIES = json.loads((REFERENCE / "observed_labels.json").read_text())["entries"]
DRAWS = [entry for entry in ENTRIES if (entry["num_pos"], entry["num_neg"]) == (1, 0)]
LARGER = [entry for entry in ENTRIES if entry not in DRAWS]
cells = hnp.arrays(np.int8, st.tuples(st.integers(0, 12), st.integers(1, 6)), elements=st.sampled_from([-1, 0, 1]))


def full_labels(entry: dict) -> Labels:
    present = np.zeros((entry["N"], entry["K"]), bool)
    for row, columns in enumerate(entry["full"]):
        present[row, columns] = True
    return Labels.from_masks(present)


@pytest.mark.parametrize("entry", DRAWS, ids=lambda entry: entry["name"])
def test_single_positive_draw_is_that_of_the_official_code(entry):
    labels = full_labels(entry)
    observed = mask_to_single_positive(labels, entry["seed"])
    found = [int(np.flatnonzero(row)[0]) if row.any() else -1 for row in observed.present]
    assert found == entry["observed_column"]
    assert not observed.absent.any()


@pytest.mark.parametrize("entry", LARGER, ids=lambda entry: entry["name"])
def test_a_draw_of_several_labels_is_that_of_the_official_code(entry):
    numbers = {"num_pos": entry["num_pos"], "num_neg": entry["num_neg"]}
    observed = mask_to_single_positive(full_labels(entry), entry["seed"], **numbers)
    assert [np.flatnonzero(row).tolist() for row in observed.present] == entry["observed_positive"]
    assert [np.flatnonzero(row).tolist() for row in observed.absent] == entry["observed_negative"]


def test_minus_one_keeps_all_and_unknown_labels_are_never_drawn():
    labels = Labels(np.array([[1, 1, 0, -1, -1], [-1, 0, 0, -1, 1]], np.int8))
    assert (mask_to_single_positive(labels, num_pos=-1, num_neg=-1).values == labels.values).all()
    assert mask_to_single_positive(labels, num_neg=1).absent.sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("numbers", [{"num_pos": -2}, {"num_neg": 1.5}, {"num_neg": True}])
def test_a_draw_of_no_number_is_refused(numbers):
    with pytest.raises(PluresError, match="labels per image from 0 on, or -1 for all"):
        mask_to_single_positive(Labels(np.array([[1, 0]], np.int8)), **numbers)


def test_a_biased_draw_keeps_one_positive():
    with pytest.raises(PluresError, match="bias=uniform"):
        mask_to_single_positive(Labels(np.array([[1, 0]], np.int8)), weights=np.ones((1, 2)), num_neg=1)


def test_draws_were_compared():
    assert len(DRAWS) >= 3
    assert LARGER


@given(cells, st.integers(0, 5))
def test_single_positive_keeps_one_true_positive_a_row(values, seed):
    labels = Labels(values)
    for weights in (None, np.ones(values.shape), np.zeros(values.shape)):
        observed = mask_to_single_positive(labels, seed, weights)
        assert (observed.present.sum(1) == labels.present.any(1)).all()
        assert (labels.present | ~observed.present).all()
        assert not observed.absent.any()


def test_weights_decide_the_draw():
    labels = Labels.from_masks(np.ones((4000, 3), bool))
    weights = np.tile([1.0, 3.0, 0.0], (4000, 1))
    share = mask_to_single_positive(labels, 0, weights).present.mean(0)
    assert share[2] == 0
    assert share[1] == pytest.approx(0.75, abs=0.03)


def test_masks_read_the_codes_and_bad_codes_are_refused():
    labels = Labels(np.array([[PRESENT, ABSENT, UNKNOWN]], np.int8))
    assert labels.present.tolist() == [[True, False, False]]
    assert labels.absent.tolist() == [[False, True, False]]
    assert labels.unknown.tolist() == [[False, False, True]]
    assert not labels.complete
    for bad in (np.array([[2]], np.int8), np.array([[-2]], np.int8)):
        with pytest.raises(ValueError, match="another code"):
            Labels(bad)
    with pytest.raises(ValueError, match="int8"):
        Labels(np.array([[1]]))
    with pytest.raises(ValueError, match="present and absent"):
        Labels.from_masks(np.ones((1, 1), bool), np.ones((1, 1), bool))


def test_fraction_hides_about_the_rest_and_changes_nothing():
    labels = Labels.from_masks(np.random.default_rng(0).random((500, 40)) < 0.3)
    observed = mask_to_fraction(labels, 0.25, seed=1)
    known = ~observed.unknown
    assert known.mean() == pytest.approx(0.25, abs=0.01)
    assert (observed.values[known] == labels.values[known]).all()
    assert (mask_to_fraction(labels, 1.0).values == labels.values).all()
    for bad in (0, -0.1, 1.1):
        with pytest.raises(PluresError, match=r"\(0, 1\]"):
            mask_to_fraction(labels, bad)


def test_none_and_complete():
    labels = Labels.from_masks(np.eye(3, dtype=bool))
    assert mask_all(labels).unknown.all()
    assert complete(labels) is labels
    with pytest.raises(PluresError, match="supervision=as_given"):
        complete(mask_all(labels))


def test_counts_by_hand():
    counts = count(Labels(np.array([[1, 1, -1], [1, 0, -1], [1, 0, 0], [-1, -1, -1]], np.int8)))
    assert counts.present.tolist() == [3, 1, 0]
    assert counts.absent.tolist() == [0, 2, 1]
    assert counts.unknown.tolist() == [1, 1, 3]
    assert counts.per_image == 1.0
    assert counts.per_image_histogram.tolist() == [1, 2, 1]
    assert counts.imbalance == 3.0
    assert counts.known_share == pytest.approx(7 / 12)
    assert np.isnan(count(Labels(np.empty((0, 2), np.int8))).per_image)


@given(cells)
def test_co_occurrence_equals_its_slow_twin(values):
    found = co_occurrence(Labels(values))
    for i in range(values.shape[1]):
        for j in range(values.shape[1]):
            judged = [row for row in values if row[i] == 1 and row[j] != -1]
            wanted = np.mean([row[j] == 1 for row in judged]) if judged else np.nan
            np.testing.assert_allclose(found[i, j], wanted)


def test_co_occurrence_of_more_rows_than_a_part():
    values = np.zeros((70_000, 2), np.int8)
    values[:, 0] = 1
    values[::7, 1] = 1
    assert co_occurrence(Labels(values))[0, 1] == pytest.approx(1 / 7)
