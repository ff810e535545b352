"""Other tools as judges, where they are installed: what they write is read here, and what is written here they read."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from plures.data.convert import convert
from plures.data.read import read

KNOWN = {"a": {"cat": 1, "dog": 1}, "b": {"cat": 0, "dog": 1}, "c": {}}
PRESENT = {name: {tag: 1 for tag, code in row.items() if code} for name, row in KNOWN.items()}


@pytest.fixture
def ours(tmp_path):
    for place, name in enumerate(KNOWN):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (place * 40, 0, 0)).save(tmp_path / f"photos/{name}.jpg")
    (tmp_path / "tags.csv").write_text(
        "image,tags,absent\nphotos/a.jpg,cat;dog,\nphotos/b.jpg,dog,cat\nphotos/c.jpg,,\n"
    )
    return read(tmp_path / "tags.csv")


def found(data) -> dict[str, dict[str, int]]:
    rows = zip(data.images, data.labels.values.tolist(), strict=True)
    return {
        Path(str(image)).stem: {name: code for name, code in zip(data.classes, row, strict=True) if code >= 0}
        for image, row in rows
    }


def test_datasets(ours, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    convert(ours, "huggingface", tmp_path / "photos/metadata.jsonl")
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache"))
    assert [sorted(tags) for tags in theirs["train"]["tags"]] == [["cat", "dog"], ["dog"], []]
    assert found(read(theirs)) == KNOWN
    images = [Image.open(tmp_path / f"photos/{name}.jpg") for name in KNOWN]
    lists = getattr(datasets, "List", datasets.Sequence)
    features = {
        "pixels": datasets.Image(),
        "labels": lists(datasets.ClassLabel(names=["cat", "dog"])),
        "n": datasets.Value("int64"),
    }
    held = datasets.Dataset.from_dict(
        {"pixels": images, "labels": [[0, 1], [1], []], "n": [7, 8, 9]}, features=datasets.Features(features)
    )
    assert read(held).labels.values.tolist() == [[1, 1], [-1, 1], [-1, -1]]
    assert read(held.select([2, 1]), complete=True).labels.values.tolist() == [
        [0, 0],
        [1, 0],
    ]  # of dog, then of cat, which none carries
    held.to_parquet(tmp_path / "theirs.parquet")
    datasets.DatasetDict({"train": held, "validation": held, "other": held}).save_to_disk(tmp_path / "saved")
    saved = read(tmp_path / "saved")
    assert (saved.splits.tolist(), saved.labels.values.tolist()) == (
        ["train"] * 3 + ["val"] * 3,
        [[1, 1], [-1, 1], [-1, -1]] * 2,
    )
    assert saved.images.shape == (6, 6, 8, 3)


def test_label_studio(ours, tmp_path):
    converter = pytest.importorskip("label_studio_sdk.converter", reason="pip install label-studio-sdk")
    convert(ours, "label_studio", tmp_path / "tasks.json")
    config = (
        '<View><Image name="image" value="$image"/><Choices name="choice" toName="image" choice="multiple">'
        '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
    )
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    for number, task in enumerate(tasks):  # what the server adds
        task["id"] = number
        for answer in task["annotations"]:
            answer |= {"id": number, "completed_by": 1, "lead_time": 1.0, "was_cancelled": False}
            answer |= {"created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-01-01T00:00:00Z"}
    (tmp_path / "stored.json").write_text(json.dumps(tasks))
    theirs = converter.Converter(config, str(tmp_path), download_resources=False)
    for name in ("json", "json_min", "csv"):
        more = {"sep": ","} if name == "csv" else {}
        getattr(theirs, f"convert_to_{name}")(str(tmp_path / "stored.json"), str(tmp_path / name), is_dir=False, **more)
        file = next((tmp_path / name).iterdir())
        known = found(read(file, images=str(tmp_path / "photos")))
        assert {image: row for image, row in known.items() if row} == {"a": PRESENT["a"], "b": PRESENT["b"]}, name


def test_datumaro(ours, tmp_path):
    pytest.importorskip("datumaro", reason="pip install datumaro")
    from datumaro.components.annotation import AnnotationType, Label
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image as Media

    def item(name: str, split: str, labels: list[int]) -> DatasetItem:
        media = Media.from_file(path=str(tmp_path / f"photos/{name}.jpg"))
        return DatasetItem(id=name, subset=split, media=media, annotations=[Label(label) for label in labels])

    made = [item("a", "train", [0, 1]), item("b", "val", [1]), item("c", "train", [])]
    theirs = Dataset.from_iterable(made, categories=["cat", "dog"])
    complete = {name: {"cat": 0, "dog": 0} | row for name, row in PRESENT.items()}
    for form, known in {
        "datumaro": PRESENT,
        "imagenet_txt": PRESENT,
        "imagenet": PRESENT,
        "imagenet_with_subset_dirs": PRESENT,
        "cvat": PRESENT,
        "coco": complete,
        "open_images": {"a": PRESENT["a"], "b": PRESENT["b"]},  # an image without a label leaves no trace
    }.items():
        theirs.export(str(tmp_path / form), form, save_media=True)
        data = read(tmp_path / form)
        assert found(data) == known, form
        if form != "imagenet":
            assert (
                dict(zip(map(os.path.basename, map(str, data.images)), data.splits.tolist(), strict=True))["b.jpg"]
                == "val"
            )

    for form, name, inner, photos in (
        ("cvat", "cvat", "annotations.xml", "images"),
        ("coco", "coco_labels", "annotations/labels_default.json", "images/default"),
    ):
        place = tmp_path / "ours" / form
        (place / os.path.dirname(inner)).mkdir(parents=True)
        shutil.copytree(tmp_path / "photos", place / photos)
        written = convert(
            ours, form, tmp_path / os.path.basename(inner)
        ).path  # names as seen from beside the photographs
        os.replace(written, place / inner)
        again = Dataset.import_from(str(place), name)
        names = [label.name for label in again.categories()[AnnotationType.label].items]
        tags = {os.path.basename(one.id): {names[a.label]: 1 for a in one.annotations} for one in again}
        assert tags == PRESENT, form


def test_fiftyone(ours, tmp_path):
    fiftyone = pytest.importorskip("fiftyone", reason="pip install fiftyone")
    convert(ours, "fiftyone", tmp_path / "labels.json")
    try:
        theirs = fiftyone.Dataset.from_dir(
            dataset_type=fiftyone.types.FiftyOneImageClassificationDataset,
            data_path=str(tmp_path / "photos"),
            labels_path=str(tmp_path / "labels.json"),
        )
    except fiftyone.core.config.FiftyOneConfigError as error:
        pytest.skip(f"fiftyone finds no MongoDB ({error})")
    assert found(read(theirs)) == PRESENT
    theirs.export(export_dir=str(tmp_path / "plain"), dataset_type=fiftyone.types.FiftyOneImageClassificationDataset,
                  label_field="ground_truth")  # fmt: skip
    theirs.export(export_dir=str(tmp_path / "own"), dataset_type=fiftyone.types.FiftyOneDataset)
    assert found(read(tmp_path / "plain")) == found(read(tmp_path / "own")) == PRESENT
