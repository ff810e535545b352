"""Decisions about cells of a table: kept once and in order, undone, refused if somebody else was faster.

A cell is an image and a tag. Its version counts what has happened to it; a decision says which version it was made
on, so that of two tabs that answer the same cell the second is told so. Whoever edits the table itself meanwhile counts
as such a tab: what is set by hand stays. A decision has an id, so that sending it again after a lost answer does
nothing. The journal is written first, then the table; only when both are on the disk is the page told so.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plures.data.dataset import Dataset, formats
from plures.data.formats.table import Table
from plures.errors import PluresError, WorkFailed
from plures.files import clear_left
from plures.labels import ABSENT, PRESENT, UNKNOWN
from plures.web.journal import Entry, Journal, journal_of
from plures.web.table_edit import EditableTable, Key, check_writable, key_of, open_table

Answer = Literal["yes", "no", "unsure", "clear"]
CODES: dict[str, int] = {"yes": PRESENT, "no": ABSENT, "clear": UNKNOWN}
Place = tuple[Key, str]  # a cell


@dataclass(frozen=True)
class Decision:
    """Answers to one or more tags of one image, made on these versions of its cells; all of them count or none.

    split: the split that the image's row gets, "" for no change. batch: decisions of one batch are undone together.
    """

    id: str
    image: Key
    answers: Mapping[str, Answer]
    versions: Mapping[str, int]
    split: str = ""
    batch: str = ""


@dataclass(frozen=True)
class Cell:
    """Where a cell stands: its version, the answer that counts ("" for none), its code in the table, and whether it was
    last changed in the table itself."""

    version: int
    answer: str
    code: int
    by_hand: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a decision: "kept", "repeated" (it had been kept before) or "conflict" (another was faster)."""

    id: str
    status: Literal["kept", "repeated", "conflict", "nothing"]
    image: Key = ""
    cells: Mapping[str, Cell] = field(default_factory=dict)


@dataclass
class Pending:
    """What the table does not have yet. labels: by cell, the codes that the file may have meanwhile, the last of which
    is to be written; splits: the same of images."""

    labels: dict[Place, list[int]] = field(default_factory=dict)
    splits: dict[Key, list[str]] = field(default_factory=dict)


