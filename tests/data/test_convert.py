"""`plures convert`: what is written is read back as it was, and what a form cannot hold is said."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plures.data.convert import FORMS, convert, scores_of
from plures.data.dataset import Dataset
from plures.data.read import find_format, read
from plures.errors import PluresError
from plures.labels import Labels

CLASSES = ("big cat", "dog & <co>", 'so"fa')
FILES = [form for form in FORMS if form != "xmp"]  # which is many: tests/data/test_sidecars.py
SUFFIX = {form: suffixes[0] for form, (suffixes, _) in FORMS.items()}
HOLDS_ABSENT = {"table", "roboflow", "huggingface", "coco"}
HOLDS_SPLITS = {"table", "cvat"}
OF = {"table": "table", "roboflow": "table"}  # else the format is called as the form
VALUES = {
    "as it is": [[1, 0, -1], [-1, -1, 1], [-1, -1, -1], [1, 1, 0]],
    "all known": [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]],
    "present or unknown": [[1, -1, -1], [-1, 1, 1], [-1, -1, -1], [1, 1, 1]],
}


@pytest.fixture
def make(tmp_path):
    def go(case: str, splits=None) -> Dataset:
        names = ["photos/a/1.png", "photos/a/größe 2.png", "photos/3.png", "photos/b & c/4.png"]
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6)).save(tmp_path / name)
        paths = [str(tmp_path / name) for name in names]
        return Dataset(paths, Labels(np.array(VALUES[case], np.int8)), CLASSES, splits)

    return go


def known(data: Dataset) -> dict[str, dict[str, int]]:
    """The labels that are known, by photograph; classes of which nothing is known do not count."""
    return {
        os.path.realpath(image): {name: code for name, code in zip(data.classes, row, strict=True) if code >= 0}
        for image, row in zip(data.images, data.labels.values.tolist(), strict=True)
    }


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("form", FILES)
def test_read_of_write_is_the_same(make, tmp_path, form, case):
    data = make(case)
    out = tmp_path / f"out/data{SUFFIX[form]}"
    written = convert(data, form, out)
    options = {} if form in HOLDS_ABSENT else {"images": str(tmp_path / "photos")}
    if case == "all known" and form not in HOLDS_ABSENT:
        options["complete"] = True
    assert find_format(str(out))[0] == OF.get(form, form)
    again = read(str(out), **options)
    expected = known(data)
    if form not in HOLDS_ABSENT and case == "as it is":
        expected = {image: {name: 1 for name, code in row.items() if code} for image, row in expected.items()}
        assert any("holds no absent labels: 2 are left out" in said for said in written.notices)
    assert known(again) == expected
    said = " ".join(written.notices)
    assert ("absent labels" in said) == (form not in HOLDS_ABSENT and case != "present or unknown")
    assert ("unknown labels are blank" in said) == (form == "roboflow" and case != "all known")
    assert ("neg_category_ids" in said) == (form == "coco" and case != "all known")


@pytest.mark.parametrize("form", FILES)
def test_splits_are_kept_or_missed_aloud(make, tmp_path, form):
    data = make("present or unknown", np.array(["train", "val", "", "test"]))
    out = tmp_path / f"data{SUFFIX[form]}"
    said = " ".join(convert(data, form, out).notices)
    assert ("splits (test, train, val)" in said) == (form not in HOLDS_SPLITS)
    again = read(str(out), **({} if form in HOLDS_ABSENT else {"images": str(tmp_path / "photos")}))
    assert (again.splits is not None) == (form in HOLDS_SPLITS)
    if form in HOLDS_SPLITS:
        assert sorted(again.splits.tolist()) == ["", "test", "train", "val"]


def test_what_other_tools_look_for(make, tmp_path):
    data = make("as it is")
    convert(data, "roboflow", tmp_path / "_classes.csv")
    rows = list(csv.reader((tmp_path / "_classes.csv").read_text().splitlines()))
    assert rows[:2] == [["filename", *CLASSES], ["photos/a/1.png", "1", "0", ""]]
    convert(data, "coco", tmp_path / "c.json")
    made = json.loads((tmp_path / "c.json").read_text())
    assert made["images"][0] == {"id": 1, "file_name": "photos/a/1.png", "width": 8, "height": 6,
                                 "neg_category_ids": [2], "not_exhaustive_category_ids": []}  # fmt: skip
    assert [(one["image_id"], one["category_id"]) for one in made["annotations"]] == [(1, 1), (2, 3), (4, 1), (4, 2)]
    convert(data, "fiftyone", tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())["labels"] == {
        "a/1": [0], "a/größe 2": [2], "3": None, "b & c/4": [0, 1]
    }  # fmt: skip
    convert(data, "label_studio", tmp_path / "l.json")
    tasks = json.loads((tmp_path / "l.json").read_text())
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=a/gr%C3%B6%C3%9Fe%202.png"
    assert tasks[2]["annotations"] == []
    assert tasks[3]["annotations"][0]["result"][0]["value"] == {"choices": ["big cat", "dog & <co>"]}


def predicted(tmp_path: Path) -> str:
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "found.csv").write_text("image,tags,cat,score of tags\n1.png,cat;tags,0.75,0.5\n2.png,,0.25,0.125\n")
    return str(tmp_path / "found.csv")


def test_predictions_keep_their_scores(tmp_path):
    source = predicted(tmp_path)
    data = read(source)
    scores = scores_of(f"table:{source}", data)
    assert scores.tolist() == [[0.75, 0.5], [0.25, 0.125]]
    convert(data, "label_studio", tmp_path / "l.json", scores=scores)
    first, second = json.loads((tmp_path / "l.json").read_text())
    assert "annotations" not in first
    assert first["predictions"][0]["score"] == 0.5
    assert first["predictions"][0]["result"][0]["meta"] == {"scores": {"cat": 0.75, "tags": 0.5}}
    assert second["predictions"] == [{"model_version": "plures", "result": []}]
    again = read(str(tmp_path / "l.json"), predictions=True)
    assert known(again) == known(data)
    convert(data, "fiftyone", tmp_path / "f.json", scores=scores)
    assert json.loads((tmp_path / "f.json").read_text())["labels"]["1"][0] == {"label": "cat", "confidence": 0.75}
    convert(data, "cvat", tmp_path / "c.xml", scores=scores)
    assert '<tag label="cat" source="auto">' in (tmp_path / "c.xml").read_text()


def test_a_table_without_scores_has_none(tmp_path):
    predicted(tmp_path)
    (tmp_path / "t.csv").write_text("image,tags,cat\n1.png,cat,yes\n")
    assert scores_of(str(tmp_path / "t.csv"), read(str(tmp_path / "t.csv"))) is None
    (tmp_path / "t.csv").write_text("image,tags,cat\n1.png,cat,7.5\n")
    assert scores_of(str(tmp_path / "t.csv"), read(str(tmp_path / "t.csv"))) is None
    assert scores_of(str(tmp_path), read(str(tmp_path / "t.csv"))) is None


def test_what_cannot_be_written_is_one_line(make, tmp_path):
    data = make("as it is")
    with pytest.raises(PluresError, match="no form 'voc' to convert to; choose from: table, roboflow"):
        convert(data, "voc", tmp_path / "x.json")
    with pytest.raises(PluresError, match=r"--to cvat writes a file that ends in \.xml"):
        convert(data, "cvat", tmp_path / "x.json")
    with pytest.raises(PluresError, match="control character"):
        convert(Dataset(data.images, data.labels, ("a", "b\x01", "c")), "cvat", tmp_path / "x.xml")
    with pytest.raises(PluresError, match="class 'Split' is called as a column"):
        convert(Dataset(data.images, data.labels, ("a", "Split", "c")), "roboflow", tmp_path / "x.csv")
    in_memory = Dataset(np.zeros((4, 2, 2, 3), np.uint8), data.labels, CLASSES)
    with pytest.raises(PluresError, match="in memory"):
        convert(in_memory, "coco", tmp_path / "x.json")
    Image.new("RGB", (8, 6)).save(tmp_path / "photos/3.jpg")
    twins = Dataset([*data.images[:3], str(tmp_path / "photos/3.jpg")], data.labels, CLASSES)
    with pytest.raises(PluresError, match="differ in their suffix alone"):
        convert(twins, "fiftyone", tmp_path / "x.json")
    assert not list(tmp_path.glob("x.*"))


def test_the_command(tmp_path, plures, monkeypatch):
    predicted(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, err = plures("convert", "found.csv", "--to", "label_studio", "--out", "l.json")
    assert (code, out) == (0, "l.json: 2 images, 2 classes\n")
    assert "l.json: paths start from" in err
    code, _, err = plures("convert", "label_studio:l.json", "data.predictions=true", "--to", "coco", "--out", "l.json")
    assert (code, err) == (2, "plures: l.json: this command reads it, so it is not replaced; choose another name\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/labels.json").write_text('{"classes": ["a"], "labels": {"1": 0}}')
    code, _, err = plures("convert", "d", "--to", "fiftyone", "--out", "d/labels.json", "--force")
    assert (code, "this command reads it" in err) == (2, True)
    code, _, err = plures("convert", "found.csv", "--to", "cvat", "--out", "c.json")
    assert (code, err) == (2, "plures: --out c.json: --to cvat writes a file that ends in .xml\n")
