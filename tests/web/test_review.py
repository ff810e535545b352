"""Reviewing: the journal is the truth, the table follows, nothing else in it changes, and nobody else gets in."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason='the pages need the web packages: pip install "plures[web]"')

from fastapi.testclient import TestClient

from plures import read
from plures.errors import BadData, PluresError, WorkFailed
from plures.labels import ABSENT, PRESENT, UNKNOWN
from plures.web.decisions import Decision, Decisions
from plures.web.journal import journal_of
from plures.web.review import Review, Told, Undo, create_app

TAGS = ["cat", "dog", "cow", "", "cat;dog", "cow"]


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, delimiter=delimiter).writerows(rows)


@pytest.fixture
def table(tmp_path):
    """Six photos with tags, a column that plures does not know, and nine suggestions."""
    for i in range(6):
        Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    note = 'said "so", twice'
    rows = [["image", "tags", "note"], *([f"{i}.png", tags, note] for i, tags in enumerate(TAGS))]
    write_csv(tmp_path / "tags.csv", rows)
    cells = [(3, "cat"), (3, "dog"), (0, "dog"), (0, "cow"), (1, "cat"), (2, "cat"), (5, "dog"), (1, "cow")]
    lines = [[f"{i}.png", tag, "missing", 0.9, n, "model", ""] for n, (i, tag) in enumerate(cells, 1)]
    lines.append(["4.png", "dog", "wrong", 0.8, 1, "model", "heat/4.png"])
    (tmp_path / "heat").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "heat" / "4.png")
    head = ["image", "tag", "kind", "score", "rank", "method", "heatmap"]
    write_csv(tmp_path / "review.csv", [head, *map(list, lines)])
    return tmp_path / "tags.csv"


@pytest.fixture
def opened():
    """Opens things that must be closed."""
    things = []
    yield lambda thing: things.append(thing) or thing
    for thing in things:
        thing.close()


def code_of(table: Path, image: str, tag: str) -> int:
    dataset = read(str(table))
    row = [Path(str(i)).name for i in dataset.images].index(image)
    return int(dataset.labels.values[row, dataset.classes.index(tag)]) if tag in dataset.classes else UNKNOWN


def one(id: str, image: str, tag: str, answer: str, version: int = 0) -> Decision:
    return Decision(id, image, {tag: answer}, {tag: version})


# ------------------------------------------------------------------------------------------------ journal and table


def test_answers_reach_the_table_and_nothing_else_changes(table, opened):
    before = pd.read_csv(table, dtype=str, keep_default_na=False)
    d = opened(Decisions(table))
    d.keep([one("a", "3.png", "cat", "yes"), one("b", "0.png", "cow", "no"), one("c", "0.png", "dog", "unsure")], "t")
    d.flush()
    after = pd.read_csv(table, dtype=str, keep_default_na=False)
    assert after["image"].tolist() == before["image"].tolist()
    assert after["note"].tolist() == before["note"].tolist()
    assert after["tags"].tolist() == ["cat", "dog", "cow", "cat", "cat;dog", "cow"]
    assert after["absent"].tolist() == ["cow", "", "", "", "", ""]
    assert [code_of(table, "0.png", tag) for tag in ("cat", "dog", "cow")] == [PRESENT, UNKNOWN, ABSENT]


def test_a_decision_is_on_the_disk_before_it_is_acknowledged(table, opened, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(journal_of(table).stat().st_size), real(handle)))
    d = opened(Decisions(table))
    d.keep([one("a", "3.png", "cat", "yes")], "t")
    line = json.loads(journal_of(table).read_text().splitlines()[-1])
    assert line["image"] == "3.png"
    assert line["answers"] == {"cat": "yes"}
    assert synced[-1] == journal_of(table).stat().st_size
    assert code_of(table, "3.png", "cat") == UNKNOWN  # the table follows


def killed(table: Path) -> Decisions:
    """A review whose process ended without a word: only the journal's file is left."""
    return Decisions(table)


