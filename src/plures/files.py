"""Writing files atomically and not over a person's work; reading JSON and YAML of strangers."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from plures.errors import PluresError, WorkFailed, clipped
from plures.system import alive

T = TypeVar("T")

MOST_NODES = 100_000  # of a YAML file with its aliases written out: a few lines can spell billions
_HOST = re.sub(r"[^\w-]", "_", platform.node()) or "host"


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place at the end: a reader never sees half a file.

    Makes the folder if need be. The temporary file is new, with a name that nobody can foresee (a link that waits there
    is never followed), and what is made has the rights that the umask says. Raises WorkFailed in one line if the disk
    is full or the place cannot be written; what was there before stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_once(path.parent.absolute())
        made = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        begun = os.fstat(made)
        os.close(made)
        yield temporary
        with temporary.open("r+b") as handle:
            os.fsync(handle.fileno())
        if temporary.stat().st_ino != begun.st_ino:  # safetensors puts a file of its own there, for its owner alone
            os.chmod(temporary, begun.st_mode & 0o777)
        os.replace(temporary, path)
    except PluresError:
        raise
    except UnicodeEncodeError as error:
        raise PluresError(
            f"{path}: cannot hold the name {error.object[:200]!r}, which is not UTF-8; rename that file, for example"
            " with `convmv -f latin1 -t utf8`"
        ) from None
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise WorkFailed(f"{path}: cannot be written ({reason}); what was there before is intact") from None
    finally:
        with suppress(OSError):  # it was never made: the error above says why
            temporary.unlink(missing_ok=True)


@cache
def _clear_once(folder: Path) -> None:
    """`clear_left`, before this process first writes into the folder."""
    clear_left(folder)


def clear_left(folder: str | Path) -> None:
    """Remove what `writing` had begun in this folder when its process, of this machine, was killed."""
    for left in Path(folder).glob(f".*.{_HOST}.*.tmp"):
        process = re.search(rf"\.{_HOST}\.(\d+)(\.[0-9a-f]+)?\.tmp$", left.name)
        if process is not None and not alive(int(process[1])):
            with suppress(OSError):  # a read-only disk: what has to write there will say so
                left.unlink()


def claim(file: int, size: int) -> None:
    """Take `size` bytes of disk for an open file that will be written through memory, where a full disk would end the
    process without a word. Raises OSError if there is no space."""
    os.ftruncate(file, size)
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


# ------------------------------------------------------------------------------------------------ what is there already

MARK = ".plures"  # in a folder that a command made for itself, with the command's name: it may replace what is there
PAGE = '<meta name="generator" content="plures">'  # at the head of every page that plures writes


def refuse_replacing(path: str | Path, *, force: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse to write `path` where that would lose what is there. To be called before any work is done.

    A file that exists is replaced only with `force`, or if it is a page that plures wrote. What the command reads is
    never replaced, whatever name or link it is called by.

    Args:
        path: the file to write.
        force: the person asked for it to be replaced.
        inputs: what the command reads: files, a folder with one table, or DATA such as `table:tags.csv`.

    Raises:
        PluresError: in one line, if the file must not be written.

    Example:
        >>> refuse_replacing("a-new-name.csv", inputs=["tags.csv"])
    """
    path = Path(path)
    if path.is_dir():
        raise PluresError(f"{path} is a folder; give the name of a file in it")
    if not os.path.lexists(path) or _own_page(path):
        return
    for text in map(str, inputs):
        for source in {text, text.partition(":")[2]}:  # DATA may name its format
            if source and os.path.exists(source) and _is_input(Path(source), path):
                raise PluresError(f"{path}: this command reads it, so it is not replaced; choose another name")
    if not force:
        raise PluresError(f"{path} is there already; choose another name, or replace it with --force")


def _is_input(source: Path, path: Path) -> bool:
    """Whether the file is the source itself, or the table that a folder is read as."""
    if source.is_dir():
        tables = [file for suffix in (".csv", ".tsv", ".parquet") for file in source.glob(f"*{suffix}")]
        return len(tables) == 1 and _is_input(tables[0], path)
    return path.exists() and source.samefile(path)


def _own_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.suffix.lower() in (".html", ".htm") and PAGE.encode() in file.read(1000)
    except OSError:
        return False


def refuse_folder(folder: str | Path, maker: str = "") -> None:
    """Refuse a folder that holds anything but hidden files, unless it is marked as made by `maker`.

    Args:
        folder: where a command is to write many files.
        maker: the command, as given to `mark_folder`; "" if no folder that is there will do.

    Raises:
        PluresError: in one line, if the folder must not be written to.
    """
    folder = Path(folder)
    if not os.path.lexists(folder) or (maker and _maker(folder) == maker):
        return
    if not folder.is_dir():
        raise PluresError(f"{folder} is a file; give the name of a folder")
    found = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if found:
        more = ", ..." if len(found) > 1 else ""
        raise PluresError(f"{folder} holds files of other origin ({found[0]}{more}); choose a new or an empty folder")


def mark_folder(folder: str | Path, maker: str) -> None:
    """Make the folder if need be and note in it which command made it, so that the command may write there again."""
    if _maker(Path(folder)) != maker:
        with writing(Path(folder) / MARK) as temporary:
            temporary.write_text(f"{maker}\nplures {maker} made this folder and may replace what is in it.\n")


def _maker(folder: Path) -> str:
    """The command that made the folder, or ""."""
    try:
        return (folder / MARK).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""


# ------------------------------------------------------------------------------------------------------------- reading


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError, never another error."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not a number in JSON; null stands for an undefined one")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises PluresError if it cannot be read or is something else."""
    try:
        value = parse_json(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no object")
    except OSError as error:
        raise PluresError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise PluresError(f"{path}: damaged ({error})") from None
    return value


def read_as(kind: type[T], value: Any) -> T:
    """The plain value as a dataclass, a tuple[str, ...], ...; further keys are ignored. Raises ValueError in one line
    if it is of another kind."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place or kind.__name__}={clipped(repr(first['input']))}: {first['msg'].lower()}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file with one JSON object per line. Raises PluresError if it is anything else."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise PluresError(f"{path}: cannot be read ({error.strerror})") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line) if line.strip() else {}
            if not isinstance(record, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise PluresError(f"{path}, line {number}: not a record ({error}); remove the line") from None
        if record:
            records.append(record)
    return records


def parse_yaml(text: str) -> Any:
    """What a YAML text says, plain values only: it cannot run code. Raises ValueError, never another error."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if _written_out(node, {}) > MOST_NODES:
            raise ValueError("its aliases spell too much")
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:  # as odd tags raise
        raise ValueError(" ".join(str(error).split())) from None


def _written_out(node: Any, sizes: dict[int, float]) -> float:
    """How many values a node spells, each alias counted as what it stands for; infinite if it holds itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        below = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in below)
    return sizes[id(node)]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises PluresError if it cannot be read or is not a mapping."""
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PluresError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise PluresError(f"{path}: not a YAML file ({error})") from None
    if not isinstance(values, dict):
        raise PluresError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


# ------------------------------------------------------------------------------------------------------------ mistakes


def _reason(error: Exception) -> str | None:
    """Why a file could not be written, or None if the error is about something else.

    torch and safetensors report a full disk as errors of their own kind, known by their text.
    """
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or any(
        w in text for w in ("No space", "file write", "os error 28", "PytorchStreamWriter", "inline_container")
    ):
        return "the disk is full"
    return error.strerror or text if isinstance(error, OSError) else None
