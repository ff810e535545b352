"""Boxes from heat maps: scores against true boxes, and a COCO file that readers understand."""

import json

import numpy as np
import pytest
from PIL import Image

from plures.analysis.localise import FoundBox, Localised, localise, true_boxes, write_coco
from plures.config import Experiment
from plures.data.dataset import Boxes, Dataset
from plures.data.photos import image_size
from plures.data.read import read
from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.localisation import boxes_of, localisation
from plures.models.model import load
from plures.runs.own_data import match_classes
from plures.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    values = {
        "data": {"name": "scenes", "train": 60, "val": 20, "test": 20},
        "supervision": "full",
        "loss": "bce",
        "epochs": 1,
        "device": "cpu",
        "workers": 0,
        "backbone": {"name": "small_conv", "width": 16},
        "threshold": 0.05,
    }
    return train(Experiment(**values), tmp_path_factory.mktemp("runs") / "run").path


def test_scores_of_scenes(plures, run):
    found = localise(run)
    truth = true_boxes(found.dataset)
    assert found.scores.maps == sum(len(of) for of in truth.values())
    assert found.scores.boxes == len(found.dataset.boxes.row)
    assert 0 <= found.scores.pointing <= 1
    assert found.flat.box_recall == 0  # a digit is much smaller than the scene
    assert found.found
    assert all(0 <= c <= 1 for box in found.found for c in box.corners)
    code, out, err = plures("localise", run)
    assert code == 0, err
    assert "pointing game" in out
    assert "resolution: a region is" in out


def test_maps_have_the_size_of_the_photo(run, tmp_path):
    Image.new("RGB", (90, 40)).save(tmp_path / "wide.png")
    turned = Image.new("RGB", (90, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(str(tmp_path / "wide.png")) == (90, 40)
    assert image_size(str(tmp_path / "turned.jpg")) == (40, 90)
    classes = load(run).classes
    found = localise(
        run, Dataset([str(tmp_path / "wide.png")], Labels(np.full((1, len(classes)), -1, np.int8)), classes)
    )
    assert found.sizes == ((90, 40),)
    assert found.scores is None


def test_a_coco_file_that_the_reader_reads_back(tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    paths = [tmp_path / "photos" / "1.png", tmp_path / "photos" / "deep" / "2.png"]
    for path in paths:
        Image.new("RGB", (80, 40)).save(path)
    data = Dataset([str(p) for p in paths], Labels(np.full((2, 2), -1, np.int8)), ("dog", "cat"))
    boxes = (FoundBox(1, 1, (0.25, 0.5, 0.75, 1.0), 0.9), FoundBox(0, 0, (0, 0, 1, 1), 0.6))
    write_coco(Localised(data, ((80, 40),) * 2, None, None, boxes, (0.1, 0.1), 0.2), tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["images"][1] == {"id": 2, "file_name": "deep/2.png", "width": 80, "height": 40}
    first = content["annotations"][0]
    assert first["bbox"] == [20, 20, 40, 20]
    assert (first["area"], first["score"], first["segmentation"], first["iscrowd"]) == (800, 0.9, [], 0)
    again = read(f"coco:{tmp_path / 'found.json'}", images=str(tmp_path / "photos"))
    assert again.classes == ("dog", "cat")
    assert again.labels.present.tolist() == [[True, False], [False, True]]
    np.testing.assert_allclose(again.boxes.corners[1], [0.25, 0.5, 0.75, 1.0])


def test_boxes_go_with_their_class_by_name():
    boxes = Boxes(np.array([0, 0]), np.array([1, 0]), np.zeros((2, 4), np.float32))
    data = Dataset(["x"], Labels(np.array([[1, 1]], np.int8)), ("dog", "cat"), boxes=boxes)
    assert match_classes(data, ("cat", "cow", "dog")).boxes.column.tolist() == [0, 2]


def test_boxes_of_parts():
    heat = np.zeros((10, 10), np.float32)
    heat[0:2, 0:2], heat[5:9, 5:10] = 1, 0.6
    np.testing.assert_allclose(boxes_of(heat, 0.5), [[0.5, 0.5, 1, 0.9], [0, 0, 0.2, 0.2]])
    np.testing.assert_allclose(boxes_of(heat, 0.9), [[0, 0, 0.2, 0.2]])
    truth = np.array([[0.0, 0, 0.2, 0.2], [0.5, 0.5, 1, 0.9], [0, 0.8, 0.1, 1]])
    found = localisation([(heat, truth)], share=0.5)
    assert (found.box_recall, found.parts_recall, found.parts_precision) == pytest.approx((1 / 3, 2 / 3, 1))


def test_mistakes(plures, run, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text("image,tags\n1.png,\n")
    code, _, err = plures("localise", run, tmp_path / "t.csv")
    assert code == 2
    assert "no true boxes to judge by; --boxes FILE writes the boxes found" in err
    code, _, err = plures("localise", run, "--share", "2")
    assert code == 2
    assert "in (0, 1]" in err
    with pytest.raises(PluresError, match="images are in memory"):
        write_coco(localise(run), tmp_path / "x.json")
    code, _, err = plures("localise", run, tmp_path / "t.csv", "--boxes", tmp_path / "x.json")
    assert code == 0, err
    assert json.loads((tmp_path / "x.json").read_text())["images"][0]["file_name"] == "1.png"
