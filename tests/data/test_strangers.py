"""Further examples of the kinds of data that people have, as strangers make them: folders, spellings, versions."""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import plures as package
from plures.data.read import find_format, read, reason
from plures.errors import BadData, PluresError

ABCD = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")


@pytest.fixture
def world(tmp_path):
    def go(files: dict[str, object], *photos: str) -> Path:
        for place, name in enumerate(photos):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (place * 9, 0, 0)).save(tmp_path / name)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str | bytes) else json.dumps(content)
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return go


def found(data) -> dict[str, dict[str, int]]:
    """The known labels by the name of the photograph."""
    rows = zip(data.images, data.labels.values.tolist(), strict=True)
    return {
        os.path.basename(str(image)): {name: code for name, code in zip(data.classes, row, strict=True) if code >= 0}
        for image, row in rows
    }


def said(data) -> str:
    return " | ".join(problem.what for problem in data.problems)


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    "cell",
    ["('cat', 'dog')", "{'cat', 'dog'}", "{'dog', 'cat'}", "set(['cat', 'dog'])", "cat;nan;dog", "None;cat;dog;NaN"],
)
def test_cells_that_spell_something(world, cell):
    at = world({"t.tsv": f"file\tlabels\na.jpg\t{cell}\nb.jpg\tset()\nc.jpg\t()\nd.jpg\t(old) house\n"}, *ABCD)
    data = read(at / "t.tsv")
    assert data.classes == ("(old) house", "cat", "dog")
    assert data.labels.present.tolist() == [[False, True, True], [False] * 3, [False] * 3, [True, False, False]]


@pytest.mark.parametrize("cell", ['"[1, 0, 1]"', "1 0 1", "[1. 0. 1.]", '"1,0,1"'])
def test_a_place_for_each_class_has_no_names(world, cell):
    at = world(
        {"t.csv": f"file,labels\na.jpg,{cell}\nb.jpg,{cell.replace('1, 0', '0, 0').replace('1 0', '0 0')}\n"}, *ABCD
    )
    with pytest.raises(BadData, match="holds lists of 1 and 0, a place for each class"):
        read(at / "t.csv")


def test_a_place_for_each_class_in_parquet_and_jsonl(world):
    lines = "".join(json.dumps({"file_name": name, "labels": [1, 0, 0]}) + "\n" for name in ABCD)
    at = world({"j/metadata.jsonl": lines}, *ABCD)
    pq.write_table(pa.table({"file": list(ABCD), "labels": [[1, 0, 1]] * 4}), at / "t.parquet")
    for source in (at / "t.parquet", at / "j/metadata.jsonl"):
        with pytest.raises(BadData, match="a place for each class"):
            read(source)
    pq.write_table(pa.table({"file": list(ABCD), "labels": [[3, 7], [3], [], [12, 9]]}), at / "t.parquet")
    assert read(at / "t.parquet").classes == ("12", "3", "7", "9")  # numbers of tags stay tags


def test_a_row_a_label_with_its_verdict(world):
    rows = "a.jpg,cat,1\na.jpg,dog,0\nb.jpg,cat,\nb.jpg,dog,True\n"
    at = world({"t.csv": "image_id,label,confidence\n" + rows, "own.csv": "image,tags,value\n" + rows}, *ABCD)
    data = read(at / "t.csv")
    assert found(data) == {"a.jpg": {"cat": 1, "dog": 0}, "b.jpg": {"dog": 1}}
    assert "1 (present) or 0 (absent) in 'confidence'" in reason(at / "t.csv")
    assert found(read(at / "own.csv"))["a.jpg"] == {"cat": 1, "dog": 1}  # plures' own columns mean what they say
    (at / "t.csv").write_text("image_id,label,confidence\na.jpg,cat,0.3\nb.jpg,dog,1\n")
    assert found(read(at / "t.csv")) == {"a.jpg": {"cat": 1}, "b.jpg": {"dog": 1}}


@pytest.mark.parametrize("name", ["set", "Partition", "data_split", "phase"])
def test_columns_of_splits(world, name):
    at = world({"t.csv": f"image,tags,{name}\na.jpg,cat,train\nb.jpg,dog,Valid\n"}, *ABCD)
    assert read(at / "t.csv").splits.tolist() == ["train", "val"]
    (at / "t.csv").write_text(f"image,tags,{name}\na.jpg,cat,north\nb.jpg,dog,south\n")
    assert read(at / "t.csv").splits is None


