"""Keywords in sidecars: what is written is read back, every other byte stays, and undo brings back what was there."""

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plures.config import Experiment
from plures.data.convert import convert
from plures.data.dataset import Dataset
from plures.data.formats.xmp import FLAT, TREES
from plures.data.read import read
from plures.data.sidecars import EMPTY, edited, keywords_in, undo
from plures.errors import BadData, PluresError
from plures.labels import Labels
from plures.models.model import build_model, save
from plures.runs.run import Run

LR, DIGIKAM = TREES
DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:darktable="http://darktable.sf.net/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
   xmp:Rating="4"
   darktable:params='a > b'>
   <!-- kept > as it is -->
   <dc:subject>
    <rdf:Seq>
     <rdf:li>größe</rdf:li>
    </rdf:Seq>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Seq>
     <rdf:li>Places|Köln</rdf:li>
     <rdf:li>plures|old</rdf:li>
    </rdf:Seq>
   </lr:hierarchicalSubject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
CLASSES = ("cat", "Animals/Dog", "a & <b>")
OTHERS = {  # what programs write, and what a clumsy hand does
    "no list": DARKTABLE.replace("<lr:hier", "<lr:x><!--").replace("</lr:hierarchicalSubject>", "--></lr:x>"),
    "empty bag": re.sub(r"<rdf:Seq>\s*<rdf:li>Places.*?</rdf:Seq>", "<rdf:Seq/>", DARKTABLE, flags=re.DOTALL),
    "empty list": re.sub(r"(<lr:hier\w+)>.*</lr:hier\w+>", r"\1/>", DARKTABLE, flags=re.DOTALL),
    "other prefixes": DARKTABLE.replace("rdf:", "r:")
    .replace("xmlns:rdf", "xmlns:r")
    .replace("lr:", "light:")
    .replace("xmlns:lr", "xmlns:light"),
    "empty RDF": EMPTY.decode().replace(">\n </rdf:RDF>", "/>"),
    "no line ends": re.sub(r">\s+<", "><", DARKTABLE),
    "CRLF": DARKTABLE.replace("\n", "\r\n"),
    "padding": DARKTABLE + " " * 100 + "\0",
    "about": DARKTABLE.replace('rdf:about=""', 'rdf:about="uuid:1&amp;2"'),
}


def photographs(folder: Path, values=((1, 1, 0), (-1, -1, 1), (-1, -1, -1))) -> Dataset:
    (folder / "p").mkdir(exist_ok=True)
    names = [str(folder / "p" / f"{n}.jpg") for n in range(len(values))]
    for name in names:
        Image.new("RGB", (8, 6)).save(name)
    return Dataset(names, Labels(np.array(values, np.int8)), CLASSES)


