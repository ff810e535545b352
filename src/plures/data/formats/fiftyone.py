"""FiftyOne's image classification dataset: `labels.json` with classes and labels, beside the photographs in `data/`;
its own `samples.json`; and a FiftyOne dataset in hand.

Present: the label, or each of the labels, of a photograph: a number of a class, a name, or an object with `label`.
Absent: nothing, or with `complete` every other class of a photograph that has labels, be it an empty list. Unknown:
everything else; of a photograph whose label is null, everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plures.data.dataset import Dataset, distinct, formats
from plures.data.formats.annotations import Export, Photo, exports_at, holds, load_json, read_exports, tails
from plures.data.formats.datumaro import SUFFIXES
from plures.data.formats.split_names import split_name
from plures.errors import BadData, PluresError, Problem

EXPECTED = 'FiftyOne\'s labels.json: {"classes": [...], "labels": {"1": 0, "2": [0, 3]}}'


@formats.register("fiftyone", title="FiftyOne's labels.json: a class, or several, per photograph in data/")
class FiftyOne:
    """complete: every class that is not among a photograph's labels is absent. images: the folder of the photographs
    (data/ beside the file). label_field: of samples.json and of a FiftyOne dataset in hand, the field with the labels
    (ground_truth, or the only one)."""

    def __init__(self, *, complete: bool = False, images: str = "", label_field: str = "") -> None:
        self.complete, self.images, self.label_field = complete, images, label_field

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as FiftyOne's."""
        return f"{_files(path)[0][1].name}: JSON with classes and the labels of each photograph"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path) or ([("", Path(path))] if Path(path).is_file() else [])
        if not files:
            raise PluresError(f"fiftyone: no JSON with classes and labels at '{path}'; expected {EXPECTED}")
        return read_exports(files, self._read, Path(path).name, self.images, complete=self.complete)

    def _read(self, file: Path) -> Export:
        content = load_json(file, EXPECTED)
        samples = content.get("samples") if isinstance(content, dict) else None
        if isinstance(samples, list):
            export = Export(file)
            self._samples(samples, export)
            return export
        return _read(file, content)

    def take(self, found: Any) -> tuple[Dataset, list[Problem]]:
        """A FiftyOne dataset or view in hand, whose photographs are files."""
        export = Export(Path(str(getattr(found, "name", None) or "fiftyone")))
        self._samples([sample.to_mongo_dict() for sample in found], export)
        return export.dataset(self.images, complete=self.complete), export.problems

    def _samples(self, samples: list[Any], export: Export) -> None:
        """Samples as FiftyOne stores them: a filepath, tags, and fields of which one holds the labels."""
        every = [sample for sample in samples if isinstance(sample, dict)]
        fields = dict.fromkeys(name for sample in every for name, value in sample.items() if _held(value) is not None)
        chosen = [self.label_field] if self.label_field else [n for n in fields if n == "ground_truth"] or list(fields)
        if len(chosen) != 1 or (fields and chosen[0] not in fields):
            what = f"fields with labels: {', '.join(fields) or 'none'}"
            raise BadData([Problem(str(export.file), None, what, "data.label_field=NAME, one of them")], False)
        for row, sample in enumerate(samples, 1):
            path = sample.get("filepath") if isinstance(sample, dict) else None
            if not isinstance(path, str) or not path:
                export.problem(row, f"sample {row} has no filepath", EXPECTED)
                continue
            value = sample.get(chosen[0])
            labels = [str(label.get("label") or "").strip() for label in _held(value) or []]
            splits = [split for tag in sample.get("tags") or [] if (split := split_name(str(tag)))]
            split = splits[0] if len(splits) == 1 else ""
            names = [path, *tails(path)]
            present = list(filter(None, labels))
            export.photos.append(Photo(names, row, present, split=split, looked_at=_held(value) is not None))


def _held(value: Any) -> list[dict[str, Any]] | None:
    """The labels that a field holds: Classification, Classifications, Detections, ...; None where it holds others."""
    kind = value.get("_cls") if isinstance(value, dict) else None
    if kind == "Classification":
        return [value]
    found = value.get(str(kind).casefold()) if isinstance(value, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else None


def _files(path: str) -> list[tuple[str, Path]]:
    def fits(file: Path) -> bool:
        labels = (rb'"classes"\s*:\s*(\[|null)', rb'"labels"\s*:\s*\{')
        samples = (rb'"samples"\s*:\s*\[', rb'"filepath"\s*:')
        return holds(file, *labels, first=b"{") or holds(file, *samples, first=b"{")

    return exports_at(path, (".json",), fits)


def _read(file: Path, content: Any) -> Export:
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
