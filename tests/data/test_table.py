"""Tables: both forms, three kinds of file, what is wrong with them, and the round trip through write_table."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plures.data.dataset import Dataset
from plures.data.formats import delimited, faults
from plures.data.formats.cells import NULLS
from plures.data.formats.table import Table
from plures.data.read import read, reason, sayings
from plures.data.write import init_table, write_table
from plures.errors import BadData, PluresError
from plures.labels import Labels

TAGS = "image,tags,absent,split\na.jpg,cat; sofa,dog,train\nb.jpg,dog,,val\nc.jpg,,,train\n"
COLUMNS = "image,split,cat,dog,sofa\na.jpg,train,1,0,1\nb.jpg,val,,1,\nc.jpg,train,,,\n"
VALUES = [[1, 0, 1], [-1, 1, -1], [-1, -1, -1]]


def table(folder: Path, text: str, name: str = "tags.csv", images: str = "abcdef") -> str:
    for image in images:
        (folder / f"{image}.jpg").touch()
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


def problems_of(path: str, **options) -> list[tuple[int | None, str]]:
    with pytest.raises(BadData) as raised:
        read(path, **options)
    return [(problem.row, problem.what) for problem in raised.value.problems if problem.severity == "error"]


@pytest.mark.parametrize("text", [TAGS, COLUMNS, COLUMNS.replace("\n", "\r\n"), "\ufeff" + TAGS], ids=range(4))
def test_both_forms_read_the_same(tmp_path, text):
    data = read(table(tmp_path, text))
    assert data.classes == ("cat", "dog", "sofa")
    assert data.labels.values.tolist() == VALUES
    assert data.splits.tolist() == ["train", "val", "train"]
    assert [Path(image) for image in data.images] == [tmp_path / f"{name}.jpg" for name in "abc"]


@pytest.mark.parametrize("text", [TAGS, COLUMNS])
def test_tsv_semicolons_and_parquet_read_the_same(tmp_path, text):
    frame = pd.read_csv(table(tmp_path, text))
    frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    frame.to_csv(tmp_path / "s.csv", sep=";", index=False)  # pandas writes 1.0 where a column has gaps
    frame.to_parquet(tmp_path / "p.parquet")
    for name in ("t.tsv", "s.csv", "p.parquet"):
        assert read(str(tmp_path / name)).labels.values.tolist() == VALUES, name


def test_parquet_lists_booleans_and_integers(tmp_path):
    table(tmp_path, TAGS)
    pd.DataFrame({"image": ["a.jpg", "b.jpg"], "tags": [["cat", "sofa"], []]}).to_parquet(tmp_path / "l.parquet")
    assert read(str(tmp_path / "l.parquet")).labels.values.tolist() == [[1, 1], [-1, -1]]
    frame = pd.DataFrame({"image": ["a.jpg", "b.jpg"], "x": [True, False], "y": [0, 1], "z": [1, 7]})
    frame.astype({"y": "int8"}).to_parquet(tmp_path / "b.parquet")
    assert problems_of(str(tmp_path / "b.parquet")) == [(2, "column 'z' (1 rows) holds '7'")]
    assert read(str(tmp_path / "b.parquet"), skip_bad=True).labels.values.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("kind", ["Int8", "UInt8", "Int64", "Float32", "boolean", "string"])
def test_parquet_gaps_are_unknown_wherever_a_batch_begins(tmp_path, monkeypatch, kind):
    cells = [1, None, 0, 1, None, None, 0, 1, 1, 0, None]
    frame = pd.DataFrame({"image": [f"{row}.jpg" for row in range(11)], "x": pd.array(cells, dtype="Int8")})
    frame["x"] = frame["x"].astype(kind)
    frame.to_parquet(tmp_path / "g.parquet")
    monkeypatch.setattr("plures.data.formats.table.ROWS_AT_ONCE", 3)
    data, problems = Table(exist=False).read(str(tmp_path / "g.parquet"))
    assert not problems
    assert data.labels.values[:, 0].tolist() == [-1 if cell is None else cell for cell in cells]


def test_complete_and_separator(tmp_path):
    assert read(table(tmp_path, TAGS), complete=True).labels.values.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    text = "image,tags\na.jpg,cat|sofa\n"
    assert read(table(tmp_path, text), separator="|").classes == ("cat", "sofa")
    with pytest.raises(PluresError, match="separator"):
        read(table(tmp_path, text), separator="")


def test_images_lie_beside_the_table_or_in_its_images_folder(tmp_path):
    path = table(tmp_path, "image,tags\nz.jpg,cat\n", images="")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "z.jpg").touch()
    assert read(path).images == [str(tmp_path / "images" / "z.jpg")]
    assert read(path, images=str(tmp_path / "images")).images == [str(tmp_path / "images" / "z.jpg")]
    assert read(str(tmp_path)).classes == ("cat",)  # the only table in a folder


HEADERS = {
    "imgae,tags": "no column 'image'; was this meant: 'imgae'",
    "tags,path,file": "columns 'path' and 'file' may both name the images",
    "image,tags,tags": "2 columns are called 'tags'",
    "image,absent": "a column 'absent' but no column 'tags'",
    "image": "no labels",
    "image,split": "no labels",
}


@pytest.mark.parametrize("header", HEADERS)
def test_misnamed_columns(tmp_path, header):
    found = problems_of(table(tmp_path, header + "\na.jpg,1,1\n"))
    assert HEADERS[header] in "; ".join(what for _, what in found)


def test_all_bad_rows_are_listed_with_their_lines(tmp_path):
    text = "image,cat,dog\na.jpg,1,0\n\nb.jpg,2,yes\n,1,1\nc.jpg,1\nd.jpg,,1\nzz.jpg,1,0\n,,\n"
    path = table(tmp_path, text)
    found = sorted(problems_of(path))
    assert [row for row, _ in found] == [4, 4, 5, 6, 8]
    assert "'cat'" in found[0][1]
    assert "'dog'" in found[1][1]
    assert found[2][1] == "no image in this row"
    assert found[3][1] == "2 cells"
    assert "zz.jpg" in found[4][1]
    data = read(path, skip_bad=True)
    assert [Path(image).name for image in data.images] == ["a.jpg", "d.jpg"]
    assert len(data.problems) == 5


def test_a_misspelt_tags_column_is_named(tmp_path):
    found = problems_of(table(tmp_path, "image,tgas\na.jpg,cat;dog\n"))
    assert "no labels; 'tgas' (holds 'cat;dog'); was this meant: 'tgas'" in found[0][1]


def test_duplicates_merge_or_disagree(tmp_path):
    text = "image,cat,dog\na.jpg,1,\nb.jpg,1,1\na.jpg,,0\nb.jpg,0,1\nc.jpg,1,1\nc.jpg,1,1\n"
    assert problems_of(table(tmp_path, text)) == [(5, "'b.jpg' disagrees with row 3 on class 'cat'")]
    data = read(table(tmp_path, text), skip_bad=True)
    assert [Path(image).name for image in data.images] == ["a.jpg", "c.jpg"]
    assert data.labels.values.tolist() == [[1, 0], [1, 1]]
    text = "image,tags,split\na.jpg,cat,train\na.jpg,dog,test\n"
    assert problems_of(table(tmp_path, text))[0] == (3, "'a.jpg' disagrees with row 2 on the split")
    text = "image,tags\na.jpg,cat\na.jpg,dog\nb.jpg,cat\n"
    assert read(table(tmp_path, text)).labels.values.tolist() == [[1, 1], [1, -1]]


def test_a_tag_cannot_be_absent_too(tmp_path):
    path = table(tmp_path, "image,tags,absent\na.jpg,cat,dog\nb.jpg,cat;dog,dog\n")
    assert problems_of(path) == [(3, "'dog' is among the tags and among the absent")]
    assert [Path(image).name for image in read(path, skip_bad=True).images] == ["a.jpg"]


BROKEN = {
    b"": (None, "empty"),
    b"\n": (None, "empty"),
    b"image,tags\n": (None, "no rows"),
    b"image,tags\na.jpg,cat\nb.jpg,\xff\xfe\n": (3, "not UTF-8"),
    b"image,cat\na.jpg,1\n\xff.jpg,1\n": (3, "not UTF-8"),
    b"image,tags\na.jpg,\n": (None, "no image carries a tag"),
}


@pytest.mark.parametrize("content", BROKEN)
def test_files_that_are_no_tables(tmp_path, content):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "t.csv").write_bytes(content)
    row, what = BROKEN[content]
    found = problems_of(str(tmp_path / "t.csv"))
    assert found[0][0] == row
    assert what in found[0][1]
    pd.DataFrame({"image": [], "x": []}).astype({"x": "int8"}).to_parquet(tmp_path / "e.parquet")
    assert problems_of(str(tmp_path / "e.parquet"))[0][1] == "the table has no rows"
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    assert "not a Parquet file" in problems_of(str(tmp_path / "t.parquet"))[0][1]


def test_what_is_only_worth_knowing_does_not_stop(tmp_path):
    data = read(table(tmp_path, "image,cat,dog,Cat\na.jpg,1,0,1\n"))
    assert {problem.severity for problem in data.problems} == {"notice"}
    assert [problem.what for problem in data.problems] == [
        "class 'dog' never occurs",
        "classes 'cat', 'Cat' differ only in case",
    ]
    data = read(table(tmp_path, "image,tags,abscent,note\na.jpg,cat,dog,x\n"))
    whats = [problem.what for problem in data.problems]
    assert whats == ["column 'abscent' is not used; did you mean 'absent'?", "column 'note' is not used"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["1", "0", "", "1.0", "10", "x", " "]), min_size=4, max_size=4), min_size=1),
    st.sampled_from([16, 40, 1 << 20]),
    st.booleans(),
    st.sampled_from(["i{}.jpg", '"i{}.jpg"', "ü{}.jpg"]),
)
def test_the_fast_way_and_the_parser_agree_with_pandas(rows, block, last, image):
    lines = ["image,a,b,c,split" if last else "image,split,a,b,c"]
    for number, cells in enumerate(rows):
        cells = [*cells[:3], "train"] if last else ["train", *cells[:3]]
        lines.append(",".join([image.format(number), *cells]))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK", block)
        patch.setattr(faults, "SLIPS", 1.0)  # however many there are
        path = Path(folder, "t.csv")
        path.write_text("\n".join(lines), "utf-8")
        data, problems = Table(exist=False, classes="a,b,c").read(str(path))
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    codes = {"1": 1, "1.0": 1, "0": 0, "": -1, " ": -1}
    wanted = [[codes.get(cell, 2) for cell in row] for row in frame[["a", "b", "c"]].to_numpy()]
    bad = [sum(row[column] == 2 for row in wanted) for column in range(3)]
    said = [re.findall(r"'([abc])' \((\d+) rows\)", p.what) for p in problems]
    assert sorted((name, int(rows)) for pairs in said for name, rows in pairs) == [
        (name, count) for name, count in zip("abc", bad, strict=True) if count
    ]
    assert data.labels.values.tolist() == [row for row in wanted if 2 not in row]
    assert [Path(i).name for i in data.images] == [
        i for i, row in zip(frame["image"], wanted, strict=True) if 2 not in row
    ]


# ------------------------------------------------------------------------------------------------------- round trip

names = st.text(st.characters(codec="utf-8", exclude_characters=";\r\n\0[{"), min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and name not in NULLS
)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([".csv", ".tsv", ".parquet"]), st.booleans(), st.booleans())
def test_a_dataset_survives_the_round_trip(data, suffix, complete, safe):
    classes = tuple(data.draw(st.lists(names, min_size=1, max_size=5, unique=True)))
    rows = data.draw(st.integers(1, 6))
    row = st.lists(st.sampled_from([-1, 0, 1]), min_size=len(classes), max_size=len(classes))
    values = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)), np.int8)
    splits = np.array(data.draw(st.lists(st.sampled_from(["train", "val", ""]), min_size=rows, max_size=rows)))
    with tempfile.TemporaryDirectory() as folder:
        images = [str(Path(folder, "sub", f'{place} "x", ü.jpg')) for place in range(rows)]
        before = Dataset(images, Labels(values), classes, splits)
        path = Path(folder, f"t{suffix}")
        write_table(before, path, complete=complete, safe_csv=safe)
        after, problems = Table(exist=False).read(str(path))
        assert sorted(Path(folder).iterdir()) == [path]  # nothing half written is left
    assert [problem for problem in problems if problem.severity == "error"] == []
    assert [Path(image) for image in after.images] == [Path(image) for image in images]
    assert after.splits.tolist() == splits.tolist()
    wanted = np.maximum(values, 0) if complete else values
    leaves_a_trace = [k for k in range(len(classes)) if (wanted[:, k] != -1).any()]
    assert set(after.classes) == {classes[k] for k in leaves_a_trace}
    for k in leaves_a_trace:
        assert after.labels.values[:, after.classes.index(classes[k])].tolist() == wanted[:, k].tolist()


@pytest.mark.parametrize("name", ["a;b", " a", "", "a\nb", "nan", "[a]", "{a}"])
def test_names_that_a_table_cannot_hold_are_refused(tmp_path, name):
    data = Dataset(["x.jpg"], Labels(np.ones((1, 1), np.int8)), (name,))
    with pytest.raises(PluresError, match="rename the class"):
        write_table(data, tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


def test_init_lists_a_folder_of_photos_without_tags(tmp_path):
    table(tmp_path, "", images="ab")
    (tmp_path / "tags.csv").unlink()
    init_table(str(tmp_path), tmp_path / "out" / "tags.csv")
    assert pd.read_csv(tmp_path / "out" / "tags.csv")["image"].tolist() == ["../a.jpg", "../b.jpg"]
    assert "no image carries a tag" in problems_of(str(tmp_path / "out" / "tags.csv"))[0][1]
    with pytest.raises(PluresError, match="ends in"):
        init_table(f"folder:{tmp_path}", tmp_path / "tags.xlsx")
    with pytest.raises(PluresError, match="in memory"):
        write_table(read("scenes", train=1, val=0, test=0), tmp_path / "s.csv")


# ------------------------------------------------------------------------------------------- as other programs write it


def whats(data) -> str:
    return " | ".join(f"{problem.what}; {problem.expected}" for problem in data.problems)


def one_problem(path: str, **options) -> str:
    """The only error, with what it says to do."""
    with pytest.raises(BadData) as raised:
        read(path, **options)
    (problem,) = [p for p in raised.value.problems if p.severity == "error"]
    return f"{problem.what}; {problem.expected}"


@pytest.mark.parametrize("header", ["filename", "File_Name", "file", "Path", "image_id", "Image Index", "IMAGE", "id"])
def test_the_image_column_by_its_usual_names(tmp_path, header):
    data = read(table(tmp_path, f"{header},labels\na.jpg,cat\nb.jpg,dog;cat\n"))
    assert data.labels.values.tolist() == [[1, -1], [1, 1]]
    assert reason(str(tmp_path / "tags.csv")).endswith(f"images in '{header}', tags in 'labels'")


def test_columns_are_named_where_their_names_do_not_say_it(tmp_path):
    path = table(tmp_path, "a,b,c,d\nx,a.jpg,cat,valid\ny,b.jpg,dog,train\n")
    data = read(path, image_column="b", tags_column="c", split_column="d")
    assert (data.classes, data.splits.tolist()) == (("cat", "dog"), ["val", "train"])
    assert "no column 'e'" in one_problem(path, image_column="e")


@pytest.mark.parametrize(
    ("header", "words", "splits"),
    [
        ("split", "train valid Test", ["train", "val", "test"]),
        ("Split", "TRAINING validation testing", ["train", "val", "test"]),
        ("SPLIT", "train dev test", ["train", "val", "test"]),
        ("subset", "train val test", ["train", "val", "test"]),
        ("is_valid", "False True 0", ["train", "val", "train"]),
    ],
)
@pytest.mark.parametrize("form", ["tags", "cat"])
def test_split_words(tmp_path, header, words, splits, form):
    rows = "".join(f"{image}.jpg,1,{word}\n" for image, word in zip("abc", words.split(), strict=True))
    data = read(table(tmp_path, f"image,{form},{header}\n{rows}"))
    assert data.splits.tolist() == splits
    assert data.classes == ("1" if form == "tags" else "cat",)
    assert [Path(image).stem for image in data.split("valid").images] == ["abc"[splits.index("val")]]


def test_an_unknown_split_is_an_error_that_lists_what_is_understood(tmp_path):
    path = table(tmp_path, "image,tags,split\na.jpg,cat,train\nb.jpg,dog,fold1\nc.jpg,dog,fold2\n")
    said = one_problem(path)
    assert "column 'split' holds 'fold1', 'fold2', no words for a split; train, training, val" in said
    assert len(read(path, skip_bad=True)) == 1
    assert "True, False, 1 or 0" in one_problem(table(tmp_path, "image,tags,is_valid\na.jpg,cat,2\n"),
                                                split_column="is_valid")  # fmt: skip


def test_metadata_columns_are_said_and_not_trained_on(tmp_path):
    text = "image,cat,fold,Sex,Age,id,dog\n" + "".join(
        f"{i}.jpg,1,1,M,{40 + n},{n},0\n" for n, i in enumerate("abcdef")
    )
    data = read(table(tmp_path, "," + text.replace("\n", "\n0,").removesuffix("0,")))
    assert data.classes == ("cat", "dog")
    assert "columns 'Unnamed: 0' (holds '0'), 'fold' (holds '1'), 'Sex' (holds 'M'), 'Age'" in whats(data)
    assert "data.classes=cat,dog,fold would train on it" in whats(data)
    only = table(tmp_path, ",image,cat,dog\n" + "".join(f"{n},{i}.jpg,1,0\n" for n, i in enumerate("abcdef")))
    assert "column 'Unnamed: 0' (holds '0', '1', '2') is not used; " in whats(read(only))
    assert "would train on it" not in whats(read(only))
    assert read(table(tmp_path, text), classes="dog, fold").classes == ("dog", "fold")
    assert "no class 'dig'; did you mean 'dog'" in one_problem(table(tmp_path, text), classes="dig")
    tags = table(tmp_path, "image,tags\na.jpg,cat;dog\nb.jpg,bird\n")
    assert read(tags, classes="dog,cat").labels.values.tolist() == [[1, 1], [-1, -1]]


def test_minus_one_is_what_the_option_says_and_one_line_without_it(tmp_path):
    path = table(
        tmp_path, "image,x,y\n" + "".join(f"{image}.jpg,-1.0,1\n" for image in "abc") + "d.jpg,1,-1\ne.jpg,1,0\n"
    )
    assert "columns 'x' (3 rows), 'y' (1 rows) hold '-1.0', '-1'" in one_problem(path)
    assert "data.unknown=-1" in one_problem(path, skip_bad=True)  # leaving 4 of 5 rows out would be no way
    assert read(path, unknown="-1").labels.values.T.tolist() == [[-1, -1, -1, 1, 1], [1, 1, 1, -1, 0]]
    assert read(path, absent="x:-1", present="y:-1").labels.values.T.tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 0]]
    assert "no column 'z'" in one_problem(path, unknown="z:-1")
    celeba = table(tmp_path, "image_id,x\na.jpg,1\nb.jpg,-1\nc.jpg,-1\nd.jpg,-1\n")
    assert "values are -1 and 1: data.absent=-1" in one_problem(celeba)
    assert read(celeba, absent="-1").labels.values.tolist() == [[1], [0], [0], [0]]
    words = table(tmp_path, "image,x\na.jpg,Yes\nb.jpg,no\nc.jpg,yes\nd.jpg,\n")
    assert "data.present=yes data.absent=no" in one_problem(words)
    assert read(words, present="yes", absent="no").labels.values.tolist() == [[1], [0], [1], [-1]]


def test_parquet_takes_the_same_words(tmp_path):
    table(tmp_path, "")
    pd.DataFrame({"file_name": ["a.jpg", "b.jpg"], "x": [-1.0, 1.0], "Split": ["valid", "train"]}).to_parquet(
        tmp_path / "p.parquet"
    )
    data = read(str(tmp_path / "p.parquet"), unknown="-1")
    assert (data.labels.values.tolist(), data.splits.tolist()) == ([[-1], [1]], ["val", "train"])


@pytest.mark.parametrize(
    "cell", ["['cat', 'dog']", '"[""cat"", ""dog""]"', "['cat' 'dog']", '"[cat, dog]"', '"cat;dog"']
)
def test_cells_that_spell_lists_are_lists(tmp_path, cell):
    data = read(table(tmp_path, f"image\ttags\na.jpg\t{cell}\nb.jpg\tNone\nc.jpg\tnan\nd.jpg\t[]\n", "t.tsv"))
    assert data.classes == ("cat", "dog")
    assert data.labels.present.sum(1).tolist() == [2, 0, 0, 0]
    assert "2 cells or tags say nan, None or the like" in whats(data)


@pytest.mark.parametrize("cell", ['{""choices"": [""a""]}', "[[1]]", "[{'a': 1}]"])
def test_cells_that_spell_mappings_are_refused(tmp_path, cell):
    path = table(tmp_path, f'image,tags\na.jpg,cat\nb.jpg,"{cell}"\nc.jpg,"{cell}"\n')
    assert "column 'tags' spells" in one_problem(path)
    assert problems_of(path)[0][0] == 3
    assert len(read(path, skip_bad=True)) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_encodings(tmp_path, encoding):
    table(tmp_path, "")
    (tmp_path / "t.csv").write_bytes("image;tags\r\na.jpg;Misérables|café\r\n".encode(encoding))
    given = {} if encoding == "utf-16" else {"encoding": encoding}
    assert read(str(tmp_path / "t.csv"), separator="|", **given).classes == ("Misérables", "café")
    if encoding == "cp1252":
        assert "data.encoding=cp1252" in one_problem(str(tmp_path / "t.csv"))
    with pytest.raises(PluresError, match="no encoding 'x'"):
        read(str(tmp_path / "t.csv"), encoding="x")


@pytest.mark.parametrize(("separator", "said"), [("|", "'|'"), (",", "','"), (" ", "' '"), ("\\t", None)])
def test_separators_and_the_hint_at_one(tmp_path, separator, said):
    mark = separator.replace("\\t", "\t")
    text = f'image,tags\na.jpg,"cat{mark}dog"\nb.jpg,cat\nc.jpg,dog\n'
    assert read(table(tmp_path, text), separator=separator).classes == ("cat", "dog")
    if said:
        assert f"class 'cat{mark}dog' may be several tags; data.separator={said}" in whats(read(table(tmp_path, text)))
    assert "several tags" not in whats(read(table(tmp_path, "image,tags\na.jpg,polar bear\nb.jpg,brown dog\n")))


def test_a_class_that_says_that_nothing_is_there(tmp_path):
    path = table(tmp_path, "image,tags\na.jpg,No Finding\nb.jpg,Mass;Edema\nc.jpg,Edema;No Finding\n")
    assert "'data.nothing=No Finding' takes it so" in whats(read(path))
    assert "'No Finding' is present, and so is another class" in one_problem(path, nothing="No Finding")
    data = read(path, nothing="No Finding", skip_bad=True)
    assert (data.classes, data.labels.values.tolist()) == (("Edema", "Mass"), [[0, 0], [1, 1]])


def test_classes_that_are_one(tmp_path):
    path = table(tmp_path, "image,cat,Cat\na.jpg,1,\nb.jpg,,1\nc.jpg,0,\nd.jpg,1,0\n")
    assert "data.rename=Cat:cat" in whats(read(path))
    assert "'cat' is present by one of its old names" in one_problem(path, rename="Cat:cat")
    data = read(path, rename="Cat:cat", skip_bad=True)
    assert (data.classes, data.labels.values.tolist()) == (("cat",), [[1], [1], [0]])
    for wrong in ("Cat", "Dog:cat"):
        with pytest.raises(PluresError):
            read(path, rename=wrong)


def test_tables_in_split_folders(tmp_path):
    for split, image in (("train", "a"), ("valid", "b")):
        (tmp_path / split).mkdir()
        table(tmp_path / split, f"filename, Cat, Dog\n{image}.jpg, 1, 0\n", "_classes.csv", images=image)
        (tmp_path / split / "._classes.csv").write_bytes(b"\0")
    data = read(str(tmp_path))
    assert (data.classes, data.splits.tolist()) == (("Cat", "Dog"), ["train", "val"])
    assert data.labels.values.tolist() == [[1, 0], [1, 0]]
    assert "2 tables in split folders: images in 'filename', 2 class columns" in reason(str(tmp_path))
    table(tmp_path / "valid", "filename,Dog\nb.jpg,1\n", "_classes.csv", images="b")
    assert read(str(tmp_path)).labels.values.tolist() == [[1, 0], [-1, 1]]


def test_two_rows_of_an_image_are_merged_in_the_long_form(tmp_path):
    data = read(table(tmp_path, "image,label\na.jpg,cat\na.jpg,dog\nb.jpg,cat\n"))
    assert data.labels.values.tolist() == [[1, 1], [1, -1]]


def test_a_class_of_one_photograph_is_said_where_there_are_many(tmp_path):
    names = [f"{number}" for number in range(30)]
    text = "image,tags\n" + "".join(f"{name}.jpg,{'rare' if name == '3' else 'cat'}\n" for name in names)
    data = read(table(tmp_path, text, images=names))
    assert "class 'rare' is shown by one image alone" in whats(data)
    assert sayings(data) == ["notice: class 'rare' is shown by one image alone"]
