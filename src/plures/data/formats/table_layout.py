"""The layout of a table: which column means what, decided from their names and, where these leave it open, a look at
the first rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plures.data.formats.cells import LABEL_LIKE, Meaning, normal
from plures.data.formats.split_names import VALID, split_name
from plures.data.photos import IMAGE_SUFFIXES
from plures.errors import BadData, Problem, did_you_mean

RESERVED = ("image", "tags", "absent", "split")
UNUSED = 8  # columns that a notice names
IMAGE_NAMES = (
    *("image", "filename", "imagefilename", "imagefile", "file", "path", "filepath", "imagepath", "imagename"),
    *("imageindex", "img", "imgpath", "imgname", "imgfile", "photo", "picture", "fname", "imageurl", "imgurl"),
)
IMAGE_IDS = ("imageid", "id")  # where there is none of the names above
TAGS_NAMES = (
    *("tags", "labels", "label", "tag", "classes", "class", "categories", "category", "keywords", "findinglabels"),
    "choice",
)
GROUP, A_SCORE = "group", re.compile(r"[01]?\.\d+(e-?\d+)?|\d(\.\d+)?e-\d+")
VALID_NAMES = ("isvalid", "isval")
SPLIT_NAMES = ("subset", "set", "partition", "phase", "usage", "dataset", "datasplit")
VERDICTS = ("confidence", "value", "present", "ispresent", "labelvalue")
SEVERAL = re.compile(r"(tag|label|class|category|keyword)s?\d+")  # columns that hold a tag each
AN_ID = re.compile(r"(.*[\s_-]id|.*[a-z]I[dD])", re.ASCII)  # patient_id, Patient ID, classId
METADATA = frozenset(
    ("fold", "folds", "kfold", "cvfold", "index", "idx", "id", "imageid", "uid", "uuid", "row", "rownumber", "width")
) | {"height", *VALID_NAMES}
NAMELESS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")  # as pandas names an index, and `named` a nameless column
PLAIN = Meaning()

Cells = Mapping[str, Sequence[str]]  # of each column the text of its first cells


@dataclass(frozen=True)
class Chosen:
    """The columns that a person named: of images, tags, splits and groups ("": found by name), and the classes."""

    image: str = ""
    tags: str = ""
    split: str = ""
    classes: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Layout:
    """names: every column in order; image, tags, absent, split, group: the column that holds them, "" if there is none;
    valid: the split column says True for validation rows (`is_valid`); verdict: the column whose 1 and 0 say whether
    the tags of a row are present or absent; classes: the columns that are classes (empty in the tags form)."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    image: str = "image"
    tags: str = ""
    absent: str = ""
    split: str = ""
    valid: bool = False
    verdict: str = ""
    meaning: Meaning = PLAIN
    notices: tuple[Problem, ...] = ()
    group: str = ""

    @property
    def wanted(self) -> list[str]:
        """The columns to read."""
        labels = list(self.classes) or [name for name in (self.tags, self.absent, self.verdict) if name]
        return [self.image, *(name for name in (self.split, self.group) if name), *labels]

    def class_run(self) -> tuple[int, int] | None:
        """First and last place of the class columns if they stand side by side after another column, and hold 1, 0 and
        blank alone."""
        if not self.classes or self.meaning:
            return None
        first = self.names.index(self.classes[0])
        together = self.names[first : first + len(self.classes)] == self.classes
        return (first, first + len(self.classes) - 1) if together and first else None

    def in_words(self) -> str:
        """What is taken from which column, in a line."""
        labels = f"{len(self.classes)} class columns" if self.classes else f"tags in '{self.tags}'"
        absent = f", absent tags in '{self.absent}'" if self.absent else ""
        absent += f", 1 (present) or 0 (absent) in '{self.verdict}'" if self.verdict else ""
        split = f", splits in '{self.split}'" if self.split else ""
        group = f", groups in '{self.group}'" if self.group else ""
        return f"images in '{self.image}', {labels}{absent}{split}{group}"