def state(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def tags(data: Dataset) -> dict[str, set[str]]:
    cells = zip(data.images, data.labels.present, strict=True)
    return {Path(image).name: {c for c, there in zip(data.classes, row, strict=True) if there} for image, row in cells}


@pytest.mark.parametrize("branch", ["plures", "plures/found by", ""])
def test_what_is_written_is_read_back_and_undone(tmp_path, branch):
    data = photographs(tmp_path)
    (tmp_path / "p/1.xmp").write_text(DARKTABLE)
    before = state(tmp_path)
    written = convert(data, "xmp", tmp_path / "j.jsonl", branch=branch)
    assert "keyword holds no absent labels: 1 are left out" in written.notices[0]
    assert written.notices[-1].startswith("2 sidecars were written, 1 of them new, with 3 more keywords")
    after = state(tmp_path)
    assert after.keys() - before.keys() == {"p/0.jpg.xmp", "j.jsonl"}
    assert all(after[name] == before[name] for name in before if name.endswith(".jpg"))
    mine = {"größe", "Places/Köln"} if not branch else set()
    found = tags(read(f"xmp:{tmp_path / 'p'}", nested="path", branch=branch))
    expected = {"0.jpg": {"cat", "Animals/Dog"}, "1.jpg": {"a & <b>", *mine}, "2.jpg": set()}
    assert found == expected
    if branch:  # what a person tagged is as it was, and is all that is read unless asked
        assert tags(read(f"xmp:{tmp_path / 'p'}"))["1.jpg"] == {"größe", "Köln"}
    assert convert(data, "xmp", tmp_path / "k.jsonl", branch=branch).notices[-1].startswith("0 sidecars were written")
    assert (tmp_path / "k.jsonl").read_bytes() == b""
    done = undo(tmp_path / "j.jsonl")
    assert (done.sidecars, done.new) == (2, 1)
    assert state(tmp_path) == {**before, "j.jsonl": after["j.jsonl"], "k.jsonl": b""}
    assert undo(tmp_path / "j.jsonl").sidecars == 0


def test_below_the_branch_stands_what_is_predicted_now(tmp_path):
    data = photographs(tmp_path, [[1, -1, -1]])
    (tmp_path / "p/0.xmp").write_text(DARKTABLE)
    convert(data, "xmp", tmp_path / "j.jsonl", branch="plures")
    text = (tmp_path / "p/0.xmp").read_text()
    assert "plures|old" not in text
    assert keywords_in(text.encode()) == {FLAT: ["größe"], LR: ["Places|Köln", "plures|cat"], DIGIKAM: ["plures/cat"]}
    with_old = text.replace("     <rdf:li>plures|cat</rdf:li>\n", "     <rdf:li>plures|old</rdf:li>\n")
    head, block = with_old.index('  <rdf:Description rdf:about="" xmlns:digiKam'), with_old.index(" </rdf:RDF>")
    assert with_old[:head] + with_old[block:] == DARKTABLE


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("case", OTHERS)
def test_every_other_byte_stays(case, encoding):
    content = OTHERS[case].encode(encoding)
    add = {LR: ["plures|ü", "Places|Köln"], DIGIKAM: ["plures/ü"]}
    made = edited(content, add)
    assert {name: set(add[name]) <= set(keywords_in(made)[name]) for name in add} == dict.fromkeys(add, True)
    assert len(keywords_in(made)[LR]) == len(set(keywords_in(made)[LR]))
    kept = made.decode(encoding)
    at = 0
    for letter in OTHERS[case].replace("/>", ">"):  # in this order; an empty element is opened
        at = kept.index(letter, at) + 1
    gone = edited(made, {}, lambda name, text: "ü" in text)
    assert all("ü" not in word for words in keywords_in(gone).values() for word in words)
    assert keywords_in(gone).get(FLAT) == keywords_in(content).get(FLAT)
    assert edited(made, add) == made


TEXTS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8).filter(
    lambda t: t == t.strip()
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=5, unique=True), st.lists(TEXTS, max_size=5, unique=True), st.integers(0, 2**32))
def test_any_keyword(first, second, seed):
    one = edited(EMPTY, {FLAT: first})
    both = edited(one, {FLAT: second, LR: second})
    assert keywords_in(both).get(FLAT, []) == list(dict.fromkeys([*first, *second]))
    chosen = {word for word in first if random.Random(seed).random() < 0.5}
    left = keywords_in(edited(one, {}, lambda name, text: text in chosen)).get(FLAT, [])
    assert left == [word for word in first if word not in chosen]


