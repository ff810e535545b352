"""The ML-Decoder head against logits of the authors' code, with weights that follow from their names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.filled import filled
from plures.models import Tokens
from plures.models.heads.ml_decoder import MLDecoder
from plures.models.outputs import grid_boxes

REFERENCE = Path(__file__).parents[1] / "reference"
ENTRIES = json.loads((REFERENCE / "mldecoder.json").read_text())["entries"]
OURS = {
    "decoder.duplicate_pooling": "weight",
    "decoder.duplicate_pooling_bias": "bias",
    "decoder.query_embed.weight": "queries",
}


def our_name(name):
    name = OURS.get(name, name).removeprefix("decoder.layers.0.").replace("decoder.embed_standart", "input_proj")
    return f"feedforward.{name}" if name.startswith("linear") else name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("maps", [True, False])
def test_logits_equal_the_authors(entry, dtype, atol, maps):
    groups = entry["num_of_groups"]
    head = MLDecoder(entry["initial_num_features"], entry["num_classes"], **({"groups": groups} if groups > 0 else {}))
    head.load_state_dict({our_name(name): filled(name, tuple(shape)) for name, shape in entry["keys"].items()})
    shape = entry["input_shape"]
    features = torch.from_numpy(np.random.RandomState(11).standard_normal(shape).astype(np.float32))
    tokens = Tokens(features.flatten(2).transpose(1, 2).to(dtype), grid_boxes(*shape[2:]))
    output = head.to(dtype).eval()(tokens, maps=maps)
    with np.load(REFERENCE / "mldecoder.npz") as recorded:
        expected = torch.from_numpy(recorded[f"{entry['name']}/logits_{'f64' if dtype == torch.float64 else 'f32'}"])
    torch.testing.assert_close(output.logits, expected.to(dtype), atol=atol, rtol=0)
    assert output.has("embeddings") == (entry["num_queries"] == entry["num_classes"])


def test_the_queries_are_fixed_and_labels_share_their_groups_attention():
    head = MLDecoder(12, 7, groups=3, hidden=16, attention_heads=4, feedforward=8).eval()
    assert "queries" not in dict(head.named_parameters())
    attention = head(Tokens(torch.randn(2, 6, 12), grid_boxes(2, 3))).attention
    assert attention.shape == (2, 7, 6)
    assert torch.equal(attention[:, 0], attention[:, 2])
    assert not torch.equal(attention[:, 2], attention[:, 3])
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 7))
