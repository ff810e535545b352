"""PASCAL VOC devkit (Everingham et al., The PASCAL Visual Object Classes Challenge, 2005-2012)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from plures.data.checks.verify import missing_images
from plures.data.dataset import Boxes, Dataset, formats
from plures.errors import BadData, PluresError, Problem
from plures.labels import ABSENT, PRESENT, Labels

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@formats.register("voc", title="PASCAL VOC devkit, with boxes", source="Everingham et al. 2005-2012")
class Voc:
    """variant mlspl: as Cole et al. 2021 format it, from ImageSets/Main/{class}_{split}.txt: 1 is present, and 0
    ("difficult": only hard to see) is absent. variant query2label: 0 counts as present. The Query2Label repository
    holds no VOC reader; this is the reading of the code its VOC numbers are compared with (ML-GCN's evaluator).
    Rows are sorted by file name, train before val; classes are alphabetical; labels are complete.
    official_val_is_test: the official val split, on which papers report as test labels are not public, is called test.
    """

    def __init__(
        self, *, variant: Literal["mlspl", "query2label"] = "mlspl", official_val_is_test: bool = True
    ) -> None:
        if variant not in ("mlspl", "query2label"):
            raise PluresError(f"voc: no variant '{variant}'; choose from: mlspl, query2label")
        self.variant, self.official_val_is_test = variant, official_val_is_test

    def recognises(self, path: str) -> bool:
        return _year_folder(path) is not None

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        root = _year_folder(path)
        if root is None:
            raise PluresError(f"voc: no ImageSets/Main with lists of images in or below '{path}'")
        problems: list[Problem] = []
        names: list[str] = []
        parts: list[NDArray[np.int8]] = []
        splits: list[str] = []
        for official in ("train", "val", "test"):
            if not (root / "ImageSets" / "Main" / f"{CLASSES[0]}_{official}.txt").is_file():
                continue
            found, values = self._labels(root, official, problems)
            names += found
            parts.append(values)
            split = "test" if official == "val" and self.official_val_is_test else official
            splits += [split] * len(found)
        images = [str(root / "JPEGImages" / f"{name}.jpg") for name in names]
        labels = Labels(np.concatenate(parts) if parts else np.empty((0, len(CLASSES)), np.int8))
        boxes, broken = _boxes(root, names, labels, problems)
        dataset = Dataset(images, labels, CLASSES, np.array(splits, np.str_), boxes, root.name)
        missing = missing_images(images)
        problems += [Problem(images[row], None, "image is missing", "a file") for row in missing]
        keep = np.ones(len(images), np.bool_)
        keep[[*missing, *broken]] = False
        return dataset if keep.all() else dataset.take(keep), problems

    def _labels(self, root: Path, split: str, problems: list[Problem]) -> tuple[list[str], NDArray[np.int8]]:
        """Image names in order, and int8 [n, 20]."""
        present = (1, 0) if self.variant == "query2label" else (1,)
        cells: dict[str, list[int]] = {}
        for column, name in enumerate(CLASSES):
            file = root / "ImageSets" / "Main" / f"{name}_{split}.txt"
            for image, value in _list(file, problems):
                row = cells.setdefault(image, [ABSENT] * len(CLASSES))
                if value in present:
                    row[column] = PRESENT
        names = sorted(cells)
        return names, np.array([cells[name] for name in names], np.int8).reshape(len(names), len(CLASSES))


def _year_folder(path: str) -> Path | None:
    """The VOC20xx folder: the path itself, or the last year below it, with or without VOCdevkit between."""
    if not path:
        return None
    at = Path(path)
    places = [at, *sorted(at.glob("VOC20*"), reverse=True), *sorted(at.glob("VOCdevkit/VOC20*"), reverse=True)]
    return next((place for place in places if any((place / "ImageSets" / "Main").glob("aeroplane_*.txt"))), None)


def _list(file: Path, problems: list[Problem]) -> list[tuple[str, int]]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", "a list of images")], False) from error
    entries = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) == 2 and words[1] in ("1", "0", "-1"):
            entries.append((words[0], int(words[1])))
        elif words:
            problems.append(Problem(str(file), number, f"'{line.strip()}'", "an image name and 1, 0 or -1"))
    return entries


def _boxes(root: Path, names: list[str], labels: Labels, problems: list[Problem]) -> tuple[Boxes, list[int]]:
    """The boxes of the objects whose class counts as present, and the rows whose annotation is broken."""
    column = {name: place for place, name in enumerate(CLASSES)}
    rows, columns, corners = list[int](), list[int](), list[tuple[float, ...]]()
    broken = []
    for row, name in enumerate(names):
        file = root / "Annotations" / f"{name}.xml"
        try:
            for kind, box in _objects(file):
                if kind in column and labels.values[row, column[kind]] == PRESENT:
                    rows.append(row)
                    columns.append(column[kind])
                    corners.append(box)
        except FileNotFoundError:
            problems.append(Problem(str(file), None, "annotation is missing", "the boxes of an image"))
            broken.append(row)
        except OSError as error:
            problems.append(Problem(str(file), None, f"annotation cannot be read ({error.strerror})", "a file"))
            broken.append(row)
        except ElementTree.ParseError as error:
            problems.append(Problem(str(file), error.position[0], f"broken XML ({error})", "a VOC annotation"))
            broken.append(row)
        except (AttributeError, TypeError, ValueError, ZeroDivisionError):
            problems.append(Problem(str(file), None, "size or object is not as in VOC", "a VOC annotation"))
            broken.append(row)
    found = np.array(corners, np.float32).reshape(-1, 4)  # [M, 4]
    return Boxes(np.array(rows, np.int64), np.array(columns, np.int64), found), broken


def _objects(file: Path) -> list[tuple[str, tuple[float, ...]]]:
    """The objects of an annotation: class, and x1 y1 x2 y2 in [0, 1]. VOC pixels count from 1, corners included."""
    tree = ElementTree.parse(file)
    width, height = (float(tree.findtext(f"size/{side}", "nan")) for side in ("width", "height"))
    objects = []
    for item in tree.iterfind("object"):
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax"))
        box = ((x1 - 1) / width, (y1 - 1) / height, x2 / width, y2 / height)
        if not all(-0.1 <= side <= 1.1 for side in box):
            raise ValueError("a box outside the image, or not numbers")
        objects.append((item.findtext("name", ""), tuple(min(max(side, 0.0), 1.0) for side in box)))
    return objects
