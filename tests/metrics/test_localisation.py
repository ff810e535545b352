import numpy as np
import pytest

from plures.errors import PluresError
from plures.metrics.localisation import (
    box_of,
    energy_inside,
    inside_any,
    intersection_over_union,
    localisation,
    points_into,
)

LEFT = np.array([[0.0, 0.0, 0.5, 1.0]])
CORNERS = np.array([[0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0]])


def blob(rows, columns, height=10, width=10, value=1.0):
    heat = np.zeros((height, width), np.float32)
    heat[rows, columns] = value
    return heat


def test_pointing():
    assert points_into(blob(3, 4), LEFT)
    assert not points_into(blob(3, 5), LEFT)
    assert points_into(blob(3, 5), LEFT, tolerance=0.06)
    assert points_into(blob(9, 8), CORNERS)
    assert not points_into(blob(0, 9), CORNERS)  # x of one box, y of the other
    assert not points_into(np.zeros((10, 10)), LEFT)


def test_pointing_of_a_wide_image_takes_columns_as_x():
    heat = blob(1, 15, height=4, width=20)
    assert points_into(heat, np.array([[0.75, 0.25, 0.8, 0.5]]))
    assert not points_into(heat, np.array([[0.25, 0.75, 0.5, 0.8]]))


def test_a_plateau_points_to_its_middle():
    heat = blob(slice(2, 7), slice(1, 10))  # middle at row 4, column 5
    assert points_into(heat, np.array([[0.5, 0.4, 0.6, 0.5]]))
    assert not points_into(heat, np.array([[0.1, 0.2, 0.2, 0.3]]))


def test_energy():
    heat = blob(slice(None), slice(None))
    assert energy_inside(heat, LEFT) == 0.5
    heat[:, :5] = 3
    assert energy_inside(heat, LEFT) == 0.75
    assert energy_inside(heat, np.concatenate([LEFT, LEFT])) == 0.75  # overlapping boxes count once
    assert energy_inside(np.zeros((3, 3)), LEFT) == 0


def test_the_pixels_of_boxes():
    mask = inside_any(CORNERS, 10, 5)
    assert mask.sum() == 2 * 2 * 1
    assert mask[0, 0]
    assert mask[9, 4]


def test_the_box_of_the_largest_part():
    heat = blob(slice(2, 5), slice(1, 4), width=20)  # 9 pixels
    heat[7:9, 10:13] = 0.9  # 6 pixels
    heat[0, 19] = 1.0  # one pixel, the first part in reading order
    np.testing.assert_allclose(box_of(heat), [1 / 20, 0.2, 4 / 20, 0.5])
    heat[5, 4] = 1.0  # touches by a corner only
    np.testing.assert_allclose(box_of(heat), [1 / 20, 0.2, 4 / 20, 0.5])
    assert box_of(np.zeros((4, 4))) is None


def test_the_share_bounds_the_box():
    heat = np.tile(np.arange(1, 11) / 10, (4, 1))
    np.testing.assert_allclose(box_of(heat, 0.5), [0.4, 0, 1, 1])
    np.testing.assert_allclose(box_of(heat, 1.0), [0.9, 0, 1, 1])


def test_intersection_over_union():
    box = np.array([0.0, 0.0, 0.4, 0.4])
    others = np.array([[0, 0, 0.4, 0.4], [0.2, 0, 0.6, 0.4], [0.5, 0.5, 1, 1], [0.1, 0.1, 0.3, 0.3], [0.5, 0, 0.5, 0]])
    np.testing.assert_allclose(intersection_over_union(box, others), [1, 1 / 3, 0, 0.25, 0], atol=1e-12)
    empty = np.zeros(4)
    assert intersection_over_union(empty, empty[None])[0] == 0


def test_all_measures_together():
    """Map 1 fills its box exactly. Map 2 meets one of two boxes. Map 3 is empty."""
    first = (blob(slice(0, 5), slice(0, 5)), np.array([[0, 0, 0.5, 0.5]]))
    second = (blob(slice(0, 2), slice(0, 2)), CORNERS)
    third = (np.zeros((10, 10)), LEFT)
    result = localisation(iter([first, second, third]))
    assert (result.maps, result.boxes) == (3, 4)
    assert result.pointing == pytest.approx(2 / 3)
    assert result.energy == pytest.approx(2 / 3)
    assert result.box_hit == pytest.approx(2 / 3)
    assert result.box_recall == 0.5
    assert localisation([(blob(slice(0, 5), slice(0, 4)), first[1])], least_iou=0.8).box_hit == 1
    assert localisation([(blob(slice(0, 5), slice(0, 4)), first[1])], least_iou=0.81).box_hit == 0


def test_nothing_judged_is_nan_and_bad_input_is_told():
    assert np.isnan([localisation([]).pointing, localisation([]).box_recall]).all()
    with pytest.raises(PluresError, match="without one"):
        localisation([(np.ones((2, 2)), np.zeros((0, 4)))])
    with pytest.raises(PluresError, match=r"in \(0, 1\], got 0"):
        box_of(np.ones((2, 2)), 0)
    with pytest.raises(PluresError, match="no negative values and no nan"):
        energy_inside(np.array([[0, np.nan]]), LEFT)
    with pytest.raises(PluresError, match=r"\[H, W\], got shape \[2\]"):
        box_of(np.ones(2))