def test_a_kill_loses_nothing(table, opened):
    d = killed(table)
    d.keep([one("a", "3.png", "cat", "yes"), one("b", "3.png", "dog", "no")], "t")
    d.undo("t", "u")
    d.journal.close()
    assert code_of(table, "3.png", "cat") == UNKNOWN
    again = opened(Decisions(table))
    assert code_of(table, "3.png", "cat") == PRESENT
    assert code_of(table, "3.png", "dog") == UNKNOWN
    assert again.cell("3.png", "cat").answer == "yes"
    assert again.cell("3.png", "dog").answer == ""
    assert again.cell("3.png", "dog").version == 2


def test_a_torn_last_line_was_never_acknowledged(table, opened):
    d = killed(table)
    d.keep([one("a", "3.png", "cat", "yes")], "t")
    d.journal.close()
    with journal_of(table).open("a") as handle:
        handle.write('{"id":"b","tab":"t","image":"3.png","answ')
    again = opened(Decisions(table))
    assert code_of(table, "3.png", "cat") == PRESENT
    assert again.keep([one("b", "3.png", "dog", "yes")], "t")[0].status == "kept"


def test_a_broken_line_in_the_middle_is_named(table):
    journal_of(table).write_text('{"written":0}\nnonsense\n{"written":1}\n')
    with pytest.raises(PluresError, match="line 2"):
        Decisions(table)


def test_what_was_edited_by_hand_afterwards_stays(table, opened):
    d = Decisions(table)
    d.keep([one("a", "3.png", "cat", "yes")], "t")
    d.close()
    text = table.read_text().replace("3.png,cat", "3.png,dog")
    table.write_text(text)
    again = opened(Decisions(table))
    again.keep([one("b", "5.png", "dog", "yes")], "t")
    again.flush()
    assert [code_of(table, "3.png", tag) for tag in ("cat", "dog")] == [UNKNOWN, PRESENT]
    assert code_of(table, "5.png", "dog") == PRESENT


def test_of_two_tabs_the_second_is_told(table, opened):
    d = opened(Decisions(table))
    assert d.keep([one("a", "3.png", "cat", "yes")], "one")[0].status == "kept"
    outcome = d.keep([one("b", "3.png", "cat", "no")], "two")[0]
    assert outcome.status == "conflict"
    assert outcome.cells["cat"].answer == "yes"
    assert d.keep([one("c", "3.png", "cat", "no", version=1)], "two")[0].status == "kept"  # it has seen the first
    assert d.undo("one", "u")[0].status == "conflict"
    d.flush()
    assert code_of(table, "3.png", "cat") == ABSENT


def test_a_decision_sent_twice_counts_once(table, opened):
    d = opened(Decisions(table))
    twice = [one("a", "3.png", "cat", "yes")]
    assert [d.keep(twice, "t")[0].status for _ in range(2)] == ["kept", "repeated"]
    assert d.cell("3.png", "cat").version == 1
    assert [d.undo("t", id)[0].status for id in "uuv"] == ["kept", "repeated", "nothing"]


def test_undo_puts_back_what_the_table_said(table, opened):
    d = opened(Review(table, table.parent / "review.csv")).decisions
    d.keep([one("a", "4.png", "dog", "no")], "t")
    d.flush()
    assert code_of(table, "4.png", "dog") == ABSENT
    d.undo("t", "u")
    d.flush()
    assert code_of(table, "4.png", "dog") == PRESENT


def test_not_sure_about_a_known_tag_leaves_it(table, opened):
    d = opened(Review(table, table.parent / "review.csv")).decisions
    d.keep([one("a", "4.png", "dog", "unsure")], "t")
    d.flush()
    assert code_of(table, "4.png", "dog") == PRESENT


def test_one_review_a_table(table, opened):
    opened(Decisions(table))
    with pytest.raises(PluresError, match="another `plures review`"):
        Decisions(table)


def test_a_full_disk_refuses_the_answer(table, opened, monkeypatch):
    d = opened(Decisions(table))
    real = os.write
    with monkeypatch.context() as m:
        m.setattr(os, "write", lambda handle, data: real(handle, data[:5]))
        with pytest.raises(PluresError, match="could not be kept"):
            d.keep([one("a", "3.png", "cat", "yes")], "t")
    assert d.cell("3.png", "cat").answer == ""
    assert d.keep([one("a", "3.png", "cat", "yes")], "t")[0].status == "kept"
    assert all(json.loads(line) for line in journal_of(table).read_text().splitlines())


