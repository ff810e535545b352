"""Groups of images (bursts, albums): read, kept, and on one side of every split that plures draws."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from plures.config import Experiment
from plures.data.checks.describe import describe
from plures.data.convert import convert
from plures.data.dataset import Dataset
from plures.data.merge import Source, merge
from plures.data.read import read
from plures.labels import Labels
from plures.runs.data import with_classes, with_splits
from plures.runs.photos import Photos, recall


def table(folder, text, images=4):
    for n in range(images):
        pixels = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    (folder / "tags.csv").write_text(text)
    return str(folder / "tags.csv")


TAGS = "image,tags,group\n0.png,cat,a\n1.png,dog,a\n2.png,cat,\n3.png,dog,1\n"


def in_memory(groups, splits=None):
    n = len(groups)
    values = (np.arange(2 * n).reshape(n, 2) % 3 == 0).astype(np.int8)
    images = np.random.default_rng(1).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return Dataset(images, Labels(values), ("cat", "dog"), splits, groups=np.array(groups))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (TAGS, {}),
        (TAGS.replace("group", "album"), {"group": "album"}),
        ("image,cat,dog,group\n0.png,1,,a\n1.png,,1,a\n2.png,1,,nan\n3.png,,1,1\n", {}),
        ("image,group,cat,dog\n0.png,a,1,\n1.png,a,,1\n2.png,,1,\n3.png,1,,1\n", {}),
    ],
    ids=["tags", "named", "columns", "fast columns"],
)
def test_the_column_of_groups_is_read_and_is_no_class(tmp_path, text, options):
    data = read(table(tmp_path, text), **options)
    assert data.classes == ("cat", "dog")
    assert data.groups.tolist() == ["a", "a", "", "1"]
    assert data.take([3, 0]).groups.tolist() == ["1", "a"]
    assert data.with_classes(["tree"]).groups.tolist() == data.groups.tolist()


def test_a_column_of_ones_and_zeros_is_a_class_as_before(tmp_path):
    text = "image,cat,group\n0.png,1,0\n1.png,0,1\n2.png,1,\n3.png,0,1\n"
    data = read(table(tmp_path, text))
    assert data.classes == ("cat", "group")
    assert data.groups is None
    assert read(table(tmp_path, text), group="group").groups.tolist() == ["0", "1", "", "1"]


def test_convert_and_merge_keep_groups(tmp_path):
    data = read(table(tmp_path, TAGS))
    convert(data, "table", tmp_path / "out.csv")
    assert read(str(tmp_path / "out.csv")).groups.tolist() == ["a", "a", "", "1"]
    other = replace(data, groups=np.array(["b", "", "", ""]))
    for sources in ([data, other], [other, data]):
        merged = merge([Source(str(n), one) for n, one in enumerate(sources)])
        assert merged.dataset.groups.tolist() == ["a", "a", "", "1"]
        assert any("1 images have several groups" in note for note in merged.notes)
    assert "groups" in " ".join(convert(data, "coco", tmp_path / "out.json").notices)


def test_no_drawn_split_divides_a_group():
    data = in_memory([f"g{n % 40}" for n in range(120)])
    splits = with_splits(data, Experiment(data="scenes")).splits
    assert set(splits) == {"train", "val", "test"}
    assert all(len(set(splits[data.groups == group])) == 1 for group in set(data.groups))
    alone = with_splits(replace(data, groups=None), Experiment(data="scenes")).splits
    assert any(len(set(alone[data.groups == group])) > 1 for group in set(data.groups))


def test_a_given_split_stays_and_only_the_drawn_rows_keep_together():
    given = np.array(["train"] * 80 + ["test"] * 40)
    data = in_memory([f"g{n % 40}" for n in range(120)], given)
    splits = with_splits(data, Experiment(data="scenes")).splits
    assert (splits[80:] == "test").all()
    assert (splits[:40] == splits[40:80]).all()


def test_copies_and_groups_are_joined():
    data = in_memory([f"g{n // 2}" if n < 60 else "" for n in range(120)])
    images = data.images.copy()
    images[60:90] = images[0:60:2]  # a copy, in no group, of the first of each pair
    splits = with_splits(replace(data, images=images), Experiment(data="scenes")).splits
    assert (splits[0:60:2] == splits[1:60:2]).all()
    assert (splits[60:90] == splits[0:60:2]).all()


def test_new_images_follow_their_group():
    whole = in_memory([f"g{n % 30}" for n in range(60)] + [f"new{n % 10}" for n in range(60)])
    e = Experiment(data="scenes")
    old = with_splits(whole.take(np.arange(30)), e)
    now, _ = recall(Photos.of(old, ""), whole, "", e, "a run")
    assert (now.splits[:30] == old.splits).all()
    assert (now.splits[30:60] == old.splits).all()
    fresh, groups = now.splits[60:], now.groups[60:]
    assert all(len(set(fresh[groups == group])) == 1 for group in set(groups))
    assert len(set(fresh)) > 1


def test_check_counts_groups_and_names_the_divided():
    splits = np.array(["train", "test", "train", "train", ""])
    data = in_memory(["a", "a", "b", "b", ""], splits)
    assert describe(data).groups == "2 groups of 4 images; the splits divide 1 of them, such as 'a' (test, train)"
    assert describe(replace(data, splits=None)).groups == "2 groups of 4 images"
    assert describe(in_memory(["", ""])).groups == ""


def test_a_parent_that_the_hierarchy_fills_is_not_said_to_be_missing(tmp_path):
    text = "image,cat,animal,plant\n0.png,1,,0\n1.png,1,,0\n2.png,0,,0\n3.png,1,,0\n"
    data = read(table(tmp_path, text))
    assert "2 classes ('animal', 'plant') never occur" in [problem.what for problem in data.problems]
    (tmp_path / "classes.yaml").write_text("cat: animal\n")
    said = [problem.what for problem in with_classes(data, str(tmp_path / "classes.yaml")).problems]
    assert [what for what in said if "never" in what] == ["class 'plant' never occurs"]
