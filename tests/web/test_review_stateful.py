"""Requests in any order against a review: answers, undoings, restarts, a table edited by hand, and plain nonsense.

What an answer says of a cell is what stands in the table on the disk, and no request is an error of the server.
"""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image

pytest.importorskip("fastapi", reason='the pages need the web packages: pip install "plures[web]"')

from fastapi.testclient import TestClient

import plures
from plures.web.review import Review, create_app

TAGS = ("=a", "b", "c")
IMAGES = ("0.png", "1.png", "2.png")
CODES = {"yes": 1, "no": 0}
identifiers = st.from_regex(r"[\w-]{1,8}", fullmatch=True, alphabet="ab-_0")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(TAGS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


class Asking(RuleBasedStateMachine):
    """One table with nine questions."""

    @initialize()
    def begin(self):
        self.at = Path(tempfile.mkdtemp())
        for place, name in enumerate(IMAGES):
            Image.new("RGB", (4, 4), (place, 0, 0)).save(self.at / name)
        rows = "".join(f"{name},c,b\n" for name in IMAGES)
        (self.at / "t.csv").write_text("image,tags,absent\n" + rows)
        cells = "".join(f"{name},'{tag},missing\n" for name in IMAGES for tag in TAGS if tag == "=a")
        cells += "".join(f"{name},{tag},wrong\n" for name in IMAGES for tag in TAGS[1:])
        (self.at / "ask.csv").write_text("image,tag,kind\n" + cells)
        self.number, self.review = 0, None
        self.open()

    def open(self):
        if self.review is not None:
            self.review.close()
        self.review = Review(self.at / "t.csv", self.at / "ask.csv")
        self.client = TestClient(create_app(self.review), base_url="http://localhost", raise_server_exceptions=False)

    def post(self, path, body):
        text = body if isinstance(body, str) else json.dumps(body)
        told = self.client.post(path, content=text.encode(), headers={"content-type": "application/json"})
        assert told.status_code < 500, told.text
        json.loads(told.text, parse_constant=lambda word: pytest.fail(word))
        return told

    def on_disk(self):
        data = plures.read(f"table:{self.at / 't.csv'}")
        place = {tag: column for column, tag in enumerate(data.classes)}
        return {
            (Path(str(image)).name, tag): int(row[place[tag]]) if tag in place else -1
            for image, row in zip(data.images, data.labels.values, strict=True)
            for tag in TAGS
        }

    def check(self, outcomes):
        there = self.on_disk()
        for outcome in outcomes:
            for tag, cell in outcome["cells"].items():
                assert there[outcome["image"], tag] == cell["code"]

    @rule(
        tab=identifiers, number=st.integers(0, 8), answer=st.sampled_from(["yes", "no", "unsure"]), late=st.booleans()
    )
    def answer(self, tab, number, answer, late):
        question = self.review.questions[number]
        version = self.review.decisions.cell(question.image, question.tag).version - late
        self.number += 1
        one = {"id": f"d{self.number}", "question": number, "answers": {question.tag: answer}}
        told = self.post("/api/decisions", {"tab": tab, "decisions": [{**one, "versions": {question.tag: version}}]})
        outcome = told.json()[0]
        self.check([outcome])
        if outcome["status"] == "kept" and answer in CODES:
            assert outcome["cells"][question.tag]["code"] == CODES[answer]

    @rule(tab=identifiers)
    def undo(self, tab):
        self.number += 1
        told = self.post("/api/undo", {"tab": tab, "id": f"d{self.number}"})
        self.check(told.json())

    @rule(
        path=st.sampled_from(["/api/decisions", "/api/undo"]),
        body=values,
        tab=identifiers | values,
        one=values,
        whole=st.booleans(),
    )
    def nonsense(self, path, body, tab, one, whole):
        before = (self.at / "t.csv").read_bytes()
        told = self.post(path, {"tab": tab, "decisions": [one], "id": one} if whole else body)
        if told.status_code != 200:
            assert (self.at / "t.csv").read_bytes() == before

    @rule(text=st.text(max_size=20))
    def no_json(self, text):
        self.post("/api/decisions", text)

    @rule(
        path=st.sampled_from(["/", "/api/state", "/api/items", "/photo/0", "/photo/-1", "/photo/99", "/heat/0"]),
        query=st.dictionaries(st.sampled_from(["tag", "limit", "skip", "after", "small"]), st.text(max_size=6)),
    )
    def look(self, path, query):
        assert self.client.get(path, params=query).status_code < 500

    @rule(number=st.integers(0, 2), tags=st.sampled_from(["", "c", "b;c", "'=a"]))
    def edit_by_hand(self, number, tags):
        lines = (self.at / "t.csv").read_text().splitlines()
        lines[number + 1] = f"{IMAGES[number]},{tags},"
        (self.at / "t.csv").write_text("\n".join(lines) + "\n")

    @rule()
    def restart(self):
        self.open()  # sees what a hand has set meanwhile
        before = self.client.get("/api/state").json()["done"]
        self.open()
        assert self.client.get("/api/state").json()["done"] == before

    @invariant()
    def nothing_is_left(self):
        if hasattr(self, "at"):
            assert list(self.at.glob(".*.tmp")) == []

    def teardown(self):
        if hasattr(self, "at"):
            self.review.close()
            shutil.rmtree(self.at)


TestAsking = Asking.TestCase
TestAsking.settings = settings(
    max_examples=10, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
