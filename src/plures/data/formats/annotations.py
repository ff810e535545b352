"""What the readers of annotation tools share: finding and parsing an export, and photographs with tags as a Dataset."""

from __future__ import annotations

import json
import mmap
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from plures.data.dataset import Dataset
from plures.data.formats.joined import joined
from plures.data.formats.repeated_rows import merge_duplicates
from plures.data.formats.split_names import split_name
from plures.data.paths import Search, Tree
from plures.data.photos import is_address, is_junk
from plures.errors import BadData, Problem
from plures.files import parse_json
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels

SHOWN = 3  # missing images; more become one line
BEGINNING = 4_000_000  # bytes of an export in which its keys occur
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how such a text begins
DEEPEST = 200  # elements inside one another
ANNOTATION_FOLDERS = frozenset(("annotations", "annotation", "anno", "ann", "labels", "meta"))
PLACES = ("", "images", "data", "../images", "..", "images/default")  # where photographs lie, from an export's folder


@dataclass
class Photo:
    """A photograph as an export lists it.

    names: the spellings of its path, the likeliest first; row: where it stands in the file; present, absent: tags;
    looked_at: somebody has annotated it, so that a tag that is not given may be taken as absent.
    """

    names: Sequence[str]
    row: int | None
    present: Iterable[str] = ()
    absent: Iterable[str] = ()
    split: str = ""
    looked_at: bool = True


@dataclass
class Export:
    """The photographs of one file, and the classes it declares, in order."""

    file: Path
    classes: Sequence[str] = ()
    photos: list[Photo] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, row: int | None, what: str, expected: str = "") -> None:
        """Take note of what cannot be used."""
        self.problems.append(Problem(str(self.file), row, what, expected))

    def notice(self, what: str, row: int | None = None) -> None:
        """Take note of what is worth knowing; the same text once."""
        if what not in {known.what for known in self.problems}:
            self.problems.append(Problem(str(self.file), row, what, severity="notice"))

    def dataset(self, images: str = "", *, complete: bool = False) -> Dataset:
        """The photographs whose file is there; of the others `problems` tells.

        Args:
            images: the folder that paths start from; "": the export's own, or one of the usual ones beside it.
            complete: a tag that is not given to a photograph that was looked at is absent, not unknown.
        """
        named = {tag for photo in self.photos for tag in (*photo.present, *photo.absent)}
        classes = tuple(dict.fromkeys([*self.classes, *sorted(named)]))
        place = {name: column for column, name in enumerate(classes)}
        folders = [images] if images else [os.path.normpath(self.file.parent / inner) for inner in PLACES]
        found = Finder(folders)
        rows, paths, lost = list[Photo](), list[str](), list[Photo]()
        placed = [found.path(photo.names) for photo in self.photos]
        if placed and not any(placed):  # then further below; twice the same file is no find
            placed = found.below([photo.names for photo in self.photos])
            if any(placed):
                self.notice(f"the photographs were found in folders below, such as {next(filter(None, placed))}")
        for photo, path in zip(self.photos, placed, strict=True):
            if path is None:
                lost.append(photo)
            else:
                rows.append(photo)
                paths.append(path)
        self._say_lost(lost, folders[0])
        values = np.full((len(rows), len(classes)), UNKNOWN, np.int8)  # [N, K]
        for row, photo in enumerate(rows):
            if complete and photo.looked_at:
                values[row] = ABSENT
            values[row, [place[tag] for tag in photo.absent]] = ABSENT
            values[row, [place[tag] for tag in photo.present]] = PRESENT
            both = {*photo.present}.intersection(photo.absent)
            if both:
                self.problem(photo.row, f"'{min(both)}' is both present and absent", "one of the two")
                values[row] = PRESENT + 1  # left out with the repeated rows that disagree
        splits = np.array([photo.split for photo in rows], np.str_)
        numbers = np.array([photo.row or 0 for photo in rows], np.int64)
        keep, clashes = merge_duplicates(paths, values, splits, classes, numbers, str(self.file))
        self.problems += clashes
        values[~keep] = UNKNOWN  # no code above 1 is left in the rows that go
        made = Dataset(paths, Labels(values), classes, splits if any(splits) else None, name=self.file.stem)
        return made if keep.all() else made.take(keep)

    def _say_lost(self, lost: list[Photo], folder: str) -> None:
        way = f"a file below {folder}; data.images=FOLDER says where the photographs lie"
        if len(lost) > SHOWN:
            listed = ", ".join(f"'{photo.names[0]}' (row {photo.row})" for photo in lost[:SHOWN])
            what = f"{len(lost):,} of {len(self.photos):,} images are missing, such as {listed}"
            self.problems.append(Problem(str(self.file), None, what, way, times=len(lost)))
            return
        for photo in lost:
            self.problem(photo.row, f"image '{photo.names[0]}' is missing", way)


