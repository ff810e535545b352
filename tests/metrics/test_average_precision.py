import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from metrics.reference_metrics import ENTRIES, TIED, UNTIED, inputs, recorded
from plures.errors import PluresError
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels
from plures.metrics import average_precision as module
from plures.metrics.average_precision import (
    DEFINITIONS,
    RECALLS_2007,
    average_precision,
    mean_average_precision,
)

NAME = {"ids": lambda entry: entry["name"]}
PUBLISHED = {
    "plain": "sklearn_ap",
    "mlspl": "elijahcole_ap",
    "voc": "voc_allpoint_ap",
    "voc07": "voc07_11point_ap",
    "mlgcn": "mlgcn_ap",
    "asl": "asl_ap",
}


# ------------------------------------------------------------------------------------------------ slow twin


def slow_ap(scores, codes, definition):
    """One class by the definition's words, a Python loop over the distinct scores."""
    known = [(s, c == PRESENT) for s, c in zip(scores, codes, strict=True) if c != UNKNOWN]
    positives = sum(hit for _, hit in known)
    if positives == 0:
        return 0.0 if definition in ("mlspl", "asl") else float("nan")
    points = []  # (recall, precision), highest score first
    for cut in sorted({s for s, _ in known}, reverse=True):
        above = [hit for s, hit in known if s >= cut]
        points.append((sum(above) / positives, sum(above) / len(above)))
    if definition == "voc07":
        return float(np.mean([max(p for r, p in points if r >= least) for least in RECALLS_2007]))
    total, reached = 0.0, 0.0
    for i, (recall, precision) in enumerate(points):
        best = max(p for _, p in points[i:]) if definition == "voc" else precision
        total += (recall - reached) * best
        reached = recall
    return total * positives / (positives + 1e-8) if definition == "asl" else total


@st.composite
def judged(draw):
    """Scores on a coarse grid (many ties) and labels with unknown cells."""
    images, classes = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    scores = random.integers(0, levels, (images, classes)) / levels
    return scores - draw(st.sampled_from([0.0, 0.5])), Labels(random.integers(-1, 2, (images, classes), np.int8))


@settings(max_examples=150, deadline=None)
@given(judged(), st.sampled_from(sorted(DEFINITIONS)))
def test_equals_its_slow_twin(case, definition):
    scores, labels = case
    expected = [slow_ap(scores[:, k], labels.values[:, k], definition) for k in range(labels.classes)]
    np.testing.assert_allclose(average_precision(scores, labels, definition, threads=1), expected, rtol=1e-12)


# ------------------------------------------------------------------------------------------- published values


@pytest.mark.parametrize("definition", sorted(PUBLISHED))
@pytest.mark.parametrize("entry", UNTIED, **NAME)
def test_equals_the_published_code(entry, definition):
    scores, labels = inputs(entry)
    expected = recorded(entry, PUBLISHED[definition])
    if definition == "plain":  # scikit-learn writes 0 where there is no positive
        expected[np.array(entry["n_pos"]) == 0] = np.nan
    np.testing.assert_allclose(average_precision(scores, labels, definition), expected, rtol=1e-12)


@pytest.mark.parametrize("definition", ["plain", "mlspl"])
@pytest.mark.parametrize("entry", TIED, **NAME)
def test_ties_equal_scikit_learn(entry, definition):
    scores, labels = inputs(entry)
    expected = recorded(entry, PUBLISHED[definition])
    if definition == "plain":
        expected[np.array(entry["n_pos"]) == 0] = np.nan
    np.testing.assert_allclose(average_precision(scores, labels, definition), expected, rtol=1e-12)


def in_one_order(scores, present, sign):
    """Distinct scores in which the positives come first (sign 1) or last (-1) among equal scores."""
    order = np.argsort(sign * present, axis=0, kind="stable")
    inner = np.argsort(np.take_along_axis(scores, order, 0), axis=0, kind="stable")
    rank = np.empty(scores.shape)
    np.put_along_axis(rank, np.take_along_axis(order, inner, 0), np.arange(len(scores))[:, None] * 1.0, 0)
    return rank


@pytest.mark.parametrize("entry", TIED, **NAME)
def test_the_range_of_row_orders_and_the_envelope_in_it(entry):
    """Published codes that go row by row land in the recorded range; the tie-safe envelope stays under its top."""
    scores, labels = inputs(entry)
    best, worst = (in_one_order(scores, labels.present.astype(int), sign) for sign in (1, -1))
    for order, name in ((best, "best"), (worst, "worst")):
        expected = recorded(entry, f"order_dependent_ap_{name}_order")
        np.testing.assert_allclose(average_precision(order, labels), expected, rtol=1e-12)
    some = np.array(entry["n_pos"]) > 0
    envelope = average_precision(scores, labels, "voc")[some]
    assert (envelope >= average_precision(scores, labels)[some]).all()
    assert (envelope <= average_precision(best, labels, "voc")[some] + 1e-12).all()


@pytest.mark.parametrize("entry", UNTIED, **NAME)
def test_published_means(entry):
    scores, labels = inputs(entry)
    assert 100 * mean_average_precision(scores, labels, "mlspl").value == pytest.approx(
        entry["elijahcole_metrics"]["map"], rel=1e-12
    )
    assert 100 * mean_average_precision(scores, labels, "asl").value == pytest.approx(
        entry["asl_map_percent"], rel=1e-12
    )
    if entry["q2l_map_percent"] is not None:
        assert 100 * mean_average_precision(scores, labels, "voc").value == pytest.approx(
            entry["q2l_map_percent"], rel=1e-12
        )


