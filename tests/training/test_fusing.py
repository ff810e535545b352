"""A prior as a part of a run: training, every command after it, and no tags at all."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import plures as library
from plures.analysis.missing import score
from plures.config import Experiment
from plures.errors import PluresError
from plures.metrics.report import Report
from plures.metrics.thresholds import Thresholds
from plures.models.model import load, without_prior
from plures.models.priors import Fused
from plures.runs.run import Run
from plures.training.progress import Quiet
from plures.training.train import train
from plures.web.scoring import Scoring

COLOURS = {"cat": (220, 40, 40), "dog": (40, 220, 40), "sofa": (40, 40, 220)}
N = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """photos/, tags.csv with one tag each, scores.csv of an all-knowing prior, weights of a tiny network."""
    folder = tmp_path_factory.mktemp("priors")
    r = np.random.default_rng(0)
    (folder / "photos").mkdir()
    tags, scores = [], []
    for n in range(N):
        there = [name for name in COLOURS if r.random() < 0.4] or [list(COLOURS)[n % 3]]
        picture = r.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        for name in there:
            at = 10 * list(COLOURS).index(name)
            picture[at : at + 9] = COLOURS[name]
        image = f"photos/{n:02}.png"
        Image.fromarray(picture).save(folder / image)
        tags.append((image, r.choice(there)))
        scores.append((image, *(round(float(np.clip(0.5 + 0.3 * (c in there) + 0.1 * r.normal(), 0, 1)), 3)
                                for c in COLOURS)))  # fmt: skip
    for name, head, rows in (("tags", ("image", "tags"), tags), ("scores", ("image", *COLOURS), scores)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    torch.manual_seed(0)
    net = timm.create_model("test_resnet")
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 0.1
    save_file(net.state_dict(), folder / "test_resnet.safetensors")
    return folder


def values(place, **more):
    backbone = {
        "name": "timm",
        "model": "test_resnet",
        "weights": str(place / "test_resnet.safetensors"),
        "image_size": 32,
    }
    base = {"data": str(place / "tags.csv"), "backbone": backbone, "device": "cpu", "workers": 0}
    return base | {"prior": str(place / "scores.csv")} | more


class Heard(Quiet):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def by_file(place, monkeypatch_module):
    return trained(place, "file")


@pytest.fixture(scope="module")
def monkeypatch_module(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLURES_CACHE", str(place / "cache"))
        yield patch


def trained(place, out, **more):
    heard = Heard()
    return train(Experiment(**values(place, **more)), place / out, callback=heard), heard.lines


def test_the_run_holds_the_fused_model(by_file, place):
    run, lines = by_file
    assert any(line.startswith("prior: counts") for line in lines)
    head = load(run.path).head
    assert isinstance(head, Fused)
    assert (head.prior_weight > 0).all()
    report = Report.load(run.path / "report.json")
    assert set(report.baselines) == {"prior alone", "head alone"}
    again = library.evaluate(run.path)
    assert again.estimates == report.estimates
    truth = place / "truth.csv"
    rows = [
        (r["image"], *(int(float(r[c]) > 0.65) for c in COLOURS)) for r in csv.DictReader((place / "scores.csv").open())
    ]
    with truth.open("w", newline="") as file:
        csv.writer(file).writerows([("image", *COLOURS), *rows])
    card = (run.path / "model_card.md").read_text()
    assert "Joined with what is known without tags: prior `file`." in card
    known = library.evaluate(run.path, str(truth))
    assert known.baselines["prior alone"] == 1  # what was made of it
    assert known.map > known.baselines["head alone"]
    assert "mAP of the prior alone" in repr(known)


def test_predictions_are_fused_by_name(by_file, place):
    run, _ = by_file
    model, one = library.load(run.path), str(place / "photos/07.png")
    found = model.predict([one])
    head = load(run.path)
    pixels = model.transform(Image.open(one).convert("RGB"))[None]
    alone = without_prior(head)(pixels).logits
    expected = head.head.fuse(alone, head.head.prior.of([one]))
    np.testing.assert_allclose(found.logits, expected.detach().numpy(), atol=1e-4)
    assert not np.allclose(found.logits, alone.detach().numpy(), atol=1e-2)
    assert model.embed([one]).shape == (1, head.backbone.width)
    other = place / "other.png"
    Image.open(one).save(other)
    with pytest.raises(PluresError, match=r"no scores of 1 of 1 images \(.*other.png\)"):
        model.predict([str(other)])


def test_suggestions_are_fused_also_when_cross_fitted(by_file, place):
    run, _ = by_file
    own = score(Run(run.path), None, cross_fit=0, options={}, skip_bad=False)
    crossed = score(Run(run.path), None, cross_fit=2, options={}, skip_bad=False)
    shown = np.array([[float(row[c]) for c in COLOURS] for row in csv.DictReader((place / "scores.csv").open())])
    for scored in (own, crossed):
        follow = [np.corrcoef(scored.probabilities[:, k], shown[:, k])[0, 1] for k in range(3)]
        assert min(follow) > 0.5
    assert not np.allclose(own.probabilities, crossed.probabilities)


def test_commands_that_need_any_photograph_refuse_in_a_line(by_file, place, plures):
    run, _ = by_file
    code, _, err = plures("export", run.path, "--to", "onnx", "--out", place / "m.onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert "an exported file scores any photograph, and the prior of this run is a file" in err
    with pytest.raises(PluresError, match="the web page scores any photograph"):
        Scoring(Run(run.path))
    code, _, err = plures("predict", run.path, place / "photos", "--out", place / "found.csv")
    assert (code, len((place / "found.csv").read_text().splitlines())) == (0, N + 1)
    code, _, err = plures("thresholds", run.path, "--objective", "tags=1.4")
    assert code == 0


def test_a_prior_that_lacks_images_leaves_no_folder_behind(place, monkeypatch_module):
    lacking = place / "lacking.csv"
    lacking.write_text("\n".join((place / "scores.csv").read_text().splitlines()[:20]))
    with pytest.raises(PluresError, match=r"no scores of \d+ of \d+ images"):
        trained(place, "never", prior=str(lacking))
    assert not (place / "never").exists()


@pytest.mark.parametrize("stages", ["ridge", "finetune"])
def test_a_prior_on_pixels_goes_everywhere(place, monkeypatch_module, stages):
    more = {"stages": stages, "prior": "imagenet"} | ({} if stages == "ridge" else {"epochs": 1, "head": "linear"})
    run, _ = trained(place, f"imagenet_{stages}", **more)
    model = load(run.path)
    assert model.parts.prior_options["shared"] is (stages == "ridge")
    photos = [str(place / f"photos/{n:02}.png") for n in range(5)]
    found = library.load(run.path).predict(photos).logits
    dataset = library.read(str(place / "tags.csv"))
    from plures.scoring.logits import logits_of_run

    np.testing.assert_allclose(found, logits_of_run(run, dataset)[:5], atol=2e-3)


def test_export_of_a_fused_model_is_one_file(place, monkeypatch_module):
    pytest.importorskip("onnxruntime")
    run, _ = trained(place, "exported", prior="imagenet")
    made = library.Run(run.path).export("torch", place / "m.pt2")
    assert made.agreement.exact < 1e-3
    assert made.agreement.tags == 0


# --------------------------------------------------------------------------------------------------------- no tags


def test_no_tags_at_all(place, monkeypatch_module, plures):
    out = place / "untagged"
    settings = [f"backbone.weights={place}/test_resnet.safetensors", "image_size=32", "workers=0", "device=cpu"]
    given = [f"prior={place}/scores.csv", "expected_tags=1.2", *settings]
    code, _, err = plures("train", place / "photos", "--classes", "cat,sofa,x17", *given, "--out", out)
    assert code == 0, err
    assert "no tag is known: the prior alone" in err + _
    assert "not for x17: the prior says nothing of it" in err + _
    kept = Thresholds.load(out, ("cat", "sofa", "x17"))
    assert kept.objective == "tags=1.2"
    np.testing.assert_allclose(kept.values[:2], 0.5, atol=0.02)
    found = library.load(out).predict(str(place / "photos"))
    assert 0.9 < np.mean([len(one.tags) for one in found]) < 1.5
    assert not any("x17" in one.tags for one in found)
    again = library.evaluate(out)
    assert np.isnan(again.map)
    code, _, err = plures("suggest", out, "--out", place / "missing.csv", "--top", "20")
    assert code == 0, err
    rows = list(csv.DictReader((place / "missing.csv").open()))
    assert len(rows) == 20
    assert json.loads((out / "report.json").read_text())["selected"]["epoch"] is None


def test_no_tags_and_no_prior_is_refused(place, plures, monkeypatch_module):
    code, _, err = plures("train", place / "photos", "--classes", "cat,sofa", "--out", place / "nothing")
    assert (code, err.count("\n")) == (2, 1)
    assert "a prior tags without any" in err
    assert not Path(place / "nothing").exists()


def test_classes_beside_those_of_a_table(place):
    from plures.runs.data import read_data

    dataset = read_data(Experiment(data=str(place / "tags.csv"), classes="sofa,bird"))
    assert dataset.classes == ("cat", "dog", "sofa", "bird")
    assert dataset.labels.unknown[:, 3].all()
    assert dataset.labels.present[:, 2].any()