class Decisions:
    """The decisions about one table. Opening it brings the table up to the journal.

    options: of the table's reader. Raises PluresError if the table cannot be read, or could not be written.
    """

    def __init__(self, table: Path, options: Mapping[str, Any] | None = None) -> None:
        reader = formats.make("table", **(options or {}))
        assert isinstance(reader, Table)
        self.table, self.reader = table, reader
        self.journal = Journal(journal_of(table))
        self._lock = threading.RLock()
        self._stacks: dict[Place, list[str]] = {}  # ids of the decisions that hold, oldest first
        self._versions: dict[Place, int] = {}
        self._by_hand: set[Place] = set()
        self._kept: dict[str, Entry] = {}
        self._of_tab: dict[str, list[str]] = {}
        self._pending = Pending()
        self._codes: dict[Place, int] = {}  # what was last seen of the cell, or decided about it
        self._splits: dict[Key, str] = {}
        self.failure = ""  # why the table could not be written the last time, "" if it could
        try:
            clear_left(table.resolve().parent)  # of a server that was killed while it wrote the table
            self._replay()
            check_writable(table)
            self.file: EditableTable = open_table(table, self.reader)
            self._compare()
            self.flush()
        except BaseException:
            self.journal.close()
            raise

    def know(self, dataset: Dataset, rows: list[int], tags: list[list[str]]) -> None:
        """Learn the codes that the table has now of these tags of these rows.

        Raises PluresError if an answer about one of them could not be written.
        """
        column = {name: k for k, name in enumerate(dataset.classes)}
        for tag in dict.fromkeys(tag for wanted in tags for tag in wanted):
            self.file.check(tag)
        blank = ABSENT if self.reader.complete else UNKNOWN
        for row, wanted in zip(rows, tags, strict=True):
            key = key_of(str(dataset.images[row]), self.table)
            if self.file.split_column in self.file.columns:
                self._splits[key] = self.file.split(key) or ""
            for tag in wanted:
                code = int(dataset.labels.values[row, column[tag]]) if tag in column else blank
                found = self.file.code(key, tag)
                if found != code:
                    what = "has no row of its own" if found is None else f"and '{tag}' cannot be told from its row"
                    raise PluresError(f"{self.table}: image '{key}' {what}, so that answers could not be written")
                self._codes.setdefault((key, tag), code)

    # ---------------------------------------------------------------------------------------------- asking and telling

    def cell(self, image: Key, tag: str) -> Cell:
        with self._lock:
            place = (image, tag)
            stack = self._stacks.get(place)
            answer = self._kept[stack[-1]]["answers"][tag] if stack else ""
            return Cell(self._versions.get(place, 0), answer, self._code(place), place in self._by_hand)

    def last(self, image: Key, tag: str) -> str:
        """The id of the decision that holds for a cell, "" if there is none."""
        return next(reversed(self._stacks.get((image, tag), ())), "")

    def can_write(self, image: Key, tag: str) -> bool:
        """Whether an answer about a cell can be written into the table."""
        try:
            self.file.check(tag)
        except PluresError:
            return False
        return image in self.file.rows

    def _code(self, place: Place) -> int:
        code = self._codes.get(place)
        found = self.file.code(*place) if code is None else code
        return UNKNOWN if found is None else found

    def keep(self, decisions: list[Decision], tab: str) -> list[Outcome]:
        """Keep the decisions that nobody was faster with, all in one go; in the journal when this returns, and in the
        table after `flush`. Raises PluresError, and keeps none, if one of them cannot be written."""
        with self._lock:
            self._notice_changes()
            entries: list[Entry] = []
            outcomes: list[Outcome] = []
            taken: set[Place] = set()
            for d in decisions:
                places = {(d.image, tag) for tag in d.answers}
                if d.id in self._kept or any(e["id"] == d.id for e in entries):
                    status: Literal["kept", "repeated", "conflict"] = "repeated"
                elif places & taken or any(self.cell(*p).version != d.versions.get(p[1]) for p in places):
                    status = "conflict"
                else:
                    status = "kept"
                    taken |= places
                    self._check(d)
                    entries.append(self._entry(d, tab))
                outcomes.append(Outcome(d.id, status, d.image))
            if entries:
                self.journal.append(entries)
                for entry in entries:
                    self._apply(entry)
            return [self._with_cells(o, d) for o, d in zip(outcomes, decisions, strict=True)]

    def undo(self, tab: str, id: str) -> list[Outcome]:
        """Take back the last decision of this tab that still holds, and all of its batch; "conflict" for those whose
        cells have changed since."""
        with self._lock:
            if id in self._kept:
                return [Outcome(id, "repeated")]
            self._notice_changes()
            mine = self._of_tab.get(tab, [])
            if not mine:
                return [Outcome(id, "nothing")]
            batch = self._kept[mine[-1]].get("batch")
            last = [e for e in mine if batch and self._kept[e].get("batch") == batch] or mine[-1:]
            entries: list[Entry] = []
            outcomes: list[Outcome] = []
            for n, entry in enumerate(self._kept[e] for e in reversed(last)):
                name = f"{id}-{n}" if n else id
                places = [(entry["image"], tag) for tag in entry["answers"]]
                if any(self._stacks[place][-1:] != [entry["id"]] for place in places):
                    mine.remove(entry["id"])
                    outcomes.append(Outcome(name, "conflict", entry["image"]))
                else:
                    entries.append({"id": name, "tab": tab, "time": _now(), "undo": entry["id"]})
                    outcomes.append(Outcome(name, "kept", entry["image"]))
            if entries:
                self.journal.append(entries)
                for undone in entries:
                    self._apply(undone)
            answered = [self._kept[e]["answers"] for e in reversed(last)]
            return [
                Outcome(o.id, o.status, o.image, {tag: self.cell(o.image, tag) for tag in tags})
                for o, tags in zip(outcomes, answered, strict=True)
            ]

    def _check(self, d: Decision) -> None:
        if d.image not in self.file.rows:
            raise PluresError(f"'{d.image}' is no longer in {self.table.name}; the answer was not kept")
        for tag, answer in d.answers.items():
            if answer in CODES:
                self.file.check(tag)

    def _entry(self, d: Decision, tab: str) -> Entry:
        entry: Entry = {"id": d.id, "tab": tab, "time": _now(), "image": d.image, "answers": dict(d.answers)}
        entry["before"] = {tag: self.cell(d.image, tag).code for tag in d.answers}
        if d.split:
            before = self._splits.get(d.image, "" if self.file.split_column in self.file.columns else "train")
            entry |= {"split": d.split, "split_before": before}
        return entry | ({"batch": d.batch} if d.batch else {})

    def _with_cells(self, outcome: Outcome, d: Decision) -> Outcome:
        return Outcome(outcome.id, outcome.status, d.image, {tag: self.cell(d.image, tag) for tag in d.answers})

    # --------------------------------------------------------------------------------------------- journal and table

    def _replay(self) -> None:
        entries = self.journal.entries
        written = max((e["written"] for e in entries if isinstance(e.get("written"), int)), default=0)
        for number, entry in enumerate(entries):
            if number == written:
                self._pending = Pending()  # what came before is in the table already
            try:
                if "id" in entry:
                    self._apply(entry)
                elif "seen" in entry:
                    self._see(entry)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise PluresError(
                    f"{self.journal.path}, line {number + 1}: not a decision ({type(error).__name__}: {error});"
                    " fix or remove the line"
                ) from None
        if written >= len(entries):
            self._pending = Pending()

    def _apply(self, entry: Entry) -> None:
        """Let an entry count: stacks, versions, codes, and what is to change in the table."""
        self._kept[entry["id"]] = entry
        undone = self._kept[entry["undo"]] if "undo" in entry else None
        subject = entry if undone is None else undone
        image = subject["image"]
        for tag, answer in subject["answers"].items():
            place = (image, tag)
            before = int(subject["before"][tag])
            if undone is None:
                self._stacks.setdefault(place, []).append(entry["id"])
                code = CODES.get(answer, before)
            else:
                self._stacks[place].remove(undone["id"])
                code = before
            self._versions[place] = self._versions.get(place, 0) + 1
            self._by_hand.discard(place)
            self._pending.labels.setdefault(place, [self._codes.get(place, before)]).append(code)
            self._codes[place] = code
        if "split" in subject:
            old = str(subject["split_before"])  # read in any case: an entry without it could not be undone
            split = str(subject["split"]) if undone is None else old
            self._pending.splits.setdefault(image, ["", self._splits.get(image, old)]).append(split)
            self._splits[image] = split
        mine = self._of_tab.setdefault(subject["tab"], [])
        if undone is None:
            mine.append(entry["id"])
        elif undone["id"] in mine:
            mine.remove(undone["id"])

    def _see(self, entry: Entry) -> None:
        """Let count what somebody has changed in the table itself: decisions about it no longer hold."""
        for image, tags in entry["seen"].items():
            for tag, code in tags.items():
                place = (image, tag)
                self._codes[place] = int(code)
                self._versions[place] = self._versions.get(place, 0) + 1
                self._stacks[place] = []
                self._by_hand.add(place)
                self._pending.labels.pop(place, None)
        for image, split in entry.get("splits", {}).items():
            self._splits[image] = str(split)
            self._pending.splits.pop(image, None)

    def _notice_changes(self) -> None:
        """Look whether somebody has changed the table since it was last read or written here."""
        if self.failure or self.file.changed_outside():
            try:
                self.file = open_table(self.table, self.reader)
            except PluresError as error:
                raise WorkFailed(f"the table cannot be read just now: {error}") from None
            self._compare()

    def _compare(self) -> None:
        seen: dict[Key, dict[str, int]] = {}
        for place, code in self._codes.items():
            found = self.file.code(*place)
            if found not in (None, code, *self._pending.labels.get(place, ())):
                seen.setdefault(place[0], {})[place[1]] = int(found or 0)
        splits: dict[Key, str] = {}
        known: dict[Key, list[str]] = {}
        for image, tag in self._codes:
            known.setdefault(image, []).append(tag)
        for image, split in self._splits.items():
            now = self.file.split(image)
            if now not in (None, split, *self._pending.splits.get(image, ())) and (now or split != "train"):
                splits[image] = str(now)
                for tag in known.get(image, ()):
                    seen.setdefault(image, {}).setdefault(tag, self._codes[image, tag])
        if seen or splits:
            entry: Entry = {"seen": seen, "splits": splits, "time": _now()}
            self.journal.append([entry])
            self._see(entry)

    def flush(self) -> None:
        """Bring the table up to the journal. Raises WorkFailed if it cannot be written; nothing is lost then."""
        with self._lock:
            if not (self._pending.labels or self._pending.splits):
                return
            count = len(self.journal.entries)
            try:
                self._notice_changes()
                for place, codes in self._pending.labels.items():
                    if self.file.code(*place) not in (None, codes[-1]):
                        self.file.set(*place, codes[-1])
                for image, splits in self._pending.splits.items():
                    if self.file.split(image) not in (None, splits[-1]):
                        self.file.set_split(image, splits[-1])
                if self.file.dirty:
                    self.file.write()
            except PluresError as error:
                self.failure = str(error)
                raise WorkFailed(f"the answer is in the journal, but not in the table: {error}") from None
            self.failure = ""
            self._pending = Pending()
            self.journal.append([{"written": count, "time": _now()}])

    def close(self) -> None:
        """Write what the table does not have yet and let the journal go."""
        try:
            self.flush()
        finally:
            self.journal.close()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
