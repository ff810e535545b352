"""Priors: what they read, what they say, and that a fused model is saved whole."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

from plures.config import Experiment
from plures.data.class_names import ClassNames, read_class_names, spoken
from plures.errors import PluresError
from plures.models.model import build_model, load, make_prior, save, weighed, with_prior, without_prior
from plures.models.priors import Fused, priors
from plures.models.priors.file import evidence_of, read_scores
from plures.models.priors.imagenet_names import WORDS, _by_term, _words, match

CLASSES = ("cat", "sofa", "x17")
PIXELS = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A timm model with an ImageNet classifier, of random weights, and its file."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet").eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 0.1
    file = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(net.state_dict(), file)
    return net, str(file)


def model_of(file, image_size=64, **options):
    torch.manual_seed(0)
    return build_model("timm", "linear", CLASSES, {"model": "test_resnet", "weights": file, **options}, {}, image_size)


# ------------------------------------------------------------------------------------------------------- classes.yaml


def test_classes_yaml(tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text("classes:\n  sofa: {synonyms: [couch], prompts: a sofa at home, parents: [furniture]}\n  x17:\n")
    read = read_class_names(file, CLASSES)
    assert read == {"cat": ClassNames(), "sofa": ClassNames(("couch",), ("a sofa at home",)), "x17": ClassNames()}
    for text, what in (
        ("classes: [cat]", "expected one mapping"),
        ("sofa: couch", "expected one mapping"),
        ("classes: {sofas: {}}", "'sofas' is no class of the data; did you mean 'sofa'"),
        ("classes: {sofa: couch}", "sofa: expected keys of prompts, synonyms, parents"),
        ("classes: {sofa: {synonym: couch}}", "no key 'synonym'; did you mean 'synonyms'"),
        ("classes: {sofa: {synonyms: [3]}}", "sofa.synonyms: expected a text"),
    ):
        file.write_text(text)
        with pytest.raises(PluresError, match=what):
            read_class_names(file, CLASSES)


@pytest.mark.parametrize("name", ["potted plant", "pottedPlant", "potted_plant", "Potted-plant"])
def test_names_are_spoken(name):
    assert spoken(name) == "potted plant"


# ------------------------------------------------------------------------------------------------------ ImageNet names


def test_names_that_imagenet_uses():
    assert {281, 282, 283, 284, 285} <= set(match(["cat"]))
    assert 383 not in match(["cat"])  # Madagascar cat, a lemur
    assert set(range(151, 269)) <= set(match(["dogs"]))
    assert match(["sofa"]) == match(["couch"]) == [831]
    assert match(["diningtable"]) == match(["dining table"]) == [532]
    assert match(["bottles"]) == match(["bottle"]) == [440, 720, 737, 898, 907]
    assert match(["x17"]) == match([""]) == []
    assert match(["x17", "tench"]) == [0]


def test_the_words_of_everyday_are_imagenet_terms():
    terms = [one for those in WORDS.values() for one in those if isinstance(one, str)]
    assert [term for term in terms if _words(term) not in _by_term()] == []


# ------------------------------------------------------------------------------------------------------------ imagenet


def test_imagenet_is_timms_own_classifier_summed_by_name(classifier):
    net, file = classifier
    model = model_of(file)
    chances = torch.softmax(net(model.normalise(PIXELS)), 1)
    said = {}
    for frozen in (True, False):  # on the backbone's features, and by a network of its own
        prior = make_prior(model, "imagenet", {}, frozen=frozen)
        assert prior.options["shared"] is frozen
        assert prior.said.tolist() == [True, True, False]
        fused = weighed(with_prior(model, "imagenet", prior), 0.0, 1.0).eval()
        said[frozen] = fused(PIXELS).logits
        expected = torch.stack([torch.log(chances[:, match([name])].sum(1)) for name in CLASSES[:2]], 1)
        torch.testing.assert_close(said[frozen][:, :2], expected, rtol=1e-3, atol=1e-4)
        assert (said[frozen][:, 2] == 0).all()


def test_synonyms_are_matched_too(classifier, tmp_path):
    names = tmp_path / "classes.yaml"
    names.write_text("classes: {x17: {synonyms: tench}}")
    prior = make_prior(model_of(classifier[1]), "imagenet", {"names": str(names)}, frozen=True)
    assert prior.said.all()
    assert prior.groups[2].nonzero().tolist() == [[0]]


def test_imagenet_refuses_in_a_line(classifier, tmp_path):
    _, file = classifier
    model, bare = model_of(file), tmp_path / "bare.safetensors"
    save_file({k: v for k, v in classifier[0].state_dict().items() if not k.startswith("fc.")}, bare)
    few = tmp_path / "few.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), few)
    for options, what in (
        ({"model": "no_such_net"}, "timm has no model 'no_such_net'"),
        ({"model": "test_resnet", "weights": "none.safetensors"}, "there is no file none"),
        ({"model": "test_resnet", "weights": str(bare)}, "no classifier; expected ImageNet's 1,000"),
        ({"model": "test_resnet", "weights": str(few)}, "a classifier of 7 classes; expected ImageNet's 1,000"),
    ):
        with pytest.raises(PluresError, match=what) as error:
            make_prior(model, "imagenet", options, frozen=True)
        assert "\n" not in str(error.value)
    features = build_model("features", "linear", CLASSES, {"width": 4})
    with pytest.raises(PluresError, match="the data are features; use prior=FILE"):
        make_prior(features, "imagenet", {}, frozen=True)


def test_weights_that_cannot_be_downloaded(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = build_model("small_conv", "linear", CLASSES, image_size=32)
    with pytest.raises(PluresError, match=r"'resnet18' are not on this machine.*prior.weights=FILE"):
        make_prior(model, "imagenet", {"model": "resnet18"}, frozen=True)


# ---------------------------------------------------------------------------------------------------------- a file


def write(folder, kind, names, scores, classes):
    path = folder / f"scores.{kind}"
    columns = {"image": names, **dict(zip(classes, np.asarray(scores, np.float32).T, strict=True))}
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    elif kind == "npz":
        np.savez(path, scores=np.asarray(scores), names=np.array(names), classes=np.array(classes))
    else:
        mark = "\t" if kind == "tsv" else ","
        rows = [mark.join(columns)] + [mark.join([n, *map(str, row)]) for n, row in zip(names, scores, strict=True)]
        path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "npz"])
def test_scores_are_read_by_image_and_class(tmp_path, kind):
    path = write(tmp_path, kind, ["a/1.jpg", "a/2.jpg"], [[0.1, 0.9, 5], [0.2, 0.3, 5]], ["sofa", "cat", "other"])
    names, scores = read_scores(path, CLASSES)
    assert names == ["a/1.jpg", "a/2.jpg"]
    np.testing.assert_allclose(scores, [[0.9, 0.1, 0], [0.3, 0.2, 0]], rtol=1e-6)
    prior = make_prior(build_model("small_conv", "linear", CLASSES, image_size=32), "file", {"path": path}, frozen=True)
    assert prior.said.tolist() == [True, True, False]
    found = prior.of(["/elsewhere/a/2.jpg", "1.jpg"]).numpy()
    np.testing.assert_allclose(found[:, 0], [np.log(0.3 / 0.7), np.log(0.9 / 0.1)], rtol=1e-5)


def test_only_probabilities_become_log_odds():
    scores = np.array([[0.0, 0.5], [1.0, 0.25]], np.float32)
    assert np.isfinite(evidence_of(scores)).all()
    assert evidence_of(scores)[0, 1] == 0
    np.testing.assert_array_equal(evidence_of(scores - 0.5), scores - 0.5)


@pytest.mark.parametrize(
    ("names", "scores", "classes", "what"),
    [
        (
            ["a.jpg"],
            [[1.0, float("nan")]],
            ["cat", "sofa"],
            "1 scores are no finite numbers, the first: 'sofa' of a.jpg",
        ),
        (["a.jpg", "a.jpg"], [[1.0], [2.0]], ["cat"], "1 images have several rows, such as a.jpg"),
        (["a.jpg"], [[1.0, 2.0]], ["dog", "bus"], r"none of the data's classes \(cat, sofa, x17\) among its columns"),
    ],
)
def test_a_table_that_is_none_is_refused_in_a_line(tmp_path, names, scores, classes, what):
    with pytest.raises(PluresError, match=what):
        read_scores(write(tmp_path, "parquet", names, scores, classes), CLASSES)


def test_files_that_are_no_tables(tmp_path):
    for name, text, what in (
        ("a.csv", "cat,sofa\n1,2\n", "no column 'image' among cat, sofa"),
        ("b.csv", "image,cat\na.jpg,yes\n", "1 scores are no finite numbers"),
        ("c.parquet", "nonsense", "cannot be read"),
        ("d.npz", "nonsense", "not a NumPy file"),
        ("e.csv", "", "cannot be read"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(PluresError, match=what) as error:
            read_scores(str(tmp_path / name), CLASSES)
        assert "\n" not in str(error.value)
    with pytest.raises(PluresError, match="no such file; expected a table of scores"):
        read_scores("nowhere.csv", CLASSES)


def test_images_without_scores_are_listed(tmp_path):
    path = write(tmp_path, "csv", ["a.jpg"], [[0.5, 0.4]], ["cat", "sofa"])
    prior = make_prior(build_model("small_conv", "linear", CLASSES, image_size=32), "file", {"path": path}, frozen=True)
    with pytest.raises(PluresError, match=r"no scores of 2 of 3 images \(b.jpg, c.jpg\), and a run"):
        prior.of(["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(PluresError, match="images in memory have no names"):
        prior.of(np.zeros((1, 8, 8, 3), np.uint8))


def test_settings_are_checked_when_they_are_made():
    assert Experiment(prior="a.csv").prior.options == {"path": "a.csv"}
    for values, what in (
        ({"prior": "txt"}, "unknown prior 'txt'; did you mean 'text'"),
        ({"prior": "file"}, "requires the table of scores"),
        ({"prior": {"name": "none", "names": "x"}}, "prior=none has no options"),
        ({"prior": {"name": "text", "config": {}}}, "prior 'text' has no option 'config'"),
        ({"classes": "cat,cat"}, "expected distinct names"),
        ({"classes": "cat,"}, "expected distinct names"),
    ):
        with pytest.raises(PluresError, match=what):
            Experiment(**values)


# ------------------------------------------------------------------------------------------------------- fused models


@pytest.mark.parametrize("frozen", [True, False])
def test_a_fused_model_is_saved_whole(classifier, tmp_path, frozen):
    model = model_of(classifier[1])
    prior = make_prior(model, "imagenet", {}, frozen=frozen)
    fused = weighed(with_prior(model, "imagenet", prior), torch.tensor([1.0, 0.5, 1.0]), 2.0, -0.25).eval()
    save(fused, tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["format"] == 3
    again = load(tmp_path)
    torch.testing.assert_close(again(PIXELS).logits, fused(PIXELS).logits)
    head = without_prior(again)(PIXELS).logits
    torch.testing.assert_close(again(PIXELS).logits[:, 2], head[:, 2] - 0.25)
    save(without_prior(fused), tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["format"] == 2
    assert not isinstance(load(tmp_path).head, Fused)


def test_the_file_of_a_fused_model_holds_its_scores(tmp_path):
    path = write(tmp_path, "csv", ["a.jpg", "é.jpg"], [[0.5, 0.4], [0.1, 0.2]], ["cat", "sofa"])
    model = build_model("small_conv", "linear", CLASSES, image_size=32)
    prior = make_prior(model, "file", {"path": path}, frozen=True)
    save(with_prior(model, "file", prior), tmp_path)
    (tmp_path / "scores.csv").unlink()
    again = load(tmp_path).eval()
    torch.testing.assert_close(again.head.prior.of(["é.jpg"]), prior.of(["é.jpg"]))
    with pytest.raises(PluresError, match="scores only the images in that file"):
        again(PIXELS[:, :, :32, :32])


def test_every_prior_is_tried_here():
    assert set(priors.names()) == {"file", "imagenet", "text"}
