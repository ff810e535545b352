"""What an answer changes in a table: its cell, and nothing else; what a hand has set meanwhile stays."""

import os
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi", reason='the pages need the web packages: pip install "plures[web]"')

from fastapi.testclient import TestClient

from plures import read
from plures.data.dataset import formats
from plures.errors import PluresError, WorkFailed
from plures.labels import ABSENT, PRESENT, UNKNOWN
from plures.web.decisions import Decision, Decisions
from plures.web.journal import journal_of
from plures.web.review import Review, create_app, options_of_run
from plures.web.table_edit import open_table


@pytest.fixture
def photos(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def ask(folder: Path, *cells: tuple[str, str]) -> Path:
    """A file of suggestions."""
    file = folder / "ask.csv"
    file.write_text("image,tag,score\n" + "".join(f'{image},"{tag}",0.9\n' for image, tag in cells))
    return file


def client_of(review: Review) -> TestClient:
    return TestClient(create_app(review), base_url="http://localhost")


def post(client, number, question, answer, version=0, id="a", **more):
    decision = {"id": id, "question": number, "answers": {question.tag: answer}, "versions": {question.tag: version}}
    return client.post("/api/decisions", json={"tab": "t", "decisions": [{**decision, **more}]})


def answered(table: Path, *cells: tuple[str, str, str], **options) -> bytes:
    """The table after these answers (image, tag, answer) through the page."""
    review = Review(table, ask(table.parent, *[cell[:2] for cell in cells]), options=options)
    try:
        for n, (_, _, answer) in enumerate(cells):
            told = post(client_of(review), n, review.questions[n], answer, id=f"a{n}")
            assert told.status_code == 200, told.text
            assert told.json()[0]["status"] == "kept"
        return table.read_bytes()  # as it is at the answer, not at the end
    finally:
        review.close()


# ------------------------------------------------------------------------------------------------------ text, to a byte

words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=["Cs", "Cc"]), max_size=6)
texts = st.one_of(words, st.sampled_from(['say "so"', "a,b", "a;b", "a|b", " x ", '"', "0", "é\u2028"]))


@st.composite
def tables(draw):
    """A table of text as bytes with its reader's options, and the places of its cells: rows of (before, cell) bytes."""
    delimiter, separator = draw(st.sampled_from([(",", ";"), (";", "|"), ("\t", ", "), ("|", "/"), (",", "##")]))
    by_class = draw(st.booleans())
    names = ["image", "note", *(["cat", "dog"] if by_class else ["tags", "absent"])]
    names = draw(st.permutations(names))
    count = draw(st.integers(1, 4))

    def written(text: str, force: bool) -> str:
        quoted = force or text.startswith('"') or any(mark in text for mark in (delimiter, '"'))
        return '"' + text.replace('"', '""') + '"' if quoted else text

    def cell(name: str, row: int) -> str:
        if name == "image":
            return f"{row}.png"
        if name == "note":
            return draw(texts)
        if by_class:
            return draw(st.sampled_from(["", "1", "0", "1.0"]))
        some = {"tags": ["cat", "dog", "ein Hund"], "absent": ["cow", "hen", "ö"]}[name]
        return separator.join(draw(st.lists(st.sampled_from(some), max_size=3)))

    rows = [[written(cell(name, row), draw(st.booleans())) for name in names] for row in range(count)]
    ends = [draw(st.sampled_from(["\n", "\r\n"])) for _ in range(count + 1)]
    if draw(st.booleans()):
        ends[-1] = ""
    header = [draw(st.sampled_from(["", " "])) * (place > 0) + name for place, name in enumerate(names)]
    if by_class:
        columns = [name for name in names if name in ("cat", "dog", "note")]
        rows = [[("1" if name == "note" else c) for name, c in zip(names, row, strict=True)] for row in rows]
        tags = columns
    else:
        tags = ["cat", "dog", "new ß", f'x{delimiter}"y"']
    bom = draw(st.sampled_from(["", "\ufeff"]))
    options = {"delimiter": delimiter, "separator": separator}
    return bom, header, rows, ends, options, tags