def lay_out(
    columns: Sequence[str],
    file: Path,
    chosen: Chosen | None = None,
    meaning: Meaning = PLAIN,
    look: Callable[[list[str]], Cells] | None = None,
) -> Layout:
    """Decide what each column is.

    Args:
        columns: their names in order.
        file: the table, for messages.
        chosen: what a person said; it counts more than any name.
        meaning: the words that stand for present, absent and unknown in class columns.
        look: gives the first cells of some columns; without it names alone decide.

    Raises:
        BadData: with every column that is repeated, missing or ambiguous.
    """
    names, chosen = tuple(columns), chosen or Chosen()
    problems: list[Problem] = []
    notices: list[Problem] = []

    def problem(what: str, expected: str = "") -> None:
        problems.append(Problem(str(file), None, what, expected))

    def notice(what: str) -> None:
        notices.append(Problem(str(file), None, what, severity="notice"))

    for name, times in Counter(names).items():
        if times > 1:
            problem(f"{times} columns are called '{name}'", "different names")
    for name in (chosen.image, chosen.tags, chosen.split, chosen.group, *chosen.classes, *meaning.columns):
        if name and name not in names:
            problem(f"no column '{name}'{did_you_mean(name, names)}", "a column of the table")
    if problems:
        raise BadData(problems, skippable=False)
    cells = look(list(names)) if look else {}
    image = chosen.image or _image_column(names, cells, problem)
    split = chosen.split or _split_column(names, cells)
    tags = chosen.tags or ("" if chosen.classes and "tags" not in names else _tags_column(names, cells, image, meaning))
    absent = "absent" if "absent" in names and not chosen.tags else ""
    verdict = _verdict_column(names, cells) if tags not in ("", "tags") and not absent else ""
    group = chosen.group or _group_column(names, cells, tags, chosen)
    others = [name for name in names if name not in (image, split, tags, absent, verdict, group)]
    if absent and not tags:
        problem(f"a column 'absent' but no column 'tags'{_closest('tags', others)}", "both, or only 'tags'")
    classes: list[str] = []
    several = [name for name in others if SEVERAL.fullmatch(normal_name(name))]
    several = several if any(_holds_words(cells.get(name, ()), meaning) for name in several) else []
    if not tags and not chosen.classes and len(several) > 1:
        listed = ", ".join(f"'{name}'" for name in several[:UNUSED])
        problem(f"columns {listed} hold a tag each", "one column 'tags' (cat;sofa), or one row for each tag")
    elif not tags and not absent:
        classes = list(chosen.classes) or [n for n in others if _is_class(n, cells.get(n), meaning)]
        if image and not classes:
            held = f"; {_held(others[0], cells)}{_closest('tags', others)}" if others else ""
            problem(f"no labels{held}", "a column 'tags', a column for each class, or data.tags_column=NAME")
    if problems:
        raise BadData(problems, skippable=False)
    unused = [name for name in others if name not in classes]
    free = ["absent"] * (bool(tags) and not absent) + ["split"] * (not split)
    hints = [_hint(name, free) for name in unused]
    for name, hint in zip(unused, hints, strict=True):
        if hint:
            notice(f"column '{name}' is not used{hint}")
    rest = [name for name, hint in zip(unused, hints, strict=True) if not hint]
    if rest:
        named = [name for name in rest if not _is_nameless(name)]  # the others are a row's number
        way = f"; data.classes={','.join([*classes[:3], named[0]])} would train on it" if named and not tags else ""
        listed = ", ".join(f"'{name}'" if tags else _held(name, cells) for name in rest[:UNUSED])
        listed += f" and {len(rest) - UNUSED:,} more" if len(rest) > UNUSED else ""
        notice(f"column{'s' * (len(rest) > 1)} {listed} {'are' if len(rest) > 1 else 'is'} not used{way}")
    valid = normal_name(split) in VALID_NAMES
    return Layout(names, tuple(classes), image, tags, absent, split, valid, verdict, meaning, tuple(notices), group)


def _is_nameless(name: str) -> bool:
    return NAMELESS.fullmatch(name) is not None


def named(names: Sequence[str]) -> list[str]:
    """The names, a nameless column called as pandas calls it."""
    return [name or f"Unnamed: {place}" for place, name in enumerate(names)]


def normal_name(name: str) -> str:
    """A column's name without case, blanks, "_" and "-"."""
    return re.sub(r"[\s_-]", "", name.casefold())


def image_column(names: Sequence[str]) -> str:
    """The column that names the images, by the names alone; "" if there is none or it is ambiguous."""
    return _image_column(tuple(names), {}, lambda what, expected: None)


