"""Features by every engine are the same within the stated tolerance, whatever batch an image is in."""

import numpy as np
import pytest
import torch
from torch import nn

from plures import Experiment
from plures.data.dataset import Dataset
from plures.errors import PluresError, WorkFailed
from plures.labels import Labels
from plures.models.model import build_model
from plures.scoring import engines
from plures.scoring.engines import TOLERANCE, Pooled, chosen, feature_function, folded
from plures.scoring.features import feature_key, frozen_features

SIDE, CPU = 64, torch.device("cpu")
NAMES = ("test_resnet", "test_efficientnet", "test_vit")


def with_statistics(model):
    """Batch norms as training leaves them: means, variances and weights that are not those of a new network."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for numbers in (module.weight.data, module.running_var):
                numbers.uniform_(0.5, 2)
            for numbers in (module.bias.data, module.running_mean):
                numbers.normal_(0, 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    names = {name: {"model": name, "image_size": SIDE} for name in NAMES}
    names["frozen_norm"] = {"model": "test_resnet", "image_size": SIDE, "frozen_norm": True}
    made = {name: with_statistics(build_model("timm", "linear", ("a",), options)) for name, options in names.items()}
    return made | {"small_conv": with_statistics(build_model("small_conv", "linear", ("a",), {"image_size": SIDE}))}


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (5, 3, SIDE, SIDE), np.uint8))


def close(one, other):
    return float((one - other).abs().max()) <= TOLERANCE * (1 + float(one.abs().max()))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "frozen_norm", "small_conv"])
def test_folding_leaves_no_batch_norm_and_the_features_as_they_are(models, images, name):
    with torch.inference_mode():
        without = folded(models[name], images[:1])
        assert without is not None
        assert not [m for m in without.modules() if engines._is_batch_norm(m)]
        assert [m for m in models[name].modules() if engines._is_batch_norm(m)]  # the model itself keeps them
        assert close(models[name].tokens(images).features, without.tokens(images).features)


def test_where_something_else_takes_the_convolution_too_the_norms_stay(images):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.bn(x) + x

    model = build_model("small_conv", "linear", ("a",), {"image_size": SIDE})
    model.backbone = Both()
    model = with_statistics(model)
    compute = feature_function(model, True, "torch", None)
    with torch.inference_mode():
        assert not close(Pooled(model, True)(images), Pooled(folded(model, images[:1]), True)(images))
        assert torch.equal(Pooled(model, True)(images), compute(images))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_gives_the_features_of_torch_in_every_batch(models, images, tmp_path, name, engine):
    pytest.importorskip("onnxscript")
    pytest.importorskip(engine)
    for pooled in (True, False):
        with torch.inference_mode():
            compute = feature_function(models[name], pooled, engine, tmp_path / f"{pooled}.onnx")
            together = compute(images)
            assert close(Pooled(models[name], pooled)(images), together)
            alone = torch.cat([compute(images[:1]), compute(images[1:4]), compute(images[4:])])
            assert close(together, alone)


def test_auto_exports_only_for_many_images_and_batch_norms_on_a_cpu(models, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: True)
    net = models["test_resnet"]
    assert [chosen("auto", net, CPU, n) for n in (999, 1000)] == ["torch", "onnxruntime"]
    assert chosen("auto", net, torch.device("cuda"), 10**6) == "torch"
    assert chosen("auto", models["test_vit"], CPU, 10**6) == "torch"
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "onnxscript" else True)
    assert chosen("auto", net, CPU, 1000) == "torch"
    with pytest.raises(PluresError, match="engine=openvino computes on a CPU, got device=cuda"):
        chosen("openvino", net, torch.device("cuda"), 1)


def test_a_missing_engine_is_one_line(models, monkeypatch):
    monkeypatch.setattr("plures.errors.find_spec", lambda name: None)
    with pytest.raises(PluresError, match=r'engine=openvino needs the package onnx: pip install "plures\[export\]"'):
        chosen("openvino", models["test_resnet"], CPU, 1)
    with pytest.raises(PluresError, match="engine"):
        Experiment(engine="tensorrt")


def data(rows=6):
    pixels = np.random.default_rng(0).integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)
    return Dataset(pixels, Labels(np.ones((rows, 1), np.int8)), ("a",))


def test_the_engine_is_in_the_key_and_auto_takes_what_torch_left(models, tmp_path, monkeypatch):
    """A network that cannot be exported is computed by torch, and found there again."""
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path))
    monkeypatch.setattr(engines, "WORTH_EXPORTING", 1)
    monkeypatch.setattr(engines, "chosen", lambda asked, *_: "onnxruntime" if asked == "auto" else asked)
    monkeypatch.setattr(engines, "version", lambda name: "1.0")
    model, tries = models["test_resnet"], []
    keys = {feature_key(model, data(), True, "cpu", engine) for engine in ("torch", "onnxruntime", "openvino")}
    assert len(keys) == 3

    def broken(*_):
        tries.append(1)
        raise WorkFailed("this model cannot be exported to onnx")

    monkeypatch.setattr(engines, "onnx_proto", broken)
    first = frozen_features(model, data(), pooled=True, device=CPU)
    again = frozen_features(model, data(), pooled=True, device=CPU)
    assert np.array_equal(first, again)
    assert len(tries) == 1
    with pytest.raises(WorkFailed):
        frozen_features(model, data(), pooled=True, device=CPU, engine="onnxruntime")
    assert [p.stem for p in (tmp_path / "features").glob("*.npy")] == [feature_key(model, data(), True)]


def test_an_engine_that_gives_other_features_is_refused(models, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(engines, "run_onnx", lambda *_: lambda images: {"features": np.zeros((3, 1, 64), np.float32)})
    (tmp_path / "graph.onnx").write_bytes(b"")
    with torch.inference_mode(), pytest.raises(WorkFailed, match="gives other features"):
        feature_function(models["test_resnet"], True, "onnxruntime", tmp_path / "graph.onnx")