def test_a_table_that_cannot_be_written_loses_nothing(table, opened, monkeypatch):
    d = opened(Decisions(table))
    d.keep([one("a", "3.png", "cat", "yes")], "t")
    with monkeypatch.context() as m:
        m.setattr("plures.web.table_edit.TextTable._save", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(WorkFailed, match=r"in the journal, but not in the table.*the disk is full"):
            d.flush()
    d.keep([one("b", "3.png", "dog", "no")], "t")
    d.flush()
    assert [code_of(table, "3.png", tag) for tag in ("cat", "dog")] == [PRESENT, ABSENT]


@pytest.mark.parametrize("kind", ["columns.csv", "columns.tsv", "columns.parquet", "numbers.parquet", "tags.parquet"])
def test_every_form_of_table(table, opened, kind):
    path = table.parent / kind
    images = [f"{i}.png" for i in range(6)]
    if kind.startswith("tags"):
        pd.DataFrame({"image": images, "tags": TAGS}).to_parquet(path)
    else:
        cells = {c: [1 if c in t.split(";") else None for t in TAGS] for c in ("cat", "cow", "dog")}
        frame = pd.DataFrame({"image": images, **cells})
        if kind == "columns.parquet":
            frame[["cat", "cow", "dog"]] = frame[["cat", "cow", "dog"]].astype("Int8")
        write = {".csv": frame.to_csv, ".tsv": lambda p, index: frame.to_csv(p, index=index, sep="\t")}
        frame.to_parquet(path) if path.suffix == ".parquet" else write[path.suffix](path, index=False)
    before = read(str(path)).labels.values.copy()
    d = opened(Decisions(path))
    d.keep([one("a", "3.png", "cat", "yes"), one("b", "0.png", "cow", "no"), one("c", "1.png", "dog", "no")], "t")
    d.flush()
    after = read(str(path))
    assert after.classes == ("cat", "cow", "dog")
    assert [after.labels.values[3, 0], after.labels.values[0, 1], after.labels.values[1, 2]] == [
        PRESENT,
        ABSENT,
        ABSENT,
    ]
    assert int((before != after.labels.values).sum()) == 3


def test_photos_in_a_folder_beside_the_table(tmp_path, opened):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    write_csv(tmp_path / "t.csv", [["image", "tags"], ["a.png", "cat"]])
    d = opened(Decisions(tmp_path / "t.csv"))
    d.keep([one("a", "images/a.png", "cat", "no")], "t")
    d.flush()
    assert code_of(tmp_path / "t.csv", "a.png", "cat") == ABSENT


# --------------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def client(table, opened):
    review = opened(Review(table, table.parent / "review.csv"))
    client = TestClient(create_app(review), base_url="http://127.0.0.1:8765")
    client.review = review
    return client


def post(client, number, answer, *, id="a1", tab="t", version=0):
    question = client.review.questions[number]
    decision = {"id": id, "question": number, "answers": {question.tag: answer}, "versions": {question.tag: version}}
    return client.post("/api/decisions", json={"tab": tab, "decisions": [decision]})


def test_the_page_asks_shows_and_keeps(client, table):
    assert "review.js" in client.get("/").text
    items = client.get("/api/items?limit=3").json()
    assert [(i["image"], i["tag"]) for i in items] == [("3.png", "cat"), ("3.png", "dog"), ("0.png", "dog")]
    assert client.get(items[0]["photo"]).headers["content-type"] == "image/jpeg"
    assert post(client, 0, "yes").json()[0]["status"] == "kept"
    assert client.get("/api/items?limit=1").json()[0]["question"] == 1
    assert client.get("/api/items?limit=9&skip=1,2").json()[0]["question"] == 3
    assert {i["tag"] for i in client.get("/api/items?tag=cow").json()} == {"cow"}
    state = client.get("/api/state").json()
    assert (state["done"], state["total"]) == (1, 9)
    assert {c["tag"]: (c["done"], c["total"]) for c in state["classes"]}["cat"] == (1, 3)
    undone = client.post("/api/undo", json={"tab": "t", "id": "u1"}).json()[0]
    assert (undone["status"], undone["image"]) == ("kept", "3.png")
    assert client.get("/api/state").json()["done"] == 0


def test_two_pages(client):
    assert post(client, 0, "yes", id="x", tab="one").json()[0]["status"] == "kept"
    told = post(client, 0, "no", id="y", tab="two").json()[0]
    assert told["status"] == "conflict"
    assert told["cells"]["cat"]["answer"] == "yes"


@pytest.mark.parametrize(
    "path",
    [
        "/photo/../tags.csv",
        "/photo/%2e%2e%2ftags.csv",
        "/photo/..%2f..%2fetc%2fpasswd",
        "/photo/99",
        "/photo/-1",
        "/static/../review.py",
        "/static/..%2freview.py",
        "/static/%2e%2e/review.py",
        "/static//etc/passwd",
        "/heat/0",
        "/heat/99",
        "/docs",
        "/openapi.json",
        "/tags.csv",
    ],
)
def test_only_files_of_the_data_set_are_served(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 422)
    assert b"note" not in answer.content
    assert b"root:" not in answer.content


def test_heat_maps_come_from_the_suggestions_folder_only(table, opened):
    outside = table.parent.parent / "secret.png"
    Image.new("RGB", (9, 9)).save(outside)
    head = ["image", "tag", "heatmap"]
    lines = [["4.png", "dog", "heat/4.png"], ["4.png", "cat", "../secret.png"], ["4.png", "cow", str(outside)]]
    (table.parent / "heat" / "link.png").symlink_to(outside)
    lines += [["3.png", "cat", "heat/link.png"], ["3.png", "dog", "tags.csv"]]
    write_csv(table.parent / "heats.csv", [head, *lines])
    review = opened(Review(table, table.parent / "heats.csv"))
    client = TestClient(create_app(review), base_url="http://127.0.0.1")
    assert [client.get(f"/heat/{i}").status_code for i in range(5)] == [200, 404, 404, 404, 404]


def test_a_table_row_that_is_no_picture_is_not_served(tmp_path, opened):
    (tmp_path / "secret.txt").write_text("root:x")
    write_csv(tmp_path / "t.csv", [["image", "tags"], ["secret.txt", "cat"]])
    write_csv(tmp_path / "r.csv", [["image", "tag"], ["secret.txt", "cat"]])
    review = opened(Review(tmp_path / "t.csv", tmp_path / "r.csv"))
    answer = TestClient(create_app(review), base_url="http://localhost").get("/photo/0")
    assert answer.status_code == 404
    assert "root" not in answer.text


def test_foreign_sites_and_large_requests_are_refused(client):
    question = {"id": "z", "question": 0, "answers": {"cat": "yes"}, "versions": {"cat": 0}}
    body = {"tab": "t", "decisions": [question]}
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        assert client.post("/api/decisions", json=body, headers=headers).status_code in (400, 403)
    assert client.post("/api/decisions", content=b" " * (1 << 20) + b"x").status_code == 413
    assert client.post("/api/decisions", json={**body, "decisions": [question] * 201}).status_code == 422
    assert client.get("/api/state").json()["done"] == 0


@pytest.mark.parametrize(
    "change",
    [{"question": 77}, {"answers": {"horse": "yes"}}, {"answers": {"cat": "maybe"}}, {"id": "a b"}, {"path": "/etc"}],
)
def test_answers_to_nothing_asked_are_refused(client, change):
    question = {"id": "z", "question": 0, "answers": {"cat": "yes"}, "versions": {"cat": 0}, **change}
    assert client.post("/api/decisions", json={"tab": "t", "decisions": [question]}).status_code in (400, 422)


def test_markup_in_names_is_text(tmp_path, opened):
    name = "<img src=x onerror=alert(1)>.csv"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write_csv(tmp_path / name, [["image", "tags"], ["a.png", "cat"]])
    write_csv(tmp_path / "r.csv", [["image", "tag"], ["a.png", "<b>dog</b>"]])
    review = opened(Review(tmp_path / name, tmp_path / "r.csv"))
    assert "<img src=x" not in TestClient(create_app(review), base_url="http://localhost").get("/").text


def test_suggestions_for_other_data_are_named(table):
    write_csv(table.parent / "other.csv", [["image", "tag"], ["nowhere.png", "cat"]])
    with pytest.raises(BadData, match=r"nowhere\.png"):
        Review(table, table.parent / "other.csv")
    write_csv(table.parent / "none.csv", [["file", "tag"]])
    with pytest.raises(PluresError, match="no column 'image'"):
        Review(table, table.parent / "none.csv")
    Decisions(table).close()  # the failures above let the table go


# --------------------------------------------------------------------------------------------------------- the sample


def sample_client(table, opened, size=4):
    review = opened(Review(table, sample=size))
    return review, TestClient(create_app(review), base_url="http://localhost")


def test_a_sample_becomes_a_validation_set_that_training_takes(table, opened):
    review, client = sample_client(table, opened)
    images = client.get("/api/items?limit=10").json()
    assert len(images) == 4
    for n, image in enumerate(images[:3]):
        versions = {t["tag"]: t["version"] for t in image["tags"]}
        answers = {t["tag"]: "yes" if t["code"] == 1 else "no" for t in image["tags"]}
        decision = {"id": f"s{n}", "row": image["row"], "answers": answers, "versions": versions}
        assert client.post("/api/decisions", json={"tab": "t", "decisions": [decision]}).json()[0]["status"] == "kept"
    review.decisions.flush()
    dataset = read(str(table))
    assert sorted(dataset.splits.tolist()) == ["train"] * 3 + ["val"] * 3
    assert dataset.split("val").labels.complete
    assert client.get("/api/state").json()["done"] == 3
    assert client.post("/api/undo", json={"tab": "t", "id": "u"}).json()[0]["status"] == "kept"
    review.decisions.flush()
    assert (read(str(table)).splits == "val").sum() == 2


def test_a_sample_goes_on_where_it_was_left(table, opened):
    first = Review(table, sample=3)
    rows = first.sample
    first.close()
    again = Review(table, sample=3)
    assert again.sample == rows
    again.close()
    assert opened(Review(table, sample=5)).sample[:3] == rows


def test_a_sample_never_takes_test_images(table, opened):
    rows = [
        ["image", "tags", "split"],
        *([f"{i}.png", t or "cat", "test" if i < 4 else "train"] for i, t in enumerate(TAGS)),
    ]
    write_csv(table, rows)
    assert sorted(opened(Review(table, sample=6)).sample) == [4, 5]


def test_part_of_an_image_is_no_answer(table, opened):
    _, client = sample_client(table, opened)
    image = client.get("/api/items?limit=1").json()[0]
    decision = {"id": "s", "row": image["row"], "answers": {"cat": "yes"}, "versions": {"cat": 0}}
    assert client.post("/api/decisions", json={"tab": "t", "decisions": [decision]}).status_code == 400


def test_of_ten_thousand_suggestions_only_the_next_are_looked_at(table, opened, monkeypatch):
    names = [f"tag{i}" for i in range(2000)]
    lines = [[f"{i}.png", name] for name in names for i in range(6)][:10_000]
    write_csv(table.parent / "many.csv", [["image", "tag"], *lines])
    review = opened(Review(table, table.parent / "many.csv"))
    for n in range(0, 10_000, 2):
        q = review.questions[n]
        review.decisions._stacks[q.image, q.tag] = ["x"]
    review.decisions._kept["x"] = {"answers": dict.fromkeys(names, "yes")}
    client = TestClient(create_app(review), base_url="http://localhost")
    looked_at, cell = [], review.decisions.cell
    monkeypatch.setattr(review.decisions, "cell", lambda *place: looked_at.append(place) or cell(*place))
    items = client.get("/api/items?limit=20").json()
    assert len(looked_at) < 100
    assert client.get("/api/state").status_code == 200
    assert [i["question"] for i in items] == list(range(1, 41, 2))


# ------------------------------------------------------------------------------------------------------------- copies


def tell(review, number, answer, id="a"):
    question = review.questions[number]
    version = review.decisions.cell(question.image, question.tag).version
    told = {"tab": "t", "decisions": [{"id": id, "question": number, "answers": {question.tag: answer},
                                       "versions": {question.tag: version}}]}  # fmt: skip
    return review.tell(Told.model_validate(told))


def test_a_photograph_and_its_copies_are_asked_once(table, opened):
    """3.png has a copy that is asked, too, and one that is not; 1.png has one that says the opposite."""
    folder = table.parent
    for name, copy in (("3.png", "3 copy.png"), ("3.png", "deep/3.png"), ("1.png", "1 copy.png")):
        (folder / copy).parent.mkdir(exist_ok=True)
        (folder / copy).write_bytes((folder / name).read_bytes())
    rows = list(csv.reader(table.read_text().splitlines()))
    more = [["3 copy.png", "", ""], ["deep/3.png", "", ""], ["1 copy.png", "cat", ""]]
    write_csv(table, [*rows, *more])
    with (folder / "review.csv").open("a") as handle:
        handle.write("3 copy.png,cat,missing,0.5,9,model,\n")
    review = opened(Review(table, folder / "review.csv"))
    assert review.state()["total"] == 10
    (outcome,) = tell(review, 0, "yes")
    assert (outcome.status, outcome.image) == ("kept", "3.png")
    assert [code_of(table, name, "cat") for name in ("3.png", "3 copy.png")] == [PRESENT, PRESENT]
    assert table.read_text().count(",cat,") == 5
    assert review.state()["done"] == 2
    tell(review, 4, "no", "b")  # is a cat in 1.png: its copy says so
    assert [code_of(table, name, "cat") for name in ("1.png", "1 copy.png")] == [ABSENT, PRESENT]
    review.undo(Undo(tab="t", id="u"))
    outcomes = review.undo(Undo(tab="t", id="v"))
    assert {outcome.image for outcome in outcomes} == {"3.png", "3 copy.png"}
    assert [code_of(table, name, "cat") for name in ("3.png", "3 copy.png")] == [UNKNOWN, UNKNOWN]
    review.decisions.keep([one("w", "3.png", "cat", "no")], "other")
    stale = {"id": "x", "question": 0, "answers": {"cat": "yes"}, "versions": {"cat": 0}}
    assert review.tell(Told.model_validate({"tab": "t", "decisions": [stale]}))[0].status == "conflict"
    assert code_of(table, "3 copy.png", "cat") == UNKNOWN


def test_copies_of_a_sample_leave_training(tmp_path, opened):
    for name, shade in (("0.png", 10), ("1.png", 10), ("2.png", 10), ("3.png", 99)):
        Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(tmp_path / name)
    table = tmp_path / "t.csv"
    write_csv(table, [["image", "tags", "split"], ["0.png", "cat", "val"], ["1.png", "cat", "train"],
                      ["2.png", "cat", "test"], ["3.png", "dog", "train"]])  # fmt: skip
    review = opened(Review(table, sample=1))
    assert review.sample == [0]
    versions = {tag: review.decisions.cell("0.png", tag).version for tag in ("cat", "dog")}
    asked = {"id": "a", "row": 0, "answers": {}, "rest": "no", "versions": versions}
    review.tell(Told.model_validate({"tab": "t", "decisions": [asked]}))
    assert read(str(table)).splits.tolist() == ["val", "val", "test", "train"]
    assert [code_of(table, f"{n}.png", "dog") for n in range(4)] == [ABSENT, ABSENT, ABSENT, PRESENT]


# -------------------------------------------------------------------------------------- what follows from an answer

HIERARCHY = "classes: {animal: {}, dog: {parents: animal}, cat: {parents: animal}}\nexclusive: [[cat, dog]]\n"


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "classes.yaml").write_text(HIERARCHY)
    return tmp_path / "classes.yaml"


