"""The Query2Label head beyond the recorded runs: position code, options, and what it saves."""

import math

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.models import Tokens
from plures.models.heads import heads
from plures.models.heads.query2label import Query2Label
from plures.models.heads.transformer import Attention, sine_code
from plures.models.outputs import grid_boxes

TOKENS = Tokens(torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), grid_boxes(2, 3))


def slow_code(rows, columns, width):
    """The position code of Carion et al. cell by cell."""
    half = width // 2
    code = np.empty((rows, columns, width))
    for row in range(rows):
        for column in range(columns):
            for offset, place in ((0, (row + 1) / (rows + 1e-6)), (half, (column + 1) / (columns + 1e-6))):
                for i in range(half):
                    angle = place * 2 * math.pi / 10000 ** (2 * (i // 2) / half)
                    code[row, column, offset + i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    return torch.from_numpy(code.reshape(rows * columns, width))


@pytest.mark.parametrize(("rows", "columns", "width"), [(3, 3, 16), (2, 5, 8), (1, 1, 4), (14, 14, 64)])
def test_sine_code_on_a_grid_is_that_of_detr(rows, columns, width):
    boxes = grid_boxes(rows, columns)
    torch.testing.assert_close(sine_code(boxes, width), slow_code(rows, columns, width), atol=2e-6, rtol=0)


def test_sine_code_tells_patches_of_several_scales_apart():
    boxes = torch.cat([grid_boxes(4, 4), grid_boxes(2, 2)[:1]])
    code = sine_code(boxes, 32)
    assert (code[:-1] - code[-1]).abs().amax(1)[torch.arange(16) != 5].min() > 0.1


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize(("classes", "regions", "unprojected"), [(4, 6, False), (2, 40, True)])
def test_attention_is_torchs_own(maps, classes, regions, unprojected):
    ours = Attention(8, 4, dropout=0.0).double()
    torch.nn.init.normal_(ours.in_proj_bias)
    torchs = torch.nn.MultiheadAttention(8, 4, batch_first=True).double()
    torchs.load_state_dict(ours.state_dict())
    query, key, value = (torch.randn(3, n, 8, dtype=torch.float64) for n in (classes, regions, regions))
    assert ours._cheaper_unprojected(query, key) == unprojected
    expected, weights = torchs(query, key, value)
    found, seen = ours(query, key, value, maps=maps)
    torch.testing.assert_close(found, expected)
    if maps:
        torch.testing.assert_close(seen, weights)
    shared = ours(query[:1], key, value, maps=maps)[0]
    torch.testing.assert_close(shared, ours(query[:1].expand(3, -1, -1), key, value)[0])
    grad = torch.autograd.grad(found.square().sum(), [ours.in_proj_weight, ours.out_proj.weight])
    torch.autograd.backward(expected.square().sum())
    torch.testing.assert_close(grad, (torchs.in_proj_weight.grad, torchs.out_proj.weight.grad))


def test_dropout_without_projected_values_is_dropout_of_the_weights():
    """Weights that dropout leaves multiply projected values, bias and all."""
    attention = Attention(8, 4, dropout=0.5).double()
    torch.nn.init.normal_(attention.in_proj_bias)
    query, key, value = (torch.randn(3, n, 8, dtype=torch.float64) for n in (2, 40, 40))
    torch.manual_seed(0)
    found = attention(query, key, value)[0]
    weights = torch.softmax(
        (query @ attention.in_proj_weight[:8].T + attention.in_proj_bias[:8]).view(3, 2, 4, 2).transpose(1, 2)
        @ (key @ attention.in_proj_weight[8:16].T).view(3, 40, 4, 2).permute(0, 2, 3, 1)
        / 2**0.5,
        dim=-1,
    )  # [B, heads, K, P]
    torch.manual_seed(0)
    kept = torch.nn.functional.dropout(weights.flatten(1, 2), 0.5).view_as(weights)
    values = (value @ attention.in_proj_weight[16:].T + attention.in_proj_bias[16:]).view(3, 40, 4, 2).transpose(1, 2)
    torch.testing.assert_close(found, attention.out_proj((kept @ values).transpose(1, 2).flatten(2)))


def test_attention_dropout_acts_while_training_only():
    attention = Attention(8, 2, dropout=0.5)
    x = torch.randn(2, 5, 8)
    for maps in (True, False):
        assert not torch.equal(attention.train()(x, x, x, maps)[0], attention(x, x, x, maps)[0])
        assert torch.equal(attention.eval()(x, x, x, maps)[0], attention(x, x, x, maps)[0])
    seen = attention.train()(x, x, x, True)[1]
    torch.testing.assert_close(seen.sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize("kept", ["none", "later", "all"])
def test_self_attention_of_the_decoder(kept):
    head = Query2Label(8, 5, feedforward=16, self_attention=kept)
    names = {name.split(".")[1] for name in head.state_dict() if name.startswith("decoder.") and "self_attn" in name}
    assert names == {"none": set(), "later": {"1"}, "all": {"0", "1"}}[kept]
    head = head.double().eval()
    before = head(TOKENS).logits
    with torch.no_grad():
        head.queries[0] += 1
    moved = (head(TOKENS).logits - before).abs().amax(0) > 1e-9
    assert moved[0]
    assert bool(moved[1:].all()) == (kept != "none")
    assert bool(moved[1:].any()) == (kept != "none")


def test_logits_are_one_linear_score_a_label():
    head = Query2Label(8, 5, feedforward=16).double().eval()
    output = head(TOKENS)
    by_hand = torch.stack(
        [output.embeddings[:, k] @ head.classifier.weight[k] + head.classifier.bias[k] for k in range(5)], dim=1
    )
    torch.testing.assert_close(output.logits, by_hand)


def test_the_position_code_matters_only_if_asked_for():
    mixed = Tokens(TOKENS.features.flip(1), TOKENS.boxes)
    for position, same in (("none", True), ("sine", False)):
        head = Query2Label(8, 5, feedforward=16, position=position).double().eval()
        assert torch.allclose(head(mixed).logits, head(TOKENS).logits, atol=1e-9) == same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 10}, "shared by 4"),
        ({"hidden": 6, "attention_heads": 2}, "that 4 divides"),
        ({"decoder_layers": 0}, "1 or more"),
        ({"position": "learned"}, "sine, fixed or none"),
        ({"position": "fixed"}, "number of its positions"),
        ({"self_attention": "some"}, "none, later or all"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(PluresError, match=message):
        heads.make("query2label", {"width": 8, "classes": 3}, **options)
