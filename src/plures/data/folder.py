"""A folder per class, the photographs inside it; optionally train, val and test folders above."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plures.data.dataset import Dataset, formats
from plures.data.images import is_junk, is_photo, unread_below
from plures.errors import PluresError, Problem
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@formats.part("folder", title="A folder per class; the same photo in several class folders carries several tags")
class Folder:
    """complete: a photo that is not in a class folder is known not to show that class (else unknown)."""

    def __init__(self, *, complete: bool = False) -> None:
        self.complete = complete

    def recognises(self, path: str) -> bool:
        return bool(path) and os.path.isdir(path) and next(_walk(Path(path)), None) is not None

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        """Photos directly in the folder (or beside the class folders) are read without any tag.

        Copies of a photo in several class folders are found by content; the first path in alphabetical order is kept.
        """
        root = Path(path)
        if not root.is_dir():
            raise PluresError(f"no folder '{path}'")
        tops = _folders(root)
        split_of = {name: SPLITS[name.lower()] for name in tops if name.lower() in SPLITS}
        split_form = bool(tops) and len(split_of) == len(tops)
        found = sorted((split_of[name], root / name) for name in tops) if split_form else [("", root)]
        classes = tuple(sorted({name for _, folder in found for name in _folders(folder)}))
        column = {name: place for place, name in enumerate(classes)}
        photos = [(file, split, folder) for split, folder in found for file in sorted(_walk(folder))]
        lost = [str(file) for file, _, _ in photos if not file.is_file()]
        problems = [Problem(file, None, "a link to no file, or a pipe", "an image file") for file in lost]
        photos = [photo for photo in photos if str(photo[0]) not in set(lost)] if lost else photos
        content = _content_of([file for file, _, _ in photos])
        rows: dict[tuple[str, str], int] = {}
        images, splits, cells = list[str](), list[str](), list[tuple[int, int]]()
        for (file, split, folder), same in zip(photos, content, strict=True):
            row = rows.setdefault((split, same), len(rows))
            if row == len(images):
                images.append(str(file))
                splits.append(split)
            inside = file.relative_to(folder).parts
            if len(inside) > 1:
                cells.append((row, column[inside[0]]))
        values = np.full((len(images), len(classes)), ABSENT if self.complete else UNKNOWN, np.int8)
        if cells:
            values[tuple(np.array(cells).T)] = PRESENT
        names = np.array(splits, np.str_) if split_form else None
        return Dataset(images, Labels(values), classes, names, name=root.resolve().name), [
            *problems,
            *_leaks(rows, images),
            *unread_below(root),
        ]


def _folders(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return [name for name in names if not name.startswith(".") and not is_junk(name)]


def _walk(folder: Path) -> Iterator[Path]:
    """Every image file below, hidden files and folders left out."""
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_junk(name))
        for name in files:
            if is_photo(name) and not name.startswith("."):
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
