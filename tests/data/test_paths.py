"""Paths that were written by another machine: found where one file fits, named where several do, hints for the rest."""

import os
from pathlib import Path
from unicodedata import normalize

import pytest

from plures.data import paths
from plures.data.formats.table import Table, image_paths
from plures.data.read import read
from plures.errors import BadData
from plures.scoring.sources import images_of
from plures.web.table_edit import open_table

NFC, NFD = "Zürich.jpg", normalize("NFD", "Zürich.jpg")


def world(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def table(folder, *images, header="image,tags"):
    file = folder / "t.csv"
    file.write_text("".join(f"{line}\n" for line in (header, *(f"{image},cat" for image in images))), encoding="utf-8")
    return str(file)


def notices(data):
    return [p.what for p in data.problems if p.severity == "notice"]


def errors(source, **options):
    with pytest.raises(BadData) as found:
        read(source, **options)
    return [(p.row, p.what, p.expected, p.times) for p in found.value.problems if p.severity == "error"]


FOUND = {  # what is on the disk, what the table says, how it was found
    "slashes": ("photos/sub/a.jpg", r"photos\sub\a.jpg", "with / for \\"),
    "slashes and .": ("photos/a.jpg", r".\photos\a.jpg", "with / for \\"),
    "case": ("photos/a.jpg", "Photos/A.JPG", "in another case"),
    "case and slashes": ("Photos/a.jpg", r"PHOTOS\A.jpg", "in another case"),
    "NFD on the disk": (f"photos/{NFD}", f"photos/{NFC}", "with accents in another form"),
    "NFC on the disk": (f"photos/{NFC}", f"photos/{NFD}", "with accents in another form"),
    "percent": ("my photos/ü.jpg", "my%20photos/%C3%BC.jpg", "with %20 and its like spelt out"),
    "a folder above": ("photos/a.jpg", r"photos\..\photos\a.jpg", "with / for \\"),
    "in images/": ("images/a.jpg", "A.jpg", "in another case"),
    "another machine": ("photos/a.jpg", "/home/me/data/photos/a.jpg", "without '/home/me/data/'"),
    "another system": ("photos/a.jpg", r"C:\Users\me\photos\a.jpg", "without 'C:/Users/me/'"),
}


@pytest.mark.parametrize("case", FOUND)
def test_found_where_one_file_fits(tmp_path, case):
    there, said, way = FOUND[case]
    world(tmp_path, there)
    data = read(table(tmp_path, said))
    assert [os.path.normpath(image) for image in data.images] == [str(tmp_path / there)]
    shown = os.path.relpath(data.images[0], tmp_path / ("images" if case == "in images/" else ""))
    if case == "a folder above":
        shown = "photos/../photos/a.jpg"
    assert notices(data)[0] == f"1 images were found {way}, such as '{said}' as '{shown}'"
    listed = tmp_path / "list.txt"
    listed.write_text(said + "\n", encoding="utf-8")
    if "another" not in case:  # lists are read line by line, so nothing is known of their beginning
        assert [path for _, path in images_of(listed)()] == list(data.images)


def test_the_path_as_it_is_written_comes_first(tmp_path):
    world(tmp_path, "a%20b.jpg", "a b.jpg", r"x\y.jpg", "x/y.jpg", "C.jpg", "c.jpg")
    said = ["a%20b.jpg", r"x\y.jpg", "C.jpg", "./c.jpg"]
    data = read(table(tmp_path, *said))
    assert list(data.images) == [str(tmp_path / name) for name in (*said[:3], "c.jpg")]
    assert notices(data) == []


def test_several_files_that_differ_in_case_are_named(tmp_path):
    world(tmp_path, "photos/a.jpg", "photos/A.jpg", "photos/b.jpg")
    source = table(tmp_path, "photos/a.JPG", "photos/b.jpg")
    what = "image 'photos/a.JPG' may be 'photos/A.jpg' or 'photos/a.jpg'"
    assert errors(source) == [(2, what, "the path of one file", 1)]
    assert [Path(image).name for image in read(source, skip_bad=True).images] == ["b.jpg"]


def test_rows_of_one_image_are_merged_whatever_their_spelling(tmp_path):
    world(tmp_path, "photos/a.jpg")
    file = tmp_path / "t.csv"
    file.write_text("image,cat,dog\nphotos/a.jpg,1,\nphotos\\A.jpg,,1\n./photos/a.jpg,,\n")
    data = read(str(file))
    assert list(data.images) == [str(tmp_path / "photos/a.jpg")]
    assert data.labels.values.tolist() == [[1, 1]]
    file.write_text("image,cat\nphotos/a.jpg,1\nphotos\\a.jpg,0\n")
    assert [problem[0] for problem in errors(str(file))] == [3]


def test_many_missing_images_are_one_line_with_the_folder_that_fits(tmp_path, monkeypatch, plures):
    monkeypatch.chdir(tmp_path)
    world(tmp_path, *(f"old/{n}.jpg" for n in range(5)), *(f"new/here/{n}.jpg" for n in range(200)))
    source = table(tmp_path, *(f"{n}.jpg" for n in range(200)))
    what = "200 of 200 images are missing, such as '0.jpg' (row 2), '1.jpg' (row 3), '2.jpg' (row 4)"
    assert errors("t.csv") == [(None, what, "files below .; data.images=new/here would find them", 200)]
    code, _, err = plures("check", source)
    assert (code, "200 problems" in err, err.count("images are missing")) == (2, True, 1)
    assert len(read("t.csv", images="new/here").images) == 200
    (tmp_path / "new/here/7.jpg").unlink()
    (tmp_path / "new/here/8.jpg").unlink()
    assert errors("t.csv")[0][2].endswith("data.images=new/here would find 99% of them")
    world(tmp_path, "0.jpg")
    assert errors("t.csv")[0][1].startswith("199 of 200 images are missing, such as '1.jpg' (row 3)")
    assert plures("init", "t.csv", "--out", "u.csv", "--skip-bad")[2].startswith("left out 199 unusable rows")


def test_a_table_in_another_folder_than_its_photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world(tmp_path, "data/photos/a.jpg", "tables/x")
    table(tmp_path / "tables", "photos/a.jpg")
    hint = "a file tables/photos/a.jpg; data.images=data would find them"
    assert errors("tables/t.csv") == [(2, "image 'photos/a.jpg' is missing", hint, 1)]


def test_a_missing_suffix(tmp_path):
    world(tmp_path, "photos/a.jpg", "photos/a.txt", "photos/b.jpg", "photos/b.png")
    source = table(tmp_path, "photos/b", "photos/a")
    assert errors(source) == [
        (2, "image 'photos/b' may be 'photos/b.jpg' or 'photos/b.png'", "the path of one file", 1)
    ]
    data = read(source, skip_bad=True)
    assert list(data.images) == [str(tmp_path / "photos/a.jpg")]
    assert "1 images were found with a suffix, such as 'photos/a' as 'photos/a.jpg'" in [p.what for p in data.problems]
    os.unlink(tmp_path / "photos/a.jpg")
    assert errors(table(tmp_path, "photos/a"))[0][2] == f"a file {tmp_path / 'photos/a'}"


def test_names_alone_are_found_in_folders_below(tmp_path):
    """As in NIH's images_001/images/ or beside train.csv in train/; where one name is in two folders, none is taken."""
    world(tmp_path, "x_1/images/1.png", "x_2/images/2.png", "x_2/images/sub/3.jpg", "x_1/.thumbs/2.png")
    data = read(table(tmp_path, "1.png", "2", "sub/3.jpg"))
    assert [os.path.relpath(path, tmp_path) for path in data.images] == [
        "x_1/images/1.png", "x_2/images/2.png", "x_2/images/sub/3.jpg",
    ]  # fmt: skip
    assert any("3 images were found in folders below" in problem.what for problem in data.problems)
    world(tmp_path, "x_1/images/2.png")
    assert [row for row, *_ in errors(str(tmp_path / "t.csv"))] == [2, 3, 4]
    world(tmp_path, "1.png")  # the paths do start here
    assert [row for row, *_ in errors(str(tmp_path / "t.csv"))] == [3, 4]


def test_paths_that_begin_with_the_tables_own_folder(tmp_path):
    """As CheXpert's: CheXpert-v1.0-small/train/... in CheXpert-v1.0-small/train.csv."""
    world(tmp_path / "CheX-v1", "train/p1/a.jpg", "train/p2/a.jpg")
    data = read(table(tmp_path / "CheX-v1", "CheX-v1/train/p1/a.jpg", "CheX-v1/train/p2/a.jpg"))
    assert [os.path.relpath(path, tmp_path) for path in data.images] == [
        "CheX-v1/train/p1/a.jpg",
        "CheX-v1/train/p2/a.jpg",
    ]


def test_foreign_paths_keep_one_beginning(tmp_path):
    """Two folders of another machine whose names coincide are not both taken for the one that is here."""
    world(tmp_path, "a/1.jpg", "a/2.jpg", "3.jpg")
    said = ["/far/x/a/1.jpg", "/far/x/a/2.jpg", "/far/y/a/2.jpg", "/else/3.jpg"]
    source = table(tmp_path, *said)
    assert [row for row, *_ in errors(source)] == [4, 5]
    data = read(source, skip_bad=True)
    assert list(data.images) == [str(tmp_path / name) for name in ("a/1.jpg", "a/2.jpg")]


def test_folders_are_listed_once(tmp_path, monkeypatch):
    world(tmp_path, *(f"photos/{n}.jpg" for n in range(300)))
    listed = []
    real = os.listdir
    monkeypatch.setattr(paths.os, "listdir", lambda folder: listed.append(folder) or real(folder))
    assert len(read(table(tmp_path, *(f"PHOTOS\\{n}.jpg" for n in range(300)))).images) == 300
    assert len([folder for folder in listed if folder.endswith("photos")]) <= 2


def test_review_edits_the_row_of_an_image_found_otherwise(tmp_path):
    world(tmp_path, "photos/a.jpg", "photos/b.jpg")
    file = Path(table(tmp_path, r"photos\a.jpg", "photos/b.jpg"))
    opened = open_table(file, Table())
    opened.set("photos/a.jpg", "dog", 1)
    opened.write()
    assert file.read_text().splitlines()[1] == r"photos\a.jpg,cat;dog"
    assert image_paths(file, [r"photos\a.jpg"]) == [str(tmp_path / "photos/a.jpg")]
