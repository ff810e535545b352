"""CelebA's attributes (Liu et al. 2015, Deep Learning Face Attributes in the Wild, arXiv 1411.7766) and other lists of
this form: a line with the number of images, one with the classes, then a line per image with 1 and -1, all separated by
blanks; splits in `list_eval_partition.txt` (0, 1, 2) beside it.

Present: 1. Absent: -1. Unknown: 0, which the official file does not hold.
"""

from __future__ import annotations

from pathlib import Path

from plures.data.dataset import Dataset, distinct, formats
from plures.data.formats.annotations import Export, Photo, exports_at
from plures.errors import BadData, PluresError, Problem

PARTITIONS = "list_eval_partition.txt"
SPLITS = {"0": "train", "1": "val", "2": "test"}
FOLDERS = ("", "img_align_celeba/", "../img_align_celeba/", "../Img/img_align_celeba/", "../Img/img_celeba/")
EXPECTED = "a path and 1 or -1 for each class, separated by blanks"


@formats.register(
    "celeba", title="CelebA's list of attributes with 1 and -1", source="Liu et al. 2015, arXiv 1411.7766"
)
class CelebA:
    """images: the folder of the photographs (img_align_celeba beside the list or above it)."""

    def __init__(self, *, images: str = "") -> None:
        self.images = images

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as CelebA's list."""
        return f"{_files(path)[0].name}: a number, class names, then a path and 1 or -1 per class in each line"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path) or ([Path(path)] if Path(path).is_file() else [])
        if not files:
            raise PluresError(f"celeba: no list of attributes with 1 and -1 at '{path}'")
        lines = _lines(files[0])
        classes = distinct(lines[1].split() if len(lines) > 1 else [], files[0])
        export = Export(files[0], classes)
        splits = _splits(files[0].parent / PARTITIONS, export)
        for row, line in enumerate(lines[2:], 3):
            if not (words := line.split()):
                continue
            name, cells = words[0], words[1:]
            if len(cells) != len(classes) or not {*cells} <= {"1", "-1", "0"}:
                what = f"{len(cells)} cells for {len(classes)} classes" if len(cells) != len(classes) else "other words"
                export.problem(row, f"'{name[:60]}': {what}", EXPECTED)
                continue
            present = [one for one, cell in zip(classes, cells, strict=True) if cell == "1"]
            absent = [one for one, cell in zip(classes, cells, strict=True) if cell == "-1"]
            names = [folder + name for folder in FOLDERS]
            export.photos.append(Photo(names, row, present, absent, splits.get(name, "")))
        return export.dataset(self.images), export.problems


def _files(path: str) -> list[Path]:
    at = Path(path)
    inner = [str(at), str(at / "Anno")] if path and at.is_dir() else [path]
    found = [file for one in inner for _, file in exports_at(one, (".txt",), _is_list) if Path(one).exists()]
    return found[:1]


def _is_list(file: Path) -> bool:
    with file.open("rb") as opened:
        count, names, first = (opened.readline(100_000).split() for _ in range(3))
    return (
        len(count) == 1 and count[0].isdigit() and bool(names) and len(first) == len(names) + 1
        and {*first[1:]} <= {b"1", b"-1"}
    )  # fmt: skip


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadData([Problem(str(file), None, f"cannot be read ({error})", EXPECTED)], False) from None


def _splits(file: Path, export: Export) -> dict[str, str]:
    """The split of each image, if the file is there."""
    if not file.is_file():
        return {}
    pairs = [line.split() for line in _lines(file) if line.strip()]
    if not all(len(pair) == 2 and pair[1] in SPLITS for pair in pairs):
        export.notice(f"{file.name} holds other lines than a path and 0, 1 or 2; no splits are taken from it")
        return {}
    return {name: SPLITS[number] for name, number in pairs}