def settle(review, **asked):
    """One answer; returns its outcome."""
    (outcome,) = review.tell(Told(tab="t", decisions=[{"versions": dict.fromkeys(asked["answers"], 0)} | asked]))
    return outcome


def codes(table, row, *tags):
    dataset = read(str(table))
    at = {name: int(dataset.labels.values[row, k]) for k, name in enumerate(dataset.classes)}
    return [at.get(tag, -1) for tag in tags]


def test_an_answer_settles_what_follows_from_it(table, classes, opened):
    work = opened(Review(table, table.parent / "review.csv", classes=classes))
    assert work.state()["done"] == 0
    outcome = settle(work, id="a", question=1, answers={"dog": "yes"})
    assert {tag: cell.answer for tag, cell in outcome.cells.items()} == {"dog": "yes", "animal": "yes", "cat": "no"}
    assert codes(table, 3, "dog", "animal", "cat", "cow") == [1, 1, 0, -1]
    assert work.state()["done"] == 2  # cat of the same photo was a question, too
    assert [entry["id"] for entry in work.decisions.journal.entries if "answers" in entry] == [
        "a", "a-implied0", "a-implied1",
    ]  # fmt: skip
    outcomes = work.undo(Undo(tab="t", id="u"))
    assert next(iter(outcomes[0].cells)) == "dog"
    assert codes(table, 3, "dog", "animal", "cat") == [-1, -1, -1]
    assert work.state()["done"] == 0


