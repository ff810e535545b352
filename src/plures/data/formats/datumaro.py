"""Datumaro JSON, as Datumaro and CVAT write it: `annotations/SUBSET.json` beside `images/SUBSET/`.

Present: the label that an annotation of the item names, be it of the whole image or of an object. Absent: nothing, or
with `complete` every other label. Unknown: everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plures.data.dataset import Dataset, formats
from plures.data.formats.annotations import Export, Photo, exports_at, holds, load_json, tails
from plures.data.formats.joined import joined
from plures.data.formats.split_names import split_name
from plures.errors import BadData, PluresError, Problem

EXPECTED = "Datumaro JSON: categories.label.labels and items"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".JPG", ".JPEG", ".PNG")  # of an item without a path


@formats.register("datumaro", title="Datumaro JSON: labels of images and of objects")
class Datumaro:
    """complete: every label that an item does not carry is absent. images: the folder of the photographs
    (images/SUBSET beside the folder of the annotations)."""

    def __init__(self, *, complete: bool = False, images: str = "") -> None:
        self.complete, self.images = complete, images

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as Datumaro's JSON."""
        return f"{', '.join(file.name for file in _files(path)[:3])}: JSON with categories and items"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path) or ([Path(path)] if Path(path).is_file() else [])
        if not files:
            raise PluresError(f"datumaro: no JSON with categories and items at '{path}'; expected {EXPECTED}")
        read, problems = [], list[Problem]()
        for file in files:
            export = _read(file)
            read.append((export.dataset(self.images, complete=self.complete), split_name(file.stem) or ""))
            problems += export.problems
        return joined(read, Path(path).stem), problems


def _files(path: str) -> list[Path]:
    """The file itself, or every one in a folder or in its folder annotations: a file per subset."""

    def fits(file: Path) -> bool:
        return holds(file, rb'"categories"\s*:\s*\{', rb'"items"\s*:\s*\[', first=b"{")

    at = Path(path)
    if path and at.is_dir():
        for folder in (at, at / "annotations"):
            files = [f for f in sorted(folder.glob("*.json")) if f.is_file() and exports_at(str(f), (".json",), fits)]
            if files:
                return files
        return []
    return [file for _, file in exports_at(path, (".json",), fits)]


def _read(file: Path) -> Export:
    content = load_json(file, EXPECTED)
    try:
        classes = [str(label["name"]) for label in content["categories"]["label"]["labels"]]
        items = content["items"]
        if not isinstance(items, list):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        what = "categories.label.labels with a name each, or the list of items, is not as it should be"
        raise BadData([Problem(str(file), None, what, EXPECTED)], False) from None
    export = Export(file, classes)
    for row, item in enumerate(items, 1):
        names = _names(item, file.stem)
        if not names or not isinstance(item.get("annotations", []), list):
            export.problem(row, f"item {row} has no id, or annotations that are no list", EXPECTED)
            continue
        found, usable = list[str](), True
        for annotation in item.get("annotations", []):
            given = annotation if isinstance(annotation, dict) else {}
            if given.get("label_id") is None:
                export.notice(f"an annotation of type {given.get('type')!r} without label_id is not understood", row)
                continue
            number = given["label_id"]
            if not isinstance(number, int) or not 0 <= number < len(classes):
                export.problem(row, f"label_id {number!r}", f"0 to {len(classes) - 1}")
                usable = False
            else:
                found.append(classes[number])
        if usable:
            export.photos.append(Photo(names, row, found))
    return export


def _names(item: Any, subset: str) -> list[str]:
    """The spellings of an item's photograph: by its path, else by its id."""
    if not isinstance(item, dict):
        return []
    for key in ("image", "media"):
        about = item.get(key)
        if isinstance(about, dict) and isinstance(about.get("path"), str) and about["path"]:
            return [f"{subset}/{about['path']}", *tails(about["path"])]
    identity = item.get("id")
    if not isinstance(identity, str) or not identity:
        return []
    return [name for suffix in ("", *SUFFIXES) for name in (f"{subset}/{identity}{suffix}", identity + suffix)]
