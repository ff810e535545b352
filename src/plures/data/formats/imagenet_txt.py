"""ImageNet's txt form, as CVAT, Datumaro and MMPretrain write it: `synsets.txt` with a class a line, beside a txt file
per subset whose lines are a path and the numbers of its classes (`1.jpg 0 4`; a path with blanks in double quotes).

Present: the classes of the line. Absent: nothing, or with `complete` every other class. Unknown: everything else.
"""

from __future__ import annotations

from pathlib import Path

from plures.data.dataset import Dataset, distinct, formats
from plures.data.formats.annotations import Export, Photo, tails
from plures.data.formats.datumaro import SUFFIXES
from plures.data.formats.joined import joined
from plures.data.formats.split_names import split_name
from plures.errors import BadData, PluresError, Problem

NAMES = ("synsets.txt", "classes.txt", "labels.txt")
EXPECTED = "a path and numbers of classes, as in 1.jpg 0 4"


@formats.register("imagenet_txt", title="ImageNet's txt form: synsets.txt, and lines of a path and numbers of classes")
class ImageNetTxt:
    """complete: a class whose number a line does not hold is absent. images: the folder of the photographs (images/
    beside the lists)."""

    def __init__(self, *, complete: bool = False, images: str = "") -> None:
        self.complete, self.images = complete, images

    def recognises(self, path: str) -> bool:
        return bool(_files(path)[1])

    def reason(self, path: str) -> str:
        """Why this path is read as lists of paths and numbers."""
        names, lists = _files(path)
        return f"{', '.join(file.name for file in lists[:3])}: paths and numbers of the classes in {names.name}"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        names, lists = _files(path)
        if not lists:
            raise PluresError(f"imagenet_txt: no synsets.txt with lists of images beside it at '{path}'")
        if not names.is_file():
            what = f"numbers of classes, and no file with their names ({', '.join(NAMES)})"
            raise BadData([Problem(str(lists[0]), None, what, f"{names}, a name a line")], False)
        classes = distinct([line.strip() for line in _lines(names) if line.strip()], names)
        read, problems = [], list[Problem]()
        for file in lists:
            export = _read(file, classes)
            read.append((export.dataset(self.images, complete=self.complete), split_name(file.stem) or ""))
            problems += export.problems
        return joined(read, Path(path).name), problems


def _files(path: str) -> tuple[Path, list[Path]]:
    """The file of class names, and the lists beside it or, for one list, below it."""
    at = Path(path)
    folder = at if at.is_dir() else at.parent
    places = [folder] if at.is_dir() else [folder, folder.parent]
    names = next((p / name for p in places for name in NAMES if path and (p / name).is_file()), folder / NAMES[0])
    if not path or not names.is_file():
        return names, [at] if path and at.suffix == ".txt" and at.is_file() and _is_list(at) else []
    lists = [at] if at.is_file() else sorted(folder.glob("*.txt"))
    return names, [file for file in lists if file.suffix == ".txt" and file.name not in NAMES and _is_list(file)]


def _is_list(file: Path) -> bool:
    """Whether the first lines are paths with numbers."""
    try:
        with file.open(encoding="utf-8") as opened:
            first = [line.strip() for line in (opened.readline(10_000) for _ in range(20)) if line.strip()]
    except (OSError, UnicodeDecodeError):
        return False
    found = [_parts(line) for line in first]
    return bool(first) and all("." in name for name, _ in found) and any(numbers for _, numbers in found)


def _parts(line: str) -> tuple[str, list[int]]:
    """The path in a line, and the numbers behind it; the path is "" where something else stands there."""
    quoted, _, rest = line[1:].partition('"') if line.startswith('"') else ("", "", "")
    words = rest.split() if quoted else line.split()
    start = len(words)
    while start > (0 if quoted else 1) and words[start - 1].isascii() and words[start - 1].isdigit():
        start -= 1
    numbers = [int(word[:9]) for word in words[start:]]
    if quoted:
        return ("" if start else quoted), numbers
    return " ".join(words[:start]), numbers


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", "lines of UTF-8 text")], False) from None


def _read(file: Path, classes: tuple[str, ...]) -> Export:
    export = Export(file, classes)
    for row, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        name, numbers = _parts(line.strip())
        if not name:
            export.problem(row, f"the line '{line[:60]}'", EXPECTED)
            continue
        strange = [number for number in numbers if number >= len(classes)]
        if strange:
            export.problem(row, f"class number {strange[0]}", f"0 to {len(classes) - 1}, the lines of the class names")
            continue
        names = [*tails(name), *(name + suffix for suffix in SUFFIXES), f"{file.stem}/{name}"]
        export.photos.append(Photo(names, row, [classes[number] for number in numbers], looked_at=bool(numbers)))
    return export
