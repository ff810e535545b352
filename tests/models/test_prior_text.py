"""The image-text prior against open_clip's own zero-shot scores, on a tiny model made here."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from plures.errors import PluresError
from plures.models.model import build_model, load, make_prior, save, weighed, with_prior

CLASSES = ("cat", "tv_monitor")
TEMPLATES = ["a photo of a {}.", "the {}"]
PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_without_open_clip_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setattr("plures.errors.find_spec", lambda name: None)
    model = build_model("small_conv", "linear", CLASSES, image_size=64)
    with pytest.raises(PluresError, match=r'prior=text needs the package open_clip: pip install "plures\[text\]"'):
        make_prior(model, "text", {}, frozen=True)


def test_templates_have_a_place_for_the_name():
    model = build_model("small_conv", "linear", CLASSES, image_size=64)
    for templates in (["a photo"], [], "a {}"):
        with pytest.raises(PluresError, match="a list of (sentences|text)"):
            make_prior(model, "text", {"templates": templates}, frozen=True)


@pytest.fixture(scope="module", params=["own network", "timm network"])
def tiny(request, tmp_path_factory):
    """A folder with a tiny image-text model of random weights, and the model itself."""
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip: pip install plures[text]")
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    if request.param == "timm network":
        vision = {"image_size": 64, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    folder = tmp_path_factory.mktemp("clip")
    shown = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": shown}))
    made = open_clip.CLIP(**config).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 0.1
    torch.save(made.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder, made, request.param == "timm network"


def zero_shot(clip, pixels):
    """open_clip's own way, class by class."""
    import open_clip

    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    image = clip.encode_image((pixels - mean) / std, normalize=True)
    tokenizer = open_clip.get_tokenizer("local-dir:" + str(clip.folder))
    scores = []
    for name in ("cat", "tv monitor"):
        texts = clip.encode_text(tokenizer([one.format(name) for one in TEMPLATES]), normalize=True).mean(0)
        scores.append(clip.logit_scale.exp() * image @ F.normalize(texts, dim=0))
    return torch.stack(scores, 1)


@torch.inference_mode()
def test_it_is_open_clips_own_zero_shot(tiny, tmp_path):
    folder, clip, _ = tiny
    clip.folder = folder
    options = {"model": f"local-dir:{folder}", "templates": TEMPLATES}
    expected = zero_shot(clip, PIXELS)
    model = build_model("small_conv", "linear", CLASSES, image_size=64)
    fused = weighed(with_prior(model, "text", make_prior(model, "text", options, frozen=True)), 0.0, 1.0).eval()
    assert fused.head.prior.options["config"]["image"] == "own"
    torch.testing.assert_close(fused(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
    save(fused, tmp_path)
    torch.testing.assert_close(load(tmp_path)(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_backbone_that_is_its_image_network_is_used_for_both(tiny, tmp_path):
    folder, clip, of_timm = tiny
    clip.folder = folder
    if not of_timm:
        pytest.skip("that network is not of timm")
    from safetensors.torch import save_file

    save_file(clip.visual.trunk.state_dict(), tmp_path / "trunk.safetensors")
    backbone = {"model": "test_resnet", "weights": str(tmp_path / "trunk.safetensors"), "image_size": 64}
    backbone |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    model = build_model("timm", "linear", CLASSES, backbone)
    options = {"model": f"local-dir:{folder}", "templates": TEMPLATES}
    for frozen, image in ((True, "shared"), (False, "own")):
        prior = make_prior(model, "text", options, frozen=frozen)
        assert prior.options["config"]["image"] == image
        fused = weighed(with_prior(model, "text", prior), 0.0, 1.0).eval()
        torch.testing.assert_close(fused(PIXELS).logits, zero_shot(clip, PIXELS), rtol=1e-3, atol=1e-3)
        save(fused, tmp_path)
        torch.testing.assert_close(load(tmp_path)(PIXELS).logits, fused(PIXELS).logits)
    other = build_model("timm", "linear", CLASSES, backbone | {"weights": None})
    assert make_prior(other, "text", options, frozen=True).options["config"]["image"] == "own"  # same, other weights


@torch.inference_mode()
def test_data_that_are_its_image_features(tiny):
    folder, clip, _ = tiny
    clip.folder = folder
    options = {"model": f"local-dir:{folder}", "templates": TEMPLATES}
    model = build_model("features", "linear", CLASSES, {"width": 24})
    fused = weighed(with_prior(model, "text", make_prior(model, "text", options, frozen=True)), 0.0, 1.0).eval()
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(
        fused(clip.encode_image((PIXELS - mean) / std)).logits, zero_shot(clip, PIXELS), rtol=1e-4, atol=1e-4
    )
    other = build_model("features", "linear", CLASSES, {"width": 25})
    with pytest.raises(PluresError, match=r"features of 25 numbers per image, and local-dir:.* has 24"):
        make_prior(other, "text", options, frozen=True)


def test_models_that_cannot_be_had(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = build_model("small_conv", "linear", CLASSES, image_size=64)
    for options, what in (
        ({"model": "ViT-Z-99"}, "open_clip has no model 'ViT-Z-99'"),
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "is not on this machine and cannot be loaded"),
        ({"model": "ViT-B-32", "pretrained": "no_tag"}, "cannot be loaded"),
        ({"model": f"local-dir:{tmp_path}/none"}, "cannot be loaded"),
    ):
        with pytest.raises(PluresError, match=what) as error:
            make_prior(model, "text", options, frozen=True)
        assert "\n" not in str(error.value)
