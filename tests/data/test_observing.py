"""Observing a dataset: each mode, the biases, and what they say when they cannot."""

import numpy as np
import pytest

from plures.data.dataset import Boxes, Dataset
from plures.data.observing import bias_weights, observe
from plures.errors import PluresError
from plures.labels import Labels, observe_single_positive


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
    assert observe(given, "full") is given.labels
    assert observe(given, "as_given") is given.labels
    assert observe(given, "none").unknown.all()
    drawn = observe(given, "single_positive", seed=7)
    assert (drawn.values == observe_single_positive(given.labels, 7).values).all()
    assert observe(given, "fraction", fraction=0.5).unknown.mean() == pytest.approx(0.5, abs=0.1)


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
    observed = observe(given, "single_positive", bias=bias).present[1000:]
    assert (observed.sum(1) == 1).all()
    assert observed[:, 0].mean() == pytest.approx(share, abs=0.04)


def test_mistakes_are_one_line():
    with pytest.raises(PluresError, match="did you mean 'single_positive'"):
        observe(data(3), "single")
    with pytest.raises(PluresError, match="no option 'sed'; did you mean 'seed'"):
        observe(data(3), "fraction", sed=1)
    with pytest.raises(PluresError, match="no options"):
        observe(data(3), "none", seed=1)
    with pytest.raises(PluresError, match="unknown bias 'centre'; did you mean 'center'"):
        observe(data(3), "single_positive", bias="centre")
    with pytest.raises(PluresError, match="wants boxes"):
        observe(data(3, boxes=False), "single_positive", bias="size")
    unknown = data(3).with_labels(Labels(np.full((3, 3), -1, np.int8)))
    with pytest.raises(PluresError, match="supervision=full wants every label known"):
        observe(unknown, "full")
