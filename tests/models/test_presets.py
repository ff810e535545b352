"""backbone=fast, balanced, best and any name of timm: one backbone, and the run names the model."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from plures.config import Component, Experiment
from plures.doctor import examine
from plures.errors import PluresError
from plures.models.backbones.presets import PRESETS
from plures.models.backbones.timm_map import TimmMap

SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_model_of_timm_with_weights_that_anybody_may_use(name):
    e = Experiment(data="photos", backbone=name)
    assert e.backbone == Component(name="timm", options={**PRESETS[name], "pretrained": True})
    assert Experiment(**e.to_dict()) == e == Experiment(data="photos").change(e.to_settings())
    cfg = timm.get_pretrained_cfg(PRESETS[name]["model"])
    assert cfg.license == "apache-2.0"
    assert cfg.hf_hub_id
    built = TimmMap(**PRESETS[name])
    assert built.image_size == PRESETS[name].get("image_size", 260)


def test_options_come_on_top_of_the_name():
    e = Experiment(data="photos").change(["backbone=balanced", "backbone.weights=1e3", "backbone.image_size=280"])
    assert e.backbone.options == {**PRESETS["balanced"], "weights": "1e3", "image_size": 280}
    e = Experiment(backbone={"name": "resnet18.a1_in1k", "pretrained": False})
    assert e.backbone == Component(name="timm", options={"model": "resnet18.a1_in1k", "pretrained": False})
    assert Experiment(backbone="patches").backbone == Component(name="patches")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("balancd", r"unknown backbone 'balancd'; did you mean 'balanced'\?.*any name of timm"),
        ("small_con", "did you mean 'small_conv'"),
        ({"name": "fast", "no_such": 1}, "has no option 'no_such'"),
    ],
)
def test_other_names_are_one_line(name, message):
    with pytest.raises(PluresError, match=message):
        Experiment(backbone=name)


def test_the_doctor_says_which_weights_are_here(monkeypatch, tmp_path):
    def here(repository, file):
        return str(tmp_path) if "small" in repository and file == "model.safetensors" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", here)
    line = next(finding.what for finding in examine() if "backbones" in finding.what)
    assert line == (
        "weights of backbones on this disk: balanced (vit_small_patch14_reg4_dinov2.lvd142m); not fast, best, which are"
        " downloaded on first use, or given by backbone.weights=FILE"
    )


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_the_class_token_goes_with_every_region(name):
    patch = 14 if "14" in name else 16
    backbone = TimmMap(name, image_size=4 * patch, model_options=SMALL, class_token=True).eval()
    images = torch.rand(2, 3, 4 * patch, 4 * patch)
    whole, tokens = backbone.backbone.forward_features(images), backbone(images)
    assert whole.shape[1] == 1 + 4 + 16  # class token, registers, patches
    assert_close(tokens.features[..., :24], whole[:, 5:])
    assert_close(tokens.features[:, 3, 24:], whole[:, 0])


def test_a_model_without_class_token_says_so():
    with pytest.raises(ValueError, match="'test_resnet' has no class token"):
        TimmMap("test_resnet", class_token=True)


@pytest.mark.parametrize(("size", "fits"), [(50, "48 or 64"), (8, "16")])
def test_patches_must_divide_the_image(size, fits):
    with pytest.raises(
        PluresError, match=rf"image_size={size} is not a multiple of the backbone's patch of 16; use {fits}"
    ):
        TimmMap("test_vit", image_size=size)


def test_weights_of_another_image_size_have_their_positions_interpolated(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("test_vit", img_size=64, num_classes=0)
    with torch.no_grad():
        source.pos_embed.copy_(torch.arange(17.0)[None, :, None].expand(1, 17, 64))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    same = TimmMap("test_vit", weights=str(tmp_path / "w.safetensors"), image_size=64)
    assert torch.equal(same.backbone.pos_embed, source.pos_embed)
    larger = TimmMap("test_vit", weights=str(tmp_path / "w.safetensors"), image_size=128).backbone.pos_embed
    assert larger.shape == (1, 1 + 64, 64)
    assert larger[0, 0, 0] == 0  # the class token keeps its own
    assert (larger[0, 1:, 0].view(8, 8).diff(dim=1) > 0).all()
