"""Finding the files of images whose paths were written elsewhere: by Windows, by a browser, on another machine.

A path that names no file is tried with other slashes, with %20 and its like spelt out, in another case and with accents
in another form (NFC, NFD); an absolute path of another machine is tried from its end, one that begins with the folder's
own name without it, and a name without a suffix with one. Where none of all paths is a file from the folder, they are
looked for further below. Only where exactly one file fits is it taken; what is left gets a hint. Folders are listed
once each, and only those in which something is missing.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from plures.data.photos import is_junk, is_photo

LOOKED_AT = 200  # paths from which a hint, or the beginning of a foreign path, is made out
FOLDERS = 200  # that are looked into for a hint
DRIVE = re.compile(r"[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class Found:
    """files: for each row (by its number) that names one file in another way, that file's path from the folder; way:
    by what they were found; unclear: for each row that may mean several files, two of them; hint: how the others might
    be found, "" if nothing fits."""

    files: dict[int, str] = field(default_factory=dict)
    way: str = ""
    unclear: dict[int, tuple[str, str]] = field(default_factory=dict)
    hint: str = ""


def find_files(folder: str, images: Sequence[str], rows: Sequence[int]) -> Found:
    """Look for the files of the rows whose path, taken from `folder`, names none.

    Args:
        folder: where relative paths start.
        images: every row's path as it is written in the table.
        rows: those whose file is missing.

    Returns:
        What was found, what is unclear, and a hint for the rest.

    Example:
        >>> find_files(".", ["photos\\\\a.jpg"], [0]).files  # doctest: +SKIP
        {0: 'photos/a.jpg'}
    """
    search = Search(folder)
    cut = _foreign_start(search, [images[row] for row in rows])
    own = f"{os.path.basename(os.path.abspath(folder))}/"
    files, ways, unclear, rest = dict[int, str](), Counter[str](), dict[int, tuple[str, str]](), list[int]()
    for row in rows:
        text = _slashes(images[row])
        if cut and text.startswith(cut):
            text, foreign = text.removeprefix(cut), True
        else:
            foreign = False
        fits = search.files(text)
        way = f"without '{cut}'" if foreign else _way(images[row], fits[0]) if fits else ""
        if not fits and own and text.startswith(own):
            fits, way = search.files(text.removeprefix(own)), f"without '{own}'"
        if not fits:
            fits, way = _with_suffix(search, text), "with a suffix"
        if len(fits) == 1:
            files[row] = fits[0]
            ways[way] += 1
        elif fits:
            unclear[row] = (fits[0], fits[1])
        else:
            rest.append(row)
    if rest and len(rest) == len(images):
        tree = Tree(folder)
        below = {row: fits for row in rest if (fits := tree.files(_slashes(images[row])))}
        if all(len(fits) == 1 for fits in below.values()):  # else the folder that is meant is open
            files = {row: fits[0] for row, fits in below.items()}
            ways["in folders below"] = len(files)
            rest = [row for row in rest if row not in files]
    hint = _hint(search, [images[row] for row in rest]) if rest else ""
    return Found(files, ", ".join(way for way, _ in ways.most_common()), unclear, hint)


def paths_from(folder: str | Path) -> Callable[[str], str]:
    """A function that spells a path as it is seen from `folder`, with /, so that a file there can name it; also where
    a link leads to the folder, from which .. leads elsewhere than the folder's name says."""
    start = os.path.realpath(folder)
    straight = start == os.path.normpath(os.path.join(os.path.realpath(os.curdir), os.path.relpath(folder)))

    def spelt(path: str) -> str:
        if not straight:
            path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        try:
            return Path(os.path.relpath(path, start if not straight else folder)).as_posix()
        except ValueError:  # another drive
            return path

    return spelt