@settings(max_examples=80, deadline=None)
@given(data=st.data(), table=tables())
def test_only_the_answered_cells_change(data, table, tmp_path_factory):
    bom, header, rows, ends, options, tags = table
    delimiter = options["delimiter"]
    folder = tmp_path_factory.mktemp("table")
    for row in range(len(rows)):
        (folder / f"{row}.png").touch()
    file = folder / "t.csv"
    lines = [delimiter.join(cells) + end for cells, end in zip([header, *rows], ends, strict=True)]
    file.write_bytes((bom + "".join(lines)).encode())
    row, tag = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(tags))
    code = data.draw(st.sampled_from([PRESENT, ABSENT, UNKNOWN]))
    before = read(str(file), labelled=False, **options)

    editable = open_table(file, formats.make("table", **options))
    editable.set(f"{row}.png", tag, code)
    editable.write()
    if code_in(before, row, tag) == code:
        assert file.read_bytes() == (bom + "".join(lines)).encode()

    names = [name.strip() for name in header]
    touched = {names.index(name) for name in ({tag} if tag in names else {"tags", "absent"})}
    after = file.read_bytes().decode()
    assert after.startswith(bom + lines[0])
    kept = after.removeprefix(bom + lines[0])
    for number, (cells, line) in enumerate(zip(rows, lines[1:], strict=True)):
        if number != row:
            assert kept.startswith(line)
            kept = kept.removeprefix(line)
            continue
        for place, cell in enumerate(cells):  # of the row itself, all before, between and after the touched cells
            if place in touched:
                quoted = '"' + cell[1:] if cell.startswith('"') else ""
                length = len(next_cell(kept, delimiter))
                assert bool(quoted) <= kept.startswith('"')  # what was quoted stays quoted
                kept = kept[length:]
            else:
                assert kept.startswith(cell)
                kept = kept.removeprefix(cell)
            end = delimiter if place < len(cells) - 1 else ends[number + 1]
            assert kept.startswith(end)
            kept = kept.removeprefix(end)
    assert kept == ""
    found = read(str(file), labelled=False, **options)
    for name in sorted({*before.classes, *found.classes}):
        for r in range(len(rows)):
            wanted = code if (r, name) == (row, tag) else code_in(before, r, name)
            assert code_in(found, r, name) == wanted, (r, name)


def next_cell(text: str, delimiter: str) -> str:
    """The first cell, found a character at a time."""
    inside, at = text.startswith('"'), 0
    while at < len(text):
        if inside and at and text[at] == '"':
            if text[at + 1 : at + 2] == '"':
                at += 1
            else:
                inside = False
        elif not inside and text[at] in f"{delimiter}\r\n":
            break
        at += 1
    return text[:at]


def code_in(dataset, row, name):
    return int(dataset.labels.values[row, dataset.classes.index(name)]) if name in dataset.classes else UNKNOWN


def test_a_new_column_keeps_bom_and_line_ends(photos):
    table = photos / "t.csv"
    table.write_bytes(b'\xef\xbb\xbf"image", tags ,note\r\n0.png,"cat; dog","a ""b"""\n1.png,,\r\n2.png,dog,z')
    after = answered(table, ("0.png", "cow", "yes"), ("1.png", "cat", "no"))
    assert after == (
        b'\xef\xbb\xbf"image", tags ,note,absent\r\n0.png,"cat; dog; cow","a ""b""",\n1.png,,,cat\r\n2.png,dog,z,'
    )


def test_undo_gives_back_every_byte(photos):
    table = photos / "t.csv"
    before = b'image,tags,absent,split\r\n0.png,"cat;dog",,test\n1.png,dog,cat,'
    table.write_bytes(before)
    review = Review(table, ask(photos, ("1.png", "cow")))
    client = client_of(review)
    assert post(client, 0, review.questions[0], "yes").json()[0]["status"] == "kept"
    assert table.read_bytes() == before.replace(b"1.png,dog", b"1.png,dog;cow")
    assert client.post("/api/undo", json={"tab": "t", "id": "u"}).json()[0]["status"] == "kept"
    assert table.read_bytes() == before
    review.close()


