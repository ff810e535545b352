"""Merging sources that annotate different classes with different care into one three-valued table.

Each source declares a scope: of which classes it names every occurrence, of which only some, of which nothing. What is
outside a scope stays unknown, as in "Joining datasets via data augmentation in the label space" (arXiv 2106.09260) and
other work on several label spaces; nothing is chosen silently: where sources disagree the cell becomes unknown and is
listed. Names are first made one (renames of a source, then synonyms); parents and exclusive groups then say what
follows (`data/taxonomy.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.taxonomy import Taxonomy, ancestors_of
from plures.errors import PluresError, did_you_mean
from plures.labels import Labels

Kind = Literal["complete", "positive", "none", "as_given"]
KINDS = get_args(Kind)
Marks = NDArray[np.unsignedinteger]  # [N, K]: bit s is set where source s says so
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Scope:
    """What a source annotates. by_class: a kind for each class named; rest: for the other classes it names.

    complete: a class that neither is tagged nor follows from a tag is absent. positive: what is tagged is present,
    anything else unknown, also what the source calls absent. none: the source says nothing of the class, whatever its
    table holds. as_given: present and absent as the table says, blank is unknown.
    """

    rest: Kind = "as_given"
    by_class: Mapping[str, Kind] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Source:
    """A source by a name of its own. rename: its names of classes -> the names meant, before synonyms."""

    name: str
    dataset: Dataset
    scope: Scope = Scope()
    rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conflict:
    """A cell (or, with class None, the split of an image) on which sources disagree. present, absent: what says so, a
    source's name, with the class that the statement follows from where it is another."""

    image: str
    name: str | None
    present: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Merged:
    """dataset: the result; sources: their names; said_present, said_absent [N, K]: bit s where source s says so itself;
    holds [N]: bit s where source s has the image; conflicts: every cell that became unknown because sources disagree;
    notes: what was assumed, for people."""

    dataset: Dataset
    sources: tuple[str, ...]
    said_present: Marks
    said_absent: Marks
    holds: Marks
    conflicts: tuple[Conflict, ...]
    notes: tuple[str, ...]


def merge(
    sources: Sequence[Source],
    synonyms: Mapping[str, Sequence[str]] | None = None,
    parents: Mapping[str, Sequence[str]] | None = None,
    match: Literal["path", "name"] = "path",
    exclusive: Sequence[Sequence[str]] = (),
) -> Merged:
    """One table of all sources' images and classes; the order of the sources changes nothing but the notes.

    synonyms: name kept -> other names of the same class. parents: child -> its parents. match: what makes two images
    the same one: the path, or the file's name alone (for copies in several folders). exclusive: groups of classes of
    which an image shows one at most.
    Raises PluresError for names that contradict each other, a cycle of parents, scopes of classes that no source has,
    and, with match=name, two images of one name in one source.
    """
    _check_sources(sources)
    canonical = _canonical(synonyms or {})
    named = [[canonical.get(s.rename.get(c, c), s.rename.get(c, c)) for c in s.dataset.classes] for s in sources]
    taxonomy, notes = _taxonomy(parents or {}, exclusive, canonical, {name for names in named for name in names})
    classes = taxonomy.classes
    keys, images, rows = _same_images(sources, match)
    column = {name: k for k, name in enumerate(classes)}
    kind_of_mark = np.min_scalar_type(2 ** len(sources) - 1)
    present = np.zeros((len(keys), len(classes)), kind_of_mark)
    absent, holds = np.zeros_like(present), np.zeros(len(keys), kind_of_mark)
    for number, source in enumerate(sources):
        says, denies = _statements(source, named[number], column, canonical, taxonomy)
        bit = kind_of_mark.type(1 << number)
        present[rows[number]] |= says * bit
        absent[rows[number]] |= denies * bit
        holds[rows[number]] |= bit
    trusted, denied, disputed = taxonomy.implied(present > 0, absent > 0)
    values = Labels.from_masks(trusted, denied).values
    conflicts = _cell_conflicts(disputed, present, absent, taxonomy, images, [s.name for s in sources])
    splits, clashes = _splits(sources, rows, images, notes)
    groups = _groups(sources, rows, len(images), notes)
    dataset = Dataset(images, Labels(values), classes, splits, name="merged", groups=groups)
    names = tuple(source.name for source in sources)
    return Merged(dataset, names, present, absent, holds, (*conflicts, *clashes), tuple(notes))


