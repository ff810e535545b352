"""A vision transformer through everything: weights of another image size, training, thresholds, heat maps, every kind
of export, 8 bits, and the server. Tiny and random, of the kinds that the presets and their rivals are."""

from importlib.util import find_spec

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import plures
from plures.models.model import load

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
KINDS = {  # model, patch, class token
    "dinov2": ("vit_small_patch14_reg4_dinov2", 14, True),  # class token, four registers, learned positions
    "dinov3": ("vit_small_patch16_dinov3", 16, True),  # the same with rotary positions
    "siglip": ("vit_base_patch16_siglip_gap_224", 16, False),  # neither
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """30 photographs of 80 x 60 pixels, the left or the right half red, each with one tag."""
    folder = tmp_path_factory.mktemp("photos")
    rng, rows = np.random.default_rng(0), ["image,tags"]
    for i in range(30):
        pixels = rng.integers(0, 120, (60, 80, 3), np.uint8)
        pixels[:, 40 * (i % 2) : 40 * (i % 2) + 40, 0] += 120
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{('left', 'right')[i % 2]}")
    (folder / "tags.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def trained(request, photos, tmp_path_factory):
    """A run on frozen features of weights that were made for 4 x 4 patches, at 5 x 5, and its thresholds."""
    name, patch, class_token = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    save_file(
        timm.create_model(name, num_classes=0, img_size=4 * patch, **SMALL).state_dict(), folder / "w.safetensors"
    )
    backbone = {"name": name, "weights": str(folder / "w.safetensors"), "model_options": SMALL}
    if class_token:
        backbone["class_token"] = True
    run = plures.train(
        str(photos / "tags.csv"), folder / "run", backbone=backbone, image_size=5 * patch, device="cpu", workers=0,
        progress=False,
    )  # fmt: skip
    return run, patch, 24 * (1 + class_token)


def pixels(photos, number=0):
    return np.array(Image.open(photos / f"{number}.png"))


def test_training_predicts_with_thresholds_and_heat_maps(trained, photos):
    run, patch, width = trained
    assert run.experiment.backbone.name == "timm"
    assert (run.path / "thresholds.json").is_file()
    model = load(run.path)
    assert model.backbone.width == width
    tokens = model.tokens(torch.zeros(1, 3, 5 * patch, 5 * patch, dtype=torch.uint8))
    assert tokens.features.shape == (1, 25, width)
    assert tokens.boxes.shape == (25, 4)
    found = plures.load(run.path).predict([photos / "0.png", photos / "1.png"])
    assert np.isfinite(found.scores).all()
    heat = found[0].heatmap("left")
    assert np.array(heat).shape[:2] == (60, 80)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_exported_files_agree(trained, photos, tmp_path, to):
    if (to != "torch" and not find_spec("onnxscript")) or (to == "openvino" and not find_spec("openvino")):
        pytest.skip('needs pip install "plures[export]"')
    run = trained[0]
    made = run.export(to, tmp_path / f"model{ {'onnx': '.onnx', 'openvino': '.xml', 'torch': '.pt2'}[to] }", maps=True)
    assert made.agreement


@pytest.mark.slow
@pytest.mark.parametrize("int8", ["dynamic", "static"])
def test_eight_bits_tag_alike(trained, photos, tmp_path, int8):
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "plures[export]"')
    pytest.importorskip("onnxscript", reason='needs pip install "plures[export]"')
    run = trained[0]
    run.export("onnx", tmp_path / "model.onnx", int8=int8)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = np.stack([pixels(photos, n).transpose(2, 0, 1) for n in range(4)])
    scores = session.run(["scores"], {"images": images})[0]
    expected = plures.load(run.path).predict([photos / f"{n}.png" for n in range(4)]).scores
    assert np.abs(scores - expected).max() < 0.2


def test_the_server_answers(trained, photos):
    pytest.importorskip("fastapi", reason='needs pip install "plures[web]"')
    pytest.importorskip("prometheus_client", reason='needs pip install "plures[web]"')
    from fastapi.testclient import TestClient

    from plures.web.serve import Limits, make_app

    run = trained[0]
    with TestClient(make_app(run, Limits()), base_url="http://127.0.0.1") as client:
        answer = client.post("/predict", files={"photos": (photos / "0.png").read_bytes()})
    assert answer.status_code == 200, answer.text
