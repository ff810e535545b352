"""Weights of the official programs: the same logits and attention as their own code gave."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.filled import filled_state, picture
from plures.errors import PluresError
from plures.models import load, save
from plures.models.backbones.timm_map import TimmMap
from plures.models.heads.transformer import sine_code
from plures.models.outputs import grid_boxes
from plures.models.weights.checkpoint_file import read_state, to_safetensors
from plures.models.weights.released import import_mlspl, import_q2l
from shared import SHARED, needs_shared

SMALL = Path(__file__).parents[1] / "reference" / "q2l"
BIG = SHARED / "fixtures" / "q2l"


def recorded_weights(folder, name, **changes):
    """The checkpoint of a recorded run and its configuration."""
    info = json.loads((folder / f"{name}.json").read_text())
    names = json.loads(gzip.decompress((folder / f"{name}_keys.json.gz").read_bytes()))
    width, *grid = info["pe"]["shape"][1:]
    code = sine_code(grid_boxes(*grid), width).T.reshape(1, width, *grid).float()
    state = filled_state(names["keys"], names["integer_tensors"], code)
    for key, known in info["fill_check"].items():
        assert np.allclose(state[key].flatten()[:3], known["first3"], atol=1e-6), key
    return info, {**state, **changes}


def imported(tmp_path, folder, name, **changes):
    info, state = recorded_weights(folder, name, **changes)
    torch.save({"state_dict": state, "best_mAP": np.float64(0.9), "epoch": 3}, tmp_path / "checkpoint.pkl")
    del state
    classes = [f"c{i}" for i in range(info["config"]["num_class"])]
    model = import_q2l(tmp_path / "checkpoint.pkl", info["config"], classes)
    (tmp_path / "checkpoint.pkl").unlink()
    return info, model


def run(model, kind, dtype, maps):
    size = model.preprocessing.image_size
    pixels = picture(kind, size).float().to(dtype)
    with torch.no_grad():
        return model.head(model.backbone(pixels), maps=maps)


def check_parity(info, model, recorded):
    queries = info["attention_queries"]
    for kind in info["images"]:
        logits, attn = (torch.from_numpy(recorded[f"{kind}/{key}"]) for key in ("logits", "attn"))
        for maps in (True, False):
            output = run(model, kind, torch.float32, maps)
            torch.testing.assert_close(output.logits[0], logits, atol=1e-4, rtol=0)
            assert output.has("attention") == maps
            if output.attention is not None:
                attention = output.attention[0, queries].reshape(attn.shape)
                torch.testing.assert_close(attention, attn, atol=1e-6, rtol=0)
            known = info["runs"][info["images"].index(kind)]["decoder_output"]["first8_query0"]
            torch.testing.assert_close(output.embeddings[0, 0, :8], torch.tensor(known), atol=1e-4, rtol=0)
    model.double()
    for kind in info["images"]:
        output = run(model, kind, torch.float64, maps=False)
        torch.testing.assert_close(
            output.logits[0], torch.from_numpy(recorded[f"{kind}/logits_f64"]), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("name", ["small_r18_96", "small_r50_128_proj"])
def test_small_query2label_equals_the_authors(name, tmp_path):
    info, model = imported(tmp_path, SMALL, name)
    check_parity(info, model, np.load(SMALL / f"{name}.npz"))


@needs_shared
@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet101_448", "tresnetl_448", "swin_L_384_22k"])
def test_query2label_of_the_paper_equals_the_authors(name, tmp_path):
    info, model = imported(tmp_path, BIG, name)
    check_parity(info, model, np.load(BIG / f"{name}.npz"))


@needs_shared
@pytest.mark.shared
@pytest.mark.slow
def test_cvt_statistics_equal_the_authors(tmp_path):
    info, model = imported(tmp_path, BIG, "CvT_w24_384")
    assert model.parts.backbone == "cvt"
    known = info["runs"][0]["feature_map"]
    with torch.no_grad():
        tokens = model.backbone(picture("random", 384).float())
    features = tokens.features[0]
    assert features.shape == (24 * 24, 1024)
    assert float(features.mean()) == pytest.approx(known["mean"], abs=1e-5)
    assert float(features.std()) == pytest.approx(known["std"], abs=1e-5)
    assert float(features.abs().max()) == pytest.approx(known["absmax"], abs=1e-4)
    torch.testing.assert_close(features[0, :8], torch.tensor(known["first8_at_0_0"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(features[12 * 24 + 12, :8], torch.tensor(known["first8_at_centre"]), atol=1e-4, rtol=0)
    with torch.no_grad():
        memory = model.head.encoder[0](tokens.features, sine_code(tokens.boxes, 1024).float())[0]
    encoded = info["runs"][0]["encoder_output"]
    torch.testing.assert_close(memory[0, :8], torch.tensor(encoded["first8_token0"]), atol=1e-4, rtol=0)
    assert float(memory.std()) == pytest.approx(encoded["std"], abs=1e-5)


def small(tmp_path, edit=lambda state: state, name="checkpoint.pth", whole=lambda state: {"state_dict": state}):
    """A checkpoint of a small Query2Label model with three classes, and its file."""
    state = filled_state(json.loads(gzip.decompress((SMALL / "small_r18_96_keys.json.gz").read_bytes()))["keys"])
    state["backbone.1.pe"] = sine_code(grid_boxes(3, 3), 512).T.reshape(1, 512, 3, 3).float()
    torch.save(whole(edit(state)), tmp_path / name)
    return state, tmp_path / name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return small(tmp_path_factory.mktemp("released"))


IMAGE = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_imported_model_saves_and_loads_and_takes_other_sizes(checkpoint, tmp_path):
    model = import_q2l(checkpoint[1])
    assert model.preprocessing.image_size == 96
    assert model.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    save(model, tmp_path)
    assert torch.equal(load(tmp_path)(IMAGE).logits, model(IMAGE).logits)
    wide = torch.zeros(1, 3, 128, 224, dtype=torch.uint8)
    assert model(wide).attention.shape == (1, 10, 4 * 7)


@pytest.mark.parametrize(
    "whole",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"state_dict_ema": state, "optimizer": {"state": {}}, "best_mAP": np.float64(1), "arch": "Q2L"},
    ],
)
def test_every_way_of_wrapping_a_state_dict_is_read(checkpoint, tmp_path, whole):
    torch.save(whole(checkpoint[0]), tmp_path / "other.pkl")
    state = read_state(tmp_path / "other.pkl")
    assert list(state) == list(checkpoint[0])


def test_the_configuration_sets_what_shapes_do_not_tell(checkpoint, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"nheads": 8, "orid_norm": True, "dropout": 0.3, "img_size": 128}))
    model = import_q2l(checkpoint[1], tmp_path / "config.json")
    assert model.head.decoder[0].multihead_attn.heads == 8
    assert model.preprocessing.mean == (0, 0, 0)
    assert model.preprocessing.std == (1, 1, 1)
    assert model.preprocessing.image_size == 128
    assert model.head.encoder[0].dropout.p == 0.3
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(PluresError, match="configuration"):
            import_q2l(checkpoint[1], tmp_path / "config.json")


def test_a_position_code_of_its_own_is_kept_and_fixes_the_size(checkpoint, tmp_path):
    state = {**checkpoint[0], "backbone.1.pe": torch.randn(1, 512, 3, 3)}
    torch.save(state, tmp_path / "learned.pth")
    model = import_q2l(tmp_path / "learned.pth")
    code = state["backbone.1.pe"]
    torch.testing.assert_close(model.head.position_code[5], code[0, :, 1, 2])
    model(IMAGE)
    with pytest.raises(ValueError, match="fixed position code for 9 regions"):
        model(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))


def test_other_classes_are_refused_or_keep_what_is_known_by_name(checkpoint):
    with pytest.raises(PluresError, match="knows 10 classes, 2 are named"):
        import_q2l(checkpoint[1], classes=("cat", "dog"))
    renamed = import_q2l(checkpoint[1], classes=[f"c{i}" for i in range(10)])
    other = import_q2l(checkpoint[1], classes=("cat", "class 7", "class 2"), reinitialise=True)
    assert other.classes == ("cat", "class 7", "class 2")
    torch.testing.assert_close(other(IMAGE).logits[0, 1:], renamed(IMAGE).logits[0, [7, 2]])
    assert not torch.equal(other.head.queries[0], renamed.head.queries[0])


def without(*names):
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("fc.W"), r"is not a Query2Label checkpoint: it has no fc\.W"),
        (without("backbone.0.body.conv1.weight"), "its backbone is none of"),
        (without("transformer.encoder.layers.0.norm2.bias"), r"1 missing: head\.encoder\.0\.norm2\.bias$"),
        (lambda s: {**s, "fc.extra": torch.zeros(2)}, r"1 unexpected: head\.fc\.extra$"),
        (
            lambda s: {**s, "transformer.decoder.norm.bias": torch.zeros(7)},
            r"1 of another shape: head\.norm\.bias \[7\] instead of \[512\]$",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(checkpoint, tmp_path, edit, message):
    torch.save(edit(checkpoint[0]), tmp_path / "bad.pth")
    with pytest.raises(PluresError, match=message):
        import_q2l(tmp_path / "bad.pth")


class Code:
    def __reduce__(self):
        return (eval, ("1 + 1",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_no_checkpoints_are_refused_in_one_line(checkpoint, tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"state_dict": {"w": torch.zeros(2)}, "hook": Code()}, file)
    with pytest.raises(PluresError, match=r"holds code or objects besides tensors \(.*eval\), which"):
        read_state(file)
    file.write_bytes(pickle.dumps({"state_dict": Code()}, protocol=2))
    with pytest.raises(PluresError, match="holds code or objects besides tensors") as caught:
        read_state(file)
    assert "\n" not in str(caught.value)
    whole = checkpoint[1].read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[:-200]):
        file.write_bytes(content)
        with pytest.raises(PluresError, match="is not a PyTorch checkpoint") as caught:
            read_state(file)
        assert "\n" not in str(caught.value)
    for content in ([1, 2], {"epoch": 3}):
        torch.save(content, file)
        with pytest.raises(PluresError, match="holds no tensors by name"):
            read_state(file)
    with pytest.raises(PluresError, match="there is no checkpoint file"):
        read_state(tmp_path / "missing.pth")


def mlspl_state(classes=20):
    source = TimmMap("resnet50").backbone.state_dict()
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    state = {}
    for name, tensor in source.items():
        first, rest = name.split(".", 1)
        state[f"feature_extractor.{numbers[first]}.{rest}"] = tensor
    return state | {
        "linear_classifier.weight": torch.randn(classes, 2048),
        "linear_classifier.bias": torch.randn(classes),
    }


def test_mlspl_weights_are_a_resnet_and_a_linear_classifier(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    state = mlspl_state()
    torch.save(state, tmp_path / "best_model_state_f.pt")
    model = import_mlspl(tmp_path / "best_model_state_f.pt", image_size=64)
    assert model.classes[-1] == "tvmonitor"
    net = torchvision.models.resnet50(num_classes=20)
    places = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    theirs = {}
    for name, tensor in state.items():
        if name.startswith("feature"):
            number, rest = name.split(".", 2)[1:]
            theirs[f"{places[number]}.{rest}"] = tensor
        else:
            theirs[name.replace("linear_classifier", "fc")] = tensor
    net.load_state_dict(theirs)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model(images).logits, net.eval()(model.normalise(images)), atol=1e-4, rtol=1e-4)


def test_mlspl_weights_of_another_kind_are_refused(tmp_path):
    file = tmp_path / "f.pt"
    torch.save({"linear_classifier.fc.weight": torch.zeros(20, 2048)}, file)
    with pytest.raises(PluresError, match="holds no backbone"):
        import_mlspl(file)
    torch.save({"weight": torch.zeros(20, 2048)}, file)
    with pytest.raises(PluresError, match="is not an MLSPL checkpoint"):
        import_mlspl(file)


def test_weights_of_torchvision_become_a_file_for_the_timm_backbone(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    to_safetensors(tmp_path / "resnet18.pth", tmp_path / "resnet18.safetensors")
    backbone = TimmMap("resnet18", weights=str(tmp_path / "resnet18.safetensors")).eval()
    images = torch.rand(1, 3, 64, 64)
    logits = net.eval().fc(backbone(images).features.mean(1))
    torch.testing.assert_close(logits, net(images), atol=1e-5, rtol=1e-5)
    assert set(load_file(tmp_path / "resnet18.safetensors")) == set(net.state_dict())
