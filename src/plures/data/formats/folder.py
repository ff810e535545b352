"""A folder per class, the photographs inside it; optionally train, val and test folders above.

Present: the class of the folder that a photograph lies in. Unknown: everything else, unless `complete` says that it is
absent. Photographs beside the class folders, or in a folder called `no_label` or `unlabeled`, carry no tag.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from plures.data.dataset import Dataset, formats
from plures.data.formats.split_names import split_name
from plures.data.photos import is_junk, is_photo, unread_below
from plures.errors import PluresError, Problem
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels

UNLABELLED = frozenset(["nolabel", "nolabels", "unlabeled", "unlabelled", "untagged", "unannotated"])
CONTAINERS = frozenset(
    ("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpegimages", "data", "dataset")
) | {"datasets", "label", "labels", "annotation", "annotations", "default", "all", "raw"}
PARTS = frozenset(("fold", "part", "batch", "shard", "chunk", "split", "subset", "set"))
FILES = frozenset(("jpg", "jpeg", "png", "tif", "tiff", "webp", "jpgs", "pngs", "files", "set", "full", "small"))
ANNOTATIONS = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".parquet", ".arrow", ".xlsx", ".xls"),
    *(".ods", ".names", ".yaml", ".yml"),
)
SHOWN = 4  # names in a line


@dataclass
class _Found:
    """The photographs below a folder, each with its split and the folders between, and what else lies there."""

    root: Path
    split_form: bool = False
    entered: list[str] = field(default_factory=list)  # extra folders at the top
    photos: list[tuple[Path, str, tuple[str, ...]]] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)  # folders without a photograph too
    beside: dict[str, int] = field(default_factory=dict)  # other folders beside split folders, their photographs
    annotations: list[Path] = field(default_factory=list)


@formats.register("folder", title="A folder per class; the same photo in several class folders carries several tags")
class Folder:
    """complete: a photo that is not in a class folder is known not to show that class (else unknown).
    nested: what folders inside class folders (Birds/Robin) mean: top, nothing (class Birds); path, the class
    Birds/Robin; leaf, the class Robin; both, the classes Birds and Robin.
    separator: what stands between the classes in a folder's name: with _, red_dress is red and dress.
    """

    def __init__(
        self,
        *,
        complete: bool = False,
        nested: Literal["top", "path", "leaf", "both"] = "top",
        separator: str = "",
    ) -> None:
        if nested not in ("top", "path", "leaf", "both"):
            raise PluresError(f"folder: no nested={nested}; choose from: top, path, leaf, both")
        self.complete, self.nested, self.separator = complete, nested, separator

    def recognises(self, path: str) -> bool:
        return bool(path) and os.path.isdir(path) and next(_walk(Path(path)), None) is not None

    def reason(self, path: str) -> str:
        """Why this path is read as folders, and how."""
        found = _find(Path(path))
        inside = f" in {'/'.join(found.entered)}" if found.entered else ""
        form = "split folders with a folder per class" if found.split_form else "a folder per class"
        return f"photographs below it and no table: {form}{inside}"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        """Photos directly in the folder (or beside the class folders) are read without any tag.

        Copies of a photo in several class folders are found by content; the first path in alphabetical order is kept.
        """
        root = Path(path)
        if not root.is_dir():
            raise PluresError(f"no folder '{path}'")
        found = _find(root)
        lost = {str(file) for file, _, _ in found.photos if not file.is_file()}
        problems = [Problem(file, None, "a link to no file, or a pipe", "an image file") for file in sorted(lost)]
        found.photos = [photo for photo in found.photos if str(photo[0]) not in lost]
        tags = [self._tags(inside) for _, _, inside in found.photos]
        empty = (
            {name for name in found.classes if not _is_unlabelled(name)} if self.nested in ("top", "both") else set()
        )
        empty = {part for name in empty for part in self._parts(name)}
        classes = tuple(sorted({tag for some in tags for tag in some} | empty))
        column = {name: place for place, name in enumerate(classes)}
        content = _content_of([file for file, _, _ in found.photos])
        rows: dict[tuple[str, str], int] = {}
        images, splits, cells, unlabelled = list[str](), list[str](), list[tuple[int, int]](), set[int]()
        copies = list[str]()
        for (file, split, inside), same, names in zip(found.photos, content, tags, strict=True):
            row = rows.setdefault((split, same), len(rows))
            if row == len(images):
                images.append(str(file))
                splits.append(split)
            else:
                copies.append(f"{file.relative_to(root)} of {Path(images[row]).relative_to(root)}")
            cells += [(row, column[name]) for name in names]
            if inside and _is_unlabelled(inside[0]):
                unlabelled.add(row)
        values = np.full((len(images), len(classes)), ABSENT if self.complete else UNKNOWN, np.int8)
        values[sorted(unlabelled)] = UNKNOWN  # nobody has looked
        if cells:
            values[tuple(np.array(cells).T)] = PRESENT
        names_of = np.array(splits, np.str_) if found.split_form else None
        dataset = Dataset(images, Labels(values), classes, names_of, name=root.resolve().name)
        notices = self._notices(found)
        if copies:
            many = "copy, byte for byte, is" if len(copies) == 1 else "copies, byte for byte, are"
            what = f"{len(copies):,} {many} read once, with the tags of all: {_some(copies)}"
            notices.append(Problem(str(found.root), None, what, severity="notice"))
        return dataset, [*problems, *notices, *_leaks(rows, images), *unread_below(root)]

    def _tags(self, inside: tuple[str, ...]) -> tuple[str, ...]:
        """The classes of a photograph from the folders that it lies in."""
        if not inside or _is_unlabelled(inside[0]):
            return ()
        whole = {"top": inside[:1], "leaf": inside[-1:], "path": ("/".join(inside),)}
        names = whole[self.nested] if self.nested != "both" else inside
        return tuple(dict.fromkeys(part for name in names for part in self._parts(name)))

    def _parts(self, name: str) -> list[str]:
        """The classes that a folder's name holds."""
        return list(filter(None, map(str.strip, name.split(self.separator)))) if self.separator else [name]

    def _notices(self, found: _Found) -> list[Problem]:
        notices = []
        if not self.separator and (example := _of_parts({inside[0] for _, _, inside in found.photos if inside})):
            notices.append(f"folders such as {example} may name two classes each; data.separator=_ divides them")
        deep = sorted({"/".join(inside) for _, _, inside in found.photos if len(inside) > 1})
        if deep and self.nested == "top":
            what = (
                f"folders inside class folders are not told apart: {_some(deep)}; data.nested=path, leaf or both does"
            )
            notices.append(what)
        without = sum(bool(inside) and _is_unlabelled(inside[0]) for _, _, inside in found.photos)
        if without:
            names = sorted({inside[0] for _, _, inside in found.photos if inside and _is_unlabelled(inside[0])})
            notices.append(f"{without:,} photographs in {_some(names)} are read without a tag")
        if found.entered:
            notices.append(f"the classes are the folders in {'/'.join(found.entered)}")
        return [Problem(str(found.root), None, what, severity="notice") for what in notices]