def test_what_a_person_answered_stays(table, classes, opened):
    work = opened(Review(table, table.parent / "review.csv", classes=classes))
    settle(work, id="a", question=0, answers={"cat": "no"})
    settle(work, id="b", question=1, answers={"dog": "yes"})
    assert codes(table, 3, "dog", "animal", "cat") == [1, 1, 0]
    assert work.decisions.last("3.png", "cat") == "a"
    settle(work, id="c", question=2, answers={"dog": "yes"})  # the table says that 0.png is a cat
    assert codes(table, 0, "dog", "cat", "animal") == [1, 1, 1]


def test_ones_own_word_counts_more_than_what_followed(table, classes, opened):
    """The page had the second question before it knew that the first answers it."""
    work = opened(Review(table, table.parent / "review.csv", classes=classes))
    settle(work, id="a", question=1, answers={"dog": "yes"})
    assert settle(work, id="b", question=0, answers={"cat": "yes"}).status == "kept"
    assert codes(table, 3, "dog", "cat", "animal") == [1, 1, 1]
    both = [{"id": i, "question": q, "answers": {t: "yes"}, "versions": {t: 0}} for i, q, t in
            (("c", 2, "dog"), ("d", 3, "cow"))]  # fmt: skip
    assert [o.status for o in work.tell(Told(tab="t", decisions=both))] == ["kept", "kept"]


