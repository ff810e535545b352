"""The layout of a table: which column means what, decided from their names alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from plures.errors import BadData, Problem, did_you_mean

RESERVED = ("image", "tags", "absent", "split")
UNUSED = 8  # columns that a notice names


@dataclass(frozen=True)
class Layout:
    """names: every column in order; classes: the columns that are classes (empty in the tags form)."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    absent: bool
    split: bool
    notices: tuple[Problem, ...] = ()

    @property
    def wanted(self) -> list[str]:
        """The columns to read."""
        labels = list(self.classes) or ["tags", *(["absent"] if self.absent else [])]
        return ["image", *(["split"] if self.split else []), *labels]

    def class_run(self) -> tuple[int, int] | None:
        """First and last place of the class columns if they stand side by side after another column."""
        if not self.classes:
            return None
        first = self.names.index(self.classes[0])
        together = self.names[first : first + len(self.classes)] == self.classes
        return (first, first + len(self.classes) - 1) if together and first else None


def lay_out(columns: list[str], file: Path) -> Layout:
    """Decide what each column is. Raises BadData with every column that is nameless, repeated or misnamed."""
    names = tuple(columns)
    problems = []

    def problem(what: str, expected: str = "") -> None:
        problems.append(Problem(str(file), None, what, expected))

    for place, name in enumerate(names, 1):
        if not name:
            hint = " (pandas writes its index so: use to_csv(..., index=False))" if place == 1 else ""
            problem(f"column {place} has no name{hint}", "a name in the first line")
    for name, times in Counter(names).items():
        if name and times > 1:
            problem(f"{times} columns are called '{name}'", "different names")
    if "image" not in names:
        problem(f"no column 'image'{_closest('image', names)}", "a column 'image' with the path of each image")
    tags_form = "tags" in names or "absent" in names
    others = tuple(name for name in names if name and name not in RESERVED)
    if "absent" in names and "tags" not in names:
        problem(f"a column 'absent' but no column 'tags'{_closest('tags', others)}", "both, or only 'tags'")
    if not tags_form and "image" in names and not others:
        problem("no labels", "a column 'tags', or one column per class")
    if problems:
        raise BadData(problems, skippable=False)
    notices = _unused(others, names, file) if tags_form else ()
    return Layout(names, () if tags_form else others, "absent" in names, "split" in names, notices)


def _unused(others: tuple[str, ...], names: tuple[str, ...], file: Path) -> tuple[Problem, ...]:
    """Notices of the columns that are not used: one each where a name looks like a misspelt one, else one for all."""
    free = [word for word in RESERVED if word not in names]
    hints = {name: did_you_mean(name.lower(), free) for name in others}
    whats = [f"column '{name}' is not used{hint}" for name, hint in hints.items() if "did you mean" in hint]
    plain = [name for name, hint in hints.items() if "did you mean" not in hint]
    if plain:
        more = f" and {len(plain) - UNUSED:,} more" if len(plain) > UNUSED else ""
        listed = ", ".join(f"'{name}'" for name in plain[:UNUSED]) + more
        whats.append(f"column{'s' * (len(plain) > 1)} {listed} {'are' if len(plain) > 1 else 'is'} not used")
    return tuple(Problem(str(file), None, what, severity="notice") for what in whats)


def _closest(word: str, names: tuple[str, ...]) -> str:
    """The column that was probably meant: another case, a near miss, or a usual synonym."""
    synonyms = {"image": ("file", "filename", "file_name", "path", "img", "photo"), "tags": ("labels", "label", "tag")}
    for name in names:
        if name.lower() == word or name.lower() in synonyms[word]:
            return f"; rename '{name}' to '{word}'"
    hint = did_you_mean(word, names)
    return hint.replace("did you mean", "was this meant:") if "did you mean" in hint else hint
