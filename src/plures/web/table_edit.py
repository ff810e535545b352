"""Changing single cells of a table on the disk: every other byte of a text table stays as it is."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plures.data.checks.verify import missing_images
from plures.data.formats import delimited
from plures.data.formats.safe_cells import bare, guarded
from plures.data.formats.table import Table
from plures.data.formats.table_layout import Layout
from plures.data.paths import find_files
from plures.errors import PluresError, WorkFailed
from plures.files import writing
from plures.labels import ABSENT, PRESENT, UNKNOWN

Key = str  # an image, as its path from the table's folder
CODES_OF_TEXT = {"": UNKNOWN, "1": PRESENT, "1.0": PRESENT, "0": ABSENT, "0.0": ABSENT}
STRANGE = 2  # a cell that is no label: somebody is at work there


def key_of(image: str, table: Path) -> Key:
    """The image's path as seen from the table's folder: the name under which decisions are kept."""
    return Path(os.path.relpath(image, table.parent)).as_posix()


def open_table(path: Path, reader: Table) -> EditableTable:
    """The table at a path, read with the reader's options. Raises PluresError if it cannot be edited safely."""
    if not path.is_file():
        raise WorkFailed(f"{path}: the table is gone")
    return ParquetTable(path, reader) if path.suffix.lower() == ".parquet" else TextTable(path, reader)


