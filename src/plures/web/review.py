"""The review page: photo, tag and heat map; each answer is kept at once. FastAPI around a Review."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, PackageLoader, select_autoescape
from pydantic import BaseModel, ConfigDict, Field

from plures.data.dataset import Dataset
from plures.data.photos import Unreadable
from plures.data.read import find_format, read
from plures.data.taxonomy import read_taxonomy
from plures.errors import PluresError, clipped
from plures.labels import ABSENT, PRESENT, UNKNOWN
from plures.models.model import read_taxonomy as load_taxonomy
from plures.runs.photos import contents_of
from plures.runs.run import Run
from plures.web.decisions import Answer, Decision, Decisions, Outcome
from plures.web.front import Front
from plures.web.guard import LOOPBACK_NAMES, Guard
from plures.web.pictures import Pictures
from plures.web.questions import Question, draw_sample, read_suggestions
from plures.web.table_edit import Key, key_of
from plures.web.variety import most_different_first

REQUESTS, SECONDS = 256, 60.0  # in flight at most, and how long one may take, with its body
IMPLIED = "-implied"  # in the id of a decision that follows from another, whose id it begins with
STATIC = Path(__file__).parent / "static"
FILES = {"review.js": "text/javascript", "tagging.js": "text/javascript", "review.css": "text/css"}
Identifier = Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]
Short = Annotated[str, Field(max_length=1000)]


class Asked(BaseModel):
    """One answer from the page: to a question (its number), or to all classes of an image of the sample (its row).

    rest: what the classes of the sample's image are that `answers` does not name, except those known already, which
    stay as they are. batch: answers that are undone together.
    """

    model_config = ConfigDict(extra="forbid")
    id: Identifier
    question: int | None = None
    row: int | None = None
    answers: dict[Short, Answer] = Field(max_length=20_000)
    versions: dict[Short, int] = Field(max_length=20_000)
    rest: Literal["no"] | None = None
    batch: Annotated[str, Field(pattern=r"^[\w-]{0,64}$")] = ""


class Told(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tab: Identifier
    decisions: list[Asked] = Field(min_length=1, max_length=200)


class Undo(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tab: Identifier
    id: Identifier


class Review:
    """One review of a table: its questions, its sample of images or its images without a tag, and the decisions.

    suggestions: a file that `plures suggest` wrote. sample: how many images to ask every class of, for a clean
    validation set; their rows get split=val. Neither: the images without a tag get their first ones. options: of the
    table's reader, as in training. classes: a file that says how classes belong together, by default what the run's
    model knows of it: an answer then settles what follows from it.
    Raises PluresError if there is nothing to ask, or an answer could not be written into the table.
    """

    def __init__(
        self,
        table: Path,
        suggestions: Path | None = None,
        *,
        run: Path | None = None,
        sample: int = 0,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        classes: Path | None = None,
    ) -> None:
        if suggestions is not None and sample:
            raise PluresError("say what to ask: SUGGESTIONS (from `plures suggest`), or --sample 200; one of the two")
        self.table = table
        self.decisions = Decisions(table, options)
        try:
            self.dataset: Dataset = read(f"table:{table}", labelled=False, **(options or {}))
            self.taxonomy = None if run is None else load_taxonomy(run)
            if classes is not None:
                self.taxonomy = read_taxonomy(classes, self.dataset.classes)
            self.questions: list[Question] = []
            self.sample: list[int] = []
            self.untagged: list[int] = []
            if suggestions is not None:
                self.questions = read_suggestions(suggestions, self.dataset, table)
                rows, tags = [q.row for q in self.questions], [[q.tag] for q in self.questions]
            elif not sample:
                self.untagged = rows = np.flatnonzero(~self.dataset.labels.present.any(1)).tolist()
                tags = [list(self.dataset.classes)] * len(rows)
                if not rows:
                    raise PluresError(
                        f"{table}: every image has a tag; say what to ask: SUGGESTIONS (from `plures suggest`), or"
                        " --sample 200"
                    )
            else:
                self.sample = self._sample(sample, seed)
                rows, tags = self.sample, [list(self.dataset.classes)] * len(self.sample)
            if not rows:
                raise PluresError(f"{suggestions}: no suggestions; nothing to ask")
            if "separator" not in (options or {}):
                refuse_another_separator(self.dataset, {tag for asked in tags for tag in asked}, table)
            self.decisions.know(self.dataset, rows, tags)
            self.copies = copies_of(self.dataset, rows)
            asked = dict(zip(rows, map(list, tags), strict=True)) if not suggestions else {}
            for question in self.questions:
                asked.setdefault(question.row, []).append(question.tag)
            also = {other: asked[row] for row, others in self.copies.items() for other in others}
            self.decisions.know(self.dataset, list(also), list(also.values()))
        except BaseException:
            self.decisions.close()
            raise
        self.pictures = Pictures(self.dataset, suggestions.parent if suggestions else None, run)
        counts = self.dataset.labels.present.sum(0).tolist()
        self.times = Counter(dict(zip(self.dataset.classes, counts, strict=True)))
        self._of_untagged = frozenset(self.untagged)
        self._rows = {self._key(row): row for row in self.copies}
        self._now_tagged: set[Key] = set()  # of them, by this review
        self.untagged = most_different_first(self.dataset, self.untagged)
        self._place = {row: place for place, row in enumerate(self.untagged)}
        self.of_tag: dict[str, list[Question]] = {}
        for question in self.questions:
            self.of_tag.setdefault(question.tag, []).append(question)

    def _sample(self, size: int, seed: int) -> list[int]:
        """The rows of the sample; those drawn before come first, so that a review continues where it was left."""
        if not self.dataset.classes:
            raise PluresError(f"{self.table}: no image carries a tag yet, so there are no classes to ask for")
        place = {key_of(str(image), self.table): row for row, image in enumerate(self.dataset.images)}
        drawn = [key for entry in self.decisions.journal.entries for key in entry.get("sample", ())]
        rows = [place[key] for key in drawn if key in place][:size]
        if len(rows) < size:
            new = draw_sample(self.dataset, size - len(rows), seed, without=rows)
            keys = [key_of(str(self.dataset.images[row]), self.table) for row in new]
            self.decisions.journal.append([{"sample": keys, "seed": seed}])
            rows += new
        return rows

    # --------------------------------------------------------------------------------------------- what the page asks

    @property
    def mode(self) -> str:
        return "tagging" if self.untagged else "sample" if self.sample else "suggestions"

    def state(self) -> dict[str, Any]:
        """What is asked and how far it is."""
        classes: list[dict[str, Any]] = []
        if self.untagged:
            done, total = len(self._now_tagged), len(self.untagged)
            classes = [{"tag": tag, "total": times} for tag, times in self.times.most_common()]
        elif self.sample:
            done = sum(self._image_done(row) for row in self.sample)
            total = len(self.sample)
        else:
            classes = [
                {"tag": tag, "total": len(questions), "done": sum(map(self._done, questions))}
                for tag, questions in self.of_tag.items()
            ]
            done, total = sum(c["done"] for c in classes), len(self.questions)
        return {
            "mode": self.mode,
            "table": self.table.name,
            "done": done,
            "total": total,
            "classes": classes,
            "failure": self.decisions.failure,
        }

    def items(self, tag: str, limit: int, skip: Collection[int]) -> list[dict[str, Any]]:
        """The next questions (of a tag, or of all) that have no answer; `skip`: those the page has already."""
        asked = self.of_tag.get(tag, []) if tag else self.questions
        found: list[dict[str, Any]] = []
        for question in asked:
            if len(found) == limit:
                break
            if question.number not in skip and not self._done(question):
                found.append(self._item(question))
        return found

    def images(self, limit: int, skip: Collection[int]) -> list[dict[str, Any]]:
        """The next images of the sample that are not decided yet."""
        rows = [row for row in self.sample if row not in skip and not self._image_done(row)][:limit]
        return [self._image(row) for row in rows]

    def untagged_after(self, row: int, limit: int) -> list[dict[str, Any]]:
        """The next images without a tag behind this row (from the first on if it is none), the most different first."""
        found = (r for r in self.untagged[self._place.get(row, -1) + 1 :] if not self._tagged(r))
        return [self._image(r) for r in islice(found, limit)]

    def _key(self, row: int) -> Key:
        return key_of(str(self.dataset.images[row]), self.table)

    def _tagged(self, row: int) -> bool:
        return bool(self.decisions.file.present(self._key(row)))

    def _done(self, question: Question) -> bool:
        return self.decisions.cell(question.image, question.tag).answer != ""

    def _image_done(self, row: int) -> bool:
        key = self._key(row)
        return all(self.decisions.cell(key, tag).answer for tag in self.dataset.classes)

    def _item(self, q: Question) -> dict[str, Any]:
        cell = self.decisions.cell(q.image, q.tag)
        return {
            "question": q.number,
            "image": q.image,
            "tag": q.tag,
            "kind": q.kind,
            "score": None if math.isnan(q.score) else q.score,
            "version": cell.version,
            "code": cell.code,
            "likely": cell.code == 0 if q.kind == "wrong" else q.score >= 0.5,
            "photo": self._photo_url(q.row),
            "heat": f"/heat/{q.number}?v={_mark(q.heatmap + str(self.pictures.run))}"
            if self.pictures.can_show(q)
            else None,
        }

    def _image(self, row: int) -> dict[str, Any]:
        key = self._key(row)
        cells = {tag: self.decisions.cell(key, tag) for tag in self.dataset.classes}
        tags = [{"tag": tag, "version": cell.version, "code": cell.code} for tag, cell in cells.items()]
        tags.sort(key=lambda t: -int(str(t["code"]) == "1"))  # what is known to be there comes first
        return {"row": row, "image": key, "photo": self._photo_url(row), "tags": tags}

    def _photo_url(self, row: int) -> str:
        return f"/photo/{row}?v={_mark(os.path.abspath(str(self.dataset.images[row])))}"

    # ------------------------------------------------------------------------------------------------ what it is told

    def tell(self, told: Told) -> list[Outcome]:
        """Keep the answers; they are in the table when this returns. Raises PluresError, and keeps none, if one is to
        no question of this review or cannot be written; WorkFailed if the table cannot be written just now."""
        decisions = [self._decision(asked) for asked in told.decisions]
        asked = {(one.image, tag) for one in decisions for tag in one.answers}
        made = [more for one in decisions for more in self._with_implied(one, asked)]
        outcomes = self.decisions.keep([more for one in made for more in self._with_copies(one)], told.tab)
        self.decisions.flush()
        self._count(outcomes)
        own = {one.id for one in decisions}
        return [self._as_it_is(self._with_followers(one, outcomes)) for one in outcomes if one.id in own]

    def _with_implied(self, decision: Decision, asked: Collection[tuple[Key, str]]) -> list[Decision]:
        """The decision, and one for each cell of its photograph that follows from it, has no answer and is not asked
        just now; a tag that is cleared takes along what followed from it. All of them are undone together."""
        if self.taxonomy is None or self._stale(decision):
            return [decision]
        follows: dict[str, Answer] = {}
        for tag, answer in decision.answers.items():
            if answer == "clear":
                follows |= dict.fromkeys(self._followers(decision.image, tag), "clear")
        for tag, answer in self._implied(decision.answers).items():
            cell = self.decisions.cell(decision.image, tag)
            blank = ABSENT if self.decisions.reader.complete else UNKNOWN
            if cell.answer == "" and cell.code == blank and self.decisions.can_write(decision.image, tag):
                follows[tag] = answer
        batch, made = decision.batch or decision.id, list[Decision]()
        for tag, answer in follows.items():
            if (decision.image, tag) not in asked:
                version = self.decisions.cell(decision.image, tag).version
                one = {tag: answer}, {tag: version}
                made.append(Decision(f"{decision.id}{IMPLIED}{len(made)}", decision.image, *one, batch=batch))
        return [replace(decision, batch=batch), *made] if made else [decision]

    def _implied(self, answers: Mapping[str, Answer]) -> dict[str, Answer]:
        """What follows from answers to tags of one photograph, about others. While first tags are given, only what is
        there."""
        taxonomy = self.taxonomy
        if taxonomy is None:
            return {}
        present, absent = (
            np.array([[answers.get(name) == answer for name in taxonomy.classes]]) for answer in ("yes", "no")
        )
        present, absent, _ = taxonomy.implied(present, absent)
        found: dict[str, Answer] = {taxonomy.classes[k]: "yes" for k in np.flatnonzero(present)}
        if not self.untagged:
            found |= {taxonomy.classes[k]: "no" for k in np.flatnonzero(absent)}
        return {name: answer for name, answer in found.items() if name not in answers}

    def _followers(self, image: Key, tag: str) -> list[str]:
        """The tags whose answers followed from that to this one, and still hold."""
        if self.taxonomy is None or not (last := self.decisions.last(image, tag)):
            return []
        return [name for name in self.taxonomy.classes if self.decisions.last(image, name).startswith(last + IMPLIED)]

    def _with_followers(self, outcome: Outcome, outcomes: Collection[Outcome]) -> Outcome:
        """An outcome with the cells of those that were kept with it, for the page."""
        kept = [o for o in outcomes if o.id.startswith(outcome.id + IMPLIED) and o.image == outcome.image]
        cells = {tag: cell for one in kept if one.status == "kept" for tag, cell in one.cells.items()}
        return replace(outcome, cells={**outcome.cells, **cells})

    def _stale(self, decision: Decision) -> bool:
        """Whether somebody was faster."""
        cell = self.decisions.cell
        return any(cell(decision.image, tag).version != decision.versions.get(tag) for tag in decision.answers)

    def _with_copies(self, decision: Decision) -> list[Decision]:
        """The decision, and the same one about each copy of the photograph where nothing else is known of it; all of
        them are undone together. Copies in training follow a photograph into validation."""
        cell, made = self.decisions.cell, [decision]
        for number, row in enumerate(
            [] if self._stale(decision) else self.copies.get(self._rows.get(decision.image, -1), []), 1
        ):
            key = self._key(row)
            cells = {tag: cell(key, tag) for tag in decision.answers}
            same = {
                tag: answer
                for tag, answer in decision.answers.items()
                if (cells[tag].answer == "yes" if answer == "clear" else cells[tag].code == UNKNOWN)
            }
            if same:
                versions = {tag: cells[tag].version for tag in same}
                split = decision.split if self._split(row) in ("", "train") else ""
                made.append(Decision(f"{decision.id}-copy{number}", key, same, versions, split))
        return made if len(made) == 1 else [replace(one, batch=decision.batch or decision.id) for one in made]

    def _split(self, row: int) -> str:
        return "" if self.dataset.splits is None else str(self.dataset.splits[row])

    def undo(self, asked: Undo) -> list[Outcome]:
        """Take back this tab's last answer, or batch of answers; as `tell`."""
        outcomes = self.decisions.undo(asked.tab, asked.id)
        self.decisions.flush()
        self._count(outcomes)
        if self.taxonomy is not None:
            outcomes.reverse()  # the answer itself before what followed from it
        others = {self._key(row) for rows in self.copies.values() for row in rows} - self._rows.keys()
        return [self._as_it_is(outcome) for outcome in outcomes if outcome.image not in others]

    def _count(self, outcomes: list[Outcome]) -> None:
        """Keep the number of times that a class is given, and the images that have a tag now, up to date."""
        for outcome in outcomes if self.untagged else ():
            if outcome.status == "kept":
                for tag, cell in outcome.cells.items():
                    self.times[tag] += 1 if cell.code == PRESENT else -1
            if self.decisions.file.present(outcome.image):
                self._now_tagged.add(outcome.image)
            else:
                self._now_tagged.discard(outcome.image)

    def _as_it_is(self, outcome: Outcome) -> Outcome:
        """An outcome after the table was written: somebody may have edited the table in the last moment."""
        cells = {tag: self.decisions.cell(outcome.image, tag) for tag in outcome.cells}
        lost = outcome.status == "kept" and any(cell.by_hand for cell in cells.values())
        return Outcome(outcome.id, "conflict" if lost else outcome.status, outcome.image, cells)

    def _decision(self, asked: Asked) -> Decision:
        if asked.row in self._of_untagged and asked.answers and set(asked.answers.values()) <= {"yes", "clear"}:
            return Decision(asked.id, self._key(asked.row), asked.answers, asked.versions)
        if "clear" in asked.answers.values():
            raise PluresError("only first tags can be cleared")
        if asked.question is not None and 0 <= asked.question < len(self.questions):
            question = self.questions[asked.question]
            if list(asked.answers) == [question.tag]:
                versions = dict(asked.versions)
                if IMPLIED in self.decisions.last(question.image, question.tag):  # a person's own word counts more
                    versions[question.tag] = self.decisions.cell(question.image, question.tag).version
                return Decision(asked.id, question.image, asked.answers, versions, batch=asked.batch)
        classes = set(self.dataset.classes)
        if asked.row in self.sample and (
            set(asked.answers) == classes or (asked.rest and set(asked.answers) < classes)
        ):
            key = self._key(asked.row)
            rest: dict[str, Answer] = {
                tag: "yes" if self.decisions.cell(key, tag).code == PRESENT else "no" for tag in self.dataset.classes
            }
            known: dict[str, Answer] = {tag: answer for tag, answer in rest.items() if answer == "yes"}
            follows = {t: a for t, a in self._implied(known | asked.answers).items() if t in rest and a == "yes"}
            return Decision(asked.id, key, rest | follows | asked.answers, asked.versions, split="val")
        raise PluresError("an answer to something that this review does not ask")

    def close(self) -> None:
        self.decisions.close()


