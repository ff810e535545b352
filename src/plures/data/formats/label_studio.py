"""Label Studio: JSON, JSON-MIN and CSV exports with choices, also the labels of regions and taxonomies (`A/B`).

Present: a choice of an annotation that was not cancelled; of several annotators, what any of them chose. Absent:
nothing, or with `complete` every choice that an annotated task does not carry. Unknown: everything else; of a task
without an annotation, everything. Predictions are no answers of a person and are read on request only.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from plures.data.dataset import Dataset, formats
from plures.data.formats.annotations import Export, Photo, exports_at, holds, load_json, tails
from plures.data.photos import IMAGE_SUFFIXES
from plures.errors import BadData, PluresError, Problem
from plures.files import parse_json

EXPECTED = "an export of Label Studio: JSON, JSON-MIN or CSV"
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of a file that is uploaded
OWN = frozenset(  # keys of JSON-MIN and CSV that Label Studio writes itself
    ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "comments")
) | {"annotations", "predictions", "drafts", "meta", "project", "inner_id", "data", "total_annotations"}
LABELS = ("choices", "taxonomy", "labels")  # and whatever ends in the last, such as rectanglelabels
LIKELY = ("choice", "choices", "label", "labels", "tag", "tags", "class", "classes")  # names of a control


Task = tuple[int, str, list[str], bool]  # row, what names the photograph, its tags, whether somebody looked at it


@formats.register("label_studio", title="Label Studio: JSON, JSON-MIN or CSV with choices")
class LabelStudio:
    """complete: a choice that an annotated task does not carry is absent. images: the folder of the photographs (the
    export's own, or images/ in it); upload and local-files paths are looked for there, with and without the folders
    before the name. control: the control tag (from_name, in JSON-MIN and CSV the column) that is read; all if empty.
    image_key: the key of the task's data that names the photograph. predictions: take what a model predicted, too.
    """

    def __init__(
        self,
        *,
        complete: bool = False,
        images: str = "",
        control: str = "",
        image_key: str = "",
        predictions: bool = False,
    ) -> None:
        self.complete, self.images, self.control = complete, images, control
        self.image_key, self.predictions = image_key, predictions

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as an export of Label Studio."""
        file = _files(path)[0][1]
        kind = "CSV" if file.suffix.lower() != ".json" else "JSON" if _is_json(file) else "JSON-MIN"
        return f"{file.name}: {kind} of tasks with annotations, as Label Studio exports it"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path) or ([("", Path(path))] if Path(path).is_file() else [])
        if len(files) != 1:
            raise PluresError(f"label_studio: no export at '{path}', or several; expected {EXPECTED}")
        export = Export(files[0][1])
        rows = self._csv(export) if export.file.suffix.lower() in (".csv", ".tsv") else self._json(export)
        for row, text, found, looked_at in rows:
            export.photos.append(Photo(spellings(text), row, found, looked_at=looked_at))
        if not export.photos and not export.problems:
            export.problem(None, "no tasks", EXPECTED)
        return export.dataset(self.images, complete=self.complete), export.problems

    # ------------------------------------------------------------------------------------------------------ JSON

    def _json(self, export: Export) -> Iterator[Task]:
        tasks = load_json(export.file, EXPECTED)
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise BadData([Problem(str(export.file), None, "no list of tasks", EXPECTED)], False)
        if any("data" not in task for task in tasks):
            if strange := next((n for n, task in enumerate(tasks, 1) if "data" in task), 0):
                raise BadData([Problem(str(export.file), strange, "key 'data' in some tasks only", EXPECTED)], False)
            yield from self._min(export, list(enumerate(tasks, 1)))
            return
        seen = 0
        for row, task in enumerate(tasks, 1):
            image = self._image(export, row, task["data"])
            lists = [task.get("annotations", task.get("completions", []))]
            seen += bool(task.get("predictions"))
            if self.predictions:
                lists.append(task.get("predictions"))
            answers = [answer for one in lists for answer in (one if isinstance(one, list) else [one]) if answer]
            if not all(isinstance(answer, dict) for answer in answers):
                export.problem(row, "key 'annotations' is not understood", "objects with a list 'result'")
                continue
            answers = [answer for answer in answers if not (answer.get("was_cancelled") or answer.get("skipped"))]
            found = [tag for answer in answers for tag in self._result(export, row, answer.get("result"))]
            if image:
                yield row, image, found, bool(answers)
        if seen and not self.predictions:
            export.notice(f"{seen:,} tasks hold predictions, which are not read; data.predictions=true reads them")

    def _result(self, export: Export, row: int, result: Any) -> list[str]:
        found = []
        for region in result if isinstance(result, list) else []:
            if not isinstance(region, dict) or not isinstance(region.get("value"), dict):
                export.problem(row, "key 'result' is not understood", "regions with a value, such as choices")
                continue
            if not self.control or region.get("from_name") == self.control:
                tags = _chosen(region["value"])
                if tags is None:
                    export.notice(f"a result of type {region.get('type')!r} is not understood and not read", row)
                found += tags or []
        return found

    def _image(self, export: Export, row: int, data: Any) -> str:
        """The text that names the photograph, among the values of a task's data."""
        words = {k: v for k, v in data.items() if isinstance(v, str) and v} if isinstance(data, dict) else {}
        if self.image_key:
            keys = [self.image_key] if self.image_key in words else []
        else:
            keys = [key for key in words if key.casefold() == "image"] or [k for k, v in words.items() if _is_photo(v)]
        if len(keys) != 1:
            what = (
                f"keys {' and '.join(map(repr, keys[:3]))} may all name the image" if keys else "no key names the image"
            )
            export.problem(row, what, f"data.image_key={keys[0] if keys else 'NAME'}")
            return ""
        return words[keys[0]]

    # --------------------------------------------------------------------------------------------- JSON-MIN and CSV

    def _csv(self, export: Export) -> Iterator[Task]:
        limit = csv.field_size_limit(2**27)  # a cell of regions may be long
        try:
            text = export.file.read_bytes().decode("utf-8-sig")
            delimiter = "\t" if export.file.suffix.lower() == ".tsv" else ","
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            rows = [(reader.line_num, {k: v for k, v in row.items() if k and isinstance(v, str)}) for row in reader]
        except (OSError, ValueError, csv.Error) as error:
            raise BadData([Problem(str(export.file), None, f"cannot be read ({error})", EXPECTED)], False) from None
        finally:
            csv.field_size_limit(limit)
        tasks = [(number, {key: _cell(value) for key, value in row.items()}) for number, row in rows]
        yield from self._min(export, tasks)

    def _min(self, export: Export, tasks: list[tuple[int, dict[str, Any]]]) -> Iterator[Task]:
        """Tasks whose data and answers stand side by side."""
        names = list(dict.fromkeys(key for _, task in tasks for key in task))
        images = {name for name in names if any(_is_photo(task.get(name)) for _, task in tasks)}
        images |= {name for name in names if name.casefold() == "image"}
        free = [name for name in names if name not in OWN and name not in images]
        controls = [self.control] if self.control else [
            name for name in free if any(isinstance(task.get(name), dict | list) for _, task in tasks)
        ] or [name for name in free if name.casefold() in LIKELY]  # fmt: skip
        controls = controls or (free if len(free) == 1 else [])
        if not controls or controls[0] not in names:
            what = f"no key 'choice' among {', '.join(map(repr, names[:12]))}"
            expected = "data.control=NAME, the name of the control tag with the choices"
            raise BadData([Problem(str(export.file), None, what, expected)], False)
        for row, task in tasks:
            image = self._image(export, row, {key: task[key] for key in task if key in images or key == self.image_key})
            found = [tag for name in controls for tag in _chosen_min(task.get(name))]
            if image:
                yield row, image, found, task.get("annotation_id") not in (None, "")