def test_a_cell_of_any_length(photos):
    table = photos / "t.csv"
    long = "x" * 300_000
    table.write_text(f'image,tags,note\n0.png,cat,"{long}"\n')
    assert answered(table, ("0.png", "dog", "yes")).decode() == f'image,tags,note\n0.png,cat;dog,"{long}"\n'


def test_a_link_stays_a_link_and_the_file_keeps_its_mode(photos):
    (photos / "real").mkdir()
    real, table = photos / "real" / "labels.csv", photos / "t.csv"
    real.write_text("image,tags\n0.png,cat\n")
    real.chmod(0o664)
    table.symlink_to(Path("real") / "labels.csv")
    if os.getuid() == 0:
        os.chown(real, 1234, 2345)
    answered(table, ("0.png", "dog", "yes"))
    assert table.is_symlink()
    assert real.read_text() == "image,tags\n0.png,cat;dog\n"
    assert real.stat().st_mode & 0o7777 == 0o664
    if os.getuid() == 0:
        assert (real.stat().st_uid, real.stat().st_gid) == (1234, 2345)


def test_a_table_whose_owner_would_change_is_refused_before_the_page_opens(photos, monkeypatch):
    table = photos / "t.csv"
    table.write_text("image,tags\n0.png,cat\n")

    def denied(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", denied)
    if os.getuid() != 0:
        pytest.skip("another owner can be simulated by root alone")
    real = os.lchown
    real(table, 1234, 2345)
    with pytest.raises(WorkFailed, match="belongs to another user or group"):
        Review(table, ask(photos, ("0.png", "dog")))


# ------------------------------------------------------------------------------------------------- separators and lists


def test_the_separator_of_the_run(photos):
    table = photos / "t.csv"
    table.write_text("image,tags\n0.png,sunset\n1.png,sunset|trees\n2.png,trees\n")
    after = answered(table, ("0.png", "trees", "yes"), separator="|")
    assert after == b"image,tags\n0.png,sunset|trees\n1.png,sunset|trees\n2.png,trees\n"
    with pytest.raises(PluresError, match=r"'sunset\|trees' looks like tags divided by '\|'.*data.separator='\|'"):
        Review(table, ask(photos, ("0.png", "trees")))
    Review(table, ask(photos, ("0.png", "trees")), options={"separator": ";"}).close()


def test_options_are_those_of_the_run_if_the_table_is_its_own(photos, monkeypatch):
    (photos / "t.csv").write_text("image,tags\n0.png,cat\n")
    (photos / "other.csv").write_text("image,tags\n0.png,cat\n")
    run = photos / "run"
    run.mkdir()
    (run / "experiment.yaml").write_text(f"data: {{name: {photos / 't.csv'}, separator: '|'}}\n")
    monkeypatch.chdir(photos)
    assert options_of_run(run, Path("t.csv")) == {"separator": "|"}
    assert options_of_run(run, photos / "other.csv") == {}


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_lists_of_parquet_are_written_as_lists(photos, kind):
    table = photos / "t.parquet"
    content = pa.table(
        {
            "n": pa.array([1, None, 3], pa.int64()),
            "tags": pa.array([["cat"], None, []], kind),
            "image": ["0.png", "1.png", "2.png"],
        }
    ).replace_schema_metadata({"who": "me"})
    pq.write_table(content, table, compression="zstd", row_group_size=2)
    answered(table, ("1.png", "a;b", "yes"), ("0.png", "dog", "yes"), ("0.png", "cow", "no"))
    file = pq.ParquetFile(table)
    after = file.read()
    assert after.column("tags").type == kind
    assert after.column("tags").to_pylist() == [["cat", "dog"], ["a;b"], []]
    assert after.column("absent").type == kind
    assert after.column("absent").to_pylist() == [["cow"], [], []]
    assert after.column_names == ["n", "tags", "image", "absent"]
    assert after.column("n").equals(content.column("n"))
    assert after.schema.metadata[b"who"] == b"me"
    assert (file.metadata.num_row_groups, file.metadata.row_group(0).column(0).compression) == (2, "ZSTD")
    assert code_in(read(str(table)), 1, "a;b") == PRESENT


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.null()])
def test_class_columns_keep_their_type(photos, kind):
    table = photos / "t.parquet"
    pq.write_table(pa.table({"image": ["0.png", "1.png"], "cat": pa.array([None, None], kind)}), table)
    answered(table, ("0.png", "cat", "yes"), ("1.png", "cat", "no"))
    after = pq.read_table(table).column("cat")
    assert after.type == (pa.int8() if kind == pa.null() else kind)
    assert [str(float(v)) for v in after.to_pylist()] == ["1.0", "0.0"]