def test_the_mean_names_the_classes_it_scored():
    entry = next(e for e in ENTRIES if e["recipe"]["zero_classes"] == [3, 11])
    scores, labels = inputs(entry)
    result = mean_average_precision(scores, labels)
    assert np.flatnonzero(~result.scored).tolist() == [3, 11]
    assert result.value == pytest.approx(recorded(entry, "mlgcn_ap")[result.scored].mean(), rel=1e-12)


# ------------------------------------------------------------------------------------------------- properties


def test_by_hand():
    """Scores 5 4 3 2 with labels + - + ?: precision 1 at recall 1/2 and 2/3 at recall 1; the unknown is out."""
    scores = np.array([[5.0], [4.0], [3.0], [4.5]])
    labels = Labels(np.array([[1], [0], [1], [UNKNOWN]], np.int8))
    assert average_precision(scores, labels)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, labels, "voc07")[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_the_fourth_recall_of_voc07_is_just_above_three_tenths():
    """10 positives, the first three on top, then a negative: recall 0.3 misses the threshold 0.30000000000000004."""
    codes = [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
    scores = np.arange(11, 0, -1.0)[:, None]
    value = average_precision(scores, Labels(np.array(codes, np.int8)[:, None]), "voc07")[0]
    assert value == pytest.approx((3 * 1 + 8 * 10 / 11) / 11)


def test_unknown_cells_equal_removed_rows():
    random = np.random.default_rng(3)
    scores, values = random.random((60, 3)), random.integers(-1, 2, (60, 3), np.int8)
    for k, value in enumerate(average_precision(scores, Labels(values))):
        known = values[:, k] != UNKNOWN
        assert value == pytest.approx(average_precision_score(values[known, k], scores[known, k]), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_floating_type_and_layout(dtype):
    random = np.random.default_rng(4)
    scores = random.random((300, 5)).astype(dtype)
    labels = Labels((random.random((300, 5)) < 0.2).astype(np.int8))
    expected = [average_precision_score(labels.present[:, k], scores[:, k].astype(float)) for k in range(5)]
    for layout in (scores, np.asfortranarray(scores), np.repeat(scores, 2, axis=1)[:, ::2]):
        np.testing.assert_allclose(average_precision(layout, labels), expected, rtol=1e-12)


def test_counted_halves_are_sorted_floats_to_the_bit(monkeypatch):
    """Ties, negative scores, both zeros, infinities and unknown labels; nan is refused."""
    monkeypatch.setattr(module, "COUNTED_FROM", 1)
    random = np.random.default_rng(8)
    scores = np.round(random.normal(0, 3, (900, 6)), 1).astype(np.float16)
    scores[:40, 0], scores[40:80, 0], scores[80:90], scores[90:100] = 0.0, -0.0, np.inf, -np.inf
    labels = Labels(random.integers(-1, 2, scores.shape, np.int8))
    for name in DEFINITIONS:
        np.testing.assert_array_equal(
            average_precision(scores, labels, name), average_precision(scores.astype(np.float32), labels, name)
        )
    for bad in (np.nan, -np.nan):
        scores[5, 2] = bad
        with pytest.raises(PluresError, match="scores hold nan"):
            average_precision(scores, Labels(np.abs(labels.values)))


def test_blocks_and_threads_do_not_change_the_values(monkeypatch):
    random = np.random.default_rng(5)
    scores = random.random((500, 23))
    labels = Labels(random.integers(-1, 2, (500, 23), np.int8))
    whole = average_precision(scores, labels, threads=1)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)  # one class at a time
    monkeypatch.setattr(module, "TILE_ROWS", 7)
    for threads in (1, 3):
        np.testing.assert_array_equal(average_precision(scores, labels, threads=threads), whole)


def test_a_class_without_positives_or_without_rows():
    for values in (np.full((4, 1), ABSENT, np.int8), np.full((4, 1), UNKNOWN, np.int8), np.zeros((0, 1), np.int8)):
        scores = np.zeros(values.shape)
        for name in DEFINITIONS:
            expected = 0.0 if name in ("mlspl", "asl") else np.nan
            np.testing.assert_equal(average_precision(scores, Labels(values), name)[0], expected)
        assert np.isnan(mean_average_precision(scores, Labels(values)).value)


def test_bad_input_is_one_clear_line():
    labels = Labels(np.zeros((3, 2), np.int8))
    with pytest.raises(PluresError, match=r"scores \[3, 1\] and labels \[3, 2\] differ in shape"):
        average_precision(np.zeros((3, 1)), labels)
    with pytest.raises(PluresError, match="floating-point numbers"):
        average_precision(np.zeros((3, 2), int), labels)
    with pytest.raises(PluresError, match="scores hold nan"):
        average_precision(np.array([[0, 0], [0, np.nan], [0, 0]]), labels)
    with pytest.raises(PluresError, match="unknown definition of average precision 'voc7'; did you mean 'voc07'"):
        average_precision(np.zeros((3, 2)), labels, "voc7")