def test_ids_are_no_classes_and_several_columns_of_tags_are_refused(world):
    at = world({"t.csv": "fname,patient_id,siteId,cat\na.jpg,0,1,1\nb.jpg,1,1,0\n"}, *ABCD)
    assert read(at / "t.csv").classes == ("cat",)
    (at / "t.csv").write_text("image,tag_1,tag_2,tag_3\na.jpg,cat,dog,\nb.jpg,dog,,\n")
    with pytest.raises(BadData, match="columns 'tag_1', 'tag_2', 'tag_3' hold a tag each"):
        read(at / "t.csv")
    (at / "t.csv").write_text("picture of it,what\na.jpg,cat\nb.jpg,dog\n")
    with pytest.raises(BadData, match=r"no labels; 'what' .*data.tags_column=NAME"):
        read(at / "t.csv")
    assert found(read(at / "t.csv", tags_column="what"))["a.jpg"] == {"cat": 1}
    (at / "t.csv").write_text("a.jpg,cat\nb.jpg,dog\n")
    with pytest.raises(BadData, match=r"the first line holds 'a.jpg', no names of columns"):
        read(at / "t.csv")


def test_text_of_a_spreadsheet_and_tables_of_splits(world):
    at = world({"t.txt": "image\ttags\r\na.jpg\tgröße\r\n".encode("utf-16")}, *ABCD)
    assert (find_format(str(at / "t.txt"))[0], read(at / "t.txt").classes) == ("table", ("größe",))
    at = world(
        {"s/train.csv": "image,tags\na.jpg,cat\n", "s/val.csv": "image,tags\nb.jpg,dog\n"}, "s/x/a.jpg", "s/x/b.jpg"
    )
    assert read(at / "s").splits.tolist() == ["train", "val"]
    (at / "s/sample.csv").write_text("image,tags\n")
    with pytest.raises(PluresError, match=r"sample.csv, train.csv, val.csv lie beside"):
        read(at / "s")


def test_roboflow_with_a_comma_in_a_name(world):
    text = 'filename, Hard Hat, "Person, seated"\na.jpg, 1, 0\n'
    at = world(
        {"train/_classes.csv": text, "valid/_classes.csv": text.replace("a.jpg", "b.jpg")}, "train/a.jpg", "valid/b.jpg"
    )
    assert found(read(at)) == {name: {"Hard Hat": 1, "Person, seated": 0} for name in ("a.jpg", "b.jpg")}


# -------------------------------------------------------------------------------------------------------------- exports

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def coco(*names: str) -> dict:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": [{"id": 1, "image_id": 0, "category_id": 1}], "categories": CATEGORIES}


def test_an_export_in_a_folder_of_its_own(world):
    """Also with a README beside it; but not where photographs lie elsewhere, too."""
    at = world({f"p.v3i.coco/{s}/_annotations.coco.json": coco("a.jpg") for s in ("train", "valid")},
               "p.v3i.coco/train/a.jpg", "p.v3i.coco/valid/a.jpg")  # fmt: skip
    assert read(at).splits.tolist() == ["train", "val"]
    assert reason(at).startswith("format coco: by what lies there, in p.v3i.coco; ")
    assert find_format(str(at)) == ("coco", str(at / "p.v3i.coco"))
    world({}, "other/b.jpg")
    with pytest.raises(BadData, match="may hold the tags"):
        read(at)


def test_a_run_remembers_the_folder_of_its_own(world):
    from plures.config import Component
    from plures.runs.data import found_from_anywhere

    at = world(
        {"inner/data/metadata.csv": "file_name,label\na.jpg,cat\nb.jpg,dog\n"}, "inner/data/a.jpg", "inner/data/b.jpg"
    )
    assert found_from_anywhere(Component(name=str(at), options={})).name == str(at / "inner/data")
    assert len(read(at)) == 2


