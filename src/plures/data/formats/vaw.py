"""VAW (Pham et al. 2021, Learning to Predict Visual Attributes in the Wild, arXiv 2106.09707) and JSON of its form: a
list with `positive_attributes` and `negative_attributes` of each object, or of each image.

Present: what is positive for any object of the image. Absent: what is negative for one and positive for none, unless
`negatives` is false, as another object that nobody looked at may have it. Unknown: everything else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from plures.data.dataset import Dataset, formats
from plures.data.formats.annotations import Export, Photo, exports_at, holds, load_json, read_exports, tails
from plures.errors import BadData, PluresError, Problem

EXPECTED = 'a list of {"image_id": "1", "positive_attributes": ["red"], "negative_attributes": ["blue"]}'
KEY = re.compile("(positive|negative)_(attributes|labels|tags|classes|categories)")
IMAGES = ("image", "file_name", "filename", "image_path", "path", "image_id", "id")
SUFFIXES = ("", ".jpg", ".jpeg", ".png")


@formats.register("vaw", title="VAW's JSON of positive and negative attributes", source="Pham et al. 2021")
class Vaw:
    """negatives: what is negative for an object and positive for no other of its image is absent (else unknown).
    images: the folder of the photographs (the file's own, or one below it)."""

    def __init__(self, *, negatives: bool = True, images: str = "") -> None:
        self.negatives, self.images = negatives, images

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as VAW's."""
        return f"{_files(path)[0][1].name}: JSON with positive and negative attributes"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path) or ([("", Path(path))] if Path(path).is_file() else [])
        if not files:
            raise PluresError(f"vaw: no JSON with positive and negative attributes at '{path}'; expected {EXPECTED}")
        return read_exports(files, self._read, Path(path).name, self.images, complete=False)

    def _read(self, file: Path) -> Export:
        content = load_json(file, EXPECTED)
        if not isinstance(content, list):
            raise BadData([Problem(str(file), None, f"{type(content).__name__}, no list", EXPECTED)], False)
        export = Export(file)
        of_image: dict[str, tuple[int, set[str], set[str]]] = {}
        objects = 0
        for row, entry in enumerate(content, 1):
            found = _labels(entry)
            name = next((str(entry[key]) for key in IMAGES if entry.get(key) not in (None, "")), "") if found else ""
            if found is None or not name:
                export.problem(row, f"entry {row} names no image, or its attributes are no lists of words", EXPECTED)
                continue
            _, present, absent = of_image.setdefault(name, (row, set(), set()))
            present |= found[0]
            absent |= found[1]
            objects += "instance_id" in entry or "instance_bbox" in entry
        for name, (row, present, absent) in of_image.items():
            names = [one + suffix for one in tails(name) for suffix in SUFFIXES]
            export.photos.append(Photo(names, row, present, absent - present if self.negatives else ()))
        if objects and self.negatives:
            export.notice(
                "attributes that are negative for an object and positive for no other are absent from the image;"
                " data.negatives=false leaves them unknown"
            )
        return export


def _labels(entry: Any) -> tuple[set[str], set[str]] | None:
    """The positive and the negative words of an entry; None where they are no lists of words."""
    if not isinstance(entry, dict):
        return None
    found: dict[str, set[str]] = {"positive": set(), "negative": set()}
    for key, words in entry.items():
        if match := KEY.fullmatch(key):
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                return None
            found[match[1]].update(word.strip() for word in words if word.strip())
    return found["positive"], found["negative"]


def _files(path: str) -> list[tuple[str, Path]]:
    pattern = rb'"negative_(attributes|labels|tags|classes|categories)"\s*:'
    return exports_at(
        path, (".json",), lambda file: holds(file, pattern, pattern.replace(b"nega", b"posi"), first=b"[")
    )
