"""IGNORE: its numbers, what it removes of an image or of features, and whom it leaves out in training."""

import json

import pytest
import torch

from loss_reference import FOLDER, Table
from plures.errors import PluresError
from plures.labels import TensorLabels
from plures.losses import Context, losses
from plures.losses.ignore import MEAN_COLOUR, observed_area
from plures.models.heads.linear import Linear
from plures.models.outputs import Output, grid_boxes
from plures.scoring.logits import HeadOnFeatures
from plures.training.loop import Step


def test_follows_the_official_code_over_its_epochs():
    """Six steps in two epochs and a half; the official code counts epochs from 1."""
    given = json.loads((FOLDER / "ignore.json").read_text())
    loss = losses.make("ignore", momentum=given["momentum"], warmup_epochs=given["warmup_epochs"], eps=given["eps"])
    state = Table(torch.zeros(1, 5, 2, dtype=torch.float64))
    for step in given["steps"]:
        x = torch.tensor(step["logits"], dtype=torch.float64, requires_grad=True)
        labels = TensorLabels(2 * torch.tensor(step["labels"], dtype=torch.int8) - 1)  # what is not observed is -1
        changed = torch.tensor(step["changed_logits"], dtype=torch.float64)
        context = Context(step["epoch"] - 1, 3, index=torch.arange(6), label_state=state, changed_logits=changed)
        value = sum(loss.compute(Output(x), labels, context).values())
        value.backward()
        assert float(value.detach()) == pytest.approx(step["value"], rel=1e-9)
        torch.testing.assert_close(x.grad, torch.tensor(step["grad"], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def one_corner(rows=4, columns=4, corner=0.0, rest=-3.0):
    """[1, 2, P]: the first class speaks in the top left cell alone, the second in the bottom right one alone."""
    maps = torch.full((1, 2, rows * columns), rest)
    maps[0, 0, 0], maps[0, 1, -1] = corner, corner
    return maps


def output_of(maps, field="region_logits"):
    return Output(maps.mean(2), boxes=grid_boxes(4, 4), **{field: maps})


def labels_of(*values):
    return TensorLabels(torch.tensor([values], dtype=torch.int8))


@pytest.mark.parametrize("field", ["region_logits", "attention"])
def test_only_the_area_of_the_observed_label_stays(field):
    loss, images = losses.make("ignore"), torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    changed = loss.changed_inputs(images, output_of(one_corner(), field), labels_of(1, -1))
    assert changed.dtype == torch.uint8
    stays = (changed == 200).all(1)[0]
    assert stays[:4, :4].all()  # to the centre of the region of 8 pixels; from there the map falls off
    assert stays.sum() == 16
    grey = torch.tensor(MEAN_COLOUR) * 255
    torch.testing.assert_close(changed[0, :, -1, -1].float(), grey, atol=1, rtol=0)
    assert (images == 200).all()
    bright = loss.changed_inputs(torch.ones(1, 3, 30, 45), output_of(one_corner()), labels_of(1, -1))  # no square
    torch.testing.assert_close(bright[0, :, -1, -1], torch.tensor(MEAN_COLOUR))


def test_several_labels_keep_all_their_areas_and_none_keeps_the_image():
    loss, images = losses.make("ignore"), torch.ones(1, 3, 32, 32)
    both = loss.changed_inputs(images, output_of(one_corner()), labels_of(1, 1))
    assert (both[0, :, 0, 0] == 1).all()
    assert (both[0, :, -1, -1] == 1).all()
    assert (both[0, :, -1, 0] < 0.5).all()
    assert torch.equal(loss.changed_inputs(images, output_of(one_corner()), labels_of(-1, 0)), images)
    assert (observed_area(output_of(torch.zeros(1, 2, 16)), torch.tensor([[True, False]])) == 1).all()
    features = loss.changed_inputs(torch.ones(1, 16, 5), output_of(one_corner()), labels_of(1, -1))
    assert features[0, 0].sum() == 5
    assert features[0, 1:].sum() == 0


def test_a_class_seen_elsewhere_is_left_out_by_the_training_step():
    """Two tokens: the first speaks for the observed class, the second for another; nothing for the third class."""
    head = Linear(3, 3)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.eye(3))
        head.classifier.bias.zero_()
    loss = losses.make("ignore", warmup_epochs=1, momentum=0.0)
    labels = torch.tensor([[1, -1, -1], [1, -1, -1]], dtype=torch.int8)
    step = Step(HeadOnFeatures(head, grid_boxes(1, 2)), loss.bind(labels))
    tokens = torch.tensor([[[8.0, 0, 0], [0, 4, 0]], [[8.0, 0, 0], [0, 0, 0]]])  # the second image has no other object

    def gradient(epoch):
        head.zero_grad()
        terms = step(tokens, labels, torch.arange(2), None, epoch, 4, 0.0, 0)
        sum(terms.values()).backward()
        return head.classifier.weight.grad[1, 1]  # how the other object's token moves its class

    assert gradient(0) > 0  # pushed down before the warm-up is over
    assert gradient(1) == 0  # then left alone


def test_needs_a_second_look_and_says_so():
    loss = losses.make("ignore")
    state = Table(torch.zeros(1, 2, 2))
    with pytest.raises(PluresError, match="changed_logits"):
        loss.compute(output_of(one_corner()), labels_of(1, -1), Context(index=torch.arange(1), label_state=state))
    with pytest.raises(PluresError, match="region_logits or attention"):
        loss.changed_inputs(torch.ones(1, 3, 8, 8), Output(torch.zeros(1, 2)), labels_of(1, -1))
    with pytest.raises(PluresError, match=r"keep_above is between 0 and 0.99, got 1"):
        losses.make("ignore", keep_above=1.0)
