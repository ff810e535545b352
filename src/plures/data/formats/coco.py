"""COCO JSON (Lin et al. 2014, Microsoft COCO: Common Objects in Context, arXiv 1405.0312) and LVIS JSON (Gupta et al.
2019, LVIS: A Dataset for Large Vocabulary Instance Segmentation, arXiv 1908.03195), with boxes or labels alone.

COCO is exhaustive. Present: a category that an annotation of the image names. Absent: every other category.
LVIS is federated. Present: likewise. Absent: what the image's `neg_category_ids` name, unless it is also among its
`not_exhaustive_category_ids`. Unknown: everything else. A file is LVIS if an image of it has `neg_category_ids`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plures.data.checks.verify import missing_images
from plures.data.dataset import Boxes, Dataset, distinct, formats
from plures.data.formats.annotations import ANNOTATION_FOLDERS, SHOWN, holds, load_json
from plures.data.formats.split_names import split_name
from plures.data.paths import find_files
from plures.data.photos import is_junk
from plures.errors import BadData, PluresError, Problem
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels

KEYS = (rb'"images"\s*:\s*\[', rb'"annotations"\s*:\s*\[', rb'"categories"\s*:\s*\[')
OTHER = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")  # COCO's files of other tasks


@dataclass
class Objects:
    """What the JSON files say, gathered: N images, M labels known of them, B boxes."""

    images: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    federated: list[bool] = field(default_factory=list)  # of each image, whether unnamed categories are unknown
    present: list[tuple[int, int]] = field(default_factory=list)
    absent: list[tuple[int, int]] = field(default_factory=list)
    boxed: list[tuple[int, int]] = field(default_factory=list)
    corners: list[tuple[float, float, float, float]] = field(default_factory=list)


@formats.register(
    "coco", title="COCO or LVIS JSON, with boxes or labels alone", source="Lin et al. 2014, arXiv 1405.0312"
)
class Coco:
    """variant query2label: every image, sorted by id (as torchvision's CocoDetection). variant mlspl: as Cole et al.
    2021 format it: images with an annotation or more (crowds count), rows sorted by the image id as text.
    Columns stand in the file's order of categories in both.
    official_val_is_test: the official val split (instances_val2014.json), on which papers report, is called test; a
    folder called valid or val stays val. images: the folder that holds the photos (train2017 etc. beside the
    annotations folder, or where the JSON lies).
    """

    def __init__(
        self,
        *,
        variant: Literal["mlspl", "query2label"] = "query2label",
        official_val_is_test: bool = True,
        images: str = "",
    ) -> None:
        if variant not in ("mlspl", "query2label"):
            raise PluresError(f"coco: no variant '{variant}'; choose from: mlspl, query2label")
        self.variant, self.official_val_is_test, self.images = variant, official_val_is_test, images

    def recognises(self, path: str) -> bool:
        try:
            return any(_is_coco(file) for file in _files(path))
        except OSError:
            return False

    def reason(self, path: str) -> str:
        """Why this path is read as COCO."""
        names = ", ".join(file.name for file in _files(path)[:3])
        return f"{names}: JSON with images, annotations and categories"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path)
        if not files:
            raise PluresError(
                f"coco: no JSON with images, annotations and categories in '{path}' (looked for instances_*.json there"
                " and in annotations/, _annotations.coco.json there and in train, valid, test)"
            )
        objects, problems = Objects(), list[Problem]()
        classes: tuple[str, ...] = ()
        for file in files:
            content = _load(file)
            names = distinct([str(category["name"]) for category in content["categories"]], file)
            if classes and names != classes:
                raise BadData([Problem(str(file), None, "other categories than the file before", str(classes))], False)
            classes = names
            self._gather(file, content, objects, problems)
        federated = np.array(objects.federated, np.bool_)
        values = np.full((len(objects.images), len(classes)), ABSENT, np.int8)
        values[federated] = UNKNOWN
        _set(values, objects.absent, ABSENT)
        _set(values, objects.present, PRESENT)
        row, column = (np.array([pair[side] for pair in objects.boxed], np.int64) for side in (0, 1))
        boxes = Boxes(row, column, np.array(objects.corners, np.float32).reshape(-1, 4))  # [B, 4]
        splits = np.array(objects.splits, np.str_) if any(objects.splits) else None
        name = "COCO" if Path(path).is_dir() else Path(path).stem
        made = Dataset(objects.images, Labels(values), classes, splits, boxes if len(row) else None, name)
        made = _without_placeholder(made, content["categories"])
        return _without_missing(made, problems, path)

    def _gather(self, file: Path, content: dict[str, Any], objects: Objects, problems: list[Problem]) -> None:
        split = _split_of(file, self.official_val_is_test)
        column = {_key(category["id"]): place for place, category in enumerate(content["categories"])}
        by_id: dict[str, dict[str, Any]] = {}
        for number, image in enumerate(content["images"], 1):
            if _key(image["id"]) in by_id:
                problems.append(Problem(str(file), number, f"two images have the id {image['id']}", "an id per image"))
            by_id.setdefault(_key(image["id"]), image)
        of_image: dict[str, list[dict[str, Any]]] = {}
        doubtful: set[str] = set()  # images of which not every annotation could be read: what is absent is not known
        for number, annotation in enumerate(content["annotations"], 1):
            what = _wrong(annotation, by_id, column)
            if what:
                problems.append(Problem(str(file), number, what, "an annotation of a listed image and category"))
                doubtful.add(_key(annotation.get("image_id")) if isinstance(annotation, dict) else "")
            else:
                of_image.setdefault(_key(annotation["image_id"]), []).append(annotation)
        ids = sorted(of_image) if self.variant == "mlspl" else sorted(by_id, key=_in_order)
        if len(ids) < len(by_id):
            what = f"{len(by_id) - len(ids):,} images without an annotation are left out by variant=mlspl"
            expected = "data.variant=query2label to keep them, with every category absent"
            problems.append(Problem(str(file), None, what, expected, "notice"))
        ids = [identity for identity in ids if identity not in doubtful]
        federated = any("neg_category_ids" in image for image in by_id.values())
        paths = self._paths(file, [_name(by_id[identity]) for identity in ids], problems)
        for identity, path in zip(ids, paths, strict=True):
            image, row = by_id[identity], len(objects.images)
            shown = {column[_key(annotation["category_id"])] for annotation in of_image.get(identity, ())}
            objects.present += [(row, place) for place in sorted(shown)]
            for annotation in of_image.get(identity, ()):
                place = column[_key(annotation["category_id"])]
                if annotation.get("bbox") and "width" in image and "height" in image:
                    objects.boxed.append((row, place))
                    objects.corners.append(_corners(annotation["bbox"], image["width"], image["height"]))
            if federated:
                absent = _negatives(file, image, column, shown, problems)
                objects.absent += [(row, place) for place in absent]
            objects.images.append(path)
            objects.splits.append(split)
            objects.federated.append(federated)

    def _paths(self, file: Path, names: list[str], problems: list[Problem]) -> list[str]:
        """The path of each image, where it is as the file says or can be found otherwise."""
        folder = self._folder(file, names)
        paths = [str(folder / name) for name in names]
        missing = missing_images(paths)
        if not missing:
            return paths
        if len(missing) == len(names):
            folder = Path(self.images) if self.images else file.parent
            folder = folder.parent if folder.name.casefold() in ANNOTATION_FOLDERS else folder
        found = find_files(str(folder), names, missing)
        for row, path in found.files.items():
            paths[row] = os.path.join(folder, path)
        if found.files:
            row, path = next(iter(found.files.items()))
            what = f"{len(found.files):,} images were found {found.way}, such as '{names[row]}' as '{path}'"
            problems.append(Problem(str(file), None, what, severity="notice"))
        return paths

    def _folder(self, file: Path, names: list[str]) -> Path:
        """Where the file names start from: `instances_train2017.json` -> `train2017` beside the annotations folder or
        `images` in it, or the JSON's own folder; the place where one of the first images lies."""
        subset = re.sub("^(instances|labels)_", "", file.stem)
        base = Path(self.images) if self.images else file.parent.parent
        year = re.search(r"(train|val|test)\d{4}", file.stem)
        subsets = dict.fromkeys([subset, *([year.group()] if year else [])])
        places = [top / inner for top in (base, base / "images", file.parent) for inner in subsets]
        places += [base / "images", file.parent, file.parent / "images", file.parent / "images" / "default", base]
        for name in names[:20]:
            for place in places:
                if os.path.isfile(place / name):  # which says no to a name that is too long
                    return place
        return next((place for place in places if place.is_dir() and place != file.parent), base / subset)


def _negatives(
    file: Path, image: dict[str, Any], column: dict[str, int], shown: set[int], problems: list[Problem]
) -> list[int]:
    """The categories that LVIS says are absent from an image. shown: those that are annotated."""
    lists = [image.get(name) or [] for name in ("neg_category_ids", "not_exhaustive_category_ids")]
    if not all(isinstance(ids, list) and all(isinstance(i, int | float | str) for i in ids) for ids in lists):
        what = f"image {image['id']}: neg_category_ids or not_exhaustive_category_ids is not a list of ids"
        problems.append(Problem(str(file), None, what, "lists of category ids", "notice"))
        return []
    negative, open_ended = ({_key(identity) for identity in ids} for ids in lists)
    if strange := sorted((negative | open_ended) - column.keys()):
        what = f"image {image['id']}: no category has the id {strange[0]}, which it lists"
        problems.append(Problem(str(file), None, what, "ids of listed categories", "notice"))
    absent = [column[identity] for identity in sorted(negative - open_ended) if identity in column]
    if clash := shown.intersection(absent):
        what = f"image {image['id']}: category number {min(clash) + 1} is annotated and among neg_category_ids"
        problems.append(Problem(str(file), None, what, "one of the two; it is taken as present", "notice"))
    return [place for place in absent if place not in shown]


def _set(values: NDArray[np.int8], pairs: list[tuple[int, int]], code: int) -> None:
    if pairs:
        values[tuple(np.array(pairs, np.int64).T)] = code


def _files(path: str) -> list[Path]:
    """The JSON files at this path: the file itself; of a folder the instances files (of train before those of val), or
    Roboflow's in it or in its split folders, or the only COCO JSON, or one of each split, in it or in annotations."""
    at = Path(path)
    if not path:
        return []
    if at.is_file():
        return [at] if at.suffix.lower() == ".json" else []
    found = sorted(at.glob("annotations/instances_*.json")) or sorted(at.glob("instances_*.json"))
    found = found or sorted(at.glob("_annotations.coco.json"))
    if not found and at.is_dir():
        folders = [entry for entry in sorted(at.iterdir()) if entry.is_dir() and split_name(entry.name)]
        found = [file for folder in folders if (file := folder / "_annotations.coco.json").is_file()]
    if not found:
        others = [file for folder in (at, at / "annotations") for file in sorted(folder.glob("*.json"))]
        others = [file for file in others if not is_junk(file.name) and not file.name.startswith(OTHER)]
        found = [file for file in others if _is_coco(file)]
        splits = {_split_of(file, False) for file in found}
        found = found if len(found) == 1 or (len(splits) == len(found) and "" not in splits) else []
    return found


def _is_coco(file: Path) -> bool:
    """Whether a JSON file has lists of images, annotations and categories (a look through its bytes, no parsing)."""
    return holds(file, *KEYS)


def _split_of(file: Path, official_val_is_test: bool) -> str:
    found = re.search(r"train|val|test", file.stem.lower())
    if not found:
        return split_name(file.parent.name) or ""
    official = official_val_is_test and re.search(r"val\d{4}|lvis", file.stem.lower())
    return "test" if found.group() == "val" and official else found.group()


def _key(identity: Any) -> str:
    """An id as text: 7, "7" and 7.0 are one."""
    return str(int(identity)) if isinstance(identity, float) and identity.is_integer() else str(identity)


def _in_order(identity: str) -> tuple[bool, int, str]:
    """Numbers by their size, before words."""
    number = identity.lstrip("-").isdecimal() and len(identity) < 4000
    return (not number, int(identity) if number and identity.count("-") < 2 else 0, identity)


def _name(image: dict[str, Any]) -> str:
    """The image's file name; LVIS v1 gives an address instead, whose last two steps are folder and file."""
    return str(image["file_name"]) if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])


