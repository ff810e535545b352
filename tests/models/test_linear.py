"""The linear head: its maps average to its logits, and BoostLU multiplies what is above zero, also when loaded."""

import pytest
import torch

from plures.errors import PluresError
from plures.labels import Labels
from plures.losses import losses
from plures.models.heads import heads
from plures.models.heads.linear import Linear
from plures.models.model import build_model, load, save
from plures.models.outputs import Tokens, grid_boxes


def by_hand(boost):
    """One feature, two classes with weights 1 and -1 and biases 0 and 1; regions say 2, -1, 0, 3."""
    head = Linear(1, 2, boost=boost)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    tokens = Tokens(torch.tensor([[[2.0], [-1.0], [0.0], [3.0]]]), grid_boxes(2, 2))
    return head(tokens), head(tokens, maps=False)


def test_boost_by_hand():
    plain, _ = by_hand(1)
    assert plain.logits.tolist() == [[1.0, 0.0]]
    boosted, without_maps = by_hand(5)
    assert boosted.region_logits.tolist() == [[[10.0, -1.0, 0.0, 15.0], [-1.0, 10.0, 5.0, -2.0]]]
    assert boosted.logits.tolist() == without_maps.logits.tolist() == [[6.0, 3.0]]
    assert without_maps.region_logits is None


def test_a_boosted_head_wants_all_tokens_and_a_plain_one_their_mean():
    assert Linear(3, 2).mean_is_enough
    assert not Linear(3, 2, boost=5).mean_is_enough


def test_the_boost_is_kept_at_test(tmp_path):
    model = build_model("small_conv", "linear", ("a", "b"), head_options={"boost": 5})
    save(model, tmp_path)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(load(tmp_path)(images).logits, model.eval()(images).logits)
    assert load(tmp_path).head.boost == 5
    with pytest.raises(PluresError, match=r"boost is a positive factor \(1: none, BoostLU: 5\), got 0"):
        heads.make("linear", {"width": 2, "classes": 2}, boost=0)


@pytest.mark.parametrize("name", ["ll_r", "ll_ct", "ll_cp"])
def test_the_large_losses_train_it(name):
    labels = Labels(torch.tensor([[1, -1], [-1, 1]], dtype=torch.int8).numpy())
    loss, head = losses.make(name, delta_rel=30.0).bind(labels), Linear(3, 2, boost=5)
    output = head(Tokens(torch.randn(2, 4, 3), grid_boxes(2, 2)))
    loss(output, torch.from_numpy(labels.values), epoch=2, index=torch.arange(2)).backward()
    assert head.classifier.weight.grad.isfinite().all()
    assert head.classifier.weight.grad.abs().sum() > 0


def test_standardised_features_by_hand(tmp_path):
    """A feature of mean 2 and deviation 4 at value 10 counts 2; a constant one counts nothing; both are saved."""
    model = build_model("small_conv", "linear", ("a",), head_options={"standardise": True})
    head = Linear(2, 1, standardise=True)
    head.fit_features(torch.tensor([2.0, 5.0]), torch.tensor([4.0, 0.0]))
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[3.0, 7.0]]))
        head.classifier.bias.zero_()
    output = head(Tokens(torch.tensor([[[10.0, 9.0]]]), grid_boxes(1, 1)))
    assert output.logits.tolist() == [[6.0]]
    assert output.region_logits.tolist() == [[[6.0]]]
    width = model.head.feature_mean.shape[0]
    model.head.fit_features(torch.full((width,), 0.5), torch.full((width,), 2.0))
    save(model, tmp_path)
    assert load(tmp_path).head.feature_scale.unique().tolist() == [0.5]


def test_normalised_features_by_hand():
    """The mean token (3, 4) is 5 long, and becomes sqrt 2 long; its regions are divided by the same number."""
    head = Linear(2, 1, normalise=True)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.classifier.bias.fill_(1.0)
    tokens = torch.tensor([[[6.0, 0.0], [0.0, 8.0]]])
    output = head(Tokens(tokens, grid_boxes(1, 2)))
    factor = 2**0.5 / 5
    torch.testing.assert_close(output.logits, torch.tensor([[1 + 3 * factor]]))
    torch.testing.assert_close(output.region_logits, torch.tensor([[[1 + 6 * factor, 1.0]]]))
    torch.testing.assert_close(head(Tokens(100 * tokens, grid_boxes(1, 2))).logits, output.logits)
    assert head(Tokens(torch.zeros(1, 2, 2), grid_boxes(1, 2))).logits.tolist() == [[1.0]]
