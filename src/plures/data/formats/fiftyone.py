"""FiftyOne's image classification dataset: `labels.json` with classes and labels, beside the photographs in `data/`.

Present: the label, or each of the labels, of a photograph: a number of a class, a name, or an object with `label`.
Absent: nothing, or with `complete` every other class of a photograph that has labels, be it an empty list. Unknown:
everything else; of a photograph whose label is null, everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plures.data.dataset import Dataset, distinct, formats
from plures.data.formats.annotations import Export, Photo, exports_at, holds, load_json, read_exports
from plures.data.formats.datumaro import SUFFIXES
from plures.errors import BadData, PluresError, Problem

EXPECTED = 'FiftyOne\'s labels.json: {"classes": [...], "labels": {"1": 0, "2": [0, 3]}}'


@formats.register("fiftyone", title="FiftyOne's labels.json: a class, or several, per photograph in data/")
class FiftyOne:
    """complete: every class that is not among a photograph's labels is absent. images: the folder of the photographs
    (data/ beside the file)."""

    def __init__(self, *, complete: bool = False, images: str = "") -> None:
        self.complete, self.images = complete, images

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as FiftyOne's."""
        return f"{_files(path)[0][1].name}: JSON with classes and the labels of each photograph"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path) or ([("", Path(path))] if Path(path).is_file() else [])
        if not files:
            raise PluresError(f"fiftyone: no JSON with classes and labels at '{path}'; expected {EXPECTED}")
        return read_exports(files, _read, Path(path).name, self.images, complete=self.complete)


def _files(path: str) -> list[tuple[str, Path]]:
    patterns = (rb'"classes"\s*:\s*(\[|null)', rb'"labels"\s*:\s*\{')
    return exports_at(path, (".json",), lambda file: holds(file, *patterns, first=b"{"))


def _read(file: Path) -> Export:
    content = load_json(file, EXPECTED)
    classes = content.get("classes") if isinstance(content, dict) else None
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not isinstance(classes, list | None):
        raise BadData([Problem(str(file), None, "'classes' is no list, or 'labels' no object", EXPECTED)], False)
    export = Export(file, distinct([str(name) for name in classes or []], file))
    for row, (name, target) in enumerate(labels.items(), 1):
        found, usable = list[str](), True
        for label in target if isinstance(target, list) else [] if target is None else [target]:
            tag, wrong = _name(label, export.classes)
            if wrong:
                export.problem(row, f"'{name}': {wrong}", EXPECTED)
                usable = False
            found.append(tag)
        if usable and name:
            names = [name, *(name + suffix for suffix in SUFFIXES)]
            export.photos.append(Photo(names, row, found, looked_at=target is not None))
    return export


def _name(label: Any, classes: Any) -> tuple[str, str]:
    """The name of a label, and what is wrong with it."""
    if isinstance(label, dict):
        if not isinstance(label.get("label"), str | int):
            return "", f"the keys {', '.join(map(repr, list(label)[:6]))} are not understood; no 'label'"
        label = label["label"]
    if isinstance(label, str) and label.strip():
        return label.strip(), ""
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(classes):
        return str(classes[label]), ""
    return "", f"label {label!r} is no class, of which there are {len(classes)}"
