"""Formats of folders: class folders, COCO JSON and the VOC devkit, small ones made here and the shared photographs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plures.data.checks.verify import verify_images
from plures.data.dataset import formats
from plures.data.formats.voc import CLASSES
from plures.data.read import find_format, read, reason
from plures.errors import BadData, PluresError
from shared import SHARED, needs_shared


def photo(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, 10, 10)).save(path)


def problems_of(spec: str, **options) -> list[tuple[str, int | None, str]]:
    with pytest.raises(BadData) as raised:
        read(spec, **options)
    return [(Path(p.file).name, p.row, p.what) for p in raised.value.problems if p.severity == "error"]


# ----------------------------------------------------------------------------------------------------------- folders


def test_the_same_photo_in_two_class_folders_is_one_image_with_two_tags(tmp_path):
    photo(tmp_path / "cat" / "1.png", 1)
    photo(tmp_path / "sofa" / "other name.png", 1)
    photo(tmp_path / "sofa" / "deep" / "2.png", 2)
    photo(tmp_path / "loose.png", 3)
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    data = read(str(tmp_path))
    assert data.classes == ("cat", "empty", "sofa")
    assert [Path(image).name for image in data.images] == ["1.png", "loose.png", "2.png"]
    assert data.labels.values.tolist() == [[1, -1, 1], [-1, -1, -1], [-1, -1, 1]]
    assert data.splits is None
    assert [problem.what for problem in data.problems] == [
        "folders inside class folders are not told apart: sofa/deep; data.nested=path, leaf or both does",
        "1 copy, byte for byte, is read once, with the tags of all: sofa/other name.png of cat/1.png",
        "class 'empty' never occurs",
    ]
    assert read(str(tmp_path), complete=True).labels.values.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]


def test_split_folders_and_a_photo_in_two_of_them(tmp_path):
    photo(tmp_path / "train" / "cat" / "1.png", 1)
    photo(tmp_path / "valid" / "dog" / "2.png", 2)
    photo(tmp_path / "test" / "cat" / "3.png", 1)
    data = read(f"folder:{tmp_path}")
    assert sorted(zip(data.splits.tolist(), (Path(i).name for i in data.images), strict=True)) == [
        ("test", "3.png"),
        ("train", "1.png"),
        ("val", "2.png"),
    ]
    assert [problem.severity for problem in data.problems] == ["notice"]
    assert "the same photo is in" in data.problems[0].what


def folders(root: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        photo(root / name, shade)
    return root


def refused(root: Path) -> str:
    """Why a folder is no folder per class; named by hand it is read all the same."""
    found = " | ".join(what for _, _, what in problems_of(str(root)))
    assert "labels" not in found or len(read(f"folder:{root}")) > 0
    return found


@pytest.mark.parametrize(
    ("names", "splits", "classes"),
    [
        (["Train/a/1.png", "VALIDATION/b/2.png", "testing/a/3.png"], ["test", "train", "val"], ("a", "b")),
        (["train/a/1.png", "dev/b/2.png", "unlabeled/3.png"], ["", "train", "val"], ("a", "b")),
        (["train/a/1.png", "train/b/2.png", "__MACOSX/train/a/._1.png"], ["train", "train"], ("a", "b")),
        (["my data/a/1.png", "my data/b/2.png", "my data/b/._2.png"], None, ("a", "b")),
        (["top/train/a/1.png", "top/val/b/2.png"], ["train", "val"], ("a", "b")),
        (["a/1.png", "b/2.png", "No_Label/3.png"], None, ("a", "b")),
    ],
)
def test_folders_as_people_have_them(tmp_path, names, splits, classes):
    data = read(str(folders(tmp_path, *names)))
    assert data.classes == classes
    assert (None if data.splits is None else sorted(data.splits.tolist())) == splits
    assert len(data) == sum("._" not in name for name in names)
    without = sum("nlabel" in name or "No_Label" in name for name in names)
    assert (~data.labels.present.any(1)).sum() == without
    assert not data.labels.absent.any()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["images/1.png", "images/2.png"], "every photograph lies in the one folder 'images'"),
        (["cat/1.png"], "every photograph lies in the one folder 'cat'"),
        (["data/1.png", "cat/2.png"], "data is called like a split or a place for files"),
        (["train/1.png", "bus/2.png"], "train is called like a split"),
        (["train/a/1.png", "val/b/2.png", "more/3.png"], "more (1 photographs) beside split folders"),
    ],
)
def test_folders_that_are_no_classes_are_refused_unless_named(tmp_path, names, message):
    assert message in refused(folders(tmp_path, *names))
    assert len(read(f"folder:{tmp_path}")) == len(names)


@pytest.mark.parametrize("name", ["labels.json", "metadata.jsonl", "train/a.XML", "two.csv", "e.xlsx"])
def test_an_annotation_file_beside_the_photographs_is_named(tmp_path, name):
    folders(tmp_path, "train/a/1.png", "train/b/2.png")
    (tmp_path / name).write_text("{}")
    if name == "two.csv":
        (tmp_path / "one.csv").write_text("{}")
    assert name in refused(tmp_path)
    assert read(f"folder:{tmp_path}").classes == ("a", "b")


def test_folders_inside_class_folders(tmp_path):
    folders(tmp_path, "Birds/Robin/1.png", "Birds/Owl/2.png", "Plants/3.png")
    seen = {nested: read(str(tmp_path), nested=nested).classes for nested in ("top", "path", "leaf", "both")}
    assert seen == {
        "top": ("Birds", "Plants"),
        "path": ("Birds/Owl", "Birds/Robin", "Plants"),
        "leaf": ("Owl", "Plants", "Robin"),
        "both": ("Birds", "Owl", "Plants", "Robin"),
    }
    assert "Birds/Owl, Birds/Robin; data.nested=path" in read(str(tmp_path)).problems[0].what
    with pytest.raises(PluresError, match="expected top or path or leaf or both"):
        read(str(tmp_path), nested="deep")


def test_photographs_that_nobody_has_looked_at_stay_unknown(tmp_path):
    folders(tmp_path, "a/1.png", "b/2.png", "unlabelled/3.png")
    assert read(str(tmp_path), complete=True).labels.values.tolist() == [[1, 0], [0, 1], [-1, -1]]


def test_photos_without_folders_have_no_labels(tmp_path):
    photo(tmp_path / "1.png")
    assert "no image carries a tag" in problems_of(str(tmp_path))[0][2]
    assert read(str(tmp_path), labelled=False).classes == ()
    (tmp_path / "1.png").unlink()
    with pytest.raises(BadData, match="no images"):
        read(f"folder:{tmp_path}")


def test_broken_images_are_listed(tmp_path):
    photo(tmp_path / "cat" / "good.jpg")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "cat" / "cut.jpg")
    whole = (tmp_path / "cat" / "cut.jpg").read_bytes()
    (tmp_path / "cat" / "cut.jpg").write_bytes(whole[: len(whole) - 20])
    photo(tmp_path / "cat" / "cut.png")
    whole = (tmp_path / "cat" / "cut.png").read_bytes()
    (tmp_path / "cat" / "cut.png").write_bytes(whole[:50])
    (tmp_path / "cat" / "text.jpg").write_text("hello")
    (tmp_path / "cat" / "nil.jpg").touch()
    found = problems_of(f"folder:{tmp_path}", verify=True)
    assert [name for name, _, _ in found] == ["cut.jpg", "cut.png", "nil.jpg", "text.jpg"]
    assert ["broken or truncated" in what for _, _, what in found] == [True, True, False, False]
    assert "empty" in found[2][2]
    data = read(f"folder:{tmp_path}", verify=True, skip_bad=True)
    assert [Path(image).name for image in data.images] == ["good.jpg"]
    assert len(data.problems) == 4
    big = verify_images(data, max_pixels=40)
    assert [(row, "too large" in problem.what) for row, problem in big] == [(0, True)]
    assert verify_images(data, max_pixels=48, decode=True) == []


# -------------------------------------------------------------------------------------------------------------- COCO


@pytest.fixture
def coco(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 50} for i in (10, 9, 200, 30)]
    boxes = [(9, 7, [0, 0, 50, 25]), (10, 3, [50, 25, 60, 25]), (10, 7, [0, 0, 1, 1]), (200, 3, [0, 0, 10, 10])]
    content = {
        "images": images,
        "categories": [{"id": 7, "name": "zebra"}, {"id": 3, "name": "ant"}],
        "annotations": [{"image_id": i, "category_id": c, "bbox": b, "iscrowd": int(i == 200)} for i, c, b in boxes],
    }
    (tmp_path / "annotations").mkdir()
    for split in ("train2014", "val2014"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for image in images:
            photo(tmp_path / split / image["file_name"])
    return tmp_path


def test_coco_as_the_mlspl_code_formats_it(coco):
    data = read(str(coco), variant="mlspl")
    assert {p.what for p in data.problems} == {"1 images without an annotation are left out by variant=mlspl"}
    assert data.classes == ("zebra", "ant")
    assert data.split_names() == ["test", "train"]
    train = data.split("train")
    assert [Path(image).stem for image in train.images] == ["10", "200", "9"]  # as text; 30 has no annotation
    assert train.labels.values.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert train.boxes.corners[train.boxes.row == 2].tolist() == [[0, 0, 0.5, 0.5]]
    assert train.boxes.corners.max() == 1
    assert Path(train.images[0]).parent.name == "train2014"
    assert read(str(coco), official_val_is_test=False).split_names() == ["train", "val"]


def test_coco_as_query2label_reads_it(coco):
    train = read(str(coco)).split("train")
    assert [Path(image).stem for image in train.images] == ["9", "10", "30", "200"]
    assert train.labels.values.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    one = read(str(coco / "annotations" / "instances_val2014.json"))
    assert one.split_names() == ["test"]
    with pytest.raises(PluresError, match="variant='x': expected mlspl or query2label"):
        read(str(coco), variant="x")


def test_coco_problems(coco):
    file = coco / "annotations" / "instances_train2014.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["image_id"] = 77
    content["annotations"][2]["category_id"] = 77
    content["annotations"][3]["bbox"] = [1, 2]
    file.write_text(json.dumps(content))
    (coco / "val2014" / "9.png").unlink()
    found = problems_of(str(coco))
    assert [row for _, row, _ in found] == [2, 3, 4, None]
    assert found[3][0] == "9.png"
    left = read(str(coco), skip_bad=True).split("train")  # 10 and 200 have annotations that cannot be read
    assert [Path(image).stem for image in left.images] == ["9", "30"]
    file.write_text('{"images": [,]}')
    assert problems_of(str(coco))[0][:2] == (file.name, 1)
    assert "broken JSON" in problems_of(str(coco), skip_bad=True)[0][2]
    file.write_text('{"images": []}')
    assert "no list of images or annotations" in problems_of(str(coco))[0][2]
    file.write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    assert "lacks file_name" in problems_of(str(coco))[0][2]


@pytest.fixture
def lvis(tmp_path):
    """Image 1 shows a; b is verified absent, c is not exhaustive; image 2 shows nothing and says nothing."""
    image = {"coco_url": "http://x.org/val2017/1.png", "neg_category_ids": [2, 3], "not_exhaustive_category_ids": [3]}
    content = {
        "images": [image | {"id": 1}, {"id": "2", "file_name": "val2017/2.png", "neg_category_ids": []}],
        "annotations": [{"image_id": 1.0, "category_id": "1"}],
        "categories": [{"id": number, "name": name} for number, name in ((1, "a"), (2, "b"), (3, "c"), (4, "d"))],
    }
    (tmp_path / "any name.json").write_text(json.dumps(content))
    for name in ("1.png", "2.png"):
        photo(tmp_path / "val2017" / name)
    return tmp_path / "any name.json"


def test_lvis_absent_needs_a_verified_negative(lvis):
    for spec in (lvis, lvis.parent):
        data = read(str(spec))
        assert data.classes == ("a", "b", "c", "d")
        assert data.labels.values.tolist() == [[1, 0, -1, -1], [-1, -1, -1, -1]]
        assert [Path(image).name for image in data.images] == ["1.png", "2.png"]
        assert data.boxes is None
    assert reason(str(lvis)).startswith("format coco: by what lies there; any name.json: JSON with images")


def test_lvis_says_what_contradicts_itself(lvis):
    content = json.loads(lvis.read_text())
    content["images"][0]["neg_category_ids"] = [1, 9]
    content["images"][1]["neg_category_ids"] = 7
    lvis.write_text(json.dumps(content))
    data = read(str(lvis))
    assert data.labels.values[0].tolist() == [1, -1, -1, -1]
    whats = " | ".join(problem.what for problem in data.problems)
    for words in ("no category has the id 9", "number 1 is annotated and among neg", "image 2: neg_category_ids or"):
        assert words in whats
    content["images"].append(content["images"][0])
    lvis.write_text(json.dumps(content))
    assert problems_of(str(lvis)) == [("any name.json", 3, "two images have the id 1")]


def test_roboflow_coco_in_split_folders(tmp_path):
    for split, names in (("train", ["1.png", "2.png"]), ("valid", ["3.png"])):
        categories = [{"id": 0, "name": "things", "supercategory": "none"}]
        content = {
            "images": [{"id": n, "file_name": name, "width": 8, "height": 6} for n, name in enumerate(names)],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [0, 0, 4, 3]}],
            "categories": [*categories, {"id": 1, "name": "cat", "supercategory": "things"}],
        }
        for name in names:
            photo(tmp_path / split / name)
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    data = read(str(tmp_path))
    assert data.classes == ("cat",)  # not what Roboflow puts above all classes
    assert data.splits.tolist() == ["train", "train", "val"]
    assert data.labels.values.tolist() == [[1], [0], [1]]
    assert data.boxes.corners.tolist() == [[0, 0, 0.5, 0.5]] * 2
    assert len(read(str(tmp_path / "valid"))) == 1


# --------------------------------------------------------------------------------------------------------------- VOC

OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>4</xmax><ymax>6</ymax></bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    values = {"train": {"b": {"cat": 1, "dog": 0}, "a": {"dog": 1}}, "val": {"c": {"cat": 0}}}
    for split, images in values.items():
        for name in CLASSES:
            lines = [f"{image} {shown.get(name, -1):2d}\n" for image, shown in images.items()]
            (lists / f"{name}_{split}.txt").write_text("".join(lines))
        for image, shown in images.items():
            photo(root / "JPEGImages" / f"{image}.jpg")
            (root / "Annotations").mkdir(exist_ok=True)
            size = "<size><width>8</width><height>6</height></size>"
            objects = "".join(OBJECT.format(name) for name in shown)
            (root / "Annotations" / f"{image}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return tmp_path


def shown(data) -> list[list[str]]:
    return [[data.classes[k] for k in np.flatnonzero(row)] for row in data.labels.present]


def test_voc_variants_differ_in_difficult_objects(voc):
    data = read(str(voc))
    assert [Path(image).stem for image in data.images] == ["a", "b", "c"]
    assert data.splits.tolist() == ["train", "train", "test"]
    assert shown(data) == [["dog"], ["cat"], []]
    assert data.labels.complete
    assert data.boxes.corners.tolist() == [[0, pytest.approx(1 / 3), 0.5, 1]] * 2
    other = read(str(voc / "VOCdevkit"), variant="query2label", official_val_is_test=False)
    assert shown(other) == [["dog"], ["cat", "dog"], ["cat"]]
    assert other.splits.tolist() == ["train", "train", "val"]
    assert len(other.boxes.row) == 4


def test_voc_problems(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    (root / "Annotations" / "a.xml").write_text("<annotation><size>\n</annotation>")
    (root / "JPEGImages" / "b.jpg").unlink()
    with (root / "ImageSets" / "Main" / "cat_val.txt").open("a") as file:
        file.write("c 1 7\n")
    (root / "Annotations" / "c.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    found = problems_of(str(voc))
    assert [(name, row) for name, row, _ in found] == [
        ("cat_val.txt", 2),
        ("a.xml", 2),
        ("c.xml", None),
        ("b.jpg", None),
    ]
    with pytest.raises(BadData, match="no images are left"):
        read(str(voc), skip_bad=True)


# ------------------------------------------------------------------------------------------------- finding the format


def test_formats_are_recognised(coco, voc, tmp_path_factory):
    plain = tmp_path_factory.mktemp("plain")
    photo(plain / "cat" / "1.png")
    (plain / "t.txt").touch()
    assert find_format(str(coco / "annotations" / "instances_val2014.json"))[0] == "coco"
    assert find_format(str(plain)) == ("folder", str(plain))
    assert find_format(str(voc / "VOCdevkit"))[0] == "voc"
    assert find_format("scenes") == ("scenes", "")
    assert find_format(f"coco:{plain}") == ("coco", str(plain))
    assert find_format(str(plain), "table") == ("table", str(plain))
    with pytest.raises(PluresError, match="no known format"):
        find_format(str(plain / "t.txt"))
    with pytest.raises(PluresError, match="did you mean 'scenes'"):
        find_format("scense")
    with pytest.raises(PluresError, match="did you mean 'folder'"):
        find_format("foldr:x")
    with pytest.raises(PluresError, match="needs a path"):
        read("voc")
    with pytest.raises(PluresError, match="no file or folder"):
        read("voc:/nowhere/at/all")
    with pytest.raises(PluresError, match="no option 'varant'; did you mean 'variant'"):
        read(f"voc:{voc}", varant="x")


def test_every_format_names_itself_and_refuses_nothing():
    for entry in formats:
        reader = entry.make()
        assert entry.title
        assert reader.recognises("") == (entry.name == "scenes")
        assert not reader.recognises("/nowhere/at/all")


# -------------------------------------------------------------------------------------------------- shared photographs


@needs_shared
@pytest.mark.shared
@pytest.mark.slow
def test_shared_voc12():
    for variant in ("mlspl", "query2label"):
        data = read(str(SHARED / "data" / "voc12"), variant=variant)
        train, test = data.split("train"), data.split("test")
        assert (len(train), len(test), len(data.problems)) == (2120, 1754, 0)
        assert sum(Path(image).name.startswith("2007_") for image in train.images) == 400
        boxed = np.zeros(data.labels.values.shape, bool)
        boxed[data.boxes.row, data.boxes.column] = True
        assert (boxed == data.labels.present).all()


@needs_shared
@pytest.mark.shared
def test_shared_voc12_test_labels_are_those_of_the_peer():
    peer = SHARED / "fixtures" / "peer"
    test = read(str(SHARED / "data" / "voc12")).split("test")
    names = (peer / "val_images.txt").read_text().split()
    assert [Path(image).stem for image in test.images] == [Path(name).stem for name in names]
    assert (test.labels.values == np.load(peer / "val_labels.npy")).all()
    assert list(test.classes) == list(json.loads((peer / "classes.json").read_text()))


@needs_shared
@pytest.mark.shared
def test_shared_coco_and_scenes_table():
    assert len(read(str(SHARED / "data" / "coco"), variant="mlspl")) == 350
    data = read(str(SHARED / "data" / "coco"))
    assert (len(data), (~data.labels.present.any(1)).sum()) == (355, 5)
    table = read(str(SHARED / "data" / "miml_scene"))
    assert (len(table), table.classes) == (2000, ("desert", "mountains", "sea", "sunset", "trees"))
    assert table.labels.present.sum(1).mean() == pytest.approx(1.24, abs=0.005)
