"""features:FILE: every kind of file gives the same Dataset, and the same commands train, judge and predict with it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import plures
from plures.analysis.evaluate import evaluate
from plures.analysis.missing import suggest
from plures.analysis.thresholds import choose_thresholds
from plures.config import Experiment
from plures.data.read import read
from plures.errors import BadData, PluresError
from plures.metrics.report import Report
from plures.models.model import load
from plures.prediction.predict import predict
from plures.training.train import train

NAMES = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "3.jpg"]
X = np.arange(12, dtype=np.float64).reshape(4, 3) / 7
Y = np.array([[1, -1], [0, 1], [-1, 1], [1, 0]])
TABLE = "image,cat,dog\na/1.jpg,1,\na/2.jpg,0,1\nb/1.jpg,,1\n3.jpg,1,0\n"


def same(dataset, names=None):
    assert np.array_equal(dataset.features, X.astype(np.float32))
    assert dataset.features.dtype == np.float32
    assert dataset.labels.values.tolist() == Y.tolist()
    assert dataset.classes == ("cat", "dog")
    shown = [str(image) for image in dataset.images]
    assert all(image.endswith(name) for image, name in zip(shown, names or NAMES, strict=True))


def test_every_kind_of_file_says_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", features=X, labels=Y, classes=["cat", "dog"], names=NAMES, split=["train", "Valid", "", "test"])
    same(read("a.npz"))
    assert read("a.npz").split_names() == ["test", "train", "val"]
    np.savez("b.npz", X=X.astype(np.float16), Y=Y.astype(float))
    loose = read("features:b.npz")
    assert loose.classes == ("0", "1")
    assert list(loose.images) == ["0", "1", "2", "3"]
    assert loose.labels.values.tolist() == Y.tolist()
    np.save("c.npy", X)
    (tmp_path / "c.csv").write_text(TABLE)
    same(read("c.npy"))
    (tmp_path / "labels.csv").write_text(TABLE)
    np.save("d.npy", X)
    same(read("d.npy", table="labels.csv"))
    shuffled = [3, 1, 0, 2]
    np.savez("e.npz", features=X[shuffled], names=[NAMES[i] for i in shuffled])
    same(read("e.npz", table="labels.csv"))  # matched by name, in the order of the table
    columns = {"image": NAMES, "tags": ["cat", "dog", "dog", "cat"], "absent": ["", "cat", "", "dog"]}
    pq.write_table(pa.table({**columns, "embedding": [row.tolist() for row in X]}), "f.parquet")
    same(read("features:f.parquet"))


def test_features_follow_their_rows():
    dataset = plures.Dataset(NAMES, plures.Labels(Y.astype(np.int8)), ("cat", "dog"), features=X.astype(np.float32))
    assert np.array_equal(dataset.take([2, 0]).features, X[[2, 0]].astype(np.float32))
    with pytest.raises(ValueError, match=r"features \[N, D\] of 4 images, got \[3, 3\]"):
        plures.Dataset(NAMES, dataset.labels, ("cat", "dog"), features=X[:3].astype(np.float32))


def test_names_that_several_folders_share_are_not_mixed_up(tmp_path):
    (tmp_path / "t.csv").write_text("image,tags\nphotos/a/1.jpg,cat\nphotos/b/1.jpg,dog\n")
    np.savez(tmp_path / "x.npz", features=[[2.0], [1.0]], names=["b/1.jpg", "a/1.jpg"])
    assert read(tmp_path / "x.npz", table=str(tmp_path / "t.csv")).features.tolist() == [[1.0], [2.0]]
    np.savez(tmp_path / "y.npz", features=[[2.0], [1.0]], names=["/b/1.jpg", "/c/1.jpg"])
    with pytest.raises(BadData, match="2 images without features"):
        read(tmp_path / "y.npz", table=str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": Y}, "no array 'features'"),
        ({"features": X[0]}, r"features of shape \[3\]"),
        ({"features": X.astype(str)}, "features of shape .* type <U"),
        ({"features": X, "labels": Y[:3]}, r"labels of shape \[3, 2\]"),
        ({"features": X, "labels": Y * 2}, "a label 2 in row 0, column 0"),
        ({"features": X, "labels": Y, "classes": ["cat"]}, r"classes of shape \[1\]"),
        ({"features": X, "labels": Y, "classes": ["cat", "cat"]}, "class 'cat' stands there more than once"),
        ({"features": X, "labels": Y, "split": ["train", "tset", "", ""]}, "split 'tset'"),
        ({"features": X, "labels": Y, "names": np.array(NAMES, object)}, "an array of Python objects"),
        ({"features": np.where(X > 1, np.nan, X), "labels": Y}, "nan or an infinite number .* first in row 2"),
        ({"features": np.where(X > 1, 1e300, X), "labels": Y}, "nan or an infinite number"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadData, match=message) as caught:
        read(tmp_path / "x.npz")
    assert "\n" not in caught.value.problems[0].what


def test_rows_that_are_no_numbers_can_be_left_out(tmp_path):
    np.savez(tmp_path / "x.npz", features=np.where(X > 1, np.nan, X), labels=Y, names=NAMES)
    assert list(read(tmp_path / "x.npz", skip_bad=True).images) == NAMES[:2]


def test_other_faults_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    (tmp_path / "x.csv").write_text(TABLE.replace("a/2.jpg,0,1", "a/1.jpg,,1"))
    with pytest.raises(BadData, match=r"4 rows of features, and \d images in x.csv"):
        read("x.npy")
    pq.write_table(
        pa.table({"image": NAMES, "e": [[1.0], [2.0], [3.0], [4.0]], "f": [[1], [2], [3], [4]]}), "x.parquet"
    )
    with pytest.raises(BadData, match=r"2 columns of lists of numbers \(e, f\)"):
        read("features:x.parquet")
    with pytest.raises(PluresError, match="no column 'g' of lists of numbers; choose from: e, f"):
        read("features:x.parquet", embedding="g")
    (tmp_path / "x.npz").write_bytes(b"PK no")
    with pytest.raises(BadData, match="not a NumPy file"):
        read("x.npz")
    with pytest.raises(PluresError, match=r"ends in \.npz, \.npy or \.parquet"):
        read("features:x.csv")


# ------------------------------------------------------------------------------------------------- the same commands

CLASSES = ("cat", "dog", "sofa")


def features_and_truth(images=160, seed=0):
    """Features from which three linear rules say what is present, and these truths."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, 6)).astype(np.float32)
    return x, (x[:, :3] > 0.3).astype(np.int8)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    x, truth = features_and_truth()
    names = [f"{row}.jpg" for row in range(len(x))]
    np.savez(folder / "data.npz", features=x, labels=np.where(truth == 1, 1, -1), classes=CLASSES, names=names)
    x, truth = features_and_truth(80, seed=1)
    np.savez(folder / "other.npz", features=x, labels=truth, classes=CLASSES)
    np.savez(folder / "new.npz", features=x, names=[f"new{row}.jpg" for row in range(80)])
    np.savez(folder / "wide.npz", features=np.hstack([x, x]), labels=truth, classes=CLASSES)
    run = train(Experiment(data=str(folder / "data.npz")), folder / "run")
    return folder, run


