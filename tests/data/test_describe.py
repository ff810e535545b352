"""Description: the counts, the pairs, what is printed, and that the pictures are pictures."""

from io import StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from plures.data.checks.describe import describe, pictures, render
from plures.data.dataset import Dataset
from plures.errors import Problem
from plures.labels import Labels, mask_to_single_positive


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    present = generator.random((200, 4)) < [0.5, 0.1, 0.5, 0.02]
    present[:, 1] |= present[:, 3]  # 3 never without 1
    present[:6, [1, 3]] = True
    images = generator.integers(0, 255, (200, 16, 16, 3)).astype(np.uint8)
    splits = np.array(["train"] * 150 + ["test"] * 50)
    problems = (Problem("t.csv", 7, "image [x] is missing", "a file"),)
    return Dataset(
        images, Labels.from_masks(present), ("cat", "$wheel", "sofa", "[bike]"), splits, None, "toy", problems
    )


def test_pairs_by_hand(data):
    found = describe(data)
    present = data.labels.present
    pair = found.pairs[0]
    assert (pair.first, pair.second) == ("$wheel", "[bike]")
    assert pair.images == (present[:, 1] & present[:, 3]).sum()
    assert pair.first_given_second == 1.0
    assert pair.lift == pytest.approx(1 / present[:, 1].mean())
    assert found.correlated == 1
    assert found.splits == {"test": 50, "train": 150}
    assert found.without_tag == (~present.any(1)).sum()


def test_print_names_the_three_problems_and_every_bad_row(data):
    console = Console(width=100, record=True, file=StringIO())
    for part in render(describe(data)):
        console.print(part)
    text = console.export_text()
    for word in (
        "label correlation",
        "class imbalance",
        "sparse supervision",
        "[bike]",
        "t.csv",
        "image [x] is missing",
    ):
        assert word in text
    assert "200 images, 4 classes" in text


def test_single_positive_data_have_no_pairs(data):
    found = describe(data.with_labels(mask_to_single_positive(data.labels)))
    assert found.pairs == ()
    assert found.counts.per_image <= 1


def test_pictures(data, tmp_path):
    for subject in (data.take([0]), data.with_labels(mask_to_single_positive(data.labels))):
        paths = pictures(subject, describe(subject), tmp_path / "p")
        assert [path.name for path in paths] == ["examples.png", "co_occurrence.png"]
        for path in paths:
            with Image.open(path) as image:
                assert len(np.unique(np.asarray(image.convert("L")))) > 20