def _slashes(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./") if "\\" in path else path


def _key(name: str) -> str:
    """What the spellings of a name have in common that some file system takes for the same."""
    return normalize("NFC", normalize("NFC", name).casefold())


def _way(text: str, file: str) -> str:
    if _slashes(text) == file:
        return "with / for \\"
    if normalize("NFC", _slashes(text)) == normalize("NFC", file):
        return "with accents in another form"
    if _key(_slashes(text)) == _key(file):
        return "in another case"
    return "with %20 and its like spelt out"


class _Listing:
    """The names in a folder, and by their keys."""

    def __init__(self, folder: str) -> None:
        try:
            self.names = frozenset(os.listdir(folder or "."))
        except (OSError, ValueError):  # ValueError: a null character
            self.names = frozenset()

    @cached_property
    def by_key(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self.names):
            found.setdefault(_key(name), []).append(name)
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(filter(is_photo, self.names)):
            found.setdefault(os.path.splitext(name)[0], []).append(name)
        return found


class Search:
    """Files by any spelling of their path from a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.listings: dict[str, _Listing] = {}
        self.folders: dict[str, list[str]] = {"": [""]}

    def listing(self, folder: str) -> _Listing:
        """Of a folder below."""
        if folder not in self.listings:
            self.listings[folder] = _Listing(os.path.join(self.folder, folder))
        return self.listings[folder]

    def file(self, image: str) -> str | None:
        """The path of an image: as it is written, or the only one that it may mean; None if there is none."""
        path = os.path.join(self.folder, image)
        if os.path.exists(path):
            return path
        fits = self.files(_slashes(image))
        return os.path.join(self.folder, fits[0]) if len(fits) == 1 else None

    def files(self, path: str) -> list[str]:
        """The paths from the folder that this one may mean: itself, else as a browser writes it; at most a few."""
        for text in dict.fromkeys((path, unquote(path))) if "%" in path else (path,):
            above, _, name = text.rpartition("/")
            if name and (found := self._below(self.folders_of(above), name)):
                return found
        return []

    def folders_of(self, path: str) -> list[str]:
        """The folders that a path may mean."""
        if path not in self.folders:
            above, _, name = path.rpartition("/")
            self.folders[path] = self._below(self.folders_of(above), name)
        return self.folders[path]

    def _below(self, folders: list[str], name: str) -> list[str]:
        if name in ("", "."):
            return folders
        found = []
        for folder in folders:
            if name == "..":
                found.append(os.path.join(folder, name))
                continue
            listing = self.listing(folder)
            names = [name] if name in listing.names else listing.by_key.get(_key(name), [])
            found += [os.path.join(folder, other) for other in names]
        return found[:4]


class Tree:
    """The photographs anywhere below a folder, by the end of their path."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """The paths from the folder, by the key of their last step with its suffix and without."""
        found: dict[str, list[str]] = {}
        for at, folders, names in os.walk(self.folder or "."):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_junk(name))
            below = os.path.relpath(at, self.folder or ".")
            for name in sorted(filter(is_photo, names)):
                path = name if below == "." else f"{below}/{name}".replace(os.sep, "/")
                for key in dict.fromkeys((_key(name), _key(os.path.splitext(name)[0]))):
                    found.setdefault(key, []).append(path)
        return found

    def files(self, path: str) -> list[str]:
        """The photographs whose path ends in all of this one, which may lack a suffix."""
        wanted = "/" + _key(path.lstrip("/"))
        found = self.by_name.get(wanted.rpartition("/")[2], [])
        keys = ((file, "/" + _key(file)) for file in found)
        return [file for file, key in keys if key.endswith(wanted) or os.path.splitext(key)[0].endswith(wanted)]


def _foreign_start(search: Search, images: list[str]) -> str:
    """The beginning, with its slash, that absolute paths of another machine have and that must go for most of them to
    be found; "" if none does."""
    absolute = [_slashes(path) for path in images if path[:1] in "/\\" or DRIVE.match(path)]
    starts: Counter[str] = Counter()
    for path in absolute[:: max(1, len(absolute) // LOOKED_AT)]:
        words = path.split("/")
        for cut in range(1, len(words)):
            if words[cut] and len(search.files("/".join(words[cut:]))) == 1:
                starts["/".join(words[:cut]) + "/"] += 1
                break  # the longest end is the surest
    return starts.most_common(1)[0][0] if starts else ""


# --------------------------------------------------------------------------------------------------------------- hints


def _hint(search: Search, images: list[str]) -> str:
    """What would find most of these images: the folder that they start from, or a suffix."""
    looked = [_slashes(path) for path in images[:: max(1, len(images) // LOOKED_AT)]]
    fits = {folder: sum(os.path.isfile(os.path.join(folder, path)) for path in looked) for folder in _near(search)}
    best = max(fits, key=lambda folder: fits[folder], default="")
    if fits.get(best, 0):
        how_many = "" if fits[best] == len(looked) else f" {round(100 * fits[best] / len(looked))}% of them"
        return f"data.images={best} would find{how_many or ' them'}"
    return ""


def _with_suffix(search: Search, path: str) -> list[str]:
    """The photographs that a path without its suffix may mean."""
    above, _, name = path.rpartition("/")
    folders = search.folders_of(above)
    return [os.path.join(folder, file) for folder in folders for file in search.listing(folder).by_stem.get(name, [])]


def _near(search: Search) -> list[str]:
    """Folders near the table's, the nearest first: below it, above it, beside it."""
    above = os.path.join(search.folder, "..")
    found = [*_folders_below(search.folder), above]
    found += [folder for folder in _folders_below(above, deep=False) if not os.path.samefile(folder, search.folder)]
    return [os.path.relpath(folder) for folder in found[:FOLDERS]]


def _folders_below(start: str, deep: bool = True) -> list[str]:
    """The folders in a folder and, if deep, in these, level by level; hidden ones are left out."""
    found, todo = list[str](), [start]
    while todo and len(found) < FOLDERS:
        try:
            with os.scandir(todo.pop(0) or ".") as entries:
                below = sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            continue
        found += below
        todo += below if deep else []
    return found