def copies_of(dataset: Dataset, rows: Collection[int]) -> dict[int, list[int]]:
    """For those of these rows that have any, the other rows with the same photograph. Only files of equal size are
    read."""
    if dataset.in_memory:
        return {}
    sizes: dict[int, list[int]] = {}
    for row, image in enumerate(map(str, dataset.images)):
        with suppress(OSError):
            sizes.setdefault(os.stat(image).st_size, []).append(row)
    wanted, found = set(rows), dict[int, list[int]]()
    for alike in sizes.values():
        if len(alike) > 1 and wanted.intersection(alike):
            groups: dict[bytes, list[int]] = {}
            for row, content in zip(alike, contents_of([dataset.images[row] for row in alike]).tolist(), strict=True):
                groups.setdefault(content, []).append(row)
            for group in groups.values():
                found |= {row: [r for r in group if r != row] for row in group if row in wanted and len(group) > 1}
    return found


def options_of_run(run: Path, table: Path) -> dict[str, Any]:
    """The options with which a run read this table; none if it was trained on something else."""
    data = Run(run).experiment.data
    name, path = data.name, ""
    with suppress(PluresError):
        name, path = find_format(data.name, None)
    at = Path(path)
    own = at == table or at.resolve() in (table.resolve(), table.parent.resolve())
    return dict(data.options) if path and name == "table" and own else {}