def doubts(path: str) -> list[Problem]:
    """Why the folders at this path may not be classes: errors, unless a person insists with `folder:DIR`."""
    root = Path(path)
    found = _find(root)
    way = f"name the format, or folder:{path} to take folders as classes"
    said = []
    if found.annotations:
        names = [str(file.relative_to(root)) for file in found.annotations]
        what = f"{_some(names)} {'lies' if len(names) == 1 else 'lie'} beside the photographs and may hold the tags"
        by_path = f"the file with the tags by its own path, as in plures check {found.annotations[0]}"
        said.append((what, f"{by_path}; {way}"))
    if found.beside:
        listed = _some([f"{name} ({count:,} photographs)" for name, count in sorted(found.beside.items())])
        said.append((f"{listed} beside split folders", f"train, val and test folders alone; {way}"))
    tops = [inside[0] for _, _, inside in found.photos if inside]
    alike = _like_splits({*tops, *found.classes})
    names = sorted(name for name in {*tops, *found.classes} if name.casefold() in CONTAINERS or name in alike)
    if len({*tops}) == 1 and len(tops) == len(found.photos):
        said.append((f"every photograph lies in the one folder '{tops[0]}', which then tells nothing apart",
                     f"a folder per class, or a table with the tags; {way}"))  # fmt: skip
    elif names:
        said.append((f"{_some(names)} {'is' if len(names) == 1 else 'are'} called like a split or a place for files,"
                     " not like a class", f"a folder per class; {way}"))  # fmt: skip
    return [Problem(str(root), None, what, expected) for what, expected in said]