def test_columns_that_cannot_be_written_are_refused_before_the_page_opens(photos):
    table = photos / "t.parquet"
    kind = pa.dictionary(pa.int8(), pa.list_(pa.string()))
    tags = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), pa.array([["cat"]], kind.value_type))
    try:
        pq.write_table(pa.table({"image": ["0.png"], "tags": tags}), table)
    except pa.ArrowException:
        pq.write_table(pa.table({"image": ["0.png"], "tags": pa.array([{"a": "cat"}])}), table)
    with pytest.raises(PluresError, match=r"column 'tags' is of type .*cannot be written"):
        Review(table, ask(photos, ("0.png", "dog")))


def test_a_tag_that_holds_the_separator_is_refused_or_has_a_column(photos):
    table = photos / "t.csv"
    table.write_text("image,tags\n0.png,cat\n")
    with pytest.raises(PluresError, match="tag 'a;b' contains ';'"):
        Review(table, ask(photos, ("0.png", "a;b")))
    assert table.read_text() == "image,tags\n0.png,cat\n"
    table.write_text("image,a;b\n0.png,\n")
    journal_of(table).unlink()
    assert answered(table, ("0.png", "a;b", "yes"), delimiter=",") == b"image,a;b\n0.png,1\n"
    with pytest.raises(PluresError, match="class 'dog' has no column"):
        Review(table, ask(photos, ("0.png", "dog")), options={"delimiter": ","})


def test_a_complete_table_has_no_need_of_a_column_for_the_absent(photos):
    table = photos / "t.csv"
    table.write_text("image,tags\n0.png,cat;dog\n1.png,dog\n")
    after = answered(table, ("0.png", "cat", "no"), ("1.png", "cat", "yes"), complete=True)
    assert after == b"image,tags\n0.png,dog\n1.png,dog;cat\n"


# -------------------------------------------------------------------------------------------------- by hand, meanwhile


@pytest.fixture
def asked(photos):
    """A review of four questions, and its client."""
    table = photos / "t.csv"
    table.write_text("image,tags\n0.png,cat\n1.png,\n2.png,cow\n")
    review = Review(table, ask(photos, ("0.png", "dog"), ("1.png", "dog"), ("2.png", "dog"), ("1.png", "cat")))
    yield review, client_of(review), table
    review.close()


@pytest.mark.parametrize("answer", ["unsure", "no", "yes"])
def test_an_answer_does_not_overrule_a_hand(asked, answer):
    review, client, table = asked
    edited = "image,tags\n0.png,cat;dog\n1.png,\n2.png,cow\n" if answer != "yes" else None
    edited = edited or "image,tags,absent\n0.png,cat,dog\n1.png,,\n2.png,cow,\n"
    table.write_text(edited)
    told = post(client, 0, review.questions[0], answer).json()[0]
    assert told["status"] == "conflict"
    assert told["cells"]["dog"]["by_hand"]
    assert told["cells"]["dog"]["code"] == (PRESENT if answer != "yes" else ABSENT)
    assert table.read_text() == edited
    again = client.get("/api/items").json()[0]  # it is asked again, with what the table says now
    assert (again["question"], again["version"], again["code"]) == (0, 1, told["cells"]["dog"]["code"])
    assert post(client, 0, review.questions[0], "no", version=1, id="b").json()[0]["status"] == "kept"
    assert "0.png,cat,dog" in table.read_text()


@pytest.mark.parametrize("first", ["unsure", "yes", "no"])
def test_undo_does_not_delete_what_a_hand_has_set(asked, first):
    review, client, table = asked
    post(client, 0, review.questions[0], first)
    by_hand = "image,tags\n0.png,cat;dog\n1.png,hen\n2.png,cow\n"
    if first == "yes":
        by_hand = "image,tags,absent\n0.png,cat,dog\n1.png,hen,\n2.png,cow,\n"
    table.write_text(by_hand)
    told = client.post("/api/undo", json={"tab": "t", "id": "u"}).json()[0]
    assert told["status"] == "conflict"
    assert told["cells"]["dog"]["by_hand"]
    assert table.read_text() == by_hand


