"""The errors that plures raises: each says what came, what was expected and what to do.

The command line prints the message alone and ends with the error's exit code: 2 for bad usage or bad input,
1 for work that failed on good input.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

SHORT_OF_MEMORY = (
    "failed to map segment",  # of a library that is loaded
    "allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, for want of memory
    "could not create a memory",
    "start new thread",  # its stack does not fit into the address space
    "launch worker thread",  # the same in Arrow
)
LONGEST = 2000  # characters of a message, 300 of one thing in it: files can quote anything at any length


# all control characters but tab and newline; those that turn the direction of text, hide or cannot be encoded
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with control characters, which a file's name may hold and a terminal obeys, written as escapes."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def clipped(text: str, most: int = 300) -> str:
    """The text, or its beginning and its end where it is longer."""
    return text if len(text) <= most else f"{text[: most * 3 // 4]} ... {text[-most // 5 :]}"


class PluresError(Exception):
    """Bad usage or bad input; the message is one clear line for a person. Exit code 2."""

    exit_code = 2

    def __str__(self) -> str:
        return clipped(printable(super().__str__()), LONGEST)


class WorkFailed(PluresError):
    """Good input, but the work could not be done (no memory, no disk, a loss that became NaN). Exit code 1."""

    exit_code = 1


class Diverged(WorkFailed):
    """Training failed by its own settings and would fail again; every other WorkFailed is worth another try."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out: Python's own and those of torch (CPU, CUDA, MPS), oneDNN,
    Arrow, onnxruntime and the operating system, which are known by their names and texts."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    known = isinstance(error, RuntimeError | ImportError) or type(error).__name__ == "ArrowException"
    return known and any(words in text for words in SHORT_OF_MEMORY)


def machine_failure(error: BaseException) -> str | None:
    """One line for a failure that is the machine's, not the program's: no memory, a worker process that was killed."""
    if out_of_memory(error):
        return "out of memory; use a smaller batch_size, image_size or fewer workers, or a machine with more of it"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # torch's words
        return "a process that reads images was killed, perhaps because memory ran out; use fewer workers (workers=0)"
    return None


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the data: where it stands and what was expected there.

    severity "error": the row (with row None: the file) cannot be used; "notice": worth knowing, nothing is left out.
    times: how many rows it is about.
    """

    file: str
    row: int | None  # 1-based line, row or annotation number as an editor shows it; None for the whole file
    what: str
    expected: str = ""
    severity: Literal["error", "notice"] = "error"
    times: int = 1

    def __post_init__(self) -> None:
        for name in ("what", "expected"):
            object.__setattr__(self, name, clipped(getattr(self, name)))


class BadData(PluresError):
    """The data have problems; `problems` holds every one of them, in the order found.

    skippable: whether the bad rows can be dropped (not when the file itself cannot be read).
    """

    def __init__(self, problems: Iterable[Problem], skippable: bool = True) -> None:
        self.problems = tuple(problems)
        self.skippable = skippable
        first = self.problems[0]
        where = first.file if first.row is None else f"{first.file}, row {first.row}"
        others = sum(problem.times for problem in self.problems[1:])
        more = f" (and {others:,} more)" if others else ""
        wanted = f"; expected {first.expected}" if first.expected else ""
        way_out = "; fix the data, or pass --skip-bad to drop these rows" if skippable else ""
        super().__init__(f"{where}: {first.what}{wanted}{more}{way_out}")


EQUAL = 5  # problems that differ in nothing but the place; more of them become one line


def grouped(problems: Iterable[Problem]) -> list[Problem]:
    """The problems as a person reads them: more than five that say the same are one, with their number and examples.

    It stands where the first of them stood.
    """
    alike: dict[Problem, list[Problem]] = {}
    for problem in problems:
        alike.setdefault(replace(problem, file="", row=None), []).append(problem)
    lines = []
    for same, those in alike.items():
        if len(those) <= EQUAL:
            lines += those
            continue
        files = list(dict.fromkeys(problem.file for problem in those))
        if len(files) == 1:
            examples = f"rows {', '.join(str(problem.row) for problem in those[:3])}, ..."
            lines.append(replace(same, file=files[0], what=f"{len(those):,} times: {same.what} ({examples})"))
        else:
            shown = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
            lines.append(replace(same, file=shown, what=f"{len(those):,} files: {same.what}"))
    return lines


def require(what: str, extra: str, packages: Iterable[str]) -> None:
    """Raise PluresError, with the one line that fixes it, if a package that an extra brings is missing.

    what: what requires it, at the beginning of the message; packages: as they are imported.
    """
    for package in packages:
        if find_spec(package) is None:
            raise PluresError(f'{what} needs the package {package}: pip install "plures[{extra}]"')


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'role'?` for the closest choice, or the whole list where nothing is close."""
    names = sorted(choices)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose from: {', '.join(names)}" if names else ""
