"""NUS-WIDE (Chua et al. 2009, A Real-World Web Image Database from National University of Singapore, CIVR): 81
concepts. Three data sets go by this name in papers, of other sizes and other images; each is a variant of its own and
their numbers are never to be compared.
"""

from __future__ import annotations

import ast
import csv
import os
import sys
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plures.data.checks.verify import missing_images
from plures.data.dataset import Dataset, distinct, formats
from plures.errors import BadData, PluresError, Problem
from plures.labels import ABSENT, PRESENT, Labels

Variant = Literal["official", "mlspl", "asl"]
CSV = "nus_wid_data.csv"
SAYS = {
    "official": "Labels_CONCEPT_Train.txt in Groundtruth/TrainTestLabels, and ImageList",
    "mlspl": "formatted_train_labels.npy and formatted_train_images.npy",
    "asl": CSV,
}


@formats.register("nuswide", title="NUS-WIDE, 81 concepts, in three variants", source="Chua et al. 2009")
class NusWide:
    """variant official: the release of 2009 (161,789 + 107,859 images), used by Zhou et al. 2022 and those after them:
    Groundtruth/TrainTestLabels/Labels_CONCEPT_{Train,Test}.txt beside ImageList/{Train,Test}Imagelist.txt, classes in
    the order of Concepts81.txt. variant mlspl: the re-crawl of Cole et al. 2021 (150,000 + 60,260) as their code
    keeps it: formatted_{train,val}_{images,labels}.npy. variant asl: nus_wid_data.csv of Ridnik et al. 2021 (119,103 +
    50,720 images that show a concept), used by SPLC and those after it. variant None: the one that is there.
    Labels are complete; rows stand in the files' order, train before test. images: the folder that holds the photos
    (else Flickr or images in the folder, or the folder itself).
    """

    def __init__(self, *, variant: Variant | None = None, images: str = "") -> None:
        if variant is not None and variant not in get_args(Variant):
            raise PluresError(f"nuswide: no variant '{variant}'; choose from: {', '.join(get_args(Variant))}")
        self.variant, self.images = variant, images

    def recognises(self, path: str) -> bool:
        return bool(path) and Path(path).is_dir() and bool(_there(Path(path)))

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        root = Path(path)
        variant = self._choose(root)
        reader = {"official": _official, "mlspl": _mlspl, "asl": _asl}[variant]
        problems: list[Problem] = []
        names, values, splits, classes = reader(root, problems)
        base = Path(self.images) if self.images else _photos(root, names)
        images = [str(base / name) for name in names]
        dataset = Dataset(images, Labels(values), classes, splits, name=f"NUS-WIDE ({variant})")
        missing = missing_images(images)
        problems += [Problem(images[row], None, "image is missing", "a file") for row in missing]
        keep = np.ones(len(images), np.bool_)
        keep[missing] = False
        return dataset if keep.all() else dataset.take(keep), problems

    def _choose(self, root: Path) -> Variant:
        """The variant to read. Raises PluresError if it is not there, or several are and none was named."""
        found = _there(root)
        if self.variant is None and len(found) == 1:
            return found[0]
        if self.variant is not None and self.variant in found:
            return self.variant
        if not found:
            wanted = SAYS[self.variant] if self.variant else "; or ".join(SAYS.values())
            raise PluresError(f"nuswide: '{root}' holds no NUS-WIDE; expected {wanted}")
        what = f"holds {' and '.join(found)}" + (f", not {self.variant}" if self.variant else "")
        raise PluresError(f"nuswide: '{root}' {what}; these are different data: say data.variant={found[0]}")


Read = tuple[list[str], NDArray[np.int8], NDArray[np.str_], tuple[str, ...]]  # images, values, splits, classes


def _there(root: Path) -> list[Variant]:
    """The variants whose files lie in this folder."""
    found: list[Variant] = []
    if next(_label_folder(root).glob("Labels_*_Train.txt"), None) is not None:
        found.append("official")
    if (root / "formatted_train_labels.npy").is_file():
        found.append("mlspl")
    if (root / CSV).is_file():
        found.append("asl")
    return found


def _label_folder(root: Path) -> Path:
    places = (root / "Groundtruth" / "TrainTestLabels", root / "TrainTestLabels")
    return next((place for place in places if place.is_dir()), places[0])


def _photos(root: Path, names: list[str]) -> Path:
    """The folder from which the names are counted: the first in which the first photo that is found lies."""
    for name in names[:1000]:
        for place in (root / "Flickr", root / "images", root):
            if os.path.isfile(place / name):
                return place
    return root / "Flickr" if (root / "Flickr").is_dir() else root


