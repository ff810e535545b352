"""What every backbone and every head in the registries must do."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from plures.errors import PluresError
from plures.models import Tokens, build_model, load, save
from plures.models.backbones import backbones
from plures.models.heads import heads
from plures.models.outputs import grid_boxes

SMALL = {
    "patches": {"image_size": 64, "levels": 1, "patch": 32, "stride": 32, "width": 24},
    "timm": {"model": "resnet18", "image_size": 64, "model_options": {"zero_init_last": False}},
    "small_conv": {"image_size": 32, "width": 16},
    "cvt": {"image_size": 64, "widths": [8, 12, 16], "depths": [1, 1, 2], "attention_heads": [1, 2, 2]},
}
CLASSES = ("cat", "dog", "sofa", "tree")
BACKBONES, HEADS = [name for name in backbones.names() if name != "features"], heads.names()  # that one sees no image
HEAD_OPTIONS: dict[str, dict] = {
    "codebook": {"code_width": 16},
    "query2label": {"hidden": 16, "feedforward": 8, "self_attention": "later"},
    "ml_decoder": {"hidden": 16, "feedforward": 8, "attention_heads": 4},
}


def backbone_options(name):
    assert name in SMALL, f"give the backbone '{name}' a small setting in this file"
    return SMALL[name]


def some_tokens(width=12, rows=3, columns=2, images=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randn(images, rows * columns, width, generator=generator), grid_boxes(rows, columns))


def make_head(name, width=12, classes=4):
    torch.manual_seed(1)
    return heads.make(name, {"width": width, "classes": classes}, **HEAD_OPTIONS.get(name, {})).eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_gives_tokens_with_boxes_in_the_image(name):
    backbone = backbones.make(name, **backbone_options(name)).eval()
    size = backbone.image_size
    for shape in ((size, size), (size, 2 * size)):
        tokens = backbone(torch.rand(2, 3, *shape))
        assert tokens.features.shape == (2, len(tokens.boxes), backbone.width)
        x1, y1, x2, y2 = tokens.boxes.T
        assert (x1 < x2).all()
        assert (y1 < y2).all()
        assert tokens.boxes.min() >= 0
        assert tokens.boxes.max() <= 1 + 1e-6
        assert len(torch.unique(tokens.boxes, dim=0)) == len(tokens.boxes)
    assert len(backbone.mean) == len(backbone.std) == 3


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_treats_each_image_alone(name):
    backbone = backbones.make(name, **backbone_options(name)).eval()
    images = torch.rand(3, 3, backbone.image_size, backbone.image_size)
    together = backbone(images).features
    torch.testing.assert_close(backbone(images[1:2]).features, together[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_tokens_follow_their_boxes(name):
    """A change in one corner moves the tokens around it most."""
    torch.manual_seed(0)
    backbone = backbones.make(name, **backbone_options(name)).eval()
    size = backbone.image_size
    images = torch.rand(1, 3, size, 2 * size)
    changed = images.clone()
    changed[..., -size // 8 :, -size // 8 :] += 3
    tokens = backbone(images)
    moved = (backbone(changed).features - tokens.features).norm(dim=-1)[0]
    assert not moved.isnan().any()
    centres = (tokens.boxes[:, :2] + tokens.boxes[:, 2:]) / 2
    x, y = (moved @ centres) / moved.sum()
    assert x > 0.53
    assert y > 0.53


@pytest.mark.parametrize("name", HEADS)
def test_head_fills_what_it_promises(name):
    tokens = some_tokens()
    head = make_head(name)
    output = head(tokens)
    assert output.logits.shape == (5, 4)
    for fieldname in ("attention", "region_logits", "embeddings"):
        assert output.has(fieldname) == (fieldname in head.gives)
    if output.attention is not None:
        assert output.attention.shape == (5, 4, 6)
        torch.testing.assert_close(output.attention.sum(-1), torch.ones(5, 4))
    if output.region_logits is not None:
        assert output.region_logits.shape == (5, 4, 6)
    if output.embeddings is not None:
        assert output.embeddings.shape[:2] == (5, 4)
    assert output.boxes is tokens.boxes


@pytest.mark.parametrize("name", HEADS)
def test_head_gives_the_same_logits_without_maps(name):
    tokens, head = some_tokens(), make_head(name)
    full, short = head(tokens), head(tokens, maps=False)
    torch.testing.assert_close(short.logits, full.logits, atol=1e-5, rtol=1e-5)
    assert short.has("embeddings") == full.has("embeddings")
    if full.embeddings is not None:
        torch.testing.assert_close(short.embeddings, full.embeddings, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_head_treats_each_image_alone_and_trains_every_parameter(name):
    tokens, head = some_tokens(), make_head(name)
    if getattr(head, "mean_is_enough", False):
        mean = Tokens(tokens.features.mean(1, keepdim=True), grid_boxes(1, 1))
        torch.testing.assert_close(head(mean).logits, head(tokens).logits, atol=1e-5, rtol=1e-5)
    one = Tokens(tokens.features[2:3], tokens.boxes)
    torch.testing.assert_close(head(one).logits, head(tokens).logits[2:3], atol=1e-5, rtol=1e-5)
    head(tokens).logits.square().sum().backward()
    assert [n for n, p in head.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_pair_saves_and_loads(backbone, head, tmp_path):
    torch.manual_seed(0)
    model = build_model(backbone, head, CLASSES, backbone_options(backbone), HEAD_OPTIONS.get(head))
    size = model.preprocessing.image_size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    model.train()
    model(images)  # moves the running statistics, which must be saved too
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.classes == CLASSES
    assert again.preprocessing == model.preprocessing
    assert again.parts == model.parts
    assert not again.training
    assert torch.equal(again(images).logits, model.eval()(images).logits)


def test_images_may_be_bytes_or_floats():
    model = build_model("small_conv", "linear", CLASSES, SMALL["small_conv"]).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(images).logits, model(images / 255).logits)
    by_hand = (images.double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(model.normalise(images).double(), by_hand, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "model.json").unlink(), "no model in"),
        (lambda run: (run / "model.json").write_text('{"plures"'), "is not a model description"),
        (lambda run: (run / "model.json").write_text("[]"), "is not a model description"),
        (lambda run: (run / "model.safetensors").unlink(), "cannot read the weights"),
        (lambda run: (run / "model.safetensors").write_bytes(b"x" * 100), "cannot read the weights"),
        (
            lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-64]),
            "cannot read the weights",
        ),
        (
            lambda run: (run / "model.json").write_text((run / "model.json").read_text().replace('"cat",', "")),
            "does not fit",
        ),
        (
            lambda run: (run / "model.json").write_text(
                (run / "model.json").read_text().replace('"linear"', '"codebook"')
            ),
            "does not fit",
        ),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(tmp_path, damage, message):
    run = tmp_path / "run"
    save(build_model("small_conv", "linear", CLASSES, SMALL["small_conv"]), run)
    damage(run)
    with pytest.raises(PluresError, match=message) as caught:
        load(run)
    assert "\n" not in str(caught.value)


def test_saving_leaves_no_other_file_behind(tmp_path):
    save(build_model("small_conv", "linear", CLASSES, SMALL["small_conv"]), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_class_named_twice_is_refused():
    with pytest.raises(PluresError, match="each named once"):
        build_model("small_conv", "linear", ("cat", "cat"))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_takes_a_feature_map_as_well(name):
    """[B, D, H, W] as a convolutional network gives it: the same as tokens row by row, with the boxes of the grid."""
    head, features = make_head(name), torch.randn(2, 12, 3, 5)
    tokens = Tokens(features.permute(0, 2, 3, 1).reshape(2, 15, 12), grid_boxes(3, 5))
    ours, theirs = head(features), head(tokens)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.boxes, theirs.boxes)
    with pytest.raises(ValueError, match=r"takes Tokens or a feature map \[B, D, H, W\], got \[2, 12\]"):
        head(torch.zeros(2, 12))


def test_a_model_of_format_1_is_still_read(tmp_path):
    """plures 0.1.0 called the backbone otherwise, in model.json and in the names of the weights."""
    model = build_model("small_conv", "linear", ("a", "b"), {"image_size": 16})
    save(model, tmp_path)
    spec = json.loads((tmp_path / "model.json").read_text())
    spec["parts"] = {name.replace("backbone", "embedder"): value for name, value in spec["parts"].items()}
    del spec["format"]
    (tmp_path / "model.json").write_text(json.dumps(spec))
    weights = load_file(tmp_path / "model.safetensors")
    save_file({n.replace("backbone.", "embedder.", 1): t for n, t in weights.items()}, tmp_path / "model.safetensors")
    back = load(tmp_path)
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())