def test_a_hand_elsewhere_in_the_table_is_no_conflict(asked):
    review, client, table = asked
    table.write_text("image,tags\n2.png,cow;hen\n0.png,cat\n1.png,new\n")
    assert post(client, 0, review.questions[0], "yes").json()[0]["status"] == "kept"
    assert table.read_text() == "image,tags\n2.png,cow;hen\n0.png,cat;dog\n1.png,new\n"


def test_a_hand_between_two_reviews_stays(asked):
    review, client, table = asked
    post(client, 0, review.questions[0], "yes")
    review.close()
    table.write_text("image,tags\n0.png,cat\n1.png,\n2.png,cow\n")  # somebody takes it out again
    again = Review(table, table.parent / "ask.csv")
    told = client_of(again).post("/api/undo", json={"tab": "t", "id": "u"}).json()[0]
    assert told["status"] == "conflict"
    assert client_of(again).get("/api/items").json()[0]["code"] == UNKNOWN
    again.close()
    assert table.read_text() == "image,tags\n0.png,cat\n1.png,\n2.png,cow\n"
    review.decisions.journal = again.decisions.journal  # closed once more by the fixture
    review.decisions.journal._file = os.open(os.devnull, os.O_RDONLY)


def test_a_hand_after_a_kill_stays(photos):
    """The decision is in the journal, the table was not written; then somebody sets another value."""
    table = photos / "t.csv"
    table.write_text("image,tags\n0.png,cat\n1.png,\n")
    d = Decisions(table)
    d.keep([Decision(str(n), f"{n}.png", {"dog": "yes"}, {"dog": 0}) for n in range(2)], "t")
    d.journal.close()
    table.write_text("image,tags,absent\n0.png,cat,dog\n1.png,,\n")
    again = Decisions(table)
    assert again.cell("0.png", "dog").by_hand
    again.close()
    assert table.read_text() == "image,tags,absent\n0.png,cat,dog\n1.png,dog,\n"


def test_a_split_set_by_hand_stays(photos):
    table = photos / "t.csv"
    table.write_text("image,tags,split\n0.png,cat,train\n1.png,dog,test\n")
    review = Review(table, sample=5)
    client = client_of(review)
    table.write_text("image,tags,split\n0.png,cat,test\n1.png,dog,test\n")
    decision = {"id": "a", "row": 0, "answers": {}, "rest": "no", "versions": {"cat": 0, "dog": 0}}
    told = client.post("/api/decisions", json={"tab": "t", "decisions": [decision]}).json()[0]
    assert told["status"] == "conflict"
    assert table.read_text() == "image,tags,split\n0.png,cat,test\n1.png,dog,test\n"
    review.close()


def test_a_row_or_table_that_is_gone_is_an_error(asked):
    review, client, table = asked
    text = table.read_text()
    table.write_text("image,tags\n1.png,\n2.png,cow\n")
    told = post(client, 0, review.questions[0], "yes")
    assert told.status_code == 400
    assert "'0.png' is no longer in t.csv" in told.json()["detail"]
    table.unlink()
    told = post(client, 1, review.questions[1], "yes")
    assert told.status_code == 507
    assert "the table is gone" in told.json()["detail"]
    table.write_text(text)
    assert post(client, 1, review.questions[1], "yes").json()[0]["status"] == "kept"
    assert "1.png,dog" in table.read_text()