def test_training_makes_the_closed_form_ridge_of_the_given_features(world):
    folder, run = world
    e = run.experiment
    assert (e.backbone.name, e.backbone.options) == ("features", {"width": 6})
    assert (e.head.name, e.loss.name) == ("linear", "least_squares")
    assert evaluate(run, folder / "other.npz").map > 0.9  # a tag each is known; the classes are linear in the features
    model, x = load(run.path), np.load(folder / "other.npz")["features"]
    import torch

    ranked = model(torch.from_numpy(x)).logits[:, 0].detach().numpy()
    assert np.corrcoef(ranked, x[:, 0])[0, 1] > 0.8


def test_the_commands_work_with_features(world, tmp_path):
    folder, run = world
    assert isinstance(evaluate(run), Report)
    assert 0 < choose_thresholds(run).images <= 26  # of the validation rows those with a tag
    found, dataset = suggest(run, top=5)
    assert [s.image for s in found] == [dataset.images[s.row] for s in found]
    assert found[0].image.endswith(".jpg")
    predict(run, folder / "new.npz", tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines[:2]] == ["new0.jpg", "new1.jpg"]
    assert len(lines) == 80


def test_a_loss_of_ones_own_choice_trains_in_steps(world, tmp_path):
    folder, _ = world
    e = train(Experiment(data=str(folder / "data.npz"), loss="an", epochs=2), tmp_path / "run").experiment
    assert (e.backbone.name, e.loss.name, e.epochs, e.head.name) == ("features", "an", 2, "linear")


def test_what_features_cannot_do_is_said_in_one_line(world, tmp_path, plures):
    folder, run = world
    for arguments, message in [
        (("evaluate", run.path, folder / "wide.npz"), "features of 12 numbers per image, but the model takes features"),
        (("predict", run.path, folder / "wide.npz", "--out", tmp_path / "p.csv"), "the model takes features of 6"),
        (("evaluate", run.path, "scenes", "data.test=8"), "unknown to the model"),
        (
            ("predict", run.path, "scenes", "--out", tmp_path / "p.csv"),
            "photographs, but the model takes features of 6",
        ),
        (("localise", run.path), "no heat map: the model was trained on features"),
        (("export", run.path, "--to", "torch", "--out", tmp_path / "m.pt2"), "an exported file takes photographs"),
        (
            ("train", folder / "data.npz", "stages=probe,finetune", "--out", tmp_path / "r"),
            "only a head to train",
        ),
        (("train", folder / "data.npz", "backbone=features", "backbone.width=5", "--out", tmp_path / "r"), "width=5"),
        (
            ("train", "scenes", "backbone=features", "backbone.width=5", "--out", tmp_path / "r"),
            "takes data with features",
        ),
    ]:
        code, _, err = plures(*arguments)
        assert code == 2, arguments
        assert message in err, err
        assert "Traceback" not in err
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "p.csv").exists()


def test_a_report_of_features_has_no_pictures(world, plures, tmp_path):
    _, run = world
    code, _, err = plures("report", run.path, "--out", tmp_path / "page.html")
    assert code == 0, err
    assert "data:image/jpeg" not in (tmp_path / "page.html").read_text()
