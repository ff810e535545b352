"""Caltech-UCSD Birds 200-2011 with its 312 attributes as classes (Wah et al. 2011, CNS-TR-2011-001)."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from plures.data.checks.verify import missing_images
from plures.data.dataset import Dataset, distinct, formats
from plures.errors import BadData, PluresError, Problem
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels

ANSWERS = "attributes/image_attribute_labels.txt"
CERTAINTIES = (1, 2, 3, 4)  # not visible, guessing, probably, definitely


@formats.register("cub", title="CUB-200-2011, 312 attributes of birds", source="Wah et al. 2011, CNS-TR-2011-001")
class Cub:
    """Classes are the attributes in the order of attributes.txt; rows are the official training images, then the test
    images, each in the order of images.txt. As Cole et al. 2021 format it the annotators' certainty does not count
    (certain_from=1). certain_from: 1 to 4, cells whose certainty (1 not visible, 2 guessing, 3 probably, 4
    definitely) is less are unknown. Each image has one bird; its box belongs to no attribute and is not read.
    """

    def __init__(self, *, certain_from: int = 1) -> None:
        if certain_from not in CERTAINTIES:
            raise PluresError(f"cub: certain_from is 1, 2, 3 or 4, got {certain_from!r}")
        self.certain_from = certain_from

    def recognises(self, path: str) -> bool:
        return bool(path) and _root(Path(path)) is not None

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        root = _root(Path(path))
        if root is None:
            raise PluresError(f"cub: no images.txt with {ANSWERS} in or below '{path}'")
        names = _numbered(root / "images.txt")
        train = _numbered(root / "train_test_split.txt")
        classes = distinct(_numbered(_attributes(root)), _attributes(root))
        if len(train) != len(names) or not set(train) <= {"0", "1"}:
            what = f"{len(train):,} flags for {len(names):,} images, {', '.join(sorted(set(train))[:5])}"
            raise BadData([Problem(str(root / "train_test_split.txt"), None, what, "1 or 0 for each")], False)
        values = self._cells(root / ANSWERS, len(names), len(classes))
        images = [str(root / "images" / name) for name in names]
        splits = np.array(["train" if flag == "1" else "test" for flag in train], np.str_)
        dataset = Dataset(images, Labels(values), classes, splits, name="CUB-200-2011")
        missing = missing_images(images)
        problems = [Problem(images[row], None, "image is missing", "a file") for row in missing]
        rows = np.argsort(splits != "train", kind="stable")
        return dataset.take(rows[~np.isin(rows, missing)]), problems

    def _cells(self, file: Path, images: int, attributes: int) -> NDArray[np.int8]:
        """int8 [N, K] from lines `image attribute present certainty seconds`. A few official lines are longer, so only
        the first words count, and certainty only where it is asked for."""
        values = np.full((images, attributes), UNKNOWN, np.int8)
        answered = np.zeros((images, attributes), np.bool_)
        with _open(file) as lines:
            for number, line in enumerate(lines, 1):
                words = line.split()
                if not words:
                    continue
                try:
                    image, attribute, present = (int(word) for word in words[:3])
                    certainty = int(words[3]) if self.certain_from > 1 else 4
                    known = 0 < image <= images and 0 < attribute <= attributes
                    if not known or present not in (0, 1) or certainty not in CERTAINTIES:
                        raise ValueError
                except (ValueError, IndexError):
                    wanted = f"image 1 to {images}, attribute 1 to {attributes}, 0 or 1, certainty 1 to 4"
                    raise BadData([Problem(str(file), number, f"'{line.strip()}'", wanted)], skippable=False) from None
                answered[image - 1, attribute - 1] = True
                if certainty >= self.certain_from:
                    values[image - 1, attribute - 1] = PRESENT if present else ABSENT
        if not answered.all():
            what = f"{int((~answered).sum()):,} of {answered.size:,} answers are missing"
            raise BadData([Problem(str(file), None, what, "one for every image and attribute")], skippable=False)
        return values


def _root(at: Path) -> Path | None:
    """The folder with images.txt: the path itself, or CUB_200_2011 in it once or twice."""
    places = (at, at / "CUB_200_2011", at / "CUB_200_2011" / "CUB_200_2011")
    return next((place for place in places if (place / "images.txt").is_file() and (place / ANSWERS).is_file()), None)


def _attributes(root: Path) -> Path:
    """attributes.txt: the official archive has it beside the folder, some copies in it."""
    places = (root.parent / "attributes.txt", root / "attributes.txt", root / "attributes" / "attributes.txt")
    return next((place for place in places if place.is_file()), places[0])


def _open(file: Path) -> TextIO:
    try:
        return file.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", "a text file")], False) from error


def _numbered(file: Path) -> list[str]:
    """The words after the numbers 1, 2, 3, ... of a file's lines."""
    with _open(file) as lines:
        words = [line.split() for line in lines if line.strip()]
    for number, entry in enumerate(words, 1):
        if len(entry) != 2 or entry[0] != str(number):
            raise BadData([Problem(str(file), number, f"'{' '.join(entry)}'", f"'{number} VALUE'")], skippable=False)
    return [entry[1] for entry in words]
