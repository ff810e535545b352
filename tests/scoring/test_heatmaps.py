from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from plures.errors import PluresError
from plures.models.outputs import Output, grid_boxes
from plures.scoring.heatmaps import _neighbours, overlay, paint, region_weights


def hottest(heat):
    """Row and column of the hottest pixel, as fractions of the image."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    return (row + 0.5) / heat.shape[0], (column + 0.5) / heat.shape[1]


# ------------------------------------------------------------------------------------------------ region weights


def test_attention_comes_first():
    attention = torch.tensor([[[0.2, 0.8]]])
    output = Output(torch.zeros(1, 1), attention=attention, region_logits=torch.tensor([[[9.0, 0.0]]]))
    assert region_weights(output) is attention


def test_region_logits_count_where_positive_and_relatively_where_none_is():
    logits = torch.tensor([[[3.0, 1.0, -5.0, 0.0], [-1.0, -4.0, -2.0, -4.0], [-2.0] * 4, [2.0] * 4]])
    weights = region_weights(Output(torch.zeros(1, 4), region_logits=logits))[0]
    torch.testing.assert_close(weights[0], torch.tensor([0.75, 0.25, 0.0, 0.0]))
    torch.testing.assert_close(weights[1], torch.tensor([0.6, 0.0, 0.4, 0.0]))
    torch.testing.assert_close(weights[2:], torch.full((2, 4), 0.25))


def test_a_head_without_regions_is_told():
    with pytest.raises(PluresError, match="gives neither attention nor region logits"):
        region_weights(Output(torch.zeros(1, 1)))


# ------------------------------------------------------------------------------------------------------- painting


def test_a_grid_is_interpolated_between_its_centres():
    """A 1 x 2 grid, weights 0 and 1: 0 up to the first centre (x = 1/4), 1 from the second, linear in between."""
    heat = paint(np.array([0.0, 1.0]), grid_boxes(1, 2).numpy(), 3, 8)
    expected = np.clip(((np.arange(8) + 0.5) / 8 - 0.25) / 0.5, 0, 1)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, np.tile(expected, (3, 1)), atol=1e-6)


def test_the_map_is_the_bilinear_one_of_torch():
    weights = np.random.default_rng(0).random(5 * 7)
    heat = paint(weights, grid_boxes(5, 7).numpy(), 60, 91)
    grid = torch.from_numpy(weights).view(1, 1, 5, 7)
    expected = torch.nn.functional.interpolate(grid, (60, 91), mode="bilinear", align_corners=False)[0, 0].numpy()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(heat, expected, atol=1e-5)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (3, 1)])
def test_the_heat_lies_where_the_region_is_whatever_the_order(row, column):
    boxes = grid_boxes(4, 6).numpy()
    weights = np.eye(24)[row * 6 + column]
    order = np.random.default_rng(1).permutation(24)
    heat = paint(weights[order], boxes[order], 120, 200)
    y, x = hottest(heat)
    assert row / 4 <= y <= (row + 1) / 4
    assert column / 6 <= x <= (column + 1) / 6
    np.testing.assert_allclose(heat, paint(weights, boxes, 120, 200), atol=1e-6)


def test_levels_are_summed():
    """Two levels, quarters and the whole: the whole adds the same everywhere, so the map is that of the quarters."""
    quarters = grid_boxes(2, 2).numpy()
    both = np.concatenate([quarters, [[0, 0, 1, 1]]])
    weights = np.array([0.1, 0.4, 0.2, 0.1])
    np.testing.assert_allclose(
        paint(np.append(weights, 0.2), both, 20, 30), paint(weights, quarters, 20, 30), atol=1e-6
    )
    halves = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]])
    summed = paint(np.concatenate([weights, [0.0, 0.2]]), np.concatenate([quarters, halves]), 20, 30)
    assert hottest(summed)[1] > 0.5
    assert summed[-1, -1] == pytest.approx((0.3 - 0.1) / (0.6 - 0.1), abs=1e-6)  # 0.1 + 0.2, of 0.1 to 0.4 + 0.2


def test_a_level_that_ends_early_fades_out_without_an_edge():
    level = grid_boxes(4, 4).numpy() * 0.8  # patches of 64 on 80 pixels leave the last fifth out
    heat = paint(np.full(16, 0.1), level, 200, 200)
    assert heat[20, 20] == pytest.approx(1)
    assert (heat[:, 161:] == 0).all()
    assert np.abs(np.diff(heat, axis=1)).max() < 0.1


def test_scattered_boxes_are_averaged():
    """Three boxes of one size that form no lattice, two overlap."""
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0.5, 0.5, 1, 1]])
    heat = paint(np.array([1.0, 3.0, 4.0]), boxes, 4, 4)
    expected = np.array([[1, 2, 3, 0], [1, 2, 3, 0], [0, 0, 4, 4], [0, 0, 4, 4]]) / 4
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_the_range_is_zero_to_one_and_nothing_hotter_is_all_zero():
    weights = np.random.default_rng(0).random(9) * 1e-4
    heat = paint(weights, grid_boxes(3, 3).numpy(), 31, 17)
    assert (heat.min(), heat.max(), heat.shape) == (0, 1, (31, 17))
    rounding = np.full(9, 1 / 9) * (1 + 1e-8 * np.arange(9))
    for flat in (np.full(9, 1 / 9, np.float32), np.zeros(9), rounding):
        assert (paint(flat, grid_boxes(3, 3).numpy(), 5, 5) == 0).all()
    assert (paint(np.ones(1), np.array([[0, 0, 1, 1]]), 5, 5) == 0).all()
    with pytest.raises(ValueError, match=r"weights \[P\] and boxes \[P, 4\]"):
        paint(np.ones(3), np.zeros((2, 4)), 5, 5)


# ------------------------------------------------------------------------------------------------------- pictures


def test_the_overlay_keeps_the_size_and_the_cold_pixels():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8))
    heat = np.zeros((40, 70), np.float32)
    heat[30:, 50:] = 1
    picture = overlay(photo, heat)
    assert picture.size == photo.size
    changed = (np.asarray(picture) != np.asarray(photo)).any(-1)
    assert not changed[:30].any()
    assert not changed[:, :50].any()
    assert changed[30:, 50:].mean() > 0.95
    captioned = np.asarray(overlay(photo, heat, "sofa", 0.5))
    assert (captioned[:10, :30] != np.asarray(photo)[:10, :30]).any(-1).mean() > 0.9
    assert overlay(photo.convert("L"), heat, "a very long name of a class indeed", 1.0).mode == "RGB"
    with pytest.raises(ValueError, match="not as large as the photo"):
        overlay(photo, heat.T)


def test_regions_are_averaged_with_their_neighbours_of_the_same_size():
    boxes = grid_boxes(3, 3)
    weights = _neighbours(boxes).numpy().reshape(3, 3, 3, 3)
    assert weights[1, 1] == pytest.approx(np.outer([1, 2, 1], [1, 2, 1]) / 16)
    assert weights[0, 0] == pytest.approx(np.outer([2, 1, 0], [2, 1, 0]) / 9)  # at the edge, what is there
    both = _neighbours(torch.cat([boxes, grid_boxes(1, 1)])).numpy()
    assert both[-1] == pytest.approx([0] * 9 + [1])
    assert both[4, :9] == pytest.approx(weights[1, 1].ravel())


def test_a_lone_region_loses_against_a_whole_object():
    activation = torch.zeros(1, 1, 7, 7)
    activation[0, 0, 0, 6] = 3  # alone in a corner
    activation[0, 0, 3:6, 1:4] = 2
    output = Output(torch.zeros(1, 1), region_logits=activation.flatten(2), boxes=grid_boxes(7, 7))
    assert int(region_weights(output)[0, 0].argmax()) == 4 * 7 + 2
    assert int(region_weights(replace(output, boxes=None))[0, 0].argmax()) == 6