def test_coco_of_several_splits_and_places(world):
    at = world(
        {"annotations/train.json": coco("a.jpg"), "annotations/val.json": coco("b.jpg")}, "train/a.jpg", "val/b.jpg"
    )
    assert read(at).splits.tolist() == ["train", "val"]
    at = world({"f/labels.json": coco("C:\\x\\a.jpg", "C:\\x\\b.jpg")}, "f/data/a.jpg", "f/data/b.jpg")
    assert found(read(at / "f", images=str(at / "f/data"))) == {
        "a.jpg": {"cat": 1, "dog": 0},
        "b.jpg": {"cat": 0, "dog": 0},
    }
    at = world({"g/labels.json": coco("a.jpg")}, "g/data/a.jpg")
    assert "in folders below" in said(read(at / "g"))
    at = world({"h/labels.json": coco(*(f"{n}.jpg" for n in range(9)))})
    with pytest.raises(BadData, match="9 of 9 images are missing") as caught:
        read(at / "h/labels.json")
    assert len(caught.value.problems) == 1


def test_photographs_of_an_export_further_below(world):
    """Where exactly one fits; where two photographs of the export would be one file, none is taken."""
    tasks = [{"data": {"image": f"/data/upload/7/0123abcd-{name}"}, "annotations": [{"result": [
        {"type": "choices", "value": {"choices": ["cat"]}}]}]} for name in ABCD[:2]]  # fmt: skip
    at = world({"p.json": tasks}, "media/upload/0123abcd-a.jpg", "media/upload/0123abcd-b.jpg")
    assert found(read(at)) == {"0123abcd-a.jpg": {"cat": 1}, "0123abcd-b.jpg": {"cat": 1}}
    image = '<image name="{}/1.jpg"><tag label="A"/></image>'
    xml = f"<annotations>{image.format('x')}{image.format('y')}</annotations>"
    at = world({"c/annotations.xml": xml}, "c/deep/z/1.jpg")
    with pytest.raises(BadData, match=r"image 'x/1.jpg' is missing"):
        read(at / "c/annotations.xml")


def test_utf_16_and_what_has_no_label(world):
    image = '<image name="a.jpg"><tag label="größe"/></image>'
    xml = f'<?xml version="1.0" encoding="utf-16"?><annotations>{image}</annotations>'
    item = {"id": "b", "annotations": [{"type": "mask", "label_id": None}, {"type": "label", "label_id": 0}]}
    datumaro = {"categories": {"label": {"labels": [{"name": "cat"}]}}, "items": [item]}
    at = world(
        {"c/a.xml": xml.encode("utf-16"), "d/all.json": json.dumps(datumaro).encode("utf-16")}, "c/a.jpg", "d/b.jpg"
    )
    assert found(read(at / "c")) == {"a.jpg": {"größe": 1}}
    assert found(read(at / "d")) == {"b.jpg": {"cat": 1}}
    (at / "c/a.xml").write_text('<annotations><track id="0" label="car"></track></annotations>')
    with pytest.raises(BadData, match="tracks of a video"):
        read(at / "c/a.xml")


def test_vaw(world):
    rows = [
        {"image_id": "1", "instance_id": "8", "positive_attributes": ["red"], "negative_attributes": ["blue", "wet"]},
        {"image_id": "1", "instance_id": "9", "positive_attributes": ["blue"], "negative_attributes": []},
        {"image_id": 2, "instance_id": "7", "positive_attributes": [], "negative_attributes": ["red"]},
    ]
    at = world({"val.json": rows}, "VG_100K/1.jpg", "VG_100K_2/2.jpg")
    data = read(at)
    assert found(data) == {"1.jpg": {"red": 1, "blue": 1, "wet": 0}, "2.jpg": {"red": 0}}
    assert "data.negatives=false leaves them unknown" in said(data)
    assert found(read(at, negatives=False)) == {"1.jpg": {"red": 1, "blue": 1}, "2.jpg": {}}
    world({"val.json": [{"image": "1.jpg", "positive_labels": ["a"], "negative_labels": "b"}, *rows]})
    with pytest.raises(BadData, match="entry 1 names no image, or its attributes are no lists"):
        read(at)


