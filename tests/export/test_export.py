"""The exported file: equal to the model for every part, any size, every calibration; refused when it is not."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from plures.config import Experiment
from plures.data.photos import Transform
from plures.data.read import read
from plures.errors import PluresError, WorkFailed
from plures.export import checks, formats
from plures.export import export as export_room
from plures.export.export import export
from plures.export.graph import Graph, Interpolated
from plures.export.quantise import quantised
from plures.metrics.thresholds import Calibration, Thresholds, sigmoid
from plures.models import build_model, save
from plures.models.backbones import backbones
from plures.models.heads import heads
from plures.runs.run import Run
from plures.scoring.predictor import Predictor

onnx = pytest.importorskip("onnx", reason='needs pip install "plures[export]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "plures[export]"')
needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="needs openvino")

CLASSES = ("cat", "dog", "sofa", "tree")
SMALL = {
    "patches": {"image_size": 64, "levels": 1, "patch": 32, "stride": 32, "width": 24},
    "timm": {"model": "resnet18", "image_size": 64, "model_options": {"zero_init_last": False}},
    "small_conv": {"image_size": 32, "width": 16},
    "cvt": {"image_size": 64, "widths": [8, 12, 16], "depths": [1, 1, 2], "attention_heads": [1, 2, 2]},
}
HEAD_OPTIONS = {
    "codebook": {"code_width": 16},
    "query2label": {"hidden": 16, "feedforward": 8, "self_attention": "later"},
    "ml_decoder": {"hidden": 16, "feedforward": 8, "attention_heads": 4},
}
PAIRS = sorted(
    {(backbone, "linear") for backbone in backbones.names() if backbone != "features"}
    | {("small_conv", head) for head in heads.names()}
    | {("patches", "codebook"), ("timm", "query2label"), ("cvt", "ml_decoder")}
)
AFFINE = Calibration("affine", np.array([0.5, 1, 2, 1.5]), np.array([0.1, -0.2, 0, 1]))
ISOTONIC = Calibration(
    "isotonic",
    points=tuple(
        (np.array(x, float), np.array(y, float))
        for x, y in (
            ([-3, 0, 2], [0.1, 0.4, 0.9]),
            ([-1, -0.5, -0.499, 4], [0, 0.2, 0.5, 1]),  # nearly a step
            ([0], [0.3]),
            ([-2, -1, 0, 1, 2], [0, 0.1, 0.1, 0.6, 0.7]),
        )
    ),
)


def make_model(backbone="small_conv", head="linear", interpolation="bilinear", classes=CLASSES):
    assert backbone in SMALL, f"give the backbone '{backbone}' a small setting in this file"
    torch.manual_seed(0)
    model = build_model(backbone, head, classes, SMALL[backbone], HEAD_OPTIONS.get(head), interpolation=interpolation)
    for module in model.modules():  # a linear layer of an untrained model says next to nothing: make it louder
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def make_run(folder, thresholds=None, **settings):
    model = make_model(**settings)
    run = Run.create(folder, Experiment(data={"name": "scenes", "train": 20, "val": 12, "test": 4}, threshold=0.4))
    save(model, folder)
    if thresholds is not None:
        thresholds.save(folder)
    return run, model


def thresholds(calibration=None):
    return Thresholds(CLASSES, np.array([0.2, 0.5, 0.55, 0.7]), "m", "f1", "a", "g", calibration)


def reference(model, chosen, images):
    p = model.preprocessing
    transform = Transform(p.image_size, "none", p.interpolation)
    pixels = torch.stack([transform(Image.fromarray(image.transpose(1, 2, 0))) for image in images])
    with torch.inference_mode():
        output = model(pixels)
    return chosen.probabilities(output.logits.double().numpy())


# ----------------------------------------------------------------------------------------------- every part, ONNX


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "head"), PAIRS)
def test_every_pair_becomes_an_onnx_file_that_agrees(backbone, head):
    model, chosen = make_model(backbone, head), Thresholds.constant(CLASSES)
    proto = formats.with_resize(formats.onnx_of(Graph(model, chosen, True)), model.preprocessing)
    found = checks.agreement(
        formats.run_onnx(formats.onnx_bytes(proto, {"plures": "0"}, ""), 1), Predictor(model, chosen), True
    )
    assert found.exact < 5e-5  # float32, summed in another order
    assert found.resized < 1e-2
    assert found.tags == 0


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(
    ("backbone", "head"), [("patches", "codebook"), ("timm", "query2label"), ("cvt", "ml_decoder")]
)
def test_every_part_becomes_an_openvino_file_that_agrees(tmp_path, backbone, head):
    make_run(tmp_path / "run", backbone=backbone, head=head)
    made = export(tmp_path / "run", "openvino", tmp_path / "m.xml", maps=True)
    assert made.agreement.exact < 1e-5
    assert sorted(f.name for f in tmp_path.iterdir()) == ["m.bin", "m.xml", "run"]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "head"), PAIRS)
def test_every_pair_becomes_a_torch_program_that_agrees(backbone, head):
    model, chosen = make_model(backbone, head), Thresholds.constant(CLASSES)
    runner = formats.run_torch(formats.torch_bytes(Graph(model, chosen, True), {}, ""), True)
    found = checks.agreement(runner, Predictor(model, chosen), True)
    assert found.exact < 5e-5  # float32, summed in another order
    assert found.resized < 1e-2


# -------------------------------------------------------------------------------------- one file, looked at closely


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    run, model = make_run(folder / "run", thresholds(ISOTONIC), head="codebook", interpolation="bicubic")
    made = export(run, "onnx", folder / "m.onnx", maps=True)
    return folder, model, made


def test_the_file_gives_the_scores_tags_and_maps_of_the_run(exported):
    folder, model, made = exported
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    images = checks.patterns(5, 41, 83, seed=9)
    scores, tags, logits, maps = session.run(None, {"images": images})
    np.testing.assert_allclose(sigmoid(logits), reference(model, thresholds(), images), atol=1e-2)
    np.testing.assert_allclose(scores, ISOTONIC(logits), atol=1e-4)
    assert (tags == (scores >= np.array([0.2, 0.5, 0.55, 0.7]))).all()
    assert maps.shape == (5, 4, 16)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert made.agreement.exact < 1e-5
    assert made.agreement.images == 12
    assert len(made.agreement.sizes) == 3


def test_the_file_says_what_it_is(exported):
    folder, _, made = exported
    properties = {p.key: p.value for p in onnx.load(folder / "m.onnx").metadata_props}
    says = json.loads(properties["plures"])
    assert says["classes"] == list(CLASSES)
    assert says["thresholds"] == [0.2, 0.5, 0.55, 0.7]
    assert says["calibration"] == "isotonic"
    assert says["preprocessing"]["image_size"] == 32
    assert says["preprocessing"]["interpolation"] == "bicubic"
    assert len(says["boxes"]) == 16
    assert "cat, dog, sofa, tree" in properties["model_card"]
    assert made.bytes == (folder / "m.onnx").stat().st_size
    assert str(folder) not in (folder / "m.onnx").read_bytes().decode("latin-1")  # no path of this machine


def test_the_example_needs_nothing_of_plures(exported, tmp_path):
    from pathlib import Path

    folder, model, _ = exported
    example = Path(__file__).parents[2] / "examples" / "onnx_inference.py"
    images = checks.patterns(1, 60, 50, seed=3)
    Image.fromarray(images[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'plures', 'onnx'])); import runpy; runpy.run_path"
    code = f"{blocked}({str(example)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "m.onnx"), str(tmp_path / "a.png")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wanted = reference(model, thresholds(ISOTONIC), images)[0]
    called = [(s, c) for s, c, t in zip(wanted, CLASSES, [0.2, 0.5, 0.55, 0.7], strict=True) if s >= t]
    words = "  ".join(f"{c} {s:.2f}" for s, c in sorted(called, reverse=True)) or "(no tag)"
    assert words in done.stdout
    assert len(example.read_text().splitlines()) < 40


# ------------------------------------------------------------------------------------------------------- its pieces


def test_isotonic_calibration_is_a_sum_of_clamps():
    logits = np.random.default_rng(0).uniform(-5, 5, (500, 4))
    logits[:4] = [[-3, -1, 0, -2], [2, 4, 0, 2], [-30, -30, -30, -30], [30, 30, 30, 30]]
    logits[4, 1] = -0.4995
    got = Interpolated(ISOTONIC)(torch.from_numpy(logits).float()).numpy()
    np.testing.assert_allclose(got, ISOTONIC(logits.astype(np.float32)), atol=1e-4)


@pytest.mark.parametrize("calibration", [None, AFFINE, ISOTONIC])
def test_the_graph_gives_calibrated_scores(calibration):
    model, chosen = make_model(), thresholds(calibration)
    images = checks.patterns(3, 32, 32, seed=1)
    scores, tags, logits = Graph(model, chosen, False)(torch.from_numpy(images))
    wanted = reference(model, chosen, images)
    np.testing.assert_allclose(scores.detach().numpy(), wanted, atol=1e-4)
    np.testing.assert_array_equal(tags.numpy(), chosen.called(logits.detach().numpy()))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(100, 37), (20, 300), (64, 64), (1, 1)])
def test_onnx_resizes_as_pillow_does(interpolation, size):
    from onnx import TensorProto, helper

    from plures.models.model import Preprocessing

    shape = ["batch", 3, 64, 64]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["out"])],
        "identity",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("out", TensorProto.UINT8, shape)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", formats.OPSET)], ir_version=10)
    how = Preprocessing(64, (0, 0, 0), (1, 1, 1), interpolation=interpolation)
    images = checks.patterns(2, *size, seed=5)
    out = formats.run_onnx(formats.with_resize(proto, how).SerializeToString(), 1)(images)["out"].astype(int)
    way = Image.Resampling[interpolation.upper()]
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    resized = [p.resize((64, p.height), way).resize((64, 64), way) for p in pictures]  # across, then down
    wanted = np.stack([np.asarray(p).transpose(2, 0, 1) for p in resized]).astype(int)
    assert np.abs(out - wanted).max() <= 1
    assert np.abs(out - wanted).mean() < 0.03


# ------------------------------------------------------------------------------------------------- what is refused


def wrong(runner, change):
    def run(images):
        outputs = runner(images)
        change(outputs)
        return outputs

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["scores"].__iadd__(0.01), r"1\.0e-02 on images of any size after calibration"),
        (lambda o: o["logits"].__iadd__(0.1), r"of the model's own size, more than the tolerance 1e-03"),
        (lambda o: o["logits"].__iadd__(0.3 * (o["logits"].shape[0] == 3)), "of the model's own size"),
        (lambda o: o["scores"].fill(np.nan), "differs from the model by inf"),
        (lambda o: o["tags"].__ixor__(True), "calls 48 tags otherwise"),
        (lambda o: o.update(scores=o["scores"][:1]), "gives scores"),
        (lambda o: o.pop("tags"), "gives tags nothing"),
    ],
)
def test_a_file_that_differs_is_refused_and_nothing_is_left(tmp_path, monkeypatch, change, message):
    make_run(tmp_path / "run")
    true = formats.run_torch
    monkeypatch.setattr(formats, "run_torch", lambda *a: wrong(true(*a), change))
    with pytest.raises(WorkFailed, match=message):
        export(tmp_path / "run", "torch", tmp_path / "m.pt2")
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "tflite", "--out", "m.onnx"], "choose onnx, openvino or torch"),
        (["--to", "onnx", "--out", "m.pt"], r"ends with \.onnx"),
        (["--to", "torch", "--out", "m.pt2", "--int8", "static"], "torch files keep 32 bits"),
        (["--to", "onnx", "--out", "m.onnx", "--int8", "half"], "choose dynamic or static"),
        (["--to", "openvino", "--out", "m.xml", "--int8", "dynamic"], "use --int8 static"),
        (["--to", "onnx", "--out", "m.onnx", "--calibration", "x"], "--calibration is for --int8 static"),
    ],
)
def test_wrong_wishes_are_one_line(plures, tmp_path, words, message):
    code, _, err = plures("export", tmp_path, *words)
    assert code == 2
    assert __import__("re").search(message, err), err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------- eight bits


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_eight_bits_are_smaller_and_their_cost_is_told(tmp_path, how):
    run, _ = make_run(tmp_path / "run", head="codebook", classes=read("scenes", train=1, val=1, test=1).classes)
    plain = export(run, "onnx", tmp_path / "plain.onnx")
    small = export(run, "onnx", tmp_path / "small.onnx", int8=how)
    assert small.bytes < plain.bytes
    types = {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert ("QuantizeLinear" in types) == (how == "static")
    assert small.cost.images == 12
    assert np.isfinite([small.cost.before, small.cost.after]).all()
    assert plain.agreement.exact < small.agreement.exact < 0.3


@needs_openvino
def test_what_openvino_cannot_run_is_one_line():
    with pytest.raises(WorkFailed, match="this model cannot be exported to openvino"):
        formats.run_openvino(b"<net/>", b"")


def test_a_linear_head_becomes_bytes(tmp_path):
    model = make_model(head="linear")
    proto = formats.onnx_of(Graph(model, Thresholds.constant(CLASSES), maps=False))
    types = {node.op_type for node in quantised(proto, "dynamic", iter(())).graph.node}
    assert "MatMulInteger" in types
    assert "Gemm" not in types


def test_calibration_images_come_from_the_folder(tmp_path, monkeypatch):
    model = make_model()
    for number in range(6):
        Image.fromarray(checks.patterns(1, 40, 40, number)[0].transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    batches = list(export_room._calibration_pixels(model, str(tmp_path), None))
    assert [batch.shape for batch in batches] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    with pytest.raises(PluresError, match="--calibration DATA"):
        export_room._calibration_pixels(model, None, None)
