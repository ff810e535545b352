"""COCO instances JSON (Lin et al. 2014, Microsoft COCO: Common Objects in Context, arXiv 1405.0312)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plures.data.dataset import Boxes, Dataset, distinct, formats
from plures.data.verify import missing_images
from plures.errors import BadData, PluresError, Problem
from plures.files import parse_json
from plures.labels import ABSENT, PRESENT, Labels


@dataclass
class Objects:
    """What the JSON files say, gathered: M objects in N images."""

    images: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    corners: list[tuple[float, float, float, float]] = field(default_factory=list)


@formats.part("coco", title="COCO instances JSON, with boxes", source="Lin et al. 2014, arXiv 1405.0312")
class Coco:
    """variant mlspl: as Cole et al. 2021 format it: images with an annotation or more (crowds count), rows sorted by
    the image id as text. variant query2label: every image, sorted by id (as torchvision's CocoDetection).
    Columns stand in the file's order of categories in both. Labels are complete.
    official_val_is_test: the official val split, on which papers report, is called test. images: the folder that
    holds the photos (train2017 etc. beside the annotations folder).
    """

    def __init__(
        self,
        *,
        variant: Literal["mlspl", "query2label"] = "mlspl",
        official_val_is_test: bool = True,
        images: str = "",
    ) -> None:
        if variant not in ("mlspl", "query2label"):
            raise PluresError(f"coco: no variant '{variant}'; there are: mlspl, query2label")
        self.variant, self.official_val_is_test, self.images = variant, official_val_is_test, images

    def recognises(self, path: str) -> bool:
        try:
            files = _files(path)
        except OSError:
            return False
        if not files:
            return False
        with files[0].open("rb") as file:
            return Path(path).is_dir() or file.read(1 << 16).lstrip()[:1] == b"{"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path)
        if not files:
            raise PluresError(f"coco: no instances_*.json in '{path}' or its annotations folder")
        objects, problems = Objects(), list[Problem]()
        classes: tuple[str, ...] = ()
        for file in files:
            content = _load(file)
            names = distinct([str(category["name"]) for category in content["categories"]], file)
            if classes and names != classes:
                raise BadData([Problem(str(file), None, "other categories than the file before", str(classes))], False)
            classes = names
            self._gather(file, content, objects, problems)
        values = np.full((len(objects.images), len(classes)), ABSENT, np.int8)
        row, column = np.array(objects.row, np.int64), np.array(objects.column, np.int64)
        values[row, column] = PRESENT
        boxes = Boxes(row, column, np.array(objects.corners, np.float32).reshape(-1, 4))  # [M, 4]
        splits = np.array(objects.splits, np.str_)
        name = "COCO" if Path(path).is_dir() else Path(path).stem
        return _without_missing(Dataset(objects.images, Labels(values), classes, splits, boxes, name), problems)

    def _gather(self, file: Path, content: dict[str, Any], objects: Objects, problems: list[Problem]) -> None:
        split = _split_of(file, self.official_val_is_test)
        folder = self._folder(file)
        column = {category["id"]: place for place, category in enumerate(content["categories"])}
        by_id = {image["id"]: image for image in content["images"]}
        of_image: dict[Any, list[dict[str, Any]]] = {}
        for number, annotation in enumerate(content["annotations"], 1):
            what = _wrong(annotation, by_id, column)
            if what:
                problems.append(Problem(str(file), number, what, "an annotation of a listed image and category"))
            else:
                of_image.setdefault(annotation["image_id"], []).append(annotation)
        ids = sorted(of_image, key=str) if self.variant == "mlspl" else sorted(by_id)
        for identity in ids:
            image = by_id[identity]
            for annotation in of_image.get(identity, ()):
                objects.row.append(len(objects.images))
                objects.column.append(column[annotation["category_id"]])
                objects.corners.append(_corners(annotation["bbox"], image["width"], image["height"]))
            objects.images.append(str(folder / image["file_name"]))
            objects.splits.append(split)

    def _folder(self, file: Path) -> Path:
        """`instances_train2017.json` -> `train2017` beside the annotations folder, or `images` in it."""
        subset = file.stem.removeprefix("instances_")
        base = Path(self.images) if self.images else file.parent.parent
        places = [base / subset, base / "images" / subset, base / "images", file.parent / subset, base]
        return next((place for place in places if place.is_dir()), base / subset)


def _files(path: str) -> list[Path]:
    """The instances files: of train before those of val."""
    at = Path(path)
    if not path:
        return []
    if at.is_file():
        return [at] if at.suffix.lower() == ".json" else []
    return sorted(at.glob("annotations/instances_*.json")) or sorted(at.glob("instances_*.json"))


def _split_of(file: Path, official_val_is_test: bool) -> str:
    found = re.search(r"train|val|test", file.stem.lower())
    split = found.group() if found else ""
    return "test" if split == "val" and official_val_is_test else split


def _load(file: Path) -> dict[str, Any]:
    expected = "JSON with images, annotations and categories"
    try:
        content = parse_json(file.read_bytes())
    except json.JSONDecodeError as error:
        raise BadData([Problem(str(file), error.lineno, f"broken JSON ({error.msg})", expected)], False) from error
    except UnicodeDecodeError as error:
        raise BadData([Problem(str(file), None, "the text is not UTF-8", expected)], False) from error
    except (OSError, ValueError) as error:
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", expected)], False) from error
    for key, needed in (("images", ("id", "file_name", "width", "height")), ("categories", ("id", "name"))):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not isinstance(content.get("annotations"), list):
            raise BadData([Problem(str(file), None, f"no list of {key} or annotations", expected)], False)
        for number, entry in enumerate(entries, 1):
            lacking = [name for name in needed if not isinstance(entry, dict) or name not in entry]
            if lacking:
                raise BadData([Problem(str(file), number, f"{key} entry {number} lacks {', '.join(lacking)}")], False)
            strange = [name for name in needed if not _of_kind(name, entry[name])]
            if strange:
                what = f"{key} entry {number} has {strange[0]} {entry[strange[0]]!r}"
                raise BadData([Problem(str(file), number, what, SENSE[strange[0]])], False)
    return dict(content)


SENSE = {
    "id": "a number or a word",
    "file_name": "a path",
    "name": "a word",
    "width": "pixels, 1 or more",
    "height": "pixels, 1 or more",
}


def _of_kind(name: str, value: Any) -> bool:
    """Whether this can be the value of an entry's key."""
    if name in ("width", "height"):
        return isinstance(value, int | float) and 0 < value < float("inf")
    if name == "id":
        return isinstance(value, int | str)
    return isinstance(value, str) and value != "" and "\0" not in value


def _wrong(annotation: Any, images: dict[Any, Any], categories: dict[Any, int]) -> str:
    """What is wrong with an annotation; empty if nothing is."""
    if not isinstance(annotation, dict) or not {"image_id", "category_id", "bbox"} <= annotation.keys():
        return "the annotation lacks image_id, category_id or bbox"
    if not all(isinstance(annotation[key], int | str) for key in ("image_id", "category_id")):
        return "image_id or category_id is neither a number nor a word"
    if annotation["image_id"] not in images:
        return f"no image has the id {annotation['image_id']}"
    if annotation["category_id"] not in categories:
        return f"no category has the id {annotation['category_id']}"
    box = annotation["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_size, box))):
        return "bbox is not four numbers"
    return ""


def _is_size(value: Any) -> bool:
    """Whether this can be a place or a side in pixels (nan and numbers beyond all pictures cannot)."""
    return isinstance(value, int | float) and -1e9 < value < 1e9


def _corners(box: list[float], width: float, height: float) -> tuple[float, float, float, float]:
    """x y width height in pixels -> x1 y1 x2 y2 in [0, 1]."""
    x, y, w, h = box
    x1, y1, x2, y2 = (min(max(c, 0.0), 1.0) for c in (x / width, y / height, (x + w) / width, (y + h) / height))
    return x1, y1, x2, y2


def _without_missing(dataset: Dataset, problems: list[Problem]) -> tuple[Dataset, list[Problem]]:
    """Leave out the images that are not there, each with a problem."""
    missing = missing_images([str(image) for image in dataset.images])
    if not missing:
        return dataset, problems
    problems += [Problem(str(dataset.images[row]), None, "image is missing", "a file") for row in missing]
    keep = np.ones(len(dataset), np.bool_)
    keep[missing] = False
    return dataset.take(keep), problems