def _image_column(names: tuple[str, ...], cells: Cells, problem: Callable[[str, str], None]) -> str:
    if "image" in names:
        return "image"
    found = [name for name in names if normal_name(name) in IMAGE_NAMES]
    if len(found) > 1:
        found = [name for name in found if normal_name(name) == "image"] or found
        found = [name for name in found if _are_photos(cells.get(name, ()))] or found
    found = found or [name for kind in IMAGE_IDS for name in names if normal_name(name) == kind][:1]
    if len(found) > 1:
        listed = " and ".join(f"'{name}'" for name in found)
        problem(f"columns {listed} may both name the images", f"data.image_column={found[0]}, say")
    headless = next((name for name in names if name.lower().endswith(tuple(IMAGE_SUFFIXES))), "")
    found = found or [name for name in names if not headless and _are_photos(cells.get(name, ()))]
    if not found and headless:
        problem(f"the first line holds '{headless}', no names of columns", "a first line such as image,tags")
    elif not found:
        hint = _closest("image", names)
        problem(f"no column 'image'{hint}", "a column 'image' with the path of each image, or data.image_column=NAME")
    return found[0] if len(found) == 1 else ""


def _are_photos(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and 2 * sum(cell.lower().endswith(tuple(IMAGE_SUFFIXES)) for cell in filled) > len(filled)


def _split_column(names: tuple[str, ...], cells: Cells) -> str:
    if "split" in names:
        return "split"
    for kind in ("split", *SPLIT_NAMES, *VALID_NAMES):
        for name in names:
            if normal_name(name) == kind and (kind == "split" or _are_splits(kind, cells.get(name))):
                return name
    return ""


def _group_column(names: tuple[str, ...], cells: Cells, tags: str, chosen: Chosen) -> str:
    """`group`, unless it is a class (of 1 and 0 where each class has a column) or the scores of one."""
    words = {normal(cell) for cell in cells.get(GROUP, ())} - {""}
    if GROUP not in names or GROUP not in cells or GROUP in (chosen.split, *chosen.classes):
        return ""
    is_class = bool(words) and (all(map(A_SCORE.fullmatch, words)) if tags else words <= LABEL_LIKE)
    return "" if is_class else GROUP


def _are_splits(kind: str, cells: Sequence[str] | None) -> bool:
    """Whether the cells of a column called `subset` or `is_valid` are what the name promises."""
    words = {cell.strip().casefold() for cell in cells or ()} - {""}
    if kind in VALID_NAMES:
        return words <= VALID.keys()
    return (bool(words) or kind == "subset") and all(split_name(word) for word in words)


def _verdict_column(names: tuple[str, ...], cells: Cells) -> str:
    """The column that says 1 or 0 of the tags of each row, as where every row is a label."""
    for kind in VERDICTS:
        for name in names:
            words = {normal(cell) for cell in cells.get(name, ())} - {""}
            if normal_name(name) == kind and words and words <= {"1", "0", "true", "false"}:
                return name
    return ""


def _tags_column(names: tuple[str, ...], cells: Cells, image: str, meaning: Meaning) -> str:
    """`tags`, or a column of a usual other name that is not itself a class with 1 and 0."""
    if "tags" in names:
        return "tags"
    for kind in TAGS_NAMES:
        for name in names:
            if name != image and normal_name(name) == kind and _holds_words(cells.get(name, ()), meaning):
                return name
    return ""


def _holds_words(cells: Sequence[str], meaning: Meaning) -> bool:
    words = {normal(cell) for cell in cells} - {""}
    return bool(words) and not words <= {*meaning.of(""), *LABEL_LIKE}


def _is_class(name: str, cells: Sequence[str] | None, meaning: Meaning) -> bool:
    """Whether a column is a class: not called like metadata, and half of its filled cells or more are labels, or its
    words look like labels that need an option (-1, yes)."""
    if name in RESERVED or normal_name(name) in METADATA or _is_nameless(name) or AN_ID.fullmatch(name.strip()):
        return False
    filled = [word for word in map(normal, cells or ()) if word]
    if not filled or {*filled} <= {*meaning.of(name), *LABEL_LIKE}:
        return True
    return 2 * sum(word in meaning.of(name) for word in filled) >= len(filled)


def _held(name: str, cells: Cells) -> str:
    """A column and examples of what it holds."""
    held = list(dict.fromkeys(cell for cell in cells.get(name, ()) if cell))[:3]
    return f"'{name}'" + (f" (holds {', '.join(map(repr, held))})" if held else "")


def _hint(name: str, free: list[str]) -> str:
    hint = did_you_mean(name.lower(), free) if free else ""
    return hint if "did you mean" in hint else ""


def _closest(word: str, names: Sequence[str]) -> str:
    """The column that was probably meant: a near miss."""
    hint = did_you_mean(word, names)
    return hint.replace("did you mean", "was this meant:") if "did you mean" in hint else hint