HOSTILE = {
    b"": "no element found",
    b"<broken": "",
    b"\xff\xfe<": "",
    DARKTABLE.replace("UTF-8", "iso-8859-1").encode("latin-1"): "encoding is iso-8859-1",
    DARKTABLE.encode("latin-1"): "",
    b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>': "DOCTYPE",
    b"<a/>": "no rdf:RDF",
    b"<a>" * 500: "nested too deeply",
    DARKTABLE.replace("<rdf:Seq>", "").replace("</rdf:Seq>", "").encode(): "not a list",
    DARKTABLE.replace('xmp:Rating="4"', 'dc:subject="cat"').encode(): "an attribute, not a list",
}


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_sidecar_that_cannot_be_edited_stops_all_or_is_left_alone(tmp_path, content):
    data = photographs(tmp_path)
    (tmp_path / "p/1.jpg.xmp").write_bytes(content)
    before = state(tmp_path)
    with pytest.raises(BadData, match=r"1\.jpg\.xmp: cannot be edited as XMP \(" + f".*{HOSTILE[content]}"):
        convert(data, "xmp", tmp_path / "j.jsonl", branch="plures")
    assert state(tmp_path) == before
    written = convert(data, "xmp", tmp_path / "j.jsonl", branch="plures", skip_bad=True)
    assert any("1.jpg.xmp: cannot be edited" in said for said in written.notices)
    assert state(tmp_path)["p/1.jpg.xmp"] == content
    assert (tmp_path / "p/0.jpg.xmp").is_file()


def test_a_new_sidecar_hides_no_keyword_of_the_photograph(tmp_path):
    data = photographs(tmp_path, [[1, -1, -1]])
    inside = edited(EMPTY, {FLAT: ["mine"], DIGIKAM: ["Places/Paris"], LR: ["Places|Paris"]})
    Image.new("RGB", (8, 6)).save(data.images[0], xmp=inside)
    convert(data, "xmp", tmp_path / "j.jsonl", branch="plures")
    found = keywords_in((tmp_path / "p/0.jpg.xmp").read_bytes())
    assert found == {LR: ["Places|Paris", "plures|cat"], DIGIKAM: ["Places/Paris", "plures/cat"]}


def test_a_sidecar_of_two_photographs_is_left_alone(tmp_path):
    data = photographs(tmp_path, [[1, -1, -1], [-1, 1, -1]])
    os.rename(data.images[1], tmp_path / "p/0.png")
    (tmp_path / "p/0.xmp").write_text(DARKTABLE)
    data = Dataset([data.images[0], str(tmp_path / "p/0.png")], data.labels, CLASSES)
    convert(data, "xmp", tmp_path / "j.jsonl", branch="plures")
    assert (tmp_path / "p/0.xmp").read_text() == DARKTABLE
    found = tags(read(f"xmp:{tmp_path / 'p'}", branch="plures", nested="path"))
    assert found == {"0.jpg": {"cat", "old"}, "0.png": {"Animals/Dog", "old"}}


def test_undo_keeps_what_another_program_wrote_since(tmp_path):
    data = photographs(tmp_path, [[1, -1, -1], [1, -1, -1], [1, -1, -1]])
    (tmp_path / "p/1.xmp").write_text(DARKTABLE)
    os.chmod(tmp_path / "p/1.xmp", 0o640)
    convert(data, "xmp", tmp_path / "deep/j.jsonl", branch="plures")
    assert os.stat(tmp_path / "p/1.xmp").st_mode & 0o777 == 0o640
    for name in ("0.jpg.xmp", "1.xmp"):
        file = tmp_path / "p" / name
        file.write_bytes(edited(file.read_bytes(), {FLAT: ["since"]}))
    (tmp_path / "p/2.jpg.xmp").write_bytes(b"broken")
    (tmp_path / "moved").mkdir()
    for folder in ("p", "deep"):  # paths start from the journal
        os.rename(tmp_path / folder, tmp_path / "moved" / folder)
    done = undo(tmp_path / "moved/deep/j.jsonl")
    assert (done.sidecars, done.new, len(done.kept)) == (2, 0, 1)
    assert keywords_in((tmp_path / "moved/p/0.jpg.xmp").read_bytes()) == {FLAT: ["since"]}
    assert keywords_in((tmp_path / "moved/p/1.xmp").read_bytes()) == {FLAT: ["größe", "since"], LR: ["Places|Köln"]}
    assert (tmp_path / "moved/p/2.jpg.xmp").read_bytes() == b"broken"


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"sidecar": "../a.txt", "before": null, "after": "x", "added": {}}',
                                  '{"sidecar": 3}', '{"sidecar": "a.xmp", "before": null, "after": "x", "added": []}',
                                  '{"sidecar": "a.xmp", "before": null, "after": "\\u0300", "added": {}}'])  # fmt: skip
