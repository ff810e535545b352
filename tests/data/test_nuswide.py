"""NUS-WIDE in its three variants, kept apart, from tiny made-up folders."""

import numpy as np
import pytest
from PIL import Image

from plures.data.read import read
from plures.errors import BadData, PluresError

CONCEPTS = ("airport", "sky", "dog")  # not in the order of the alphabet, as the official list might be


def photos(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / name)


@pytest.fixture
def official(tmp_path):
    labels = tmp_path / "Groundtruth" / "TrainTestLabels"
    labels.mkdir(parents=True)
    (tmp_path / "ImageList").mkdir()
    lists = {"Train": ["actor\\0001_1.jpg", "zoo\\0002_2.jpg", "actor\\0003_3.jpg"], "Test": ["zoo\\0004_4.jpg"]}
    cells = {"Train": [(0, 1, 0), (1, 1, 0), (0, 0, 0)], "Test": [(0, 0, 1)]}
    for subset, names in lists.items():
        (tmp_path / "ImageList" / f"{subset}Imagelist.txt").write_text("\r\n".join(names) + "\r\n")
        photos(tmp_path / "Flickr", [name.replace("\\", "/") for name in names])
        for column, concept in enumerate(CONCEPTS):
            rows = "".join(f"{row[column]}\n" for row in cells[subset])
            (labels / f"Labels_{concept}_{subset}.txt").write_text(rows)
    (tmp_path / "Concepts81.txt").write_text("".join(f"{name}\n" for name in CONCEPTS))
    return tmp_path


def test_official(official):
    data = read(str(official))
    assert data.classes == CONCEPTS
    assert data.labels.values.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert data.splits.tolist() == ["train"] * 3 + ["test"]
    assert [str(image).removeprefix(f"{official}/") for image in data.images][1] == "Flickr/zoo/0002_2.jpg"
    assert data.name == "NUS-WIDE (official)"
    (official / "Concepts81.txt").unlink()
    assert read(str(official)).classes == ("airport", "dog", "sky")


def test_official_mistakes_are_one_line(official):
    file = official / "Groundtruth" / "TrainTestLabels" / "Labels_dog_Train.txt"
    file.write_text("0\n0\n")
    with pytest.raises(BadData, match=r"Labels_dog_Train.txt: 2 labels for 3 images of the Train list"):
        read(str(official))
    file.write_text("0\n2\n0\n")
    with pytest.raises(BadData, match=r"Labels_dog_Train.txt, row 2: '2'; expected 0 or 1"):
        read(str(official))
    file.unlink()
    with pytest.raises(BadData, match=r"Labels_dog_Train.txt: cannot be read"):
        read(str(official))


def test_missing_photos_are_listed(official):
    (official / "Flickr" / "zoo" / "0002_2.jpg").unlink()
    with pytest.raises(BadData, match=r"0002_2.jpg: image is missing"):
        read(str(official))
    assert read(str(official), skip_bad=True).labels.values.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.fixture
def recrawl(tmp_path):
    for subset, names, values in (("train", ["a/1.jpg", "a/2.jpg"], [[1, 0], [0, 0]]), ("val", ["b/3.jpg"], [[1, 1]])):
        np.save(tmp_path / f"formatted_{subset}_images.npy", np.array(names))
        np.save(tmp_path / f"formatted_{subset}_labels.npy", np.array(values, np.float64))
        photos(tmp_path / "Flickr", names)
    return tmp_path


def test_recrawl_of_the_mlspl_code(recrawl):
    data = read(f"nuswide:{recrawl}")
    assert data.labels.values.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert data.splits.tolist() == ["train", "train", "test"]
    assert data.classes == ("concept 1", "concept 2")
    assert any("classes are numbered" in problem.what for problem in data.problems)
    (recrawl / "Concepts81.txt").write_text("sky\ndog\n")
    assert read(str(recrawl)).classes == ("sky", "dog")


def test_recrawl_mistakes_are_one_line(recrawl):
    (recrawl / "Concepts81.txt").write_text("sky\n")
    with pytest.raises(BadData, match="1 class names for 2 columns"):
        read(str(recrawl))
    np.save(recrawl / "formatted_train_labels.npy", np.array([[1, 0], [0.5, 0]]))
    with pytest.raises(BadData, match="a label is neither 0 nor 1"):
        read(str(recrawl))
    np.save(recrawl / "formatted_train_labels.npy", np.array([[1, 0]]))
    with pytest.raises(BadData, match=r"labels of shape \(1, 2\) for 2 images"):
        read(str(recrawl))
    (recrawl / "formatted_train_labels.npy").write_bytes(b"no array")
    with pytest.raises(BadData, match=r"formatted_train_labels.npy: cannot be read"):
        read(str(recrawl))


@pytest.fixture
def table(tmp_path):
    rows = ["images/2.jpg,\"['sky', 'dog']\",val", "images/1.jpg,\"['sky']\",train", "images/3.jpg,['sun'],train"]
    (tmp_path / "nus_wid_data.csv").write_text("filepath,label,split_name\n" + "\n".join(rows) + "\n")
    photos(tmp_path, ["images/1.jpg", "images/2.jpg", "images/3.jpg"])
    return tmp_path


def test_table_of_the_asl_code(table):
    data = read(str(table))
    assert data.classes == ("dog", "sky", "sun")
    assert data.labels.values.tolist() == [[0, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert data.splits.tolist() == ["train", "train", "test"]
    assert data.name == "NUS-WIDE (asl)"


def test_table_mistakes_are_one_line(table):
    file = table / "nus_wid_data.csv"
    whole = file.read_text()
    file.write_text(whole.replace("['sun']", "sun"))
    with pytest.raises(BadData, match=r"nus_wid_data.csv, row 4: label 'sun', split_name 'train'"):
        read(str(table))
    assert len(read(str(table), skip_bad=True)) == 2
    file.write_text(whole.replace("split_name", "split"))
    with pytest.raises(BadData, match="columns filepath, label, split; expected filepath, label and split_name"):
        read(str(table))


def test_the_variants_are_kept_apart(official, recrawl, table):
    """One folder with all three (the fixtures share it): none is chosen silently."""
    with pytest.raises(
        PluresError, match=r"holds official and mlspl and asl; these are different data: say data.variant="
    ):
        read(f"nuswide:{official}")
    (official / "Concepts81.txt").unlink()  # the re-crawl of the fixture has another number of classes
    rows = {variant: len(read(f"nuswide:{official}", variant=variant)) for variant in ("official", "mlspl", "asl")}
    assert rows == {"official": 4, "mlspl": 3, "asl": 3}


def test_a_variant_that_is_not_there(official, tmp_path_factory):
    with pytest.raises(PluresError, match="holds official, not asl"):
        read(str(official), variant="asl")
    with pytest.raises(PluresError, match="variant='zhou': expected official or mlspl or asl"):
        read(str(official), variant="zhou")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(PluresError, match=r"holds no NUS-WIDE; expected nus_wid_data\.csv"):
        read(f"nuswide:{empty}", variant="asl")