class EditableTable(ABC):
    """A table in memory whose cells can be read and set; `write` puts it in the place of the file, atomically.

    Codes are 1, 0 and -1 as everywhere; an image that stands in several rows has the strongest code of them, as the
    reader has it, and all of them are set.
    """

    rows: dict[Key, list[int]]

    def __init__(self, path: Path, reader: Table) -> None:
        self.path, self.reader = path, reader
        self.signature = _signature(path)
        self.dirty = False  # something is set that the file does not have
        self.layout = _editable(reader.layout(path), reader, path)
        layout = self.layout  # `absent` and `split` are what a new column is called where there is none
        self.image, self.tags = layout.image, layout.tags
        self.absent, self.split_column = layout.absent or "absent", layout.split or "split"
        self.columns = {name for name in (layout.tags, layout.absent, layout.split) if name}
        self._load()
        self.rows = {}
        images = [self._image(row) for row in self._numbers()]
        key = _Keys(path, reader, images)
        for row, image in zip(self._numbers(), images, strict=True):
            if image:
                self.rows.setdefault(key(image), []).append(row)

    def _image(self, row: int) -> str:
        """The path in a row's image cell."""
        return (self._text(row, self.image) or "").strip()

    # ------------------------------------------------------------------------------------------------ reading, setting

    def code(self, key: Key, tag: str) -> int | None:
        """The code of a cell; None if the image has no row."""
        return max((self._code(row, tag) for row in self.rows.get(key, ())), default=None)

    def present(self, key: Key) -> list[str]:
        """The tags that an image has, in order."""
        rows = self.rows.get(key, ())
        tags = [self.layout.classes if self.layout.classes else self._words(row, self.tags) for row in rows]
        return list(dict.fromkeys(tag for row, some in zip(rows, tags, strict=True) for tag in some
                                  if self._code(row, tag) == PRESENT))  # fmt: skip

    def split(self, key: Key) -> str | None:
        """The image's split; "" where the table has none, None if the image has no row."""
        if key not in self.rows:
            return None
        return (
            (self._text(self.rows[key][0], self.split_column) or "").strip()
            if self.split_column in self.columns
            else ""
        )

    def check(self, tag: str) -> None:
        """Raise PluresError if no answer about this tag can be written into this table."""
        if self.layout.classes:
            if tag not in self.layout.classes:
                raise PluresError(f"{self.path}: class '{tag}' has no column in the table; add one and start again")
            return
        if not tag.strip() or tag != tag.strip():
            raise PluresError(f"{self.path}: a tag must be text without blanks at its ends, got '{tag}'")
        self._check_words(tag)

    def set(self, key: Key, tag: str, code: int) -> None:
        """Set a cell; nothing happens to rows that have this code already. Raises PluresError as `check` does."""
        self.check(tag)
        for row in self.rows[key]:
            if self._code(row, tag) == code:
                continue
            self.dirty = True
            if self.layout.classes:
                self._put_code(row, tag, code)
                continue
            self._change_words(row, self.tags, tag, code == PRESENT)
            if code == ABSENT and not self.reader.complete:
                self._require_column(self.absent)
            if self.absent in self.columns:
                self._change_words(row, self.absent, tag, code == ABSENT and not self._blank_is(code))

    def set_split(self, key: Key, split: str) -> None:
        """Set the split. A table without a split column gets one: every other row is "train" then."""
        if split == "train" and self.split_column not in self.columns:
            return
        self._require_column(self.split_column, "train")
        for row in self.rows[key]:
            if (self._text(row, self.split_column) or "").strip() != split:
                self.dirty = True
                self._put_text(row, self.split_column, split)

    def _blank_is(self, code: int) -> bool:
        return code == (ABSENT if self.reader.complete else UNKNOWN)

    def _code(self, row: int, tag: str) -> int:
        blank = ABSENT if self.reader.complete else UNKNOWN
        if self.layout.classes:
            code = self._class_code(row, tag) if tag in self.layout.classes else UNKNOWN
            return blank if code == UNKNOWN else code
        if tag in self._words(row, self.tags):
            return PRESENT
        return ABSENT if self.absent in self.columns and tag in self._words(row, self.absent) else blank

    def _require_column(self, name: str, default: str = "") -> None:
        if name not in self.columns:
            self.dirty = True
            self._add_column(name, default)
            self.columns.add(name)

    # -------------------------------------------------------------------------------------------------------- the file

    def changed_outside(self) -> bool:
        """Whether the file is not what is in memory: somebody has changed it, or it could not be written."""
        return self.dirty or _signature(self.path) != self.signature

    def write(self) -> None:
        """Write the table. A link stays a link, and the file keeps mode and owner. Raises WorkFailed if it cannot be
        written, or does not read back as it was written."""
        target = self.path.resolve()
        with writing(target) as temporary:
            self._save(temporary)
            keep_owner(target, temporary)
            if _signature(self.path) != self.signature:
                raise WorkFailed(f"{self.path}: was changed by another program just now; try again")
        if not self._reads_back():
            raise WorkFailed(f"{self.path}: the table does not read back as it was written; is another program at it?")
        self.signature, self.dirty = _signature(self.path), False

    @abstractmethod
    def _load(self) -> None:
        """Read the file."""

    @abstractmethod
    def _numbers(self) -> range:
        """The rows."""

    @abstractmethod
    def _text(self, row: int, name: str) -> str | None: ...

    @abstractmethod
    def _put_text(self, row: int, name: str, text: str) -> None: ...

    @abstractmethod
    def _words(self, row: int, name: str) -> list[str]: ...

    @abstractmethod
    def _change_words(self, row: int, name: str, word: str, present: bool) -> None: ...

    @abstractmethod
    def _check_words(self, tag: str) -> None: ...

    @abstractmethod
    def _class_code(self, row: int, tag: str) -> int: ...

    @abstractmethod
    def _put_code(self, row: int, tag: str, code: int) -> None: ...

    @abstractmethod
    def _add_column(self, name: str, default: str) -> None: ...

    @abstractmethod
    def _save(self, file: Path) -> None: ...

    @abstractmethod
    def _reads_back(self) -> bool: ...