def test_mmpretrain(world):
    items = [{"img_path": "k/a.jpg", "gt_label": [0, 2]}, {"img_path": "k/b.jpg", "gt_label": 1},
             {"img_path": "k/c.jpg", "gt_label": []}, {"img_path": "k/d.jpg"}]  # fmt: skip
    at = world({"meta/train.json": {"metainfo": {"classes": ["A", "B", "C"]}, "data_list": items}},
               *(f"train/k/{name}" for name in ABCD))  # fmt: skip
    source = at / "meta/train.json"
    assert found(read(source)) == {"a.jpg": {"A": 1, "C": 1}, "b.jpg": {"B": 1}, "c.jpg": {}, "d.jpg": {}}
    assert found(read(source, complete=True))["c.jpg"] == {"A": 0, "B": 0, "C": 0}
    assert found(read(source, complete=True))["d.jpg"] == {}
    world({"meta/train.json": {"metainfo": {"classes": ["A"]}, "data_list": items}})
    with pytest.raises(BadData, match=r"row 1: gt_label 2; expected numbers from 0 to 0"):
        read(source)
    world({"meta/train.txt": "k/a.jpg 0\nk/b.jpg 1\n"})
    with pytest.raises(BadData, match="numbers of classes, and no file with their names"):
        read(at / "meta/train.txt")
    world({"classes.txt": "cat\ndog\n"})
    assert found(read(at / "meta/train.txt")) == {"a.jpg": {"cat": 1}, "b.jpg": {"dog": 1}}


def test_open_images_boxes_alone(world):
    head = "ImageID,Source,LabelName,Confidence"
    boxes = f"{head},XMin,XMax,YMin,YMax,IsOccluded\n0a,xclick,/m/c,1,0,1,0,1,0\n0b,xclick,/m/d,1,0,1,0,1,1\n"
    at = world({"train-annotations-bbox.csv": boxes}, "train/0a.jpg", "train/0b.jpg")
    assert found(read(at)) == {"0a.jpg": {"/m/c": 1}, "0b.jpg": {"/m/d": 1}}
    world({"train-annotations-human-imagelabels.csv": f"{head}\n0a,verification,/m/d,0\n"})
    assert found(read(at)) == {"0a.jpg": {"/m/d": 0}}  # verified labels of images say more


def sample(path: str, value: object, *tags: str) -> dict:
    return {"filepath": path, "tags": list(tags), "metadata": {"_cls": "ImageMetadata"}, "ground_truth": value}


SAMPLES = [
    sample("data/a.jpg", {"_cls": "Classification", "label": "cat"}, "train"),
    sample("data/b.jpg", {"_cls": "Classifications", "classifications": [{"label": "dog"}, {"label": "cat"}]}, "val"),
    sample("data/c.jpg", {"_cls": "Detections", "detections": []}, "odd"),
    sample("data/d.jpg", None),
]


def test_fiftyone_samples(world, monkeypatch):
    at = world(
        {"samples.json": {"samples": SAMPLES}, "metadata.json": {"name": "x"}}, *(f"data/{name}" for name in ABCD)
    )
    known = {"a.jpg": {"cat": 1}, "b.jpg": {"dog": 1, "cat": 1}, "c.jpg": {}, "d.jpg": {}}
    data = read(at)
    assert (found(data), data.splits.tolist()) == (known, ["train", "val", "", ""])
    assert found(read(at, complete=True))["c.jpg"] == {"cat": 0, "dog": 0}
    assert found(read(at, complete=True))["d.jpg"] == {}
    more = [{**one, "predictions": {"_cls": "Classification", "label": "cow"}} for one in SAMPLES]
    world({"samples.json": {"samples": more}})
    assert found(read(at)) == known
    assert found(read(at, label_field="predictions"))["d.jpg"] == {"cow": 1}
    world({"samples.json": {"samples": [{**one, "ground_truth": None, "x": one["ground_truth"],
           "y": one["ground_truth"]} for one in SAMPLES]}})  # fmt: skip
    with pytest.raises(BadData, match="fields with labels: x, y"):
        read(at)


def test_a_fiftyone_dataset_in_hand(world, monkeypatch):
    at = world({}, *(f"data/{name}" for name in ABCD))

    class Fake(list):
        name = "mine"

        def get_field_schema(self):
            return {}

    Fake.__module__ = "fiftyone.core.dataset"
    held = Fake(types.SimpleNamespace(to_mongo_dict=lambda one=one: {**one, "filepath": str(at / one["filepath"])})
                for one in SAMPLES)  # fmt: skip
    data = package.read(held, complete=True)
    assert (data.name, found(data)["a.jpg"]) == ("mine", {"cat": 1, "dog": 0})
    with pytest.raises(PluresError, match="cannot read int; expected a path"):
        package.read(3)


