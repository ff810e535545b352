"""CUB-200-2011 with attributes as classes, from a tiny made-up folder in the official layout."""

import pytest
from PIL import Image

from plures.data.read import read
from plures.errors import BadData, PluresError

ATTRIBUTES = ("has_bill_shape::curved_(up_or_down)", "has_wing_color::blue", "has_wing_color::red")
#            image: (present, certainty) of each attribute
ANSWERS = {1: [(1, 4), (0, 3), (0, 1)], 2: [(0, 4), (1, 2), (1, 3)], 3: [(1, 3), (0, 4), (1, 4)]}


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / "CUB_200_2011"
    (root / "attributes").mkdir(parents=True)
    (tmp_path / "attributes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(ATTRIBUTES, 1)))
    (root / "images.txt").write_text("".join(f"{i} 00{i}.Bird/{i}.jpg\n" for i in ANSWERS))
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n")
    lines = [f"{i} {k} {p} {c} 1.509\n" for i, row in ANSWERS.items() for k, (p, c) in enumerate(row, 1)]
    lines[4] = lines[4].replace("\n", " 0.06\n")  # a few official lines are longer
    (root / "attributes" / "image_attribute_labels.txt").write_text("".join(lines))
    for i in ANSWERS:
        (root / "images" / f"00{i}.Bird").mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(root / "images" / f"00{i}.Bird" / f"{i}.jpg")
    return tmp_path


def test_as_the_mlspl_code_formats_it(cub):
    for path in (cub, cub / "CUB_200_2011"):
        data = read(str(path))
        assert data.classes == ATTRIBUTES
        assert data.labels.values.tolist() == [[0, 1, 1], [1, 0, 1], [1, 0, 0]]  # train first; certainty does not count
        assert data.splits.tolist() == ["train", "train", "test"]
        assert str(data.images[0]).endswith("CUB_200_2011/images/002.Bird/2.jpg")


def test_uncertain_answers_can_be_unknown(cub):
    assert read(str(cub), certain_from=3).labels.values.tolist() == [[0, -1, 1], [1, 0, 1], [1, 0, -1]]
    assert read(f"cub:{cub}", certain_from=4).labels.values.tolist() == [[0, -1, -1], [-1, 0, 1], [1, -1, -1]]
    with pytest.raises(PluresError, match="certain_from is 1, 2, 3 or 4, got 5"):
        read(str(cub), certain_from=5)


def test_a_missing_photo_is_listed(cub):
    (cub / "CUB_200_2011" / "images" / "003.Bird" / "3.jpg").unlink()
    with pytest.raises(BadData, match=r"3.jpg: image is missing"):
        read(str(cub))
    assert read(str(cub), skip_bad=True).labels.values.tolist() == [[0, 1, 1], [1, 0, 0]]


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "attributes/image_attribute_labels.txt",
            "2 1 0 4",
            "2 7 0 4",
            r"row 4: '2 7 0 4 1.509'; expected image 1 to 3",
        ),
        ("attributes/image_attribute_labels.txt", "1 1 1 4", "1 1 2 4", r"row 1: '1 1 2 4 1.509'"),
        ("attributes/image_attribute_labels.txt", "1 1 1 4", "1 1 yes 4", r"row 1: '1 1 yes 4 1.509'"),
        ("attributes/image_attribute_labels.txt", "1 1 1 4 1.509\n", "", "1 of 9 answers are missing"),
        ("train_test_split.txt", "3 1\n", "", "2 flags for 3 images"),
        ("train_test_split.txt", "3 1", "3 5", "3 flags for 3 images, 0, 1, 5; expected 1 or 0"),
        ("images.txt", "2 002", "5 002", r"images.txt, row 2: '5 002.Bird/2.jpg'; expected '2 VALUE'"),
    ],
)
def test_mistakes_are_one_line(cub, file, old, new, message):
    change(cub / "CUB_200_2011" / file, old, new)
    with pytest.raises(BadData, match=message):
        read(str(cub))


def test_files_that_are_not_there(cub, tmp_path_factory):
    with pytest.raises(PluresError, match=r"no images.txt with attributes/image_attribute_labels.txt in or below"):
        read(f"cub:{tmp_path_factory.mktemp('empty')}")
    (cub / "attributes.txt").unlink()
    with pytest.raises(BadData, match=r"attributes.txt: cannot be read"):
        read(str(cub))
