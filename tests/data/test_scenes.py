"""The built-in scenes: reproducible, with true boxes, and no digit in two splits."""

import hashlib

import numpy as np
import pytest

from plures.data.formats.scenes import Scenes, _pools
from plures.data.read import read
from plures.errors import PluresError


def small(**options):
    return read("scenes", **{"train": 40, "val": 10, "test": 20, **options})


def test_sizes_splits_and_labels():
    data = small(size=96)
    assert data.images.shape == (70, 96, 96, 3)
    assert data.images.dtype == np.uint8
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [40, 10, 20]
    tags = data.labels.present.sum(1)
    assert (tags.min(), tags.max()) == (1, 4)
    assert data.labels.complete
    assert data.problems == ()


def test_a_seed_gives_the_same_bytes_everywhere():
    assert hashlib.sha256(small().images.tobytes()).hexdigest()[:16] == "e9cabbef3a1e1d22"
    assert (small().images != small(seed=1).images).any()


def test_more_scenes_begin_with_the_same_ones():
    assert (small(train=5).split("test").images == small().split("test").images).all()


def test_boxes_hold_the_digits_of_their_class():
    data = small(train=300)
    boxed = np.zeros(data.labels.values.shape, bool)
    boxed[data.boxes.row, data.boxes.column] = True
    assert (boxed == data.labels.present).all()
    assert data.boxes.corners.min() >= 0
    assert data.boxes.corners.max() <= 1
    wide, high = (data.boxes.corners[:, 2:] - data.boxes.corners[:, :2]).T
    assert high.min() > 0.2
    assert wide.max() < 0.5
    inside, outside = [], []
    for row, (x1, y1, x2, y2) in zip(data.boxes.row, np.rint(data.boxes.corners * 64).astype(int), strict=True):
        image = data.images[row].astype(float)
        inside.append(image[y1:y2, x1:x2].std((0, 1)).mean())
        outside.append(image.std((0, 1)).mean())
    assert np.mean(np.array(inside) > np.array(outside)) > 0.9  # a digit stands out from its ground


def test_no_digit_is_in_two_splits():
    pools = _pools(0)
    assert sum(len(scans) for scans, _ in pools.values()) == 1797
    from sklearn.datasets import load_digits

    where = {scan.tobytes(): set() for scan in load_digits().images.astype(np.int32)}
    for split, (scans, classes) in pools.items():
        assert set(classes.tolist()) == set(range(10))
        for scan in scans:
            where[scan.tobytes()].add(split)
    assert all(len(splits) == 1 for splits in where.values())


def test_options_must_make_sense():
    for bad in ({"size": 8}, {"train": -1}, {"train": 0, "val": 0, "test": 0}):
        with pytest.raises(PluresError, match="scenes"):
            Scenes(**bad)
    with pytest.raises(PluresError, match="no path"):
        Scenes().read("somewhere")
