"""Copies and what is alike: found by content, by small pictures and by features, and kept in one split."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import plures
from plures.analysis.neighbours import across_splits, find_copies, most_similar, space_of
from plures.config import Experiment
from plures.data import near_copies
from plures.data.dataset import Dataset
from plures.data.near_copies import near_groups, small_pictures, unit
from plures.data.read import read
from plures.errors import PluresError
from plures.labels import Labels
from plures.models.model import build_model, save
from plures.runs import photos as run_photos
from plures.runs.data import with_splits
from plures.runs.run import Run


def by_hand(vectors, similarity):
    """The first row of each row's group, pair by pair."""
    first = list(range(len(vectors)))
    for i in range(len(vectors)):
        for j in range(i):
            if float(vectors[i] @ vectors[j]) >= similarity:
                old, new = max(first[i], first[j]), min(first[i], first[j])
                first = [new if f == old else f for f in first]
    return first


@pytest.mark.parametrize("width", [5, 300])
@pytest.mark.parametrize("blocks", [(2048, 8192, 2_000_000), (7, 16, 3)])
def test_groups_are_those_of_all_pairs(monkeypatch, width, blocks):
    for name, value in zip(("ROWS", "COLUMNS", "MOST"), blocks, strict=True):
        monkeypatch.setattr(near_copies, name, value)
    random = np.random.default_rng(0)
    centres = random.normal(size=(30, width))
    vectors = unit(centres[random.integers(0, 30, 120)] + 0.25 * random.normal(size=(120, width)))
    vectors[[3, 50]] = 0
    for similarity in (0.5, 0.8, 0.9, 0.95):
        assert near_groups(vectors, similarity).tolist() == by_hand(vectors, similarity)
    assert near_groups(vectors[:0], 0.9).tolist() == []
    assert near_groups(vectors[3:4], 0.9).tolist() == [0]


def photographs(folder: Path, count=12) -> Dataset:
    """Smooth random pictures, and of picture 0: another size, another encoding, another light, itself, a mirror."""
    random = np.random.default_rng(1)
    names = []
    for n in range(count):
        pixels = random.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{n:02}.png")
        names.append(f"{n:02}.png")
    first = Image.open(folder / "00.png")
    first.resize((80, 60)).save(folder / "smaller.png")
    first.save(folder / "encoded.jpg", quality=40)
    ImageEnhance.Brightness(first).enhance(0.8).save(folder / "darker.png")
    (folder / "same.png").write_bytes((folder / "00.png").read_bytes())
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirror.png")
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    Image.new("RGB", (20, 20), "red").save(folder / "red too.jpg")
    names += ["smaller.png", "encoded.jpg", "darker.png", "same.png", "mirror.png", "red.png", "red too.jpg"]
    values = np.where(np.arange(len(names))[:, None] % 2 == np.arange(2), 1, -1).astype(np.int8)
    return Dataset([str(folder / name) for name in names], Labels(values), ("a", "b"))


def names(dataset, groups):
    return [[Path(str(dataset.images[m.row])).name for m in group] for group in groups]


def test_copies_by_content_and_by_small_pictures(tmp_path):
    data = photographs(tmp_path)
    assert names(data, find_copies(data, "exact")) == [["00.png", "same.png"]]
    groups = find_copies(data)
    assert names(data, groups) == [["00.png", "smaller.png", "encoded.jpg", "darker.png", "same.png"]]
    assert [m.kind for m in groups[0]] == ["", "near-exact", "near-exact", "near-exact", "exact"]
    (tmp_path / "00.png").write_bytes(b"gone")
    assert names(data, find_copies(data)) == [["smaller.png", "encoded.jpg", "darker.png", "same.png"]]
    with pytest.raises(PluresError, match="kind=near requires vectors"):
        find_copies(data, "near")
    with pytest.raises(PluresError, match="no kind of copies 'nearly'"):
        find_copies(data, "nearly")
    with pytest.raises(PluresError, match=r"similarity 1: expected a cosine in \(0, 1\)"):
        find_copies(data, "near", vectors=np.zeros((19, 2), np.float32), similarity=1)


