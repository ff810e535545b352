"""Photos of the report: a tag ranked rightly but below its threshold is not called missed; labels of figures."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from plures.data.dataset import Dataset
from plures.labels import Labels
from plures.metrics.thresholds import Thresholds
from plures.report import figures
from plures.report.photos import SIDE, _photo
from plures.scoring.logits import Seen

CLASSES = ("cat", "dog", "cow")


def words(logits, labels):
    dataset = Dataset(np.zeros((1, 40, 60, 3), np.uint8), Labels(np.array([labels], np.int8)), CLASSES)
    whole = np.array([[0.0, 0, 1, 1]])
    seen = Seen(0, (60, 40), np.array(logits, np.float32), np.ones((3, 1)), whole)
    photo = _photo(dataset, 0, seen, Thresholds.constant(CLASSES))
    return [(picture.kind, picture.words) for picture in photo.pictures[1:]]


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        ([-1, -2, -3], [1, 0, 0], [("below", "below its threshold: cat 0.27"), ("not", "not there: dog 0.12")]),
        ([-2, -1, -3], [1, 0, 0], [("missed", "missed: cat 0.12"), ("not", "not there: dog 0.27")]),
        ([2, 1, -3], [1, 0, 0], [("wrong", "wrong: dog 0.73"), ("right", "right: cat 0.88")]),
    ],
)
def test_missed_is_what_stands_behind_an_absent_tag(logits, labels, expected):
    assert words(logits, labels) == expected


def test_pictures_are_large_enough_to_see():
    from plures.report.photos import data_uri

    assert SIDE >= 300
    assert len(data_uri(Image.effect_noise((1600, 1200), 80))) < 60_000


def test_labels_of_a_figure_do_not_overlap():
    figure = Figure((4.6, 3.2))
    axes = figure.add_subplot()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    places = {f"class {n}": (5.0, 5.0) for n in range(7)} | {"far": (1.0, 1.0)}
    figures._name(axes, places)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 5  # four around the one place
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    drawn, _ = figures.against_frequency(np.array([0.5, 0.5, 0.9]), np.array([10, 10, 40]), CLASSES)
    assert len(re.findall(">(?:cat|dog|cow)</text>", drawn)) == 3
