"""MMPretrain's annotation file: JSON with `metainfo.classes` and, in `data_list`, an `img_path` and the numbers
`gt_label` of each photograph. Its form in text (`1.jpg 0`) is read as ImageNet's txt.

Present: the classes of `gt_label`. Absent: nothing, or with `complete` every other class. Unknown: everything else.
"""

from __future__ import annotations

from pathlib import Path

from plures.data.dataset import Dataset, distinct, formats
from plures.data.formats.annotations import Export, Photo, exports_at, holds, load_json, read_exports, tails
from plures.errors import BadData, PluresError, Problem

EXPECTED = '{"metainfo": {"classes": ["cat"]}, "data_list": [{"img_path": "1.jpg", "gt_label": [0]}]}'


@formats.register("mmpretrain", title="MMPretrain's JSON: metainfo.classes, and gt_label of each img_path")
class MMPretrain:
    """complete: a class that is not among a photograph's labels is absent. images: the folder of the photographs (the
    file's own, or one below it)."""

    def __init__(self, *, complete: bool = False, images: str = "") -> None:
        self.complete, self.images = complete, images

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as MMPretrain's."""
        return f"{_files(path)[0][1].name}: JSON with data_list and img_path, as MMPretrain reads it"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path) or ([("", Path(path))] if Path(path).is_file() else [])
        if not files:
            raise PluresError(f"mmpretrain: no JSON with data_list at '{path}'; expected {EXPECTED}")
        return read_exports(files, _read, Path(path).name, self.images, complete=self.complete)


def _read(file: Path) -> Export:
    content = load_json(file, EXPECTED)
    about = content.get("metainfo") if isinstance(content, dict) else None
    names = (about.get("classes") or about.get("CLASSES")) if isinstance(about, dict) else None
    items = content.get("data_list") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names or not isinstance(items, list):
        what = "no list metainfo.classes with the names of the classes" if isinstance(items, list) else "no data_list"
        raise BadData([Problem(str(file), None, what, EXPECTED)], False)
    export = Export(file, distinct(list(map(str, names)), file))
    for row, item in enumerate(items, 1):
        given = item if isinstance(item, dict) else {}
        path, label = given.get("img_path"), given.get("gt_label")
        numbers = label if isinstance(label, list) else [] if label is None else [label]
        if not isinstance(path, str) or not path:
            export.problem(row, f"entry {row} has no img_path", EXPECTED)
        elif wrong := [n for n in numbers if type(n) is not int or not 0 <= n < len(names)]:
            export.problem(row, f"gt_label {wrong[0]!r}", f"numbers from 0 to {len(names) - 1}")
        else:
            present = [export.classes[number] for number in numbers]
            export.photos.append(Photo(tails(path), row, present, looked_at=label is not None))
    return export


def _files(path: str) -> list[tuple[str, Path]]:
    keys = (rb'"data_list"\s*:\s*\[', rb'"img_path"\s*:')
    return exports_at(path, (".json",), lambda file: holds(file, *keys, first=b"{"))