def refuse_another_separator(dataset: Dataset, tags: Collection[str], table: Path) -> None:
    """Raise PluresError where a class such as "cat|dog" looks like two tags that another separator divides."""
    known = {*dataset.classes, *tags}
    for name in dataset.classes:
        for separator, enough in (("|", any), (",", all)):
            words = [word.strip() for word in name.split(separator)]
            if len(words) > 1 and enough(word in known for word in words):
                raise PluresError(
                    f"{table}: class '{name}' looks like tags divided by '{separator}': give the separator that the"
                    f" training had (data.separator='{separator}'), or data.separator=';' if it is one tag"
                )


class AnyText(JSONResponse):
    """JSON in ASCII: the names of files can hold bytes that are no text."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def create_app(review: Review, hosts: Collection[str] = LOOPBACK_NAMES) -> FastAPI:
    """The page and what it calls. hosts: the names by which it may be called."""
    app = FastAPI(title="plures review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts)
    app.add_middleware(Front, max_requests=REQUESTS, seconds=SECONDS, watch=lambda *_: None)
    page = Environment(loader=PackageLoader("plures.web"), autoescape=select_autoescape())
    template = page.get_template("review.html")

    @app.exception_handler(PluresError)
    def refused(request: Request, error: PluresError) -> JSONResponse:
        return AnyText({"detail": str(error)}, 400 if error.exit_code == 2 else 507)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # what came is not repeated: it may be what JSON cannot say, such as NaN
        place = clipped(".".join(map(str, first["loc"])), 80)
        return AnyText({"detail": f"{place}: {first['msg']}"}, 422)

    @app.get("/", response_class=HTMLResponse)
    def show() -> str:
        return template.render(table=review.table.name, mode=review.mode)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return Response((STATIC / name).read_bytes(), media_type=FILES[name], headers={"cache-control": "no-cache"})

    @app.get("/api/state")
    def state() -> Response:
        return AnyText(review.state())

    @app.get("/api/items")
    def items(
        tag: Annotated[str, Query(max_length=1000)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        skip: Annotated[str, Query(max_length=2000, pattern=r"^[\d,]*$")] = "",
        after: int = -1,
    ) -> Response:
        if review.untagged:
            return AnyText(review.untagged_after(after, limit))
        known = {int(number) for number in skip.split(",") if number}
        return AnyText(review.images(limit, known) if review.sample else review.items(tag, limit, known))

    @app.post("/api/decisions")
    def decide(told: Told) -> Response:
        return AnyText([asdict(outcome) for outcome in review.tell(told)])

    @app.post("/api/undo")
    def undo(asked: Undo) -> Response:
        return AnyText([asdict(outcome) for outcome in review.undo(asked)])

    @app.get("/photo/{row}")
    def photo(row: int, small: bool = False) -> Response:
        return _picture(lambda: review.pictures.photo(row, small))

    @app.get("/heat/{number}")
    def heat(number: int) -> Response:
        if not 0 <= number < len(review.questions):
            raise HTTPException(404)
        return _picture(lambda: review.pictures.heat(review.questions[number]))

    return app


def _picture(make: Any) -> Response:
    try:
        return Response(make(), media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})
    except Unreadable:
        raise HTTPException(404, "there is no such picture, or it cannot be read") from None  # no paths to the page


def _mark(text: str) -> str:
    """A few letters that change with the text, so that a browser's cache does not show another photo's picture."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]