def spellings(text: str) -> list[str]:
    """The paths that the text naming a task's photograph may mean, the likeliest first.

    Example:
        >>> spellings("/data/upload/1/0123abcd-cat.jpg")[-2:]
        ['0123abcd-cat.jpg', 'cat.jpg']
        >>> spellings("/data/local-files/?d=photos%2F1.jpg")
        ['photos/1.jpg', '1.jpg']
    """
    text = text.strip()
    try:
        inside = parse_qs(urlsplit(text).query).get("d", []) if "local-files" in text else []
    except ValueError:  # an address that is none
        inside = []
    found = tails(inside[0] if inside else text.removeprefix("/data/upload/"))
    found += [unquote(name) for name in found if "%" in name]
    return list(dict.fromkeys(found + [name for name in (UPLOADED.sub("", found[-1]),) if name]))


def _files(path: str) -> list[tuple[str, Path]]:
    found = exports_at(path, (".json", ".csv", ".tsv"), _is_export)
    return found if len(found) == 1 else []


def _is_json(file: Path) -> bool:
    answers = rb'"(annotations|completions|predictions)"\s*:\s*[\[{]'
    return holds(file, rb'"data"\s*:\s*\{', answers, first=b"[")


def _is_export(file: Path) -> bool:
    if file.suffix.lower() == ".json":
        return _is_json(file) or holds(file, rb'"annotation_id"\s*:', rb'"annotator"\s*:', first=b"[")
    with file.open("rb") as opened:
        header = opened.readline(100_000).removeprefix(b"\xef\xbb\xbf")
    return {b"annotation_id", b"annotator"} <= {word.strip(b' "\r\n') for word in re.split(rb"[,\t]", header)}


def _is_photo(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 5000:
        return False
    name = value.partition("?")[0] if "local-files" not in value else value
    return value.startswith(("/data/upload/", "/data/local-files/")) or name.lower().endswith(tuple(IMAGE_SUFFIXES))


def _chosen(value: dict[str, Any]) -> list[str] | None:
    """The tags of a value: its choices, labels or ways through a taxonomy; None where it holds something else."""
    for key, found in value.items():
        if (key in LABELS or key.endswith("labels")) and isinstance(found, list | str):
            each = found if isinstance(found, list) else [found]
            words = ["/".join(map(str, one)) if isinstance(one, list) else str(one) for one in each]
            return [word.strip() for word in words if word.strip()]
    return None


def _chosen_min(value: Any) -> list[str]:
    """The tags of a value as JSON-MIN and CSV spell it: a word, {"choices": [...]}, or a list of either."""
    if isinstance(value, dict):
        return _chosen(value) or []
    if isinstance(value, list):
        return [tag for one in value if not isinstance(one, list) for tag in _chosen_min(one)]
    return [value.strip()] if isinstance(value, str) and value.strip() else []


def _cell(text: str) -> Any:
    """What a cell spells: JSON where it begins as such, else its text."""
    if text[:1] in ("{", "["):
        try:
            return parse_json(text)
        except ValueError:
            return text
    return text
