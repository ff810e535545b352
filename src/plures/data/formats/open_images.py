"""Open Images (Kuznetsova et al. 2020, The Open Images Dataset V4, arXiv 1811.00982): image-level labels in CSV;
where there are none, the labels of boxes, which are all present.

Present: a label that a person verified with Confidence 1. Absent: one verified with Confidence 0. Unknown: everything
else. Labels made by a machine (Source `machine`, or a Confidence between 0 and 1) are left out, unless `machine` says
from which confidence on they count as present; they never make a label absent, and never overrule a person.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from plures.data.dataset import Dataset, formats
from plures.data.formats.annotations import Finder
from plures.data.formats.cells import listed
from plures.data.formats.split_names import split_name
from plures.data.photos import is_junk
from plures.errors import BadData, PluresError, Problem, did_you_mean
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels

COLUMNS = ("ImageID", "LabelName", "Confidence")
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", "")
SHOWN = 3
MOST_CELLS = 4_000_000_000  # labels in memory; more need data.classes
EXPECTED = "ImageID,Source,LabelName,Confidence"


@formats.register(
    "open_images", title="Open Images: verified and machine-made labels in CSV", source="Kuznetsova et al. 2020"
)
class OpenImages:
    """images: the folder of the photographs, called ImageID.jpg (beside the CSV, or in images/ or train/, validation/,
    test/). machine: the confidence from which on machine-made labels are present (0: they are left out). classes: the
    classes to read, separated by commas, by the names of class-descriptions.csv.
    """

    def __init__(self, *, images: str = "", machine: float = 0.0, classes: str = "") -> None:
        if not 0 <= machine <= 1:
            raise PluresError(f"open_images: machine is a confidence in [0, 1], got {machine}")
        self.images, self.machine, self.classes = images, machine, listed(classes)

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as Open Images."""
        return f"{', '.join(file.name for file in _files(path)[:3])}: columns {', '.join(COLUMNS)}"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path)
        if not files:
            raise PluresError(f"open_images: no CSV with the columns {', '.join(COLUMNS)} at '{path}'")
        problems = list[Problem]()
        described = _descriptions(files[0].parent)
        tables = [_table(file, problems) for file in files]
        ids = _places([table["ImageID"] for table in tables])
        labels = {label: described.get(label, label) for label in _places([table["LabelName"] for table in tables])}
        classes = tuple(sorted({*labels.values()}))
        if self.classes:
            missing = [name for name in self.classes if name not in classes]
            if missing:
                what = f"no class '{missing[0]}'{did_you_mean(missing[0], classes)}"
                raise BadData([Problem(str(files[0]), None, what, "a class of the data")], False)
            classes = tuple(self.classes)
        if len(ids) * len(classes) > MOST_CELLS:
            what = f"{len(ids):,} images x {len(classes):,} classes do not fit in memory"
            raise BadData([Problem(str(files[0]), None, what, "data.classes=A,B with the classes to read")], False)
        column = {name: place for place, name in enumerate(classes)}
        values = np.full((len(ids), len(classes)), UNKNOWN, np.int8)  # [N, K]
        made, splits = np.zeros_like(values, np.bool_), np.full(len(ids), "", dtype="U10")
        for file, table in zip(files, tables, strict=True):
            rows = np.array([ids[name] for name in table["ImageID"].dictionary.to_pylist()], np.int64)
            places = [column.get(labels[label], -1) for label in table["LabelName"].dictionary.to_pylist()]
            row = rows[table["ImageID"].indices.to_numpy()] if len(rows) else np.empty(0, np.int64)
            places_of = np.array(places, np.int64)
            place = places_of[table["LabelName"].indices.to_numpy()] if places else np.empty(0, np.int64)
            self._fill(values, made, row, place, table, file, problems)
            splits[row] = _split_of(file)
        values[made & (values == UNKNOWN)] = PRESENT
        return self._found(files[0], list(ids), values, classes, splits, problems)

    def _fill(
        self,
        values: NDArray[np.int8],
        made: NDArray[np.bool_],
        row: NDArray[np.int64],
        place: NDArray[np.int64],
        table: dict[str, pa.Array],
        file: Path,
        problems: list[Problem],
    ) -> None:
        """Set the verified labels of a file, and note those that a machine made."""
        confidence = table["Confidence"].to_numpy(zero_copy_only=False)
        machine = table["machine"].to_numpy(zero_copy_only=False) | ((confidence > 0) & (confidence < 1))
        wanted = place >= 0
        for code, at in ((ABSENT, 0), (PRESENT, 1)):
            chosen = wanted & ~machine & (confidence == at)
            values[row[chosen], place[chosen]] = code
        chosen = wanted & machine & (confidence >= self.machine) & (self.machine > 0)
        made[row[chosen], place[chosen]] = True
        left = int((wanted & machine).sum() - chosen.sum())
        if left:
            what = f"{left:,} labels made by a machine are left out; data.machine=0.9 takes those that sure as present"
            problems.append(Problem(str(file), None, what, severity="notice"))

    def _found(
        self,
        file: Path,
        ids: list[str],
        values: NDArray[np.int8],
        classes: tuple[str, ...],
        splits: NDArray[np.str_],
        problems: list[Problem],
    ) -> tuple[Dataset, list[Problem]]:
        folders = (
            [self.images]
            if self.images
            else [str(place) for above in (file.parent, file.parent.parent) for place in (above, above / "images")]
        )
        finder = Finder(folders)
        paths: list[str] = []
        lost: list[int] = []
        for place, name in enumerate(ids):
            inner = ("", f"{splits[place]}/", {"val": "validation/"}.get(str(splits[place]), ""))
            path = finder.path([folder + name + suffix for suffix in SUFFIXES for folder in dict.fromkeys(inner)])
            paths.append(path or "")
            if path is None:
                lost.append(place)
        if lost:
            listed_ = ", ".join(f"'{ids[place]}'" for place in lost[:SHOWN])
            what = f"{len(lost):,} of {len(ids):,} images are missing, such as {listed_}"
            way = f"files ImageID.jpg below {folders[0]}; data.images=FOLDER says where they lie"
            problems.append(Problem(str(file), None, what, way, times=len(lost)))
        dataset = Dataset(paths, Labels(values), classes, splits if any(splits) else None, name="Open Images")
        keep = np.ones(len(paths), np.bool_)
        keep[lost] = False
        return (dataset if keep.all() else dataset.take(keep)), problems


