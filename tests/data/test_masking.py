"""Observing a dataset: each mode, the biases, and what they say when they cannot."""

import numpy as np
import pytest

from plures.data.dataset import Boxes, Dataset
from plures.data.masking import bias_weights, mask_labels, mistake
from plures.errors import PluresError
from plures.labels import Labels, mask_to_single_positive


def data(rows: int = 3000, boxes: bool = True) -> Dataset:
    """Every image shows class 0 (large, in the corner) and class 1 (two small ones at the centre); 2 is rarer."""
    values = np.zeros((rows, 3), np.int8)
    values[:, :2] = 1
    values[: rows // 4, 2] = 1
    one = np.array([[0, 0, 0.4, 0.4], [0.4, 0.4, 0.5, 0.5], [0.5, 0.5, 0.6, 0.6]], np.float32)
    row, column = np.repeat(np.arange(rows), 3), np.tile([0, 1, 1], rows)
    found = Boxes(row, column, np.tile(one, (rows, 1)))
    return Dataset([f"{i}.jpg" for i in range(rows)], Labels(values), ("a", "b", "c"), boxes=found if boxes else None)


def test_modes():
    given = data(200)
    assert mask_labels(given, "full") is given.labels
    assert mask_labels(given, "as_given") is given.labels
    assert mask_labels(given, "none").unknown.all()
    drawn = mask_labels(given, "single_positive", seed=7)
    assert (drawn.values == mask_to_single_positive(given.labels, 7).values).all()
    assert mask_labels(given, "fraction", fraction=0.5).unknown.mean() == pytest.approx(0.5, abs=0.1)


def test_weights_by_hand():
    given = data(4)
    assert bias_weights(given, "size")[3] == pytest.approx([0.16, 0.02, 0])
    near, far = np.hypot(0.05, 0.05), np.hypot(0.3, 0.3)
    assert bias_weights(given, "center")[0] == pytest.approx([1 / far, 2 / near, 0], rel=1e-5)
    assert bias_weights(given, "frequency")[0].tolist() == [4, 4, 1]
    assert bias_weights(given, "uniform").tolist() == [[1, 1, 1]] * 4


@pytest.mark.parametrize(
    ("bias", "share"), [("size", 0.16 / 0.18), ("center", 0.3 / (0.3 + 2 * 1.8)), ("uniform", 0.5)]
)
def test_biases_change_what_is_kept(bias, share):
    given = data()
    observed = mask_labels(given, "single_positive", bias=bias).present[1000:]
    assert (observed.sum(1) == 1).all()
    assert observed[:, 0].mean() == pytest.approx(share, abs=0.04)


def test_wrong_positives():
    given = data()
    clean = mask_labels(given, "single_positive", seed=3)
    tenth, fifth = (mask_labels(given, "single_positive", seed=3, wrong=share) for share in (0.1, 0.2))
    able = given.labels.absent.any(1)  # the first quarter shows every class: nothing wrong can be said
    assert not able[:750].any()
    for observed, share in ((tenth, 0.1), (fifth, 0.2)):
        assert (observed.present.sum(1) == 1).all()
        assert not observed.absent.any()
        wrong = (observed.present & given.labels.absent).any(1)
        assert wrong[able].mean() == pytest.approx(share, abs=0.02)
        assert (observed.values[~wrong] == clean.values[~wrong]).all()
    assert (fifth.present & given.labels.absent)[(tenth.present & given.labels.absent)].all()  # more of the same
    assert (mask_labels(given, "single_positive", seed=3, wrong=0).values == clean.values).all()
    with pytest.raises(PluresError, match=r"wrong is the share .* in \[0, 1\], got 20"):
        mask_labels(given, "single_positive", wrong=20)
    positives = given.with_labels(Labels(np.where(given.labels.present, 1, -1).astype(np.int8)))
    with pytest.raises(PluresError, match="requires classes known to be absent"):
        mask_labels(positives, "single_positive", wrong=0.1)


def test_a_wrong_positive_replaces_one_of_several():
    truth = Labels(np.tile(np.array([1, 1, 0, 0, 0], np.int8), (400, 1)))
    observed = mistake(truth, truth, 1.0)
    assert (observed.present.sum(1) == 2).all()
    assert (observed.unknown.sum(1) == 1).all()
    assert set(np.flatnonzero(observed.present.any(0))) == {0, 1, 2, 3, 4}


def test_sources_know_only_their_own_classes():
    truth = np.random.default_rng(0).integers(0, 2, (600, 10)).astype(np.int8)
    given = Dataset([f"{i}.jpg" for i in range(600)], Labels(truth), tuple("abcdefghij"))
    observed = mask_labels(given, "sources", sources=3, known="all")
    scopes, count = np.unique(~observed.unknown, axis=0, return_counts=True)
    assert count.tolist() == [200, 200, 200]
    assert scopes.sum(0).tolist() == [1] * 10  # each class belongs to one source
    assert sorted(scopes.sum(1)) == [3, 3, 4]
    assert (observed.values[~observed.unknown] == truth[~observed.unknown]).all()
    one = mask_labels(given, "sources", sources=3)
    assert one.present.sum(1).max() == 1
    assert not one.absent.any()
    assert (one.present <= observed.present).all()
    assert (one.present.any(1) == observed.present.any(1)).all()
    common = mask_labels(given, "sources", sources=3, shared=0.4, known="all")
    assert ((~common.unknown).all(0)).sum() == 4
    assert (~mask_labels(given, "sources", sources=10, shared=0.9, known="all").unknown).sum() == 600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": 0}, "from 1 to the 3 classes, got 0"),
        ({"sources": 4}, "from 1 to the 3 classes, got 4"),
        ({"shared": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"known": "some"}, "known='some': expected one or all"),
    ],
)
def test_wrong_sources_are_one_line(options, message):
    with pytest.raises(PluresError, match=message):
        mask_labels(data(6), "sources", **options)


def test_mistakes_are_one_line():
    with pytest.raises(PluresError, match="did you mean 'single_positive'"):
        mask_labels(data(3), "single")
    with pytest.raises(PluresError, match="no option 'sed'; did you mean 'seed'"):
        mask_labels(data(3), "fraction", sed=1)
    with pytest.raises(PluresError, match="no options"):
        mask_labels(data(3), "none", seed=1)
    with pytest.raises(PluresError, match="bias='centre': expected uniform, frequency"):
        mask_labels(data(3), "single_positive", bias="centre")
    with pytest.raises(PluresError, match="requires boxes"):
        mask_labels(data(3, boxes=False), "single_positive", bias="size")
    unknown = data(3).with_labels(Labels(np.full((3, 3), -1, np.int8)))
    with pytest.raises(PluresError, match="supervision=full requires complete labels"):
        mask_labels(unknown, "full")