def folders_of_annotations(path: str) -> list[str]:
    """The folders below this one that hold every photograph and a file that may hold the tags, the uppermost first."""
    root = Path(path)
    found = _find(root)
    folders = {folder for file in found.annotations for folder in file.parents if root in folder.parents}
    photos = [file for file, _, _ in found.photos]
    whole = [folder for folder in folders if all(folder in photo.parents for photo in photos)]
    return [str(folder) for folder in sorted(whole, key=lambda folder: len(folder.parts))]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _like_splits(names: set[str]) -> set[str]:
    """The names that say which part of the data lies there: train, train-jpg, val2017, fold_1, part3; also several that
    differ in the word for a split alone, such as box_train and box_test."""
    words = {name: re.findall(r"[^\W\d_]+", name.casefold()) for name in names}
    rest = {name: [w for w in some if split_name(w) is None and w not in PARTS] for name, some in words.items()}
    times = Counter(map(tuple, rest.values()))
    return {
        name
        for name, others in rest.items()
        if len(others) < len(words[name])
        and (all(word in CONTAINERS or word in FILES for word in others) or times[tuple(others)] > 1)
    }


def _of_parts(names: set[str]) -> str:
    """A name such as red_dress among others that share both its words; "" if there is none."""
    pairs = [(name, name.split("_")) for name in sorted(names) if name.count("_") == 1]
    first, last = (Counter(words[place] for _, words in pairs) for place in (0, 1))
    fits = (name for name, (one, other) in pairs if first[one] > 1 and last[other] > 1)
    return next(fits, "")


def _is_unlabelled(name: str) -> bool:
    return "".join(letter for letter in name.casefold() if letter.isalnum()) in UNLABELLED


def _find(root: Path) -> _Found:
    """Look at everything below a folder once."""
    found = _Found(root)
    at = root
    while (inner := _extra(at)) is not None:
        found.entered.append(inner.name)
        at = inner
    tops = _folders(at)
    splits = {name: split for name in tops if (split := split_name(name)) is not None}
    holding = [name for name in splits if _folders(at / name)]
    found.split_form = bool(splits) and (len(splits) == len(tops) or bool(holding))
    if not found.split_form:
        splits = {}
    for split, name in sorted((splits.get(name, ""), name) for name in tops if found.split_form):
        if name in splits:
            found.classes.update(_folders(at / name))
        for file in sorted(_walk(at / name)):
            inside = file.relative_to(at / name).parts[:-1]
            if name not in splits and not _is_unlabelled(name):
                found.beside[name] = found.beside.get(name, 0) + 1
            found.photos.append((file, split, inside if name in splits else (name, *inside)))
    if not found.split_form:
        found.classes.update(tops)
        found.photos = [(file, "", file.relative_to(at).parts[:-1]) for file in sorted(_walk(at))]
    elif loose := [file for file in sorted(at.iterdir()) if is_photo(file.name) and not file.name.startswith(".")]:
        found.beside["."] = len(loose)
        found.photos += [(file, "", ()) for file in loose]
    found.annotations = sorted(_walk(root, ANNOTATIONS))
    return found


def _extra(at: Path) -> Path | None:
    """The only folder in a folder without files of its own, if it holds folders: one too many at the top."""
    folders = _folders(at)
    if len(folders) != 1 or split_name(folders[0]) is not None or not _folders(at / folders[0]):
        return None
    files = [entry for entry in at.iterdir() if entry.is_file() and is_photo(entry.name)]
    return None if files else at / folders[0]


def _folders(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return [name for name in names if not name.startswith(".") and not is_junk(name)]


def _walk(folder: Path, suffixes: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every image file below (or every file with one of these suffixes), hidden files and folders left out."""
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_junk(name))
        for name in files:
            wanted = name.lower().endswith(suffixes) if suffixes else is_photo(name)
            if wanted and not name.startswith("."):
                yield Path(at, name)


def _content_of(files: list[Path]) -> list[str]:
    """A key for each file, equal for files with equal bytes. Only files whose size is shared are read."""
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for place, file in enumerate(files):
        sizes[file.stat().st_size].append(place)
    keys = [str(file) for file in files]
    for size, places in sizes.items():
        if len(places) > 1 and size:
            for place in places:
                with files[place].open("rb") as opened:
                    keys[place] = hashlib.file_digest(opened, "sha256").hexdigest()
    return keys


def _leaks(rows: dict[tuple[str, str], int], images: list[str]) -> list[Problem]:
    """The same photo in two splits: worth knowing, as a test on it says too much."""
    first: dict[str, tuple[str, int]] = {}
    notices = []
    for (split, same), row in rows.items():
        other, other_row = first.setdefault(same, (split, row))
        if other != split:
            what = f"the same photo is in {split} and in {other} ({images[other_row]})"
            notices.append(Problem(images[row], None, what, "each photo in one split", "notice"))
    return notices