def test_the_hub_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("plures.errors.find_spec", lambda name: None)
    with pytest.raises(PluresError, match=r'data=hf:me/mine needs the package datasets: pip install "plures\[hf\]"'):
        read("hf:me/mine")


# ------------------------------------------------------------------------------------------------- folders and messages


@pytest.mark.parametrize("names", [("train-jpg", "test-jpg"), ("train_images", "val_images"), ("train2017", "val2017"),
                                   ("fold1", "fold_2"), ("box_train", "box_test"), ("part1", "part2")])  # fmt: skip
def test_folders_called_like_splits_are_no_classes(world, names):
    at = world({}, *(f"{name}/{n}.jpg" for n, name in enumerate(names)))
    with pytest.raises(BadData, match="called like a split"):
        read(at)


def test_names_of_folders_that_only_begin_like_a_split(world):
    at = world({}, "train_station/a.jpg", "test_tube/b.jpg", "Part Dieu/c.jpg")
    assert len(read(at).classes) == 3


def test_folders_whose_names_hold_two_classes(world):
    at = world({}, "red_dress/a.jpg", "red_shirt/b.jpg", "blue_shirt/c.jpg", "no_label/d.jpg")
    assert "data.separator=_ divides them" in said(read(at))
    data = read(at, separator="_")
    assert found(data) == {"a.jpg": {"red": 1, "dress": 1}, "b.jpg": {"red": 1, "shirt": 1},
                           "c.jpg": {"blue": 1, "shirt": 1}, "d.jpg": {}}  # fmt: skip
    assert np.array_equal(data.labels.present.any(0), [True] * 4)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("x.json", [{"task": 1, "answer": 2}], "JSON, a list with 'task', 'answer'"),
        ("x.json", {"version": 3, "frames": []}, "JSON, an object with 'version', 'frames'"),
        ("x.json", "{", "broken JSON"),
        ("x.xml", "<sheet/>", "XML whose root is <sheet>"),
        ("x.xlsx", "PK", "is a spreadsheet; save the sheet as CSV UTF-8"),
    ],
)
def test_a_file_of_no_known_format_is_described(world, name, content, what):
    with pytest.raises(PluresError) as caught:
        read(world({name: content}) / name)
    assert what in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- keywords


@pytest.mark.parametrize(
    "inner",
    [
        '<rdf:Description dc:subject="cat" lr:hierarchicalSubject="Animals|Dog"/>',
        "<rdf:Description><dc:subject>cat</dc:subject><lr:hierarchicalSubject>Animals|Dog</lr:hierarchicalSubject>"
        "</rdf:Description>",
        '<rdf:Description><dc:subject><rdf:Alt><rdf:li xml:lang="x-default">cat</rdf:li></rdf:Alt></dc:subject>'
        "</rdf:Description><rdf:Description><lr:hierarchicalSubject><rdf:Seq><rdf:li>Animals|Dog</rdf:li></rdf:Seq>"
        "</lr:hierarchicalSubject></rdf:Description>",
        "<rdf:Description><dc:subject><rdf:Bag><rdf:_1>cat</rdf:_1></rdf:Bag></dc:subject><ms:LastKeywordXMP><rdf:Bag>"
        '<rdf:li rdf:parseType="Resource"><rdf:value>Animals/Dog</rdf:value></rdf:li></rdf:Bag></ms:LastKeywordXMP>'
        "</rdf:Description>",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_other_forms_of_xmp(world, inner, encoding):
    names = (
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"'
        ' xmlns:lr="http://ns.adobe.com/lightroom/1.0/" xmlns:ms="http://ns.microsoft.com/photo/1.0/"'
    )
    at = world({"a.jpg.xmp": f"<rdf:RDF {names}>{inner}</rdf:RDF>".encode(encoding)}, "a.jpg", "b.jpg")
    assert found(read(f"xmp:{at}", nested="path")) == {"a.jpg": {"cat": 1, "Animals/Dog": 1}, "b.jpg": {}}
