"""A run with a hierarchy: labels closed, the taxonomy kept in the folder, whatever becomes of the file."""

import json

import numpy as np
import pytest
import torch

import plures
from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.taxonomy import Taxonomy
from plures.errors import PluresError
from plures.export.graph import Graph
from plures.labels import Labels
from plures.metrics.report import ClassResult, Report, by_level, evaluate_scores, percent
from plures.metrics.thresholds import Calibration, Thresholds
from plures.models.model import load
from plures.models.outputs import Output
from plures.report.page import trained_on
from plures.report.scored import score_run
from plures.runs.data import read_data
from plures.runs.own_data import match_classes, own_data
from plures.runs.run import Run
from plures.sweeps.frozen import complete
from plures.sweeps.sweep import sweep

YAML = """classes:
  animal: {}
  dog: {parents: animal}
  cat: {parents: animal}
  sofa: {}
exclusive: [[cat, dog]]
"""
CLASSES = ("cat", "dog", "sofa", "animal")


def write_features(path, n=80, seed=0):
    """Features of which two columns say which animal it is, and one whether there is a sofa; single tags."""
    random = np.random.default_rng(seed)
    animal, sofa = random.integers(0, 3, n), random.random(n) < 0.5
    truth = np.stack([animal == 0, animal == 1, sofa], 1)
    labels = np.where(truth, 1, np.where(random.random((n, 3)) < 0.5, 0, -1))
    features = truth @ random.normal(size=(3, 8)) + 0.2 * random.normal(size=(n, 8))
    splits = np.array((["train"] * 5 + ["val"] * 2 + ["test"]) * (n // 8))
    np.savez(path, features=features.astype(np.float32), labels=labels, classes=list(CLASSES[:3]), splits=splits)
    return truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data.npz and a run on it, whose classes file is gone since."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "classes.yaml").write_text(YAML)
    write_features(folder / "data.npz")
    settings = {"data": str(folder / "data.npz"), "classes": str(folder / "classes.yaml"), "device": "cpu"}
    plures.train(out=folder / "run", progress=False, threshold="chosen", stages="ridge", **settings)
    (folder / "classes.yaml").unlink()
    return folder


def test_an_experiment_names_classes_or_a_file():
    assert Experiment(classes="cat,dog").classes == ("cat", "dog")
    for name in ("classes.yaml", "some/edges.CSV"):
        e = Experiment(classes=name)
        assert e.classes == name
        assert Experiment(**e.to_dict()) == e


def test_labels_are_closed_when_they_are_read(tmp_path):
    (tmp_path / "classes.yaml").write_text(YAML)
    write_features(tmp_path / "data.npz")
    bare = read_data(Experiment(data=str(tmp_path / "data.npz"))).labels
    found = read_data(Experiment(data=str(tmp_path / "data.npz"), classes=str(tmp_path / "classes.yaml")))
    assert found.classes == CLASSES
    animal = found.labels.values[:, 3]
    assert ((animal == 1) == bare.present[:, :2].any(1)).all()
    assert (found.labels.values[bare.present[:, 0], 1] == 0).all()
    assert [problem.what.partition(":")[2] for problem in found.problems] == [" animal"]


def test_the_run_keeps_the_taxonomy(folder):
    spec = json.loads((folder / "run" / "model.json").read_text())
    assert (spec["format"], spec["taxonomy"]["exclusive"]) == (4, [["cat", "dog"]])
    model = load(folder / "run")
    assert model.taxonomy.classes == model.classes == CLASSES
    own = own_data(Run(folder / "run"), {}, False)
    assert own.taxonomy.to_dict() == Run(folder / "run").taxonomy.to_dict()
    assert own.labels.present[:, 3].any()


def test_other_data_are_closed_by_the_models_taxonomy(folder, caplog):
    taxonomy = load(folder / "run").taxonomy
    values = np.array([[1, -1], [1, 1]], np.int8)
    data = Dataset(["/p/a.jpg", "/p/b.jpg"], Labels(values), ("dog", "cat"), name="other")
    found = match_classes(data, CLASSES, taxonomy)
    assert found.labels.values.tolist() == [[0, 1, -1, 1], [1, 1, -1, -1]]
    assert "1 image contradicts the hierarchy and stays as it is (b.jpg: 'cat' and 'dog' present)" in caplog.text


def test_a_damaged_taxonomy_is_refused(folder, tmp_path):
    for change in ({"classes": ["a"]}, {"parents": 3}, {"exclusive": None}):
        spec = json.loads((folder / "run" / "model.json").read_text())
        spec["taxonomy"] |= change
        (tmp_path / "model.json").write_text(json.dumps(spec))
        with pytest.raises(PluresError, match="is not a model description"):
            load(tmp_path)


# ------------------------------------------------------------------------------------------------ scores, tags, export


def test_predictions_obey_the_taxonomy(folder, tmp_path):
    strange = dict(np.load(folder / "data.npz"))
    strange["features"] *= np.linspace(-2, 2, 80, dtype=np.float32)[:, None]
    np.savez(tmp_path / "strange.npz", **strange)
    for threshold in (None, 0.05):
        found = plures.load(folder / "run").predict(str(tmp_path / "strange.npz"), threshold=threshold)
        cat, dog, _, animal = np.array([[name in tags for name in CLASSES] for tags in found.tags]).T
        assert (animal >= (cat | dog)).all()
        assert not (cat & dog).any()
        assert (cat | dog).any()
        assert (found.scores[:, 3] >= found.scores[:, :2].max(1)).all()
    raw = found.logits >= np.log(0.05 / 0.95)
    assert (raw[:, 0] & raw[:, 1]).any()  # else there was nothing to decide


def test_the_numbers_are_of_the_tags_that_predict_gives(folder, tmp_path):
    run = plures.Run(folder / "run")
    own = own_data(run, {}, False).split("test")
    np.savez(tmp_path / "test.npz", features=own.features)
    found = run.load().predict(str(tmp_path / "test.npz"))
    report = run.evaluate()
    assert report.tags_predicted == pytest.approx(np.mean([len(tags) for tags in found.tags]))
    assert report.map == pytest.approx(run.report.map)
    judged = evaluate_scores(found.scores, own.labels, CLASSES, called=np.array(
        [[name in tags for name in CLASSES] for tags in found.tags]))  # fmt: skip
    assert report.averages == pytest.approx(judged.averages, nan_ok=True)
    assert report.map == pytest.approx(judged.map)


@pytest.mark.parametrize("kind", ["none", "affine", "isotonic"])
def test_the_exported_graph_calls_the_same(kind):
    names = ("animal", "dog", "poodle", "cat", "sofa")
    parents = {"dog": ["animal"], "poodle": ["dog"], "cat": ["animal"]}
    taxonomy = Taxonomy(names, parents, [["cat", "dog"], ["sofa", "cat"]])
    random = np.random.default_rng(0)
    logits = random.normal(size=(200, 5)).astype(np.float32)
    curve = (np.array([-2.0, 0.0, 2.0]), np.array([0.1, 0.4, 0.9]))
    calibration = {
        "none": None,
        "affine": Calibration("affine", random.uniform(0.5, 2, 5), random.normal(size=5)),
        "isotonic": Calibration("isotonic", points=(curve,) * 5),
    }[kind]
    thresholds = Thresholds(names, np.array([0.6, 0.5, 0.4, 0.3, 0.5]), "", "", "", "", calibration, taxonomy=taxonomy)
    if kind == "none":
        thresholds.cuts[0] = np.inf
    model = torch.nn.Module()
    model.forward = lambda pixels, maps: Output(torch.from_numpy(logits))
    scores, tags, raw = Graph(model, thresholds, False)(torch.zeros(1))
    assert (raw.numpy() == logits).all()
    assert (tags.numpy() == thresholds.called(logits)).all()
    np.testing.assert_allclose(scores.numpy(), thresholds.probabilities(logits), atol=1e-6)
    assert (thresholds.called(logits) != (thresholds.ranked(logits) >= thresholds.cuts)).any()
    assert (thresholds.called(logits[0]) == tags.numpy()[0]).all()


def test_a_run_is_exported_with_its_taxonomy(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    (tmp_path / "classes.yaml").write_text("classes: {thing: {}, red: {parents: thing}}\nexclusive: [[green, blue]]\n")
    random = np.random.default_rng(0)
    present = random.random((24, 3)) < 0.5
    data = Dataset(
        random.integers(0, 255, (24, 16, 16, 3), dtype=np.uint8),
        Labels.from_masks(present, np.zeros_like(present)),
        ("red", "green", "blue"),
        np.array(["train"] * 16 + ["val"] * 8),
        name="coloured",
    )
    small = {"backbone": {"name": "small_conv", "image_size": 16}, "epochs": 1, "device": "cpu", "workers": 0}
    run = plures.train(data, tmp_path / "run", classes=tmp_path / "classes.yaml", progress=False, **small)
    assert run.load().classes == ("red", "green", "blue", "thing")
    run.export("onnx", tmp_path / "m.onnx")  # which compares scores and tags with the model's
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    images = data.images.transpose(0, 3, 1, 2)
    scores, tags = session.run(["scores", "tags"], {"images": images})
    assert (scores[:, 3] >= scores[:, 0]).all()
    assert not (tags[:, 1] & tags[:, 2]).any()
    assert (tags[:, 3] >= tags[:, 0]).all()
    assert "taxonomy" in str(session.get_modelmeta().custom_metadata_map)


# --------------------------------------------------------------------------------------------------------- the numbers


def test_numbers_by_level(folder, tmp_path):
    run = plures.Run(folder / "run")
    report = run.evaluate()
    roots, second = report.levels
    ap = {c.name: c.average_precision for c in report.per_class}
    assert (roots.level, roots.classes, second.classes, second.classes_scored) == (0, 2, 2, 2)
    assert second.average_precision == pytest.approx((ap["cat"] + ap["dog"]) / 2)
    assert np.isnan(ap["animal"])  # nobody said where there is none
    assert (roots.average_precision, roots.classes_scored) == (ap["sofa"], 1)
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").levels == report.levels
    assert run.report.levels == report.levels
    card = (folder / "run" / "model_card.md").read_text()
    assert f"- mAP of level 1 of the hierarchy, 2 classes: {percent(second.average_precision)} percent" in card
    assert "dog: animal; cat: animal. A class is called only with" in card
    assert "the likeliest: cat, dog." in card


def test_a_level_without_a_number_is_nan():
    nan = float("nan")
    results = [ClassResult(name, value, 3, 9, 0.5, 1.0, 0.5, nan) for name, value in
               (("a", 0.5), ("b", nan), ("c", 0.9), ("d", nan))]  # fmt: skip
    first, second = by_level(results, np.array([0, 1, 0, 1]))
    assert (first.average_precision, first.classes_scored, first.precision) == (0.7, 2, 1.0)
    assert np.isnan([second.average_precision, first.f1]).all()
    assert by_level([], np.empty(0, np.int64)) == ()


def test_the_page_shows_the_levels(folder, tmp_path):
    scored = score_run(folder / "run", resamples=20)
    words = trained_on(scored)
    assert words["hierarchy"] == "2 classes below others, levels 0 to 1; exclusive groups: 1"
    means = {m.name: m.value for m in scored.measures}
    assert means["tags per image"] == pytest.approx(scored.report.tags_predicted)
    assert means["OF1"] == pytest.approx(scored.report.averages["OF1"])


def test_a_run_of_a_sweep_has_the_taxonomy_too(tmp_path):
    (tmp_path / "classes.yaml").write_text(YAML)
    write_features(tmp_path / "data.npz")
    base = {"data": str(tmp_path / "data.npz"), "classes": str(tmp_path / "classes.yaml"), "device": "cpu"}
    values = {**base, "backbone": {"name": "features", "width": 8}, "head": "linear", "stages": "probe", "epochs": 2}
    sweep(values, tmp_path / "sweep", {"lr": ["1e-3", "1e-2"], "loss": ["an"]})
    folder = next(tmp_path.glob("sweep/**/model.json")).parent
    complete(folder)
    assert load(folder).taxonomy.to_dict() == Run(folder).taxonomy.to_dict()
    assert len(Run(folder).taxonomy.exclusive) == 1
    assert len(Report.load(folder / "report.json").levels) == 2