def _load(file: Path) -> dict[str, Any]:
    expected = "JSON with images, annotations and categories"
    content = load_json(file, expected)
    for key, needed in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not isinstance(content.get("annotations"), list):
            raise BadData([Problem(str(file), None, f"no list of {key} or annotations", expected)], False)
        for number, entry in enumerate(entries, 1):
            given = entry if isinstance(entry, dict) else {}
            lacking = [n for n in needed if n not in given and not (n == "file_name" and "coco_url" in given)]
            if lacking:
                raise BadData([Problem(str(file), number, f"{key} entry {number} lacks {', '.join(lacking)}")], False)
            strange = [name for name in SENSE if name in given and not _of_kind(name, given[name])]
            strange = [name for name in strange if name != "coco_url" or "file_name" not in given]
            if strange:
                what = f"{key} entry {number} has {strange[0]} {entry[strange[0]]!r}"
                raise BadData([Problem(str(file), number, what, SENSE[strange[0]])], False)
    return dict(content)


SENSE = {
    "id": "a number or a word",
    "file_name": "a path",
    "coco_url": "an address",
    "name": "a word",
    "width": "pixels, 1 or more",
    "height": "pixels, 1 or more",
}


def _of_kind(name: str, value: Any) -> bool:
    """Whether this can be the value of an entry's key."""
    if name in ("width", "height"):
        return isinstance(value, int | float) and 0 < value < float("inf")
    if name == "id":
        return isinstance(value, int | float | str)
    return isinstance(value, str) and value != "" and "\0" not in value