def _editable(layout: Layout, reader: Table, path: Path) -> Layout:
    """The layout itself. Raises PluresError where an answer could not be written as the reader would read it."""
    rules = reader.rules
    options = {"present, absent or unknown": layout.meaning, "rename": rules.rename, "nothing": rules.nothing}
    used = [name for name, value in options.items() if value]
    if used or layout.valid:
        what = (
            f"is read with the option data.{used[0]}" if used else f"has splits in '{layout.split}', as true and false"
        )
        raise PluresError(
            f"{path}: {what}, and answers cannot be written back so; make a table of its own with"
            f" `plures init {path} --out NEW.csv`, and review that"
        )
    return layout


class _Keys:
    """The key of each image cell: of the file that the reader finds for it."""

    def __init__(self, table: Path, reader: Table, images: list[str]) -> None:
        self.table = table
        named = [image for image in images if image]
        self.folder = reader._folder(table, named)
        self.start = key_of(self.folder, table)
        missing = missing_images([os.path.join(self.folder, name) for name in named])
        found = find_files(self.folder, named, missing).files
        self.spelled = {named[row]: path for row, path in found.items()}  # otherwise than the file itself

    def __call__(self, cell: str) -> Key:
        cell = self.spelled.get(cell, cell)
        if cell[0] in "/\\" or cell[1:2] == ":":
            return key_of(cell, self.table)
        if ".." in cell:  # may lead back into the table's folder
            return key_of(os.path.join(self.folder, cell), self.table)
        return os.path.normpath(os.path.join(self.start, cell))  # the same, much faster


class TextTable(EditableTable):
    """CSV or TSV, kept as its lines; a cell is cut out of its line and put back, quoted if it was or must be."""

    def _load(self) -> None:
        header = delimited.read_header(self.path, self.reader.delimiter, self.reader.encoding)
        self.delimiter = header.delimiter
        try:
            self.lines = self.path.read_bytes().decode().split("\n")
        except UnicodeDecodeError:
            raise PluresError(f"{self.path}: the text is not UTF-8; save it as CSV UTF-8") from None
        self._cell = re.compile(rf'(?:"(?:[^"]|"")*+")?[^{re.escape(self.delimiter)}]*')
        self.names = header.names

    def _numbers(self) -> range:
        return range(1, len(self.lines))

    def _cells(self, row: int) -> tuple[list[str], str]:
        """The cells of a line as they are written, and the carriage return at its end."""
        line = self.lines[row]
        line, end = (line[:-1], "\r") if line.endswith("\r") else (line, "")
        if '"' not in line:
            return line.split(self.delimiter), end
        cells, at = [], 0
        while at <= len(line):
            found = self._cell.match(line, at)
            assert found is not None  # the expression takes nothing, too
            cells.append(found[0])
            at = found.end() + 1
        return cells, end

    def _image(self, row: int) -> str:
        return bare(super()._image(row))

    def _text(self, row: int, name: str) -> str:
        cells, _ = self._cells(row)
        at = self.names.index(name)
        return self._value(cells[at], row) if at < len(cells) else ""

    def _value(self, cell: str, row: int) -> str:
        if not cell.startswith('"'):
            return cell
        found = re.fullmatch(r'"((?:[^"]|"")*+)"(.*)', cell, re.DOTALL)
        if found is None:
            raise PluresError(f"{self.path}, line {row + 1}: a quote is opened and not closed in this line")
        return found[1].replace('""', '"') + found[2]

    def _put_text(self, row: int, name: str, text: str) -> None:
        cells, end = self._cells(row)
        at = self.names.index(name)
        cells += [""] * (at + 1 - len(cells))
        quoted = cells[at].startswith('"') or any(mark in text for mark in (self.delimiter, '"', "\r", "\n"))
        cells[at] = '"' + text.replace('"', '""') + '"' if quoted else text
        self.lines[row] = self.delimiter.join(cells) + end

    def _words(self, row: int, name: str) -> list[str]:
        return [bare(word.strip()) for word in self._text(row, name).split(self.reader.separator) if word.strip()]

    def _change_words(self, row: int, name: str, word: str, present: bool) -> None:
        if (word in self._words(row, name)) == present:
            return
        separator = self.reader.separator
        words = [w for w in self._text(row, name).split(separator) if w.strip() and bare(w.strip()) != word]
        if present:
            spaced = len(words) > 1 and all(w[:1].isspace() for w in words[1:])  # "cat; dog"
            words.append(" " * spaced + guarded(word))
        self._put_text(row, name, separator.join(words).strip())

    def _check_words(self, tag: str) -> None:
        if self.reader.separator in tag:
            raise PluresError(
                f"{self.path}: tag '{tag}' contains '{self.reader.separator}', which separates tags in this table, so"
                " it would be read as several; rename the tag, or use a table with one column per class"
            )
        if "\n" in tag or "\r" in tag:
            raise PluresError(f"{self.path}: a tag must not contain a line end, got '{tag}'")

    def _class_code(self, row: int, tag: str) -> int:
        return CODES_OF_TEXT.get(self._text(row, tag).strip(), STRANGE)

    def _put_code(self, row: int, tag: str, code: int) -> None:
        self._put_text(row, tag, {PRESENT: "1", ABSENT: "0"}.get(code, ""))

    def _add_column(self, name: str, default: str) -> None:
        self.names = [*self.names, name]
        for row, line in enumerate(self.lines):
            if line.strip("\r\ufeff"):
                end = "\r" if line.endswith("\r") else ""
                self.lines[row] = line.removesuffix("\r") + self.delimiter + (default if row else name) + end

    def _save(self, file: Path) -> None:
        file.write_bytes("\n".join(self.lines).encode())

    def _reads_back(self) -> bool:
        return self.path.read_bytes() == "\n".join(self.lines).encode()


