"""The journal: every decision of a review as a line of JSON, on the disk before it is acknowledged, never changed.

It lies beside the table (tags.csv -> tags.csv.journal.jsonl) and is the truth: the table follows from it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from plures.errors import PluresError, WorkFailed
from plures.files import parse_json
from plures.system import lock

Entry = dict[str, Any]


def journal_of(table: Path) -> Path:
    """Where a table's journal lies."""
    return table.with_name(f"{table.name}.journal.jsonl")


class Journal:
    """The journal at a path, opened by one process at a time; `entries` are those that were in it.

    A last line without an end was being written when the process died: it was never acknowledged and is cut off.
    Raises PluresError if another process has it open, or a line in the middle is not an entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise PluresError(f"{path}: the journal cannot be opened ({error.strerror})") from None
        try:
            busy = f"{path}: another `plures review` has this table open; use its page, or end it"
            self._held = lock(path.with_name(f".{path.name}.lock"), busy)
        except BaseException:
            os.close(self._file)
            raise
        try:
            self.entries = self._read()
            _sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def _read(self) -> list[Entry]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        entries = []
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = parse_json(line)
                if not isinstance(entry, dict):
                    raise ValueError("no object")
            except ValueError as error:
                raise PluresError(
                    f"{self.path}, line {number}: not a journal entry ({error}); fix or remove the line"
                ) from None
            entries.append(entry)
        return entries

    def append(self, entries: list[Entry]) -> None:
        """Write the entries and wait until they are on the disk. Raises WorkFailed, and none counts, if not."""
        text = "".join(json.dumps(e, ensure_ascii=False, separators=(",", ":")) + "\n" for e in entries)
        content = text.encode("utf-8", "surrogatepass")  # as json reads it: names of files can be of any bytes
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, content)
            if written < len(content):
                raise OSError(28, "the disk is full")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise WorkFailed(f"{self.path}: the decision could not be kept ({error.strerror})") from None
        self.entries += entries

    def close(self) -> None:
        os.close(self._file)
        self._held.__exit__(None, None, None)


def _sync_folder(folder: Path) -> None:
    """A new file's name survives a crash only once its folder is on the disk, too."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