def test_another_file_is_no_journal(tmp_path, line):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "j.jsonl").write_text(line + "\n")
    with pytest.raises(PluresError, match=r"j\.jsonl, line 1: not a journal of sidecars"):
        undo(tmp_path / "j.jsonl")
    assert (tmp_path / "a.txt").read_text() == "x"


@pytest.mark.parametrize(("classes", "what"), [(("a|b",), "'|' parts keywords"), (("/",), "cannot be a keyword"),
                                               (("a\nb",), "cannot be a keyword")])  # fmt: skip
def test_names_that_no_keyword_can_hold(tmp_path, classes, what):
    data = photographs(tmp_path)
    data = Dataset(data.images, Labels(np.ones((3, 1), np.int8)), classes)
    with pytest.raises(PluresError, match=re.escape(what)):
        convert(data, "xmp", tmp_path / "j.jsonl")
    assert not list(tmp_path.rglob("*.xmp"))


def test_the_commands(tmp_path, plures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path)
    (tmp_path / "p/1.xmp").write_text(DARKTABLE)
    run = Run.create("run", Experiment(backbone={"name": "small_conv", "image_size": 16}, device="cpu"))
    save(build_model("small_conv", "codebook", ("cat", "dog"), {"image_size": 16}), run.path)
    before = state(tmp_path)
    word = ("predict", "run", "p", "--to", "xmp", "--threshold", "0.01", "--out", "j.jsonl")
    code, out, err = plures(*word, "--dry-run")
    assert (code, out) == (0, "j.jsonl: 3 images, 2.00 tags per image\n")
    assert "3 sidecars would be written, 2 of them new, with 6 more keywords below plures/" in err
    assert state(tmp_path) == before
    assert plures(*word)[0] == 0
    assert tags(read("xmp:p", branch="plures"))["1.jpg"] == {"cat", "dog"}
    code, _, err = plures(*word, "--force")
    assert (code, err.split(";")[:2]) == (
        2,
        ["plures: j.jsonl is there already", " a journal is never replaced, as it alone can undo"],
    )
    assert plures("undo", "j.jsonl")[:2] == (0, "3 sidecars are as they were, 2 of them removed\n")
    assert state(tmp_path) == {**before, "j.jsonl": Path("j.jsonl").read_bytes()}
    for form, name in (("label-studio", "l.json"), ("fiftyone", "f.json"), ("coco", "c.json"), ("cvat", "c.xml")):
        assert plures("predict", "run", "p", "--to", form, "--threshold", "0.01", "--out", name)[0] == 0
        options = {} if form == "coco" else {"images": "p"}
        options |= {"predictions": True} if form == "label-studio" else {}
        assert tags(read(name, **options)) == {f"{n}.jpg": {"cat", "dog"} for n in range(3)}
    assert Path("c.json").read_text().count('"score": 0.') == 6
    for wrong, what in (
        (("--to", "table", "--out", "t.csv"), "predictions are written as a table without --to"),
        (("--to", "xmp", "--out", "t.csv"), "--out t.csv: --to xmp writes a journal that ends in .jsonl"),
        (("--to", "coco", "--out", "t.json", "--dry-run"), "--branch and --dry-run are of --to xmp, which edits"),
        (("--to", "coco", "--out", "t.json", "--parts", "3"), "--to writes one file; leave out --heatmaps"),
        (("--out", "t.csv", "--branch", "x"), "--branch and --dry-run are of --to xmp"),
        (("--to", "xmp", "--out", "t.jsonl", "--branch", "a|b"), "class 'a|b' cannot be a keyword"),
    ):
        code, _, err = plures("predict", "run", "p", *wrong)
        assert (code, err.count("\n"), what in err) == (2, 1, True), err
