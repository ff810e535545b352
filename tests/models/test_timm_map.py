"""Backbones of timm: their shapes, weights from a file, and what is said when something does not fit."""

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants as hub
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from plures.errors import PluresError
from plures.models import build_model, load, save
from plures.models.backbones.timm_map import TimmMap, grid_of
from shared import SHARED, needs_shared

TINY_SWIN = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("model", "options", "size", "tokens", "width"),
    [
        ("test_resnet", {}, (96, 64), 6, 96),
        ("test_vit", {}, (64, 64), 16, 64),
        ("test_vit", {"dynamic_img_size": True}, (64, 96), 24, 64),
        ("swin_tiny_patch4_window7_224", TINY_SWIN, (64, 64), 4, 96),
        ("test_efficientnet", {}, (64, 64), 4, 256),
    ],
)
def test_maps_of_every_layout_become_tokens(model, options, size, tokens, width):
    backbone = TimmMap(model, image_size=64, model_options=options).eval()
    made = backbone(torch.rand(2, 3, *size))
    assert made.features.shape == (2, tokens, width)
    assert backbone.width == width


def test_vit_tokens_leave_out_the_class_token_and_keep_the_order():
    backbone = TimmMap("test_vit", image_size=64).eval()
    images = torch.rand(1, 3, 64, 64)
    assert_close(backbone(images).features, backbone.backbone.forward_features(images)[:, 1:])


def test_swin_tokens_go_row_by_row():
    backbone = TimmMap("swin_tiny_patch4_window7_224", image_size=64, model_options=TINY_SWIN).eval()
    images = torch.rand(1, 3, 64, 64)
    channels_last = backbone.backbone.forward_features(images)
    assert channels_last.shape == (1, 2, 2, 96)
    assert_close(backbone(images).features[0, 1], channels_last[0, 0, 1])


@pytest.mark.parametrize(
    ("tokens", "size", "grid"), [(49, (224, 224), (7, 7)), (24, (64, 96), (4, 6)), (1, (9, 9), (1, 1))]
)
def test_the_grid_follows_from_the_number_of_tokens(tokens, size, grid):
    assert grid_of(tokens, *size) == grid


def test_a_number_of_tokens_that_is_no_grid_is_refused():
    with pytest.raises(ValueError, match="50 tokens are no grid"):
        grid_of(50, 224, 224)


def test_weights_of_a_file_with_or_without_classifier(tmp_path):
    source = timm.create_model("test_resnet", num_classes=7)
    state = source.state_dict()
    save_file(state, tmp_path / "with.safetensors")
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "without.safetensors")
    images = torch.rand(1, 3, 64, 64)
    expected = source.eval().forward_features(images).flatten(2).transpose(1, 2)
    for name in ("with", "without"):
        backbone = TimmMap("test_resnet", weights=str(tmp_path / f"{name}.safetensors")).eval()
        assert torch.equal(backbone(images).features, expected)


def test_a_saved_model_needs_no_weights_file(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    model = build_model("timm", "linear", ("a", "b"), {"model": "test_resnet", "weights": str(file)}, image_size=64)
    save(model, tmp_path / "run")
    file.unlink()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(load(tmp_path / "run")(images).logits, model.eval()(images).logits)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(PluresError, match=r"there is no file .*missing\.safetensors"):
        TimmMap("test_resnet", weights=str(missing))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors here")
    with pytest.raises(PluresError, match="not a valid safetensors"):
        TimmMap("test_resnet", weights=str(broken))
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), other)
    with pytest.raises(PluresError, match=r"does not fit timm's 'test_resnet': tensors \d+ missing .* unexpected"):
        TimmMap("test_resnet", weights=str(other))
    state = timm.create_model("test_resnet").state_dict()
    save_file(state | {"conv1.0.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(PluresError, match=r"1 of another shape \(conv1\.0\.weight"):
        TimmMap("test_resnet", weights=str(other))


def test_pretrained_without_network_is_one_line_and_quick(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PluresError, match=r"'test_resnet' are not on this machine.*weights=FILE") as caught:
        TimmMap("test_resnet", pretrained=True)
    assert "\n" not in str(caught.value)
    assert not hub.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet5"}, "timm has no model 'resnet5'; did you mean 'resnet"),
        ({"model": "test_resnet", "pretrained": True, "weights": "no such file"}, "there is no file no such file"),
        ({"model": "resnet18", "model_options": {"no_such": 1}}, "no_such"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(PluresError, match=message):
        build_model("timm", "linear", ("a",), options)


def test_frozen_parts_keep_weights_and_statistics():
    backbone = TimmMap("resnet18", frozen=("conv1", "bn1", "layer1")).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 64, 64)).features.sum().backward()
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.grad is not None}
    assert trained == {"layer2", "layer3", "layer4"}
    moved = {name.split(".")[1] for name, t in backbone.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {"layer2", "layer3", "layer4"}


def test_frozen_norms_compute_the_same_and_never_move():
    torch.manual_seed(0)
    free = TimmMap("resnet18", model_options={"zero_init_last": False}).eval()
    frozen = TimmMap("resnet18", frozen_norm=True)
    for norm in (module for module in free.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    frozen.load_state_dict({k: v for k, v in free.state_dict().items() if not k.endswith("num_batches_tracked")})
    images = torch.rand(2, 3, 64, 64)
    before = frozen.train()(images).features
    assert_close(before, free(images).features, atol=1e-4, rtol=1e-4)
    assert_close(frozen.eval()(images).features, before)
    assert not any("bn" in name for name, _ in frozen.named_parameters())


@needs_shared
@pytest.mark.shared
def test_mobilenet_features_of_real_photographs():
    """The recorded features come from larger copies of the photographs: near, and nearest to the right one.

    Mean difference 0.07 here; 0.29 with symmetric padding, 0.26 with blue for red, 0.11 without antialiasing.
    """
    backbone = TimmMap(
        "mobilenetv2_100",
        weights=str(SHARED / "weights/mobilenetv2_100.safetensors"),
        model_options={"pad_type": "same", "bn_eps": 1e-3},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ).eval()
    recorded = torch.from_numpy(np.load(SHARED / "fixtures/peer/train_features.npy"))
    names = (SHARED / "fixtures/peer/train_images.txt").read_text().split()
    for row in (0, 2, 5):
        photo = Image.open(SHARED / f"data/voc12/VOCdevkit/VOC2012/JPEGImages/{names[row]}.jpg").convert("RGB")
        pixels = torch.from_numpy(np.array(photo.resize((224, 224), Image.Resampling.BILINEAR)))
        with torch.no_grad():
            features = backbone(pixels.permute(2, 0, 1)[None] / 127.5 - 1).features.mean(1)
        distance = (recorded - features).abs().mean(1)
        assert int(distance.argmin()) == row
        assert distance[row] < 0.1