def test_what_cannot_be_written_is_not_acknowledged(asked, monkeypatch):
    review, client, table = asked
    with monkeypatch.context() as m:
        m.setattr("plures.web.table_edit.TextTable._save", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
        told = post(client, 0, review.questions[0], "yes")
        assert told.status_code == 507
        assert "the disk is full" in told.json()["detail"]
        assert "the disk is full" in client.get("/api/state").json()["failure"]
    assert post(client, 0, review.questions[0], "yes").json()[0]["status"] == "repeated"  # sent again: written now
    assert table.read_text() == "image,tags\n0.png,cat;dog\n1.png,\n2.png,cow\n"


def test_what_does_not_read_back_is_not_acknowledged(asked, monkeypatch):
    review, client, _ = asked
    with monkeypatch.context() as m:
        m.setattr("plures.web.table_edit.TextTable._save", lambda self, file: file.write_bytes(b"image,tags\n"))
        told = post(client, 0, review.questions[0], "yes")
    assert told.status_code == 507
    assert "does not read back" in told.json()["detail"]


# ------------------------------------------------------------------------------------------------ what the page is told


def test_undo_takes_a_batch_back(asked):
    review, client, table = asked
    before = table.read_bytes()
    post(client, 3, review.questions[3], "yes", id="z")
    one = table.read_bytes()
    for n in range(3):
        post(client, n, review.questions[n], "yes", id=f"b{n}", batch="grid")
    told = client.post("/api/undo", json={"tab": "t", "id": "u"}).json()
    assert [(o["status"], o["image"]) for o in told] == [("kept", "2.png"), ("kept", "1.png"), ("kept", "0.png")]
    assert table.read_bytes() == one
    client.post("/api/undo", json={"tab": "t", "id": "v"})
    assert table.read_bytes() == before
    assert client.post("/api/undo", json={"tab": "t", "id": "w"}).json()[0]["status"] == "nothing"


def test_of_a_batch_what_another_has_changed_stays(asked):
    review, client, table = asked
    for n in range(3):
        post(client, n, review.questions[n], "yes", id=f"b{n}", batch="grid")
    table.write_text(table.read_text().replace("1.png,dog", "1.png,"))
    told = client.post("/api/undo", json={"tab": "t", "id": "u"}).json()
    assert {o["image"]: o["status"] for o in told} == {"0.png": "kept", "1.png": "conflict", "2.png": "kept"}
    assert table.read_text() == "image,tags\n0.png,cat\n1.png,\n2.png,cow\n"


def test_the_rest_is_absent_except_what_is_known(photos):
    table = photos / "t.csv"
    table.write_text("image,cat,cow,dog,hen\n0.png,1,0,,\n")
    review = Review(table, sample=1)
    client = client_of(review)
    image = client.get("/api/items").json()[0]
    versions = {t["tag"]: t["version"] for t in image["tags"]}
    assert [t["tag"] for t in image["tags"]] == ["cat", "cow", "dog", "hen"]  # the known ones first
    decision = {"id": "a", "row": 0, "answers": {"hen": "unsure"}, "rest": "no", "versions": versions}
    client.post("/api/decisions", json={"tab": "t", "decisions": [decision]})
    review.close()
    assert table.read_text() == "image,cat,cow,dog,hen,split\n0.png,1,0,0,,val\n"


def test_first_tags_go_into_the_table_one_by_one(photos):
    table = photos / "t.csv"
    table.write_bytes(b"image,tags\r\n0.png,\r\n1.png,cat\r\n2.png,")
    review = Review(table)
    client = client_of(review)
    assert [item["row"] for item in client.get("/api/items").json()] == [0, 2]
    assert [item["row"] for item in client.get("/api/items?after=0").json()] == [2]
    assert client.get("/api/state").json()["classes"] == [{"tag": "cat", "total": 1}]

    def tell(id, row, tag, answer, version):
        decision = {"id": id, "row": row, "answers": {tag: answer}, "versions": {tag: version}}
        return client.post("/api/decisions", json={"tab": "t", "decisions": [decision]})

    assert tell("a", 0, "new one", "yes", 0).json()[0]["status"] == "kept"
    assert tell("b", 2, "cat", "yes", 0).json()[0]["status"] == "kept"
    assert table.read_bytes() == b"image,tags\r\n0.png,new one\r\n1.png,cat\r\n2.png,cat"
    state = client.get("/api/state").json()
    assert (state["done"], state["total"], state["mode"]) == (2, 2, "tagging")
    assert tell("c", 2, "cat", "clear", 1).json()[0]["status"] == "kept"
    assert table.read_bytes() == b"image,tags\r\n0.png,new one\r\n1.png,cat\r\n2.png,"
    for bad in ((1, "cat", "yes"), (2, "cat", "no"), (2, "a;b", "yes"), (2, " ", "yes"), (2, "a\nb", "yes")):
        assert tell("d", *bad, 0).status_code == 400
    assert table.read_bytes() == b"image,tags\r\n0.png,new one\r\n1.png,cat\r\n2.png,"
    assert client.post("/api/undo", json={"tab": "t", "id": "u"}).json()[0]["status"] == "kept"
    assert client.get("/api/state").json()["classes"] == [{"tag": "cat", "total": 2}, {"tag": "new one", "total": 1}]
    assert client.get("/api/state").json()["done"] == 2
    assert client.post("/api/undo", json={"tab": "t", "id": "v"}).json()[0]["status"] == "kept"
    assert client.get("/api/state").json()["classes"] == [{"tag": "cat", "total": 1}, {"tag": "new one", "total": 1}]
    assert client.get("/api/state").json()["done"] == 1
    review.close()
    again = Review(table)
    assert again.untagged == [2]
    again.close()
    table.write_text("image,tags\n0.png,cat\n")
    with pytest.raises(PluresError, match=r"every image has a tag; say what to ask.*--sample 200"):
        Review(table)


@pytest.mark.parametrize("number", ["NaN", "1e400", "-Infinity", "1" * 5000, '"\\ud800"', "[[]]"])
def test_numbers_that_are_none_are_a_clear_refusal(asked, number):
    _, client, _ = asked
    body = '{"tab": "t", "decisions": [{"id": "a", "question": %s, "answers": {"dog": "yes"}, "versions": {"dog": 0}}]}'
    for content in (body % number, body.replace('"t"', "%s") % (number, "0"), number):
        told = client.post("/api/decisions", content=content, headers={"content-type": "application/json"})
        assert told.status_code in (400, 422), told.text
        assert isinstance(told.json()["detail"], str)


def test_names_that_are_no_text(photos):
    name = os.fsdecode(b"caf\xe9.png")
    (photos / "0.png").rename(photos / name)
    table = photos / "t.csv"
    table.write_text("image,tags\n1.png,cat\n")
    review = Review(table, ask(photos, ("1.png", "dog")))
    review.questions[0] = type(review.questions[0])(0, 0, name, "dog", "missing", 0.5)
    assert client_of(review).get("/api/items").json()[0]["image"] == name
    review.close()


def test_a_taken_port_is_one_line(photos, plures):
    (photos / "t.csv").write_text("image,tags\n0.png,cat\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = plures("review", str(photos / "t.csv"), str(ask(photos, ("0.png", "dog"))), "--port", port)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"cannot listen on 127.0.0.1, port {port} (Address already in use)" in err
    assert not journal_of(photos / "t.csv").exists()


def test_any_free_port_is_said_and_options_are_taken(photos, plures, monkeypatch):
    (photos / "t.csv").write_text("image,tags\n0.png,cat|dog\n")
    ports = []

    def run(server, sockets):
        ports.append(sockets[0].getsockname()[1])
        with TestClient(server.config.app, base_url="http://localhost") as client:
            question = client.get("/api/items").json()[0]
            decision = {"id": "a", "question": 0, "answers": {"cow": "yes"}, "versions": {"cow": question["version"]}}
            client.post("/api/decisions", json={"tab": "t", "decisions": [decision]})

    monkeypatch.setattr("uvicorn.Server.run", run)
    file = ask(photos, ("0.png", "cow"))
    code, out, err = plures("review", str(photos / "t.csv"), str(file), "data.separator=|", "--port", "0")
    assert (code, err) == (0, f"next: plures train {photos / 't.csv'} 'data.separator=|' --out runs/first\n")
    assert ports[0] > 0
    assert f"open http://localhost:{ports[0]}/" in out
    assert (photos / "t.csv").read_text() == "image,tags\n0.png,cat|dog|cow\n"
    code, _, err = plures("review", str(photos / "t.csv"), str(file), "data.separater=x")
    assert code == 2
    assert "did you mean 'separator'" in err
    code, _, err = plures("review", str(photos / "t.csv"), str(file), "more.csv")
    assert (code, "one file of suggestions at a time" in err) == (2, True)
