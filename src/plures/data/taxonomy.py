"""The value Taxonomy: which class is above which, which exclude each other, and what follows of labels and calls.

A present class makes the classes above it present, an absent one those below it absent, and of an exclusive group a
present one makes the others absent. Scores follow the same order: that of a class is the highest of its own and those
below it, as in the max constraint of C-HMCNN (Giunchiglia and Lukasiewicz 2020, arXiv 2010.10151).

classes:
  animal: {}
  dog: {parents: animal}
  cat: {parents: [animal, pet], synonyms: kitty}
exclusive:
  - [cat, dog]
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.data.class_names import check_keys, texts
from plures.errors import PluresError, did_you_mean
from plures.files import read_as, read_yaml
from plures.labels import Labels

SUFFIXES = (".yaml", ".yml", ".csv", ".tsv")  # of a file that says what classes there are
HEADERS = (
    ("child", "class", "name", "label", "tag", "subclass", "hyponym", "synset", "id"),
    ("parent", "parents", "parent_id", "superclass", "hypernym"),
)
ALIKE = 0.85  # of two names of a list of edges, one of which is then taken for a typing error
ROWS = 65_536  # of the labels at once
Masks = NDArray[np.bool_]
Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Taxonomy:
    """Relations of K classes.

    classes: their names, in the order of columns. parents: child -> the classes directly above it. exclusive: groups
    of classes of which an image shows one at most.
    ancestors: bool [K, K], whether the class of the column is above that of the row; rivals: bool [K, K], whether the
    class of the row, where present, excludes that of the column; levels: [K], 0 for classes without parents, else one
    more than the highest level of a parent.

    Raises PluresError for a name that is no class, a cycle, and a group that excludes a class from itself.

    Example:
        >>> Taxonomy(("animal", "dog"), {"dog": ["animal"]}).levels
        array([0, 1])
    """

    classes: tuple[str, ...]
    parents: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exclusive: Sequence[Sequence[str]] = ()
    ancestors: Masks = field(init=False, repr=False)
    rivals: Masks = field(init=False, repr=False)
    levels: Places = field(init=False, repr=False)
    below: dict[int, Places] = field(init=False, repr=False)  # of each class that has any: itself and those below it

    def __post_init__(self) -> None:
        column = {name: k for k, name in enumerate(self.classes)}
        for where, names in [*self.parents.items(), *(("exclusive", group) for group in self.exclusive)]:
            for name in (where, *names) if where in self.parents else names:
                if name not in column:
                    what = "parent" if where in self.parents else "exclusive:"
                    of = f" of '{where}'" if where in self.parents and name != where else ""
                    raise PluresError(f"{what} '{name}'{of} is no class{did_you_mean(name, column)}")
        above = ancestors_of(self.parents)
        found = np.zeros((len(column), len(column)), np.bool_)
        for child, higher in above.items():
            found[column[child], [column[one] for one in higher]] = True
        levels = np.zeros(len(column), np.int64)
        for name in sorted(above, key=lambda one: len(above[one])):  # parents first: they have fewer above them
            levels[column[name]] = max((1 + levels[column[one]] for one in self.parents.get(name, ())), default=0)
        upwards = found | np.eye(len(column), dtype=np.bool_)
        values = {
            "ancestors": found,
            "levels": levels,
            "below": {int(k): np.flatnonzero(upwards[:, k]) for k in np.flatnonzero(found.any(0))},
            "rivals": self._rivals(upwards, column),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def _rivals(self, upwards: Masks, column: Mapping[str, int]) -> Masks:
        rivals = np.zeros_like(upwards)
        for group in self.exclusive:
            places = [column[name] for name in group]
            for number, one in enumerate(places):
                for other in places[number + 1 :]:
                    both = np.flatnonzero(upwards[:, one] & upwards[:, other])
                    if len(both):
                        name, pair = self.classes[both[0]], f"'{self.classes[one]}' and '{self.classes[other]}'"
                        why = f"'{name}' is below both" if both[0] not in (one, other) else "one is above the other"
                        why = "a class cannot exclude itself" if one == other else why
                        raise PluresError(f"exclusive: {pair} cannot exclude each other, as {why}")
                    rivals |= np.outer(upwards[:, one], upwards[:, other])
        return rivals | rivals.T

    def __bool__(self) -> bool:
        return bool(self.below) or bool(self.exclusive)

    def in_words(self) -> str:
        """How much it says, in a few words."""
        words = f"{self.ancestors.any(1).sum():,} classes below others, levels 0 to {self.levels.max(initial=0)}"
        return f"{words}; exclusive groups: {len(self.exclusive):,}" if self.exclusive else words

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `Taxonomy.from_dict` reads them."""
        parents = {child: list(up) for child, up in self.parents.items()}
        return {"classes": list(self.classes), "parents": parents, "exclusive": [list(g) for g in self.exclusive]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Taxonomy:
        """What `to_dict` gave. Raises ValueError or KeyError if it is anything else."""
        classes, parents = read_as(tuple[str, ...], stored["classes"]), read_as(dict[str, list[str]], stored["parents"])
        try:
            return cls(classes, parents, read_as(list[list[str]], stored["exclusive"]))
        except PluresError as error:
            raise ValueError(str(error)) from None

    # ----------------------------------------------------------------------------------------------------- of labels

    def implied(self, present: Masks, absent: Masks) -> tuple[Masks, Masks, Masks]:
        """What statements [N, K] say and imply: present, absent, and the disputed cells, which are, or follow to be,
        both. A statement on a disputed cell counts for nothing, so that nothing follows from it."""
        disputed = np.logical_and(*self._follow(present, absent))
        present, absent = self._follow(present & ~disputed, absent & ~disputed)
        return present & ~disputed, absent & ~disputed, disputed

    def _follow(self, present: Masks, absent: Masks) -> tuple[Masks, Masks]:
        present, absent = self.highest(present), absent.copy()
        for place in np.flatnonzero(self.rivals.any(1)):
            absent[:, self.rivals[place]] |= present[:, place, None]
        above = absent.copy()
        for k, below in self.below.items():
            absent[:, below] |= above[:, k, None]
        return present, absent

    def close(self, labels: Labels) -> tuple[Labels, NDArray[np.bool_]]:
        """The labels with what follows from them, and which rows [N] contradict themselves. Known cells stay as they
        are; where they contradict each other, nothing follows from them."""
        values, wrong = labels.values.copy(), np.zeros(len(labels), np.bool_)
        for start in range(0, len(labels), ROWS):
            rows = slice(start, start + ROWS)
            part = labels.take(rows)
            present, absent, disputed = self.implied(part.present, part.absent)
            found = np.where(part.unknown, Labels.from_masks(present, absent).values, part.values)
            values[rows], wrong[rows] = found, disputed.any(1)
        return Labels(values), wrong

    def conflict(self, row: NDArray[np.int8]) -> str:
        """In words, a contradiction in one image's labels [K] that `close` found."""
        present, absent = np.flatnonzero(row == 1), np.flatnonzero(row == 0)
        for one in present:
            if len(wrong := absent[self.ancestors[one, absent]]):
                return f"'{self.classes[one]}' present, '{self.classes[wrong[0]]}' absent"
            if len(wrong := present[self.rivals[one, present]]):
                return f"'{self.classes[one]}' and '{self.classes[wrong[0]]}' present"
        raise ValueError("these labels do not contradict each other")

    # ------------------------------------------------------------------------------------------- of scores and calls

    def highest(self, scores: Any) -> Any:
        """Scores (or masks) [N, K] -> for each class the highest of its own and those below it, [N, K]."""
        found = scores.copy()
        for k, below in self.below.items():
            found[:, k] = scores[:, below].max(1)
        return found

    def coherent(self, called: Masks, scores: NDArray[np.floating[Any]]) -> Masks:
        """Calls [N, K] that obey the taxonomy: a class is called only with all above it; of an exclusive group only the
        one of the highest score [N, K], and nothing below the others. scores: as `highest` gives them; the first one
        of equal ones counts."""
        found = called.copy()
        for k, below in self.below.items():
            found[:, below] &= called[:, k, None]
        off = np.zeros_like(called)
        for group in self.exclusive:
            places = np.array([self.classes.index(name) for name in group])
            those = np.where(found[:, places], scores[:, places], -np.inf)
            beaten = found[:, places] & (np.arange(len(places)) != those.argmax(1)[:, None])
            for k, lost in zip(places.tolist(), beaten.T, strict=True):
                off[:, self.below.get(k, np.array([k]))] |= lost[:, None]
        return np.asarray(found & ~off)


def ancestors_of(parents: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Every name that occurs -> all names above it. Raises PluresError for a cycle, with its names."""
    above: dict[str, set[str]] = {}
    for start in parents:
        path, left = [start], [iter(sorted(parents[start]))]
        while path:  # no recursion: a chain may be longer than Python allows
            up = next(left[-1], None)
            if up is None:
                name = path.pop()
                left.pop()
                above[name] = {a for p in parents.get(name, ()) for a in (p, *above[p])}
            elif up in path:
                cycle = [*path[path.index(up) :], up]
                if len(cycle) == 2:
                    raise PluresError(f"parents: '{up}' is its own parent; leave it out there")
                raise PluresError(f"parents: a cycle, {' -> '.join(cycle)}")
            elif up not in above:
                path.append(up)
                left.append(iter(sorted(parents.get(up, ()))))
    return above


# ------------------------------------------------------------------------------------------------------------- files


def is_classes_file(name: str) -> bool:
    """Whether this names a file of classes and no class."""
    return Path(name).suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class Relations:
    """What a file says: names that it declares, child -> parents, exclusive groups. edges: a list of edges."""

    names: tuple[str, ...]
    parents: dict[str, tuple[str, ...]]
    exclusive: list[tuple[str, ...]]
    edges: bool = False


def read_relations(path: str | Path) -> Relations:
    """A classes file (YAML), a list of edges (.csv, .tsv: child, parent; a header is optional), or `child: parent`
    lines. Raises PluresError in one line if it is anything else."""
    if Path(path).suffix.lower() in (".csv", ".tsv"):
        return _edges(Path(path))
    content = read_yaml(path)
    classes = content.get("classes")
    if not isinstance(classes, dict) and "exclusive" not in content:
        return Relations(tuple(content), {name: texts(path, name, up) for name, up in content.items()}, [], edges=True)
    named = check_keys(path, content)
    parents = {name: texts(path, f"{name}.parents", said.get("parents")) for name, said in named.items()}
    groups = content.get("exclusive") or []
    if not isinstance(groups, list) or not all(isinstance(group, list) and len(group) > 1 for group in groups):
        raise PluresError(
            f"{path}: exclusive: expected a list of groups of classes, as in [[cat, dog], [indoor, outdoor]]"
        )
    exclusive = [texts(path, "exclusive", group) for group in groups]
    return Relations(tuple(named), {child: up for child, up in parents.items() if up}, exclusive)


def _edges(path: Path) -> Relations:
    parents: dict[str, tuple[str, ...]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for cells in reader:
                row = [cell.strip() for cell in cells]
                if not any(row):
                    continue
                if len(row) != 2 or not row[0]:
                    what = f"found {len(row)} columns" if row[0] else "found no child"
                    raise PluresError(f"{path}, row {reader.line_num}: expected two columns, child and parent, {what}")
                if parents or not all(cell.lower() in names for cell, names in zip(row, HEADERS, strict=True)):
                    parents[row[0]] = (*parents.get(row[0], ()), *(one for one in row[1:] if one))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PluresError(f"{path}: cannot be read ({error})") from None
    if not parents:
        raise PluresError(f"{path}: no line of child and parent")
    return Relations(tuple(parents), parents, [], edges=True)


def read_taxonomy(path: str | Path, classes: Sequence[str]) -> Taxonomy:
    """The taxonomy that a file gives for these classes and, behind them, those that it adds.

    A classes file adds all classes that it names. A list of edges adds those above classes of the data, all of them
    where there are none; the rest of it is left out. Raises PluresError in one line for what the file gets wrong.
    """
    relations = read_relations(path)
    parents, names = relations.parents, relations.names
    try:
        if relations.edges:
            _refuse_misspelt(relations, classes)
            above = ancestors_of(parents)
            wanted = {one for name in classes for one in above.get(name, ())} if classes else set(above)
            if classes and not above.keys() & set(classes):
                raise PluresError(f"it names none of the classes of the data{did_you_mean(names[0], classes)}")
            names = tuple(dict.fromkeys(one for child, up in parents.items() for one in (child, *up) if one in wanted))
            parents = {child: up for child, up in parents.items() if child in wanted or child in classes}
        return Taxonomy(tuple(dict.fromkeys((*classes, *names))), parents, relations.exclusive)
    except PluresError as error:
        raise PluresError(f"{path}: {error}") from None


def _refuse_misspelt(relations: Relations, classes: Sequence[str]) -> None:
    """Raise PluresError for a parent that is named nowhere else, and almost as another class is."""
    known = sorted({*relations.names, *classes})
    for child, up in relations.parents.items():
        for name in up:
            if name not in known and (close := difflib.get_close_matches(name, known, 1, ALIKE)):
                raise PluresError(
                    f"parent '{name}' of '{child}' is no class and no child of another line; did you mean '{close[0]}'?"
                    f" If not, add it as a child without a parent"
                )