# --------------------------------------------------------------------------------------------------------------- names


def _check_sources(sources: Sequence[Source]) -> None:
    if not sources:
        raise PluresError("merging requires one source or more")
    for name, times in Counter(source.name for source in sources).items():
        if times > 1:
            raise PluresError(f"{times} sources are called '{name}'; give them names of their own, as in NAME=PATH")
    for source in sources:
        if source.dataset.in_memory:
            raise PluresError(f"source '{source.name}': its images are in memory, so no other source can share them")
        for name in source.rename:
            if name not in source.dataset.classes:
                hint = did_you_mean(name, source.dataset.classes)
                raise PluresError(f"source '{source.name}': rename of '{name}', which it does not name{hint}")


def _canonical(synonyms: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Other name -> name kept. Raises PluresError if a name would mean two classes."""
    canonical: dict[str, str] = {}
    for kept, others in synonyms.items():
        for other in others:
            if other in synonyms and other != kept:
                raise PluresError(f"synonyms: '{other}' is kept and is also another name of '{kept}'; choose one")
            if canonical.get(other, kept) != kept:
                raise PluresError(f"synonyms: '{other}' would mean both '{canonical[other]}' and '{kept}'")
            if other != kept:
                canonical[other] = kept
    return canonical


def _taxonomy(
    parents: Mapping[str, Sequence[str]],
    exclusive: Sequence[Sequence[str]],
    canonical: Mapping[str, str],
    named: set[str],
) -> tuple[Taxonomy, list[str]]:
    """Of every class that has a place in the data, which are those named there and all above them; and a note on
    children that have none."""
    direct: dict[str, list[str]] = {}
    for child, up in parents.items():
        own = direct.setdefault(canonical.get(child, child), [])
        own += [canonical.get(p, p) for p in up]
    above = ancestors_of(direct)
    reached = named.union(*(above.get(name, ()) for name in named))
    idle = sorted(set(direct) - reached)
    notes = [f"parents: no source names {', '.join(idle[:5])}{', ...' * (len(idle) > 5)}; left out"] if idle else []
    groups = [[name for one in group if (name := canonical.get(one, one)) in reached] for group in exclusive]
    used = {child: up for child, up in direct.items() if child in reached}
    return Taxonomy(tuple(sorted(reached)), used, [group for group in groups if len(group) > 1]), notes


# ---------------------------------------------------------------------------------------------------------- statements


def _statements(
    source: Source,
    named: Sequence[str],
    column: Mapping[str, int],
    canonical: Mapping[str, str],
    taxonomy: Taxonomy,
) -> tuple[Masks, Masks]:
    """What a source itself says present and absent, bool [n, K] each, within its scope."""
    labels = source.dataset.labels
    says, denies = (np.zeros((len(labels), len(column)), np.bool_) for _ in range(2))
    for k, name in enumerate(named):  # two names of one class: what either says
        says[:, column[name]] |= labels.present[:, k]
        denies[:, column[name]] |= labels.absent[:, k]
    kinds = dict.fromkeys(named, source.scope.rest)
    for word, kind in source.scope.by_class.items():
        name = canonical.get(source.rename.get(word, word), source.rename.get(word, word))
        if name not in column:
            raise PluresError(f"source '{source.name}': scope of '{word}', which no source names{_hint(word, column)}")
        kinds[name] = kind
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise PluresError(f"source '{source.name}': no scope '{kind}'{did_you_mean(str(kind), KINDS)}")
        if kind == "none":
            says[:, column[name]] = False
        if kind in ("none", "positive"):
            denies[:, column[name]] = False
    follows = taxonomy.highest(says)
    for name, kind in kinds.items():
        if kind == "complete":
            denies[:, column[name]] |= ~follows[:, column[name]]
    return says, denies


def _cell_conflicts(
    disputed: Masks,
    present: Marks,
    absent: Marks,
    taxonomy: Taxonomy,
    images: Sequence[str],
    names: Sequence[str],
) -> list[Conflict]:
    classes, above = taxonomy.classes, taxonomy.ancestors

    def who(marks: NDArray[np.unsignedinteger], k: int, others: Masks, suffix: str = "") -> list[str]:
        said = []
        for place in np.flatnonzero(others).tolist():
            of = "" if place == k else f" ({classes[place]}{suffix})"
            said += [name + of for s, name in enumerate(names) if int(marks[place]) >> s & 1]
        return said

    found, own = [], np.eye(len(classes), dtype=np.bool_)
    for n, k in np.argwhere(disputed).tolist():
        there = who(present[n], k, above[:, k] | own[k])
        gone = who(absent[n], k, above[k] | own[k]) + who(present[n], k, taxonomy.rivals[k], " present")
        found.append(Conflict(images[n], classes[k], tuple(sorted(there)), tuple(sorted(gone))))
    return found


# -------------------------------------------------------------------------------------------------------------- images


def _same_images(
    sources: Sequence[Source], match: Literal["path", "name"]
) -> tuple[list[str], list[str], list[NDArray[np.int64]]]:
    """Keys in order, one path a key, and for each source the place [n] of its rows among the keys."""
    if match not in ("path", "name"):
        raise PluresError(f"--match {match}: expected path or name")
    found: dict[str, str] = {}
    keys_of: list[list[str]] = []
    for source in sources:
        paths = [os.path.abspath(str(image)) for image in source.dataset.images]
        keys = [os.path.basename(path) for path in paths] if match == "name" else paths
        twice = [key for key, times in Counter(keys).items() if times > 1]
        if twice:
            raise PluresError(f"source '{source.name}': {len(twice)} images are called {twice[0]}; use --match path")
        keys_of.append(keys)
        for key, path in zip(keys, paths, strict=True):
            found[key] = min(found.get(key, path), path)
    keys = sorted(found)
    place = {key: n for n, key in enumerate(keys)}
    return keys, [found[key] for key in keys], [np.array([place[k] for k in own], np.int64) for own in keys_of]


def _splits(
    sources: Sequence[Source], rows: Sequence[NDArray[np.int64]], images: Sequence[str], notes: list[str]
) -> tuple[NDArray[np.str_] | None, list[Conflict]]:
    """The split of every image. One that sources put into different splits belongs to none and is listed."""
    said: list[dict[str, list[str]]] = [{} for _ in images]
    for source, own in zip(sources, rows, strict=True):
        if source.dataset.splits is not None:
            for n, split in zip(own.tolist(), source.dataset.splits.tolist(), strict=True):
                if split:
                    said[n].setdefault(split, []).append(source.name)
    if not any(said):
        return None, []
    without = sum(not names for names in said)
    if without:
        notes.append(f"{without:,} images that no source puts into a split are in 'train'")
    splits = np.array([next(iter(s)) if len(s) == 1 else "" if s else "train" for s in said], "U32")
    clashes = [
        Conflict(images[n], None, tuple(sorted(f"{name}: {split}" for split, by in s.items() for name in by)), ())
        for n, s in enumerate(said)
        if len(s) > 1
    ]
    return splits, clashes


def _groups(
    sources: Sequence[Source], rows: Sequence[NDArray[np.int64]], images: int, notes: list[str]
) -> NDArray[np.str_] | None:
    """The group of every image; the first by name where sources say several."""
    said: list[set[str]] = [set() for _ in range(images)]
    for source, own in zip(sources, rows, strict=True):
        if source.dataset.groups is not None:
            for n, group in zip(own.tolist(), source.dataset.groups.tolist(), strict=True):
                said[n] |= {group} - {""}
    if several := sum(len(names) > 1 for names in said):
        notes.append(f"{several:,} images have several groups; the first by name is kept")
    return np.array([min(names, default="") for names in said], np.str_) if any(said) else None


def _hint(word: str, names: Iterable[str]) -> str:
    return did_you_mean(word, list(names))
