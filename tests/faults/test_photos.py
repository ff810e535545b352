"""Photos that would hurt: what the server is tried with (tests/web/test_serve.py), at `predict`, too."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from plures.config import Experiment
from plures.data.checks.verify import verify_images
from plures.data.dataset import Dataset
from plures.data.photos import Unreadable
from plures.errors import BadData
from plures.labels import Labels
from plures.models.model import build_model, save
from plures.prediction.predict import predict
from plures.runs.run import Run
from plures.training import train as train_module
from plures.training.progress import Quiet
from plures.training.train import train

pytest.importorskip("fastapi", reason="the photos are those of the server's tests")
pytest.importorskip("prometheus_client", reason="the photos are those of the server's tests")
from web.test_serve import READ, REFUSED, encoded, picture, png_header

OF_THE_SERVER = {"30,000 wide", "too many pixels"}  # which takes fewer pixels than `predict`
HOSTILE = {name: content for name, (content, _) in REFUSED.items() if name not in OF_THE_SERVER}
HOSTILE["30,000 x 30,000"] = png_header(30_000, 30_000)
ODD = READ | {name: REFUSED[name][0] for name in OF_THE_SERVER}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    torch.manual_seed(0)
    made = Run.create(folder, Experiment(backbone={"name": "small_conv", "image_size": 32}, device="cpu"))
    save(build_model("small_conv", "linear", ("cat", "dog"), {"image_size": 32}), folder)
    return made


def scores_of(out):
    """{name of the image: its scores}."""
    with out.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {row["image"].rpartition("/")[2]: [float(row["cat"]), float(row["dog"])] for row in rows}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_in_one_line(run, tmp_path, name):
    (tmp_path / "bad.png").write_bytes(HOSTILE[name])
    with pytest.raises(BadData) as raised:
        predict(run, tmp_path / "bad.png", tmp_path / "found.csv")
    assert "bad.png" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "found.csv").exists()


def test_among_hostile_images_the_others_are_read(run, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, content in (HOSTILE | ODD).items():
        (photos / f"{name}.png").write_bytes(content)
    summary = predict(run, photos, tmp_path / "found.csv", skip_bad=True, batch_size=4)
    scores = scores_of(tmp_path / "found.csv")
    assert set(scores) == {f"{name}.png" for name in ODD}
    assert np.isfinite(list(scores.values())).all()
    assert {p.file.rpartition("/")[2] for p in summary.problems} == {f"{name}.png" for name in HOSTILE}
    assert not any("\n" in p.what for p in summary.problems)


def test_photos_are_turned_upright(run, tmp_path):
    ways = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF -> Pillow's names of the way back
    for orientation, way in ways.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / f"{orientation}.png").write_bytes(encoded(picture(), "PNG", exif=exif))
        picture().transpose(Image.Transpose(way)).save(tmp_path / f"{orientation}-upright.png")
    predict(run, tmp_path, tmp_path / "found.csv")
    scores = scores_of(tmp_path / "found.csv")
    assert len(scores) == 14
    for orientation in ways:
        assert scores[f"{orientation}.png"] == scores[f"{orientation}-upright.png"]
    assert scores["6.png"] != scores["8.png"]


def test_postscript_never_starts_another_program(run, tmp_path, monkeypatch):
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a) or Image.new("RGB", (9, 9)))
    file = io.BytesIO()
    picture().save(file, "EPS")
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    with pytest.raises(BadData, match=r"a.jpg: .*PostScript"):
        predict(run, tmp_path / "a.jpg", tmp_path / "found.csv")
    data = Dataset([str(tmp_path / "a.jpg")], Labels(np.ones((1, 1), np.int8)), ("cat",))
    assert [problem.what[:10] for _, problem in verify_images(data, decode=True)] == ["PostScript"]
    assert not started


# ---------------------------------------------------------------------------------- photographs that vanish in training


@pytest.fixture
def photos(tmp_path):
    """A table of 40 photographs with splits."""
    rows = ["image,tags,split"]
    for number in range(40):
        picture(seed=number).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'cat' if number % 2 else 'dog'},{['train', 'train', 'val', 'test'][number % 4]}")
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    return tmp_path


class Said(Quiet):
    def __init__(self, then=None):
        self.lines, self.then = [], then

    def say(self, line):
        self.lines.append(line)

    def epoch(self, record):
        if self.then and record["epoch"] == 1:
            self.then()


@pytest.mark.parametrize("stages", ["finetune", "probe"])
@pytest.mark.parametrize("gone", [(0,), (2, 3), (1, 6, 7)], ids=["train", "val and test", "all"])
def test_photographs_that_vanish_are_left_out_with_skip_bad(photos, monkeypatch, stages, gone):
    """In a probe they vanish before their features are computed, else after the second of four epochs."""
    monkeypatch.setenv("PLURES_CACHE", str(photos / "cache"))

    def vanish():
        for number in gone:
            (photos / f"{number}.png").unlink()

    settings = {"data": str(photos / "tags.csv"), "stages": stages, "epochs": 4, "batch_size": 5, "workers": 0}
    settings |= {"backbone": {"name": "small_conv", "image_size": 16}, "device": "cpu", "augment": "none"}
    experiment, callback = Experiment(**settings), Said(vanish if stages == "finetune" else None)
    if stages == "probe":
        make, left = train_module.make_loss, [vanish]
        monkeypatch.setattr(train_module, "make_loss", lambda *given: (left and left.pop()()) or make(*given))
    run = train(experiment, photos / "run", skip_bad=True, callback=callback)
    (line,) = [line for line in callback.lines if "became unreadable" in line]
    assert re.match(rf"left out {len(gone)} photographs .*\.png: (no such file|image is missing)", line)
    report = json.loads((run.path / "report.json").read_text())
    assert report["images"] == 10 - len({3, 7} & set(gone))
    assert [record["epoch"] for record in run.log] == [0, 1, 2, 3]
    assert all(np.isfinite(record["loss"]) for record in run.log)


def test_without_skip_bad_a_photograph_that_vanishes_is_named(photos):
    settings = {"data": str(photos / "tags.csv"), "epochs": 4, "batch_size": 5, "workers": 0, "device": "cpu"}
    settings |= {"backbone": {"name": "small_conv", "image_size": 16}, "stages": "finetune"}
    with pytest.raises(Unreadable, match=r"0\.png: no such file"):
        train(Experiment(**settings), photos / "run", callback=Said(lambda: (photos / "0.png").unlink()))