def _official(root: Path, problems: list[Problem]) -> Read:
    folder = _label_folder(root)
    classes = _concepts(root) or tuple(
        sorted(f.name.removeprefix("Labels_").removesuffix("_Train.txt") for f in folder.glob("Labels_*_Train.txt"))
    )
    names, parts, splits = list[str](), list[NDArray[np.int8]](), list[str]()
    for subset, split in (("Train", "train"), ("Test", "test")):
        listed = _lines(_list_of_images(root, subset))
        cells = np.full((len(listed), len(classes)), ABSENT, np.int8)
        for column, concept in enumerate(classes):
            file = folder / f"Labels_{concept}_{subset}.txt"
            flags = _lines(file)
            if len(flags) != len(listed):
                what = f"{len(flags):,} labels for {len(listed):,} images of the {subset} list"
                raise BadData([Problem(str(file), None, what, "a 0 or 1 for every listed image")], skippable=False)
            strange = next((row for row, flag in enumerate(flags) if flag not in ("0", "1")), None)
            if strange is not None:
                raise BadData([Problem(str(file), strange + 1, f"'{flags[strange]}'", "0 or 1")], skippable=False)
            cells[np.array(flags) == "1", column] = PRESENT
        names += [name.replace("\\", "/") for name in listed]
        parts.append(cells)
        splits += [split] * len(listed)
    return names, np.concatenate(parts), np.array(splits, np.str_), classes


def _list_of_images(root: Path, subset: str) -> Path:
    places = (root / "ImageList" / f"{subset}Imagelist.txt", root / f"{subset}Imagelist.txt")
    return next((place for place in places if place.is_file()), places[0])


def _concepts(root: Path) -> tuple[str, ...]:
    """The class names in the official order, or nothing if the list is not there."""
    places = (root / "Concepts81.txt", root / "ConceptsList" / "Concepts81.txt")
    file = next((place for place in places if place.is_file()), None)
    return () if file is None else distinct(_lines(file), file)


def _mlspl(root: Path, problems: list[Problem]) -> Read:
    names, parts, splits = list[str](), list[NDArray[np.int8]](), list[str]()
    for subset, split in (("train", "train"), ("val", "test")):
        images, labels = (root / f"formatted_{subset}_{what}.npy" for what in ("images", "labels"))
        listed, cells = _array(images), _array(labels)
        if cells.ndim != 2 or len(cells) != len(listed):
            what = f"labels of shape {cells.shape} for {len(listed):,} images"
            raise BadData([Problem(str(labels), None, what, "one row per image")], skippable=False)
        if not np.isin(cells, (0, 1)).all():
            raise BadData([Problem(str(labels), None, "a label is neither 0 nor 1", "0 or 1")], skippable=False)
        names += [str(name) for name in listed]
        parts.append(np.where(cells == 1, np.int8(PRESENT), np.int8(ABSENT)))
        splits += [split] * len(listed)
    columns = {part.shape[1] for part in parts}
    if len(columns) > 1:
        raise BadData([Problem(str(root), None, f"label files of {sorted(columns)} columns", "as many in both")], False)
    K = columns.pop()
    classes = _concepts(root)
    if not classes:  # the official code keeps no names
        classes = tuple(f"concept {k + 1}" for k in range(K))
        problems.append(Problem(str(root), None, "no Concepts81.txt, classes are numbered", "class names", "notice"))
    if len(classes) != K:
        raise BadData([Problem(str(root), None, f"{len(classes)} class names for {K} columns", "one each")], False)
    return names, np.concatenate(parts), np.array(splits, np.str_), classes


def _asl(root: Path, problems: list[Problem]) -> Read:
    file = root / CSV
    names, tags, splits = list[str](), list[list[str]](), list[str]()
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            if not {"filepath", "label", "split_name"} <= set(reader.fieldnames or ()):
                what = f"columns {', '.join(reader.fieldnames or ()) or 'none'}"
                raise BadData([Problem(str(file), 1, what, "filepath, label and split_name")], skippable=False)
            for number, row in enumerate(reader, 2):
                found, split = _tags(row["label"]), {"train": "train", "val": "test"}.get(row["split_name"] or "")
                if found is None or split is None:
                    what = f"label {row['label']!r}, split_name {row['split_name']!r}"
                    problems.append(Problem(str(file), number, what, "a list as ['sky', 'sun'], and train or val"))
                    continue
                names.append(str(row["filepath"]))
                tags.append(found)
                splits.append(split)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", "a CSV file")], False) from error
    order = sorted(range(len(names)), key=lambda row: splits[row] != "train")  # stable: the file's order in each
    classes = tuple(sorted({tag for found in tags for tag in found}))
    place = {name: column for column, name in enumerate(classes)}
    values = np.full((len(names), len(classes)), ABSENT, np.int8)
    for new, old in enumerate(order):
        values[new, [place[tag] for tag in tags[old]]] = PRESENT
    return [names[old] for old in order], values, np.array([splits[old] for old in order], np.str_), classes


def _tags(text: str | None) -> list[str] | None:
    """The list that a cell spells, or None if it spells none."""
    try:
        value = ast.literal_eval(text or "")
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deeply
        return None
    return value if isinstance(value, list) and all(isinstance(tag, str) for tag in value) else None


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a concept whose name can be no file's
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", "a text file")], False) from error


def _array(file: Path) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(file)
        if array.ndim == 0 or array.dtype.kind not in "biufSU":
            raise ValueError(f"{array.dtype} of shape {array.shape}")
        if array.dtype.kind == "U":
            characters = np.ascontiguousarray(array).view(np.uint32)
            if characters.max(initial=0) > sys.maxunicode or not array.dtype.isnative:
                raise ValueError("bytes that are no characters")
    except Exception as error:  # numpy parses the header as Python and raises many kinds
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", "an array")], False) from error
    return array
