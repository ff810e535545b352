"""Decisions about cells of a table: kept once and in order, undone, refused if another tab was faster.

A cell is an image and a tag. Its version counts what has happened to it; a decision says which version it was made
on, so that of two tabs that answer the same cell the second is told so. A decision has an id, so that sending it again
after a lost answer does nothing. The journal is written first; the table follows within a moment.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.files import clear_left
from plures.labels import ABSENT, PRESENT, UNKNOWN
from plures.web.journal import Entry, Journal, journal_of
from plures.web.table_edit import Changes, Key, edit_table, key_of

Answer = Literal["yes", "no", "unsure"]
CODES: dict[str, int] = {"yes": PRESENT, "no": ABSENT}


@dataclass(frozen=True)
class Decision:
    """Answers to one or more tags of one image, made on these versions of its cells; all of them count or none.

    split: the split that the image's row gets, "" for no change.
    """

    id: str
    image: Key
    answers: Mapping[str, Answer]
    versions: Mapping[str, int]
    split: str = ""


@dataclass(frozen=True)
class Cell:
    """Where a cell stands: its version, the answer that counts ("" for none), and its code in the table."""

    version: int
    answer: str
    code: int


@dataclass(frozen=True)
class Outcome:
    """What became of a decision: "kept", "repeated" (it had been kept before) or "conflict" (another was faster)."""

    id: str
    status: Literal["kept", "repeated", "conflict", "nothing"]
    image: Key = ""
    cells: Mapping[str, Cell] = field(default_factory=dict)


class Decisions:
    """The decisions about one table. Opening it brings the table up to the journal; `close` writes what is left.

    wait: seconds from a decision to the rewriting of the table (at least five times as long as that took last).
    """

    def __init__(self, table: Path, wait: float = 1.0) -> None:
        self.table, self.wait = table, wait
        clear_left(table.parent)  # of a server that was killed while it wrote the table
        self.journal = Journal(journal_of(table))
        self._lock, self._writing = threading.RLock(), threading.Lock()
        self._stacks: dict[tuple[Key, str], list[str]] = {}  # ids of the decisions that hold, oldest first
        self._versions: dict[tuple[Key, str], int] = {}
        self._kept: dict[str, Entry] = {}
        self._of_tab: dict[str, list[str]] = {}
        self._pending = Changes()
        self._codes: dict[tuple[Key, str], int] = {}
        self._base: dict[tuple[Key, str], int] = {}
        self._splits: dict[Key, str] = {}
        self.failure = ""  # why the table could not be rewritten the last time, "" if it could
        self._stopped, self._dirty = threading.Event(), threading.Event()
        try:
            self._replay()
            self.flush()
        except BaseException:
            self.journal.close()
            raise
        self._codes.clear()  # the table has them all now, and may have been edited by hand since: `know` reads it
        self._writer = threading.Thread(target=self._write_along, daemon=True)
        self._writer.start()

    def know(self, dataset: Dataset, rows: list[int], tags: list[list[str]]) -> None:
        """Learn the codes that the table has now of these tags of these rows."""
        column = {name: k for k, name in enumerate(dataset.classes)}
        for row, wanted in zip(rows, tags, strict=True):
            key = key_of(str(dataset.images[row]), self.table)
            if dataset.splits is not None:
                self._splits[key] = str(dataset.splits[row])
            for tag in wanted:
                code = int(dataset.labels.values[row, column[tag]]) if tag in column else UNKNOWN
                self._base.setdefault((key, tag), code)

    # ---------------------------------------------------------------------------------------------- asking and telling

    def cell(self, image: Key, tag: str) -> Cell:
        with self._lock:
            place = (image, tag)
            stack = self._stacks.get(place)
            answer = self._kept[stack[-1]]["answers"][tag] if stack else ""
            code = self._codes.get(place, self._base.get(place, UNKNOWN))
            return Cell(self._versions.get(place, 0), answer, code)

    def keep(self, decisions: list[Decision], tab: str) -> list[Outcome]:
        """Keep the decisions that nobody was faster with, all in one go; on the disk when this returns."""
        with self._lock:
            entries: list[Entry] = []
            outcomes: list[Outcome] = []
            taken: set[tuple[Key, str]] = set()
            for d in decisions:
                places = {(d.image, tag) for tag in d.answers}
                if d.id in self._kept or any(e["id"] == d.id for e in entries):
                    status: Literal["kept", "repeated", "conflict"] = "repeated"
                elif places & taken or any(self.cell(*p).version != d.versions.get(p[1]) for p in places):
                    status = "conflict"
                else:
                    status = "kept"
                    taken |= places
                    entries.append(self._entry(d, tab))
                outcomes.append(Outcome(d.id, status, d.image))
            if entries:
                self.journal.append(entries)
                for entry in entries:
                    self._apply(entry)
                self._dirty.set()
            return [self._with_cells(o, d) for o, d in zip(outcomes, decisions, strict=True)]

    def undo(self, tab: str, id: str) -> Outcome:
        """Take back the last decision of this tab that still holds; "conflict" if another tab has decided since."""
        with self._lock:
            if id in self._kept:
                return Outcome(id, "repeated")
            mine = self._of_tab.get(tab, [])
            if not mine:
                return Outcome(id, "nothing")
            entry = self._kept[mine[-1]]
            tags = list(entry["answers"])
            if any(self._stacks[entry["image"], tag][-1] != entry["id"] for tag in tags):
                mine.pop()
                return Outcome(id, "conflict", entry["image"], {t: self.cell(entry["image"], t) for t in tags})
            undone = {"id": id, "tab": tab, "time": _now(), "undo": entry["id"]}
            self.journal.append([undone])
            self._apply(undone)
            self._dirty.set()
            return Outcome(id, "kept", entry["image"], {t: self.cell(entry["image"], t) for t in tags})

    def _entry(self, d: Decision, tab: str) -> Entry:
        entry: Entry = {"id": d.id, "tab": tab, "time": _now(), "image": d.image, "answers": dict(d.answers)}
        entry["before"] = {tag: self.cell(d.image, tag).code for tag in d.answers}
        if d.split:
            entry |= {"split": d.split, "split_before": self._splits.get(d.image) or "train"}
        return entry

    def _with_cells(self, outcome: Outcome, d: Decision) -> Outcome:
        return Outcome(outcome.id, outcome.status, d.image, {tag: self.cell(d.image, tag) for tag in d.answers})

    # --------------------------------------------------------------------------------------------- journal and table

    def _replay(self) -> None:
        entries = self.journal.entries
        written = max((e["written"] for e in entries if isinstance(e.get("written"), int)), default=0)
        for number, entry in enumerate(entries):
            if number == written:
                self._pending = Changes()  # what came before is in the table already
            try:
                if "id" in entry:
                    self._apply(entry)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise PluresError(
                    f"{self.journal.path}, line {number + 1}: not a decision ({type(error).__name__}: {error});"
                    " mend or remove the line"
                ) from None
        if written >= len(entries):
            self._pending = Changes()

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
            self._codes[place] = code
            self._pending.labels.setdefault(image, {})[tag] = code
        if "split" in subject:
            split = subject["split_before"]  # read in any case: an entry without it could not be undone
            split = subject["split"] if undone is None else split
            self._splits[image] = self._pending.splits[image] = split
        mine = self._of_tab.setdefault(subject["tab"], [])
        if undone is None:
            mine.append(entry["id"])
        elif undone["id"] in mine:
            mine.remove(undone["id"])

    def flush(self) -> None:
        """Bring the table up to the journal. Raises PluresError if it cannot be written; nothing is lost then."""
        with self._writing:
            with self._lock:
                changes, self._pending = self._pending, Changes()
                count = len(self.journal.entries)
            if not changes:
                return
            try:
                edit_table(self.table, changes)
            except BaseException:
                with self._lock:
                    self._put_back(changes)
                raise
            with self._lock:
                self.journal.append([{"written": count, "time": _now()}])

    def _put_back(self, changes: Changes) -> None:
        newer, self._pending = self._pending, changes
        for image, tags in newer.labels.items():
            self._pending.labels.setdefault(image, {}).update(tags)
        self._pending.splits.update(newer.splits)

    def _write_along(self) -> None:
        pause = self.wait
        while not self._stopped.is_set():
            if not self._dirty.wait(0.2):
                continue
            self._stopped.wait(pause)
            self._dirty.clear()
            started = time.monotonic()
            try:
                self.flush()
                self.failure = ""
            except Exception as error:  # shown on the page; the journal has everything
                self.failure = str(error)
                self._dirty.set()
            pause = max(self.wait, 5 * (time.monotonic() - started))

    def close(self) -> None:
        """Write the table a last time and let the journal go."""
        self._stopped.set()
        self._writer.join()
        try:
            self.flush()
        finally:
            self.journal.close()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