def test_copies_across_splits(tmp_path):
    data = photographs(tmp_path)
    splits = np.array(["train"] * 12 + ["val", "train", "", "test", "val", "train", "train"])
    data = Dataset(data.images, data.labels, data.classes, splits)
    (notice,) = across_splits(data, find_copies(data))
    assert (Path(notice.file).name, notice.what) == (
        "00.png", "and smaller.png, encoded.jpg, darker.png, ... are nearly the same, in test and train and val",
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_split_keeps_copies_on_one_side(tmp_path, seed):
    data = photographs(tmp_path)
    copies = [0, 12, 13, 14, 15]
    e = Experiment(data="x.csv", seed=seed)
    assert len(set(with_splits(data, e).splits[copies])) == 1
    apart = [
        with_splits(data, Experiment(data="x.csv", seed=seed, **off)).splits
        for off in ({"group_near_copies": False}, {"split": "mlspl"})
    ]
    given = np.array(["train", "test"] * 9 + ["train"])  # what the data say counts
    kept = with_splits(Dataset(data.images, data.labels, data.classes, given), e).splits
    assert (kept[[12, 14]] != "test").sum() == 0 or given[12] == "train"
    assert {*kept[given == "test"]} <= {"test", ""}
    assert len({*kept[given == "train"][[0]], *kept[[12, 14]]} - {""}) == 1
    in_memory = np.zeros((6, 8, 8, 3), np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None]
    assert len(set(with_splits(Dataset(in_memory, data.labels.take(np.arange(6)), data.classes), e).splits)) > 1
    if seed == 0:
        assert all(len(set(splits[copies])) > 1 for splits in apart)


@pytest.mark.parametrize(("limit", "value"), [("COPIES", 4), ("COMPARED", 18)])
def test_pictures_of_one_kind_and_very_many_are_not_held_together(tmp_path, monkeypatch, limit, value):
    data = photographs(tmp_path)
    near = [0, 12, 13, 14]  # 15 is equal to 0
    monkeypatch.setattr(run_photos, "_near", {})
    together = [len(set(with_splits(data, Experiment(data="x.csv", seed=seed)).splits[near])) == 1 for seed in range(4)]
    assert all(together)
    monkeypatch.setattr(run_photos, "_near", {})
    monkeypatch.setattr(run_photos, limit, value)
    splits = [with_splits(data, Experiment(data="x.csv", seed=seed)).splits for seed in range(4)]
    assert not all(len(set(split[near])) == 1 for split in splits)
    assert all(split[0] == split[15] for split in splits)


def test_unreadable_and_remote_photographs_are_copies_of_none():
    data = Dataset(["s3://a/1.jpg", "s3://a/2.jpg", "gone.jpg"], Labels(np.ones((3, 1), np.int8)), ("a",))
    assert not small_pictures(data).any()
    assert find_copies(data) == []


def test_most_similar():
    vectors = unit(np.array([[1, 0], [1, 1], [0, 1], [-1, 0]]))
    assert [row for row, _ in most_similar(vectors, vectors[0], 2)] == [0, 1]
    assert [row for row, _ in most_similar(vectors, vectors[0], 10)] == [0, 1, 2, 3]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    data = photographs(tmp_path / "p", 6)
    lines = [
        f"p/{Path(str(i)).name},{'a' if n % 2 else 'b'},{'val' if n == 6 else 'train'}"
        for n, i in enumerate(data.images)
    ]
    Path("t.csv").write_text("\n".join(["image,tags,split", *lines]) + "\n")
    run = Run.create("run", Experiment(data="t.csv", backbone={"name": "small_conv", "image_size": 32}, device="cpu"))
    save(build_model("small_conv", "codebook", ("a", "b"), {"image_size": 32}), run.path)
    return data


def test_the_backbone_of_a_run_gives_vectors(place):
    data, run = read("t.csv"), Run("run")
    space = space_of(data, run=run)
    assert space.vectors.shape[0] == len(data)
    again = space.place([str(data.images[2])])[0]
    assert most_similar(space.vectors, again, 1)[0] == (2, pytest.approx(1, abs=1e-3))


def test_the_commands(place, plures):
    code, out, err = plures("duplicates", "t.csv")
    assert code == 0
    assert out.startswith("13 photographs, 1 groups of near-exact copies: 4 could go; 1 groups lie in several splits\n")
    assert "p/smaller.png" in out
    assert err.startswith("./p/00.png: and smaller.png")
    code, out, _ = plures("duplicates", "t.csv", "--kind", "near", "--run", "run", "--similarity", "0.99999",
                          "--out", "d.csv")  # fmt: skip
    assert code == 0
    rows = Path("d.csv").read_text().splitlines()
    assert rows[0] == "image,group,kind,similarity,split,tags"
    assert "p/same.png,1,exact,1.0000,train,a" in rows
    assert plures("duplicates", "t.csv", "--out", "d.html")[0] == 0
    page = Path("d.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 5
    assert "Group 1: 5 photographs, in train and val" in page
    code, out, _ = plures("similar", "run", "p/00.png", "t.csv", "--top", "3")
    assert (code, out.splitlines()[0]) == (0, "more like p/00.png")
    assert out.splitlines()[1].split() == ["1.00", "./p/00.png", "b"]
    assert "are nearly the same, in train and val" in plures("check", "t.csv")[1]
    assert plures("similar", "run", "p", "--top", "2", "--out", "s.html")[0] == 0
    assert Path("s.html").read_text().count('<img src="data:image/jpeg') == 13 * 3
    assert plures("similar", "run", "p/01.png", "--top", "2", "--out", "s.csv")[0] == 0
    assert Path("s.csv").read_text().splitlines()[1].startswith("p/01.png,p/01.png,1,1.0000,train,a")
    for words, what in (
        (("duplicates", "t.csv", "--out", "d.txt"), "--out d.txt: expected a page (.html) or a table"),
        (("duplicates", "t.csv", "--kind", "near", "--run", "run", "--similarity", "2"), "expected a cosine in (0, 1)"),
        (("similar", "run", "nothing.png"), "nothing.png"),
        (("similar", "run", "t.csv", "--out", "t.csv", "--force"), "this command reads it"),
    ):
        code, _, err = plures(*words)
        assert (code, err.count("\n"), what in err) == (2, 1, True), err


def test_near_exact_copies_can_be_turned_off_in_words():
    assert plures.Experiment(data="x.csv").change(["group_near_copies=false"]).to_settings() == [
        "data=x.csv", "group_near_copies=false"
    ]  # fmt: skip