class Finder:
    """The file of a photograph that an export names in one way or another."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.searches = [Search(folder) for folder in folders]

    def path(self, names: Sequence[str]) -> str | None:
        """The first of the names that is a file, in the first of the folders; an address is its own path."""
        for name in names:
            for place, search in enumerate(self.searches):
                file = search.file(name) if name else None
                if file is not None and os.path.isfile(file):
                    if place:
                        self.searches.insert(0, self.searches.pop(place))  # the next one probably lies there, too
                    return file
        return names[0] if names and is_address(names[0]) else None

    def below(self, every: Sequence[Sequence[str]]) -> list[str | None]:
        """For the names of each photograph the only photograph anywhere below the first folder, or, where that is one
        of annotations, the folder above it; None where there is none, or two photographs share one."""
        folder = self.searches[0].folder
        above = os.path.dirname(os.path.abspath(folder))
        folder = above if os.path.basename(os.path.abspath(folder)).casefold() in ANNOTATION_FOLDERS else folder
        tree, found = Tree(folder), list[str | None]()
        for names in every:
            fits = next((fits for name in names if name and (fits := tree.files(name))), [])
            found.append(os.path.join(folder, fits[0]) if len(fits) == 1 else None)
        taken = Counter(zip(found, (names[0] if names else "" for names in every), strict=True))
        times = Counter(path for path, _ in taken)
        return [path if path is None or times[path] == 1 else None for path in found]


def tails(path: str) -> list[str]:
    """A path and its ends: a/b/c.jpg, b/c.jpg, c.jpg, as on a machine where other folders lie above.

    Example:
        >>> tails("s3://bucket/a/1.jpg")
        ['s3://bucket/a/1.jpg', 'bucket/a/1.jpg', 'a/1.jpg', '1.jpg']
    """
    inside = path.partition("://")[2] or path
    words = [word for word in inside.replace("\\", "/").split("/") if word]
    return list(dict.fromkeys([path, *("/".join(words[start:]) for start in range(min(len(words), 20)))]))


# ---------------------------------------------------------------------------------------------------- finding exports


def exports_at(path: str, suffixes: tuple[str, ...], fits: Callable[[Path], bool]) -> list[tuple[str, Path]]:
    """The exports at a path, each with the split that its folder names ("" if none).

    Args:
        path: the file itself, or a folder: the only export in it or in `annotations/`, or train, val and test there, or
            the only one in each of its folders train, valid, test.
        suffixes: what the file's name ends in.
        fits: whether a file is such an export, by its content.
    """
    at = Path(path)
    if not path:
        return []
    if not at.is_dir():
        return [("", at)] if at.is_file() and at.suffix.lower() in suffixes and _asked(fits, at) else []
    for folder in (at, at / "annotations"):
        if found := _exports_in(folder, suffixes, fits):
            splits = [split_name(file.stem) or "" for file in found]
            whole = len(found) > 1 and all(splits) and len({*splits}) == len(found)
            return [("", found[0])] if len(found) == 1 else list(zip(splits, found, strict=True)) if whole else []
    inside = [(split_name(folder.name) or "", folder) for folder in sorted(at.iterdir()) if folder.is_dir()]
    split = [(name, _exports_in(folder, suffixes, fits)) for name, folder in inside if name]
    split = [(name, files) for name, files in split if files]
    return [(name, files[0]) for name, files in split] if all(len(files) == 1 for _, files in split) else []


def _exports_in(folder: Path, suffixes: tuple[str, ...], fits: Callable[[Path], bool]) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in suffixes and f.is_file() and not is_junk(f)]
    return [file for file in files if not file.name.startswith(".") and _asked(fits, file)]


def _asked(fits: Callable[[Path], bool], file: Path) -> bool:
    try:
        return fits(file)
    except OSError:
        return False


def holds(file: Path, *patterns: bytes, first: bytes = b"") -> bool:
    """Whether every pattern occurs in a file (a look through its bytes, no parsing).

    first: the character that the text begins with; then only the first megabytes are looked through.
    """
    with file.open("rb") as opened:
        if file.stat().st_size < 2:
            return False
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = BEGINNING if first else len(content)
            text = content if content[:2] not in UTF_16 else content[:end].decode("utf-16", "ignore").encode()
            head = bytes(text[:1000]).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            return (not first or head == first) and all(re.compile(p).search(text, 0, end) for p in patterns)


# -------------------------------------------------------------------------------------------------------------- parsing


def load_json(file: Path, expected: str) -> Any:
    """What a JSON file says. Raises BadData where it is none; expected: what it should be."""
    try:
        content = file.read_bytes()
        return parse_json(content.decode("utf-16") if content[:2] in UTF_16 else content.removeprefix(b"\xef\xbb\xbf"))
    except json.JSONDecodeError as error:
        raise BadData([Problem(str(file), error.lineno, f"broken JSON ({error.msg})", expected)], False) from error
    except UnicodeDecodeError as error:
        raise BadData([Problem(str(file), None, "the text is not UTF-8", expected)], False) from error
    except (OSError, ValueError) as error:
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", expected)], False) from error


class Node(ElementTree.Element):
    """An XML element; line: the one that it begins in."""

    line: int = 0


def parse_xml(content: bytes) -> Node:
    """The root of an XML text; a name in a namespace is NAMESPACE}NAME.

    A DOCTYPE is refused, and with it every entity that a few lines could make billions of characters of.

    Raises:
        ValueError: and never another error, where it is no XML.

    Example:
        >>> parse_xml(b"<a><b c='1'/></a>")[0].get("c")
        '1'
    """
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    root: list[Node] = []
    above: list[Node] = []

    def doctype(*_: Any) -> None:
        raise ValueError("a DOCTYPE, which may define entities, is not read")

    def start(name: str, attributes: dict[str, str]) -> None:
        node = Node(name, attributes)
        node.line = parser.CurrentLineNumber
        if len(above) > DEEPEST:
            raise ValueError("nested too deeply")
        if above:
            above[-1].append(node)
        else:
            root.append(node)
        above.append(node)

    def text(words: str) -> None:
        above[-1].text = (above[-1].text or "") + words

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: above.pop()
    parser.CharacterDataHandler = text
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError, UnicodeError) as error:  # LookupError: an encoding that nobody knows
        raise ValueError(str(error)) from None
    return root[0]


def load_xml(file: Path, expected: str) -> Node:
    """The root of an XML file. Raises BadData where it is none; expected: what it should be."""
    try:
        return parse_xml(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData([Problem(str(file), None, f"cannot be read as XML ({error})", expected)], False) from error


def read_exports(
    files: list[tuple[str, Path]], read: Callable[[Path], Export], name: str, images: str, *, complete: bool
) -> tuple[Dataset, list[Problem]]:
    """The data of one file, or of several in split folders, each as (split, file); name: of several together."""
    exports = [(read(file), split) for split, file in files]
    parts = [(export.dataset(images, complete=complete), split) for export, split in exports]
    problems = [problem for export, _ in exports for problem in export.problems]
    return parts[0][0] if len(parts) == 1 and not parts[0][1] else joined(parts, name), problems
