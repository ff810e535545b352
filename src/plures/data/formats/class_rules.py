"""What a person says of a table's classes: some are one class, one says that nothing is present, some are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from plures.data.formats.cells import BAD, listed
from plures.errors import BadData, PluresError, Problem, did_you_mean
from plures.labels import ABSENT, PRESENT, UNKNOWN

NOTHING = frozenset(
    ["none", "nothing", "nofinding", "nofindings", "nolabel", "nolabels", "noobject", "negative", "background"]
)
SEPARATORS = ("|", ";", ",", "/", " ")


@dataclass(frozen=True)
class ClassRules:
    """rename: classes that are called otherwise, (old, new); nothing: the class that means that no other is present;
    only: the classes to use, in this order (all if empty)."""

    rename: tuple[tuple[str, str], ...] = ()
    nothing: str = ""
    only: tuple[str, ...] = ()

    @classmethod
    def parse(cls, rename: str, nothing: str, only: str) -> ClassRules:
        """From options: `OLD:NEW, OLD:NEW`, a name, and names separated by commas. Raises PluresError."""
        pairs = [item.rpartition(":") for item in listed(rename)]
        wrong = [old + colon + new for old, colon, new in pairs if not old or not new]
        if wrong:
            raise PluresError(f"data.rename={rename}: '{wrong[0]}' is not OLD:NEW, as in Cat:cat")
        return cls(tuple((old.strip(), new.strip()) for old, _, new in pairs), nothing.strip(), tuple(listed(only)))

    def apply(
        self,
        values: NDArray[np.int8],
        classes: tuple[str, ...],
        numbers: NDArray[np.int64],
        file: str,
        problems: list[Problem],
    ) -> tuple[NDArray[np.int8], tuple[str, ...]]:
        """Labels int8 [N, K] and classes -> int8 [N, K'] and K' classes; contradictions become problems, their rows
        are marked with BAD. numbers: the rows in the file."""
        if self.rename:
            values, classes = self._renamed(values, classes, numbers, file, problems)
        if self.nothing:
            values, classes = self._without_nothing(values, classes, numbers, file, problems)
        if self.only:
            place = {name: column for column, name in enumerate(classes)}
            missing = [name for name in self.only if name not in place]
            if missing:
                hint = did_you_mean(missing[0], classes)
                raise BadData([Problem(file, None, f"no class '{missing[0]}'{hint}", "a class of the data")], False)
            values, classes = values[:, [place[name] for name in self.only]], self.only
        return values, classes

    def _renamed(
        self,
        values: NDArray[np.int8],
        classes: tuple[str, ...],
        numbers: NDArray[np.int64],
        file: str,
        problems: list[Problem],
    ) -> tuple[NDArray[np.int8], tuple[str, ...]]:
        new_of = dict(self.rename)
        strange = [old for old in new_of if old not in classes]
        if strange:
            hint = did_you_mean(strange[0], classes)
            raise BadData(
                [Problem(file, None, f"no class '{strange[0]}' to rename{hint}", "a class of the data")], False
            )
        names = [new_of.get(name, name) for name in classes]
        kept = tuple(dict.fromkeys(names))
        merged = np.full((len(values), len(kept)), UNKNOWN, np.int8)
        for column, name in enumerate(names):
            place, given = kept.index(name), values[:, column]
            clash = (np.minimum(merged[:, place], given) == ABSENT) & (np.maximum(merged[:, place], given) == PRESENT)
            np.maximum(merged[:, place], given, out=merged[:, place])
            _mark(merged, clash, f"'{name}' is present by one of its old names and absent by another", numbers, file,
                  problems)  # fmt: skip
        return merged, kept

    def _without_nothing(
        self,
        values: NDArray[np.int8],
        classes: tuple[str, ...],
        numbers: NDArray[np.int64],
        file: str,
        problems: list[Problem],
    ) -> tuple[NDArray[np.int8], tuple[str, ...]]:
        if self.nothing not in classes:
            hint = did_you_mean(self.nothing, classes)
            raise BadData([Problem(file, None, f"no class '{self.nothing}'{hint}", "a class of the data")], False)
        column = classes.index(self.nothing)
        rest = np.delete(values, column, 1)
        empty = values[:, column] == PRESENT
        clash = empty & (rest == PRESENT).any(1)
        rest[empty] = np.maximum(rest[empty], ABSENT)
        _mark(rest, clash, f"'{self.nothing}' is present, and so is another class", numbers, file, problems)
        return rest, classes[:column] + classes[column + 1 :]


def _mark(
    values: NDArray[np.int8],
    clash: NDArray[np.bool_],
    what: str,
    numbers: NDArray[np.int64],
    file: str,
    problems: list[Problem],
) -> None:
    rows = np.flatnonzero(clash)
    if len(rows):
        values[rows] = BAD  # left out with the duplicates that disagree
        count = f" ({len(rows):,} rows)" if len(rows) > 1 else ""
        problems.append(Problem(file, int(numbers[rows[0]]), what + count, "one of the two"))


def doubtful(classes: Sequence[str], separator: str, file: str) -> list[Problem]:
    """Notices on names that may be no class, each with the option that puts it right. separator: the one between tags,
    "" where classes are columns."""
    found = []
    for name in classes:
        if "".join(letter for letter in name.casefold() if letter.isalnum()) in NOTHING:
            way = quote(f"data.nothing={name}")
            found.append(f"class '{name}' reads as if nothing were present; {way} takes it so")
    for other in SEPARATORS if separator else ():
        joined = [name for name in classes if other in name.strip()]
        pieces = [{piece.strip() for piece in name.split(other)} for name in joined]
        known = {*classes}.difference(joined)
        again = {piece for first in pieces for piece in first if sum(piece in second for second in pieces) > 1}
        enough = all if other == " " else any
        several = [
            name for name, ps in zip(joined, pieces, strict=True) if enough(p in known or p in again for p in ps)
        ]
        if several and other != separator:
            found.append(f"class '{several[0]}' may be several tags; data.separator='{other}' would divide it")
            break
    return [Problem(file, None, what, severity="notice") for what in found]