class ParquetTable(EditableTable):
    """Parquet: the edited columns are replaced, of the same type; order, other columns and metadata stay."""

    def _load(self) -> None:
        try:
            file = pq.ParquetFile(self.path)
            self.content = file.read()
        except (pa.ArrowException, OSError) as error:
            raise PluresError(f"{self.path}: not a Parquet file ({' '.join(str(error).split())})") from None
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        self.options: dict[str, Any] = {}
        if groups and groups[0].num_columns:
            codec = groups[0].column(0).compression
            self.options["compression"] = "none" if codec == "UNCOMPRESSED" else codec
            self.options["row_group_size"] = max(1, *(group.num_rows for group in groups))
        self.lists: dict[str, list[Any]] = {}
        self.edited: set[str] = set()
        for name in self.layout.wanted:
            if name != self.image:
                self._check_type(name, bool(self.layout.classes) and name != self.split_column)

    def _check_type(self, name: str, is_class: bool) -> None:
        """Raise PluresError if answers cannot be written into this column."""
        kind = self.content.schema.field(name).type
        value: list[Any] = [_number(code, kind) for code in (PRESENT, ABSENT)] if is_class else [_words_of(["a"], kind)]
        try:
            pa.array([*value, None], _filled(kind, is_class))
        except (pa.ArrowException, TypeError, ValueError):
            raise PluresError(
                f"{self.path}: column '{name}' is of type {kind}, into which answers cannot be written; expected"
                f" {'numbers, truth values or text' if is_class else 'text or lists of text'}"
            ) from None

    def _numbers(self) -> range:
        return range(self.content.num_rows)

    def _list(self, name: str) -> list[Any]:
        if name not in self.lists:
            self.lists[name] = self.content.column(name).to_pylist()
        return self.lists[name]

    def _put(self, row: int, name: str, value: Any) -> None:
        self._list(name)[row] = value
        self.edited.add(name)

    def _text(self, row: int, name: str) -> str | None:
        value = self._list(name)[row]
        return None if value is None else str(value)

    def _put_text(self, row: int, name: str, text: str) -> None:
        self._put(row, name, text)

    def _words(self, row: int, name: str) -> list[str]:
        value = self._list(name)[row]
        words = str(value or "").split(self.reader.separator) if not isinstance(value, list) else value
        return [str(word).strip() for word in words if word is not None and str(word).strip()]

    def _change_words(self, row: int, name: str, word: str, present: bool) -> None:
        words = self._words(row, name)
        if (word in words) == present:
            return
        words = [*words, word] if present else [w for w in words if w != word]
        value = _words_of(words, self.content.schema.field(name).type, self.reader.separator)
        self._put(row, name, value)

    def _check_words(self, tag: str) -> None:
        if not _is_list(self.content.schema.field(self.tags).type) and self.reader.separator in tag:
            raise PluresError(
                f"{self.path}: tag '{tag}' contains '{self.reader.separator}', which separates tags in this table, so"
                " it would be read as several; rename the tag, or use lists or one column per class"
            )

    def _class_code(self, row: int, tag: str) -> int:
        value = self._list(tag)[row]
        if value is None or value != value:
            return UNKNOWN
        if isinstance(value, str):
            return CODES_OF_TEXT.get(value.strip(), STRANGE)
        return PRESENT if value == 1 else ABSENT if value == 0 else STRANGE

    def _put_code(self, row: int, tag: str, code: int) -> None:
        self._put(row, tag, _number(code, self.content.schema.field(tag).type))

    def _add_column(self, name: str, default: str) -> None:
        tags = self.content.schema.field(self.tags).type if name == self.absent else pa.string()
        kind = _filled(tags, False)
        empty: Any = [] if _is_list(kind) else default
        self.content = self.content.append_column(name, pa.array([empty] * self.content.num_rows, kind))

    def _save(self, file: Path) -> None:
        for name in sorted(self.edited):
            place = self.content.column_names.index(name)
            field = self.content.schema.field(name)
            field = field.with_type(_filled(field.type, bool(self.layout.classes) and name != self.split_column))
            self.content = self.content.set_column(place, field, pa.array(self._list(name), field.type))
        pq.write_table(self.content, file, **self.options)

    def _reads_back(self) -> bool:
        back = pq.ParquetFile(self.path).read(columns=sorted(self.edited))
        names, self.edited = self.edited, set()
        return all(repr(back.column(name).to_pylist()) == repr(self.content.column(name).to_pylist()) for name in names)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _filled(kind: Any, is_class: bool) -> Any:
    """The type itself; of a column without a single value, which has none, the plainest that takes answers."""
    if pa.types.is_null(kind):
        return pa.int8() if is_class else pa.string()
    if _is_list(kind) and pa.types.is_null(kind.value_type):
        return pa.list_(pa.string())
    return kind


def _words_of(words: list[str], kind: Any, separator: str = ";") -> Any:
    return words if _is_list(kind) else separator.join(words)


def _number(code: int, kind: Any) -> Any:
    """A code as a value of a class column."""
    if code == UNKNOWN:
        return None
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return str(code)
    return bool(code) if pa.types.is_boolean(kind) else code


# ------------------------------------------------------------------------------------------------------ mode and owner


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def keep_owner(file: Path, copy: Path) -> None:
    """Give a copy the mode and owner of a file that it is to replace. Raises WorkFailed if the owner cannot be kept."""
    state, new = file.stat(), copy.stat()
    if (state.st_uid, state.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.chown(copy, state.st_uid, state.st_gid)
        except OSError:
            raise WorkFailed(
                f"{file}: belongs to another user or group, and would not after it was written; review it as its owner"
            ) from None
    os.chmod(copy, stat.S_IMODE(state.st_mode))


def check_writable(path: Path) -> None:
    """Raise WorkFailed if the file could not be replaced by one with the same owner."""
    target = path.resolve()
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.") as probe:
            keep_owner(target, Path(probe.name))
    except OSError as error:
        raise WorkFailed(f"{path}: cannot be written ({error.strerror}); answers would not reach the table") from None