def _files(path: str) -> list[Path]:
    """The CSV itself, or every one of image-level labels in a folder."""
    at = Path(path)
    if not path:
        return []
    inside = sorted(at.glob("*.csv")) or sorted(at.glob("annotations/*.csv"))
    files = inside if at.is_dir() else [at] if at.suffix.lower() == ".csv" and at.is_file() else []
    files = [file for file in files if file.is_file() and not is_junk(file) and _is_labels(file)]
    return [file for file in files if not _is_labels(file, of_boxes=True)] or files


def _is_labels(file: Path, of_boxes: bool = False) -> bool:
    """Whether the header is that of labels, of images or (XMin) of boxes."""
    try:
        with file.open("rb") as opened:
            header = opened.readline(10_000).removeprefix(b"\xef\xbb\xbf").decode("utf-8").strip().split(",")
    except (OSError, UnicodeDecodeError):
        return False
    return {*COLUMNS} <= {*header} and ("XMin" in header or not of_boxes) and len({*header}) == len(header)


def _split_of(file: Path) -> str:
    return split_name(re.split(r"[-_.]", file.name)[0]) or split_name(file.parent.name) or ""


def _table(file: Path, problems: list[Problem]) -> dict[str, pa.Array]:
    """ImageID and LabelName as dictionaries, Confidence as float64, and whether a machine made each label."""
    kinds = {"ImageID": pa.string(), "LabelName": pa.string(), "Confidence": pa.string(), "Source": pa.string()}
    try:
        read = pacsv.read_csv(file, convert_options=pacsv.ConvertOptions(column_types=kinds, strings_can_be_null=False))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"cannot be read ({' '.join(str(error).split())[:200]})"
        raise BadData([Problem(str(file), None, what, EXPECTED)], False) from None
    words = [word.strip() for word in read["Confidence"].to_pylist()]
    numbers = np.array([float(word) if re.fullmatch(r"[01](\.\d{0,9})?|\.\d{1,9}", word) else -1.0 for word in words])
    good = (numbers >= 0) & (numbers <= 1)
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        what = f"Confidence '{words[first][:60]}' is not understood ({int((~good).sum()):,} rows)"
        problems.append(Problem(str(file), first + 2, what, "1, 0, or between them where a machine made the label"))
    sources = read["Source"].to_pylist() if "Source" in read.column_names else [""] * len(words)
    machine = np.array([source.strip() == "machine" for source in sources], np.bool_)
    keep = pa.array(good)
    columns = {name: read[name].combine_chunks().filter(keep).dictionary_encode() for name in COLUMNS[:2]}
    return {**columns, "Confidence": pa.array(numbers[good], pa.float64()), "machine": pa.array(machine[good])}


def _places(columns: list[pa.Array]) -> dict[str, int]:
    """A number for each word of several columns."""
    words = dict.fromkeys(word for column in columns for word in column.dictionary.to_pylist())
    return {word: place for place, word in enumerate(words)}


def _descriptions(folder: Path) -> dict[str, str]:
    """The names of the labels (/m/01yrx: Cat), from class-descriptions.csv beside the labels or above."""
    for where in (folder, folder.parent):
        for file in sorted(where.glob("*class-descriptions*.csv")):
            try:
                lines = [line.partition(",") for line in file.read_text(encoding="utf-8-sig").splitlines()]
            except (OSError, UnicodeDecodeError):
                continue
            named = {label.strip(): name.strip().strip('"') for label, _, name in lines if name.strip()}
            return {label: name for label, name in named.items() if label != "LabelName"}
    return {}
