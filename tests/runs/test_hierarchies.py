"""A run with a hierarchy: labels closed, the taxonomy kept in the folder, whatever becomes of the file."""

import json

import numpy as np
import pytest

import plures
from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.labels import Labels
from plures.models.model import load
from plures.runs.data import read_data
from plures.runs.own_data import match_classes, own_data
from plures.runs.run import Run

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