def test_nothing_follows_without_a_hierarchy_or_from_unsure(table, classes, opened):
    work = Review(table, table.parent / "review.csv")
    assert list(settle(work, id="a", question=1, answers={"dog": "yes"}).cells) == ["dog"]
    work.close()
    work = opened(Review(table, table.parent / "review.csv", classes=classes))
    assert list(settle(work, id="b", question=2, answers={"dog": "unsure"}).cells) == ["dog"]


def test_first_tags_bring_what_is_above_them(table, classes, opened):
    work = opened(Review(table, classes=classes))
    settle(work, id="a", row=3, answers={"dog": "yes"})
    assert codes(table, 3, "dog", "animal", "cat") == [1, 1, -1]
    assert "absent" not in table.read_text()
    assert work.times["animal"] == 1
    settle(work, id="b", row=3, answers={"dog": "clear"}, versions={"dog": 1})
    assert codes(table, 3, "dog", "animal") == [-1, -1]
    assert work.times["animal"] == 0


def test_the_rest_of_a_sample_does_not_contradict_the_answers(table, classes, opened):
    for row in (4, 5):  # a table whose classes hold both child and parent
        lines = table.read_text().replace(f"{row}.png,{TAGS[row]}", f"{row}.png,{TAGS[row]};animal")
        table.write_text(lines)
    work = opened(Review(table, sample=6, classes=classes))
    settle(work, id="a", row=3, rest="no", answers={"dog": "yes"}, versions=dict.fromkeys(work.dataset.classes, 0))
    assert codes(table, 3, "dog", "animal", "cat", "cow") == [1, 1, 0, 0]


def test_a_column_per_class_gets_no_column_for_a_parent(tmp_path, classes, opened):
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    write_csv(
        tmp_path / "wide.csv", [["image", "dog", "cat"], ["0.png", "", ""], ["1.png", "1", ""], ["2.png", "", "1"]]
    )
    head = ["image", "tag", "kind", "score", "rank", "method", "heatmap"]
    write_csv(tmp_path / "review.csv", [head, ["0.png", "dog", "missing", "0.9", "1", "model", ""]])
    work = opened(Review(tmp_path / "wide.csv", tmp_path / "review.csv", classes=classes))
    settle(work, id="a", question=0, answers={"dog": "yes"})
    assert codes(tmp_path / "wide.csv", 0, "dog", "cat") == [1, 0]