def _wrong(annotation: Any, images: dict[str, Any], categories: dict[str, int]) -> str:
    """What is wrong with an annotation; empty if nothing is."""
    if not isinstance(annotation, dict) or not {"image_id", "category_id"} <= annotation.keys():
        return "the annotation lacks image_id or category_id"
    if not all(isinstance(annotation[key], int | float | str) for key in ("image_id", "category_id")):
        return "image_id or category_id is neither a number nor a word"
    if _key(annotation["image_id"]) not in images:
        return f"no image has the id {annotation['image_id']}"
    if _key(annotation["category_id"]) not in categories:
        return f"no category has the id {annotation['category_id']}"
    box = annotation.get("bbox")
    if box and not (isinstance(box, list) and len(box) == 4 and all(map(_is_size, box))):
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


def _without_placeholder(dataset: Dataset, categories: list[dict[str, Any]]) -> Dataset:
    """Leave out the category that Roboflow puts first: the supercategory of others, itself never annotated."""
    above = {str(c.get("supercategory")) for c in categories if c.get("supercategory") != c["name"]}
    shown = np.asarray(dataset.labels.present.any(0))
    keep = [k for k, name in enumerate(dataset.classes) if name not in above or shown[k]]
    if len(keep) == len(dataset.classes) or not keep:
        return dataset
    place = {old: new for new, old in enumerate(keep)}
    boxes = dataset.boxes
    if boxes is not None:
        boxes = Boxes(boxes.row, np.array([place[k] for k in boxes.column.tolist()], np.int64), boxes.corners)
    classes = tuple(dataset.classes[k] for k in keep)
    labels = Labels(dataset.labels.values[:, keep])
    return Dataset(dataset.images, labels, classes, dataset.splits, boxes, dataset.name)


def _without_missing(dataset: Dataset, problems: list[Problem], where: str) -> tuple[Dataset, list[Problem]]:
    """Leave out the images that are not there, each with a problem."""
    missing = missing_images([str(image) for image in dataset.images])
    if not missing:
        return dataset, problems
    if len(missing) > SHOWN:
        some = ", ".join(str(dataset.images[row]) for row in missing[:SHOWN])
        what = f"{len(missing):,} of {len(dataset):,} images are missing, such as {some}"
        way = "files; data.images=FOLDER says where the photographs lie"
        problems.append(Problem(where, None, what, way, times=len(missing)))
    else:
        way = "a file; data.images=FOLDER says where the photographs lie"
        problems += [Problem(str(dataset.images[row]), None, "image is missing", way) for row in missing]
    keep = np.ones(len(dataset), np.bool_)
    keep[missing] = False
    return dataset.take(keep), problems
