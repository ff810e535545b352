"""The patch backbone against the numbers and the reading of the paper."""

import pytest
import torch
from timm.layers import BatchNormAct2d

from plures.config import recipe_settings
from plures.errors import PluresError
from plures.models import build_model
from plures.models.backbones import backbones
from plures.models.backbones.patches import Patches, folded


def test_the_papers_setting_has_130_patches_and_248850_parameters():
    model = build_model("patches", "codebook", tuple(f"class {i}" for i in range(80)))
    assert model.parameter_count == 248_850
    patches, boxes = model.backbone.extract(torch.rand(1, 3, 640, 640))
    assert patches.shape == (1, 130, 3, 64, 64)
    assert boxes.shape == (130, 4)


def test_the_paper_has_no_activation_after_the_last_layer():
    options = recipe_settings("jouanneau2022:wn")["backbone"]
    small = {"image_size": 64, "levels": 0, "width": 8}
    torch.manual_seed(0)
    faithful = backbones.make("patches", **small, activation=options["activation"]).eval()
    torch.manual_seed(0)
    plain = backbones.make("patches", **small).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.nn.init.constant_(faithful.project.bias, -1)
    torch.nn.init.constant_(plain.project.bias, -1)
    features = faithful(images).features
    assert (features < -0.5).all()  # SiLU is above -0.28
    torch.testing.assert_close(plain(images).features, torch.nn.functional.silu(features))
    with pytest.raises(PluresError, match="silu or none"):
        backbones.make("patches", activation="swish")


@pytest.mark.parametrize(("size", "count"), [((480, 640), 87), ((375, 500), 42), ((500, 500), 59)])
def test_the_remainder_is_dropped(size, count):
    assert Patches().extract(torch.rand(1, 3, *size))[0].shape[1] == count


def test_patches_are_cut_where_their_boxes_lie():
    backbone = Patches(image_size=48, levels=1, patch=16, stride=8)
    images = torch.rand(2, 3, 48, 64)
    patches, boxes = backbone.extract(images)
    halved = images.unflatten(3, (32, 2)).unflatten(2, (24, 2)).mean((3, 5))
    levels = {16 / 48: images, 16 / 24: halved}
    for patch, box in zip(patches.unbind(1), boxes, strict=True):
        level = levels[min(levels, key=lambda height: abs(height - float(box[3] - box[1])))]
        x, y = round(float(box[0]) * level.shape[3]), round(float(box[1]) * level.shape[2])
        torch.testing.assert_close(patch, level[:, :, y : y + 16, x : x + 16])
    assert len(boxes) == 5 * 7 + 2 * 3


def test_the_network_sees_all_patches_as_one_channels_last_batch():
    patches, _ = Patches(image_size=128, levels=1).extract(torch.rand(2, 3, 128, 128))
    batch = patches.flatten(0, 1)
    assert batch.data_ptr() == patches.data_ptr()
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("subsample", "count"), [(0.5, 8 + 2 + 1), (3, 3 + 3 + 1), (100, 21)])
def test_subsampling_keeps_some_patches_of_each_level_while_training(subsample, count):
    backbone = Patches(image_size=64, levels=2, patch=16, stride=16, subsample=subsample)
    images = torch.rand(2, 3, 64, 64)
    every, where = backbone.eval().extract(images)
    assert len(where) == 21
    kept, boxes = backbone.train().extract(images)
    assert len(boxes) == count
    places = [int((where == box).all(1).nonzero()) for box in boxes]
    assert torch.equal(kept, every[:, places])
    if count < 21:
        assert any(not torch.equal(backbone.extract(images)[1], boxes) for _ in range(20))


def test_weights_start_with_variance_one_over_fan_in():
    torch.manual_seed(0)
    backbone = Patches()
    assert backbone.project.weight.detach().std() == pytest.approx(40**-0.5, rel=0.05)
    assert backbone.cnn[2][2][1].conv_pw.weight.detach().std() == pytest.approx(40**-0.5, rel=0.05)
    assert not backbone.project.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 224}, "less than a patch"),
        ({"ratio": 1.0}, "ratio above 1"),
        ({"subsample": 1.5}, "share in"),
        ({"subsample": 0}, "share in"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(PluresError, match=message):
        backbones.make("patches", **options)


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="a patch has 64 pixels"):
        Patches()(torch.rand(1, 3, 63, 640))


def test_without_gradient_patches_go_in_parts_and_norms_are_folded_to_the_same_end(monkeypatch):
    backbone = Patches(image_size=64, levels=1, patch=16, stride=8)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(3):
            backbone.train()(3 * images + 1)  # norms that do something
    sizes = []
    monkeypatch.setattr(torch.nn.SiLU, "forward", lambda self, x: sizes.append(len(x)) or torch.nn.functional.silu(x))
    whole = backbone.eval()(images).features
    sizes.clear()
    with torch.no_grad():
        parts = backbone(images).features
    torch.testing.assert_close(parts, whole.detach(), rtol=1e-4, atol=1e-5)
    assert set(sizes) == {16, len(whole.flatten(0, 1)) % 16}
    assert sum(isinstance(module, BatchNormAct2d) for module in folded(backbone.cnn).modules()) == 0


def test_activations_overwrite_their_input_only_without_gradient():
    backbone = Patches(image_size=64, levels=0)
    inplace = [
        {m.inplace for m in backbone.train(on).modules() if isinstance(m, torch.nn.SiLU)} for on in (True, False)
    ]
    assert inplace == [{False}, {True}]


def test_slow_depthwise_convolutions_are_trained_in_float32():
    backbone = Patches(image_size=64, levels=0)
    images = torch.rand(1, 3, 64, 64)
    kinds = {}
    for module in backbone.cnn.modules():
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
            module.register_forward_hook(lambda m, given, result: kinds.update({m: result.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        backbone.train()(images).features.sum().backward()
    slow = [m for m in kinds if m.stride[0] > 1 or m.kernel_size[0] > 3]
    assert len(slow) == 3
    assert {m: kind == torch.float32 for m, kind in kinds.items()} == {m: m in slow for m in kinds}
    assert all(m.weight.grad.isfinite().all() for m in kinds)
