"""`plures table RECIPE --check DATA`: whether data on disk have the size of a paper's, before hours are spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from plures.config import Experiment
from plures.data.dataset import formats
from plures.data.read import find_format, read
from plures.errors import BadData, PluresError, Problem
from plures.recipes import load_recipe

# images of train and test, and classes, by format and variant; sources: the readers' docstrings, and Cole et al. 2021,
# arXiv 2106.09708, for mlspl. The official val of VOC-12 and COCO-14 is called test
PUBLISHED: dict[tuple[str, str], tuple[int, int, int]] = {
    ("voc", "mlspl"): (5_717, 5_823, 20),
    ("voc", "query2label"): (5_717, 5_823, 20),
    ("coco", "mlspl"): (82_081, 40_137, 80),
    ("coco", "query2label"): (82_783, 40_504, 80),
    ("nuswide", "mlspl"): (150_000, 60_260, 81),
    ("nuswide", "official"): (161_789, 107_859, 81),
    ("nuswide", "asl"): (119_103, 50_720, 81),
    ("cub", ""): (5_994, 5_794, 312),
}


@dataclass(frozen=True)
class Count:
    """One line of the answer. what: a split, or "classes"."""

    what: str
    expected: int
    found: int

    @property
    def ok(self) -> bool:
        return self.found == self.expected

    def __str__(self) -> str:
        missing = self.expected - self.found
        verdict = "ok" if self.ok else f"{missing:,} missing" if missing > 0 else f"{-missing:,} too many"
        return f"{self.what}: expected {self.expected:,}, found {self.found:,}, {verdict}"


def check_data(recipe: str, spec: str) -> tuple[list[Count], tuple[Problem, ...]]:
    """What the data at spec (as in `plures train`) hold, beside what the recipe's paper has, read as the recipe reads
    it; and the problems that reading found, missing photographs among them.

    Raises PluresError for an unknown recipe, one without published data sets, and data of a format it has no row for.

    Example:
        >>> check_data("liu2021", "scenes")
        Traceback (most recent call last):
            ...
        plures.errors.PluresError: recipe 'liu2021' is of coco; 'scenes' is read as scenes: name it as in coco:DIR
    """
    options = _of_recipe(recipe)
    name, path = find_format(spec)
    if name not in options:
        known = ", ".join(options)
        if not known:
            raise PluresError(f"recipe '{recipe}' is for data of one's own; no published counts to check")
        example = f"{next(iter(options))}:DIR"
        raise PluresError(f"recipe '{recipe}' is of {known}; '{spec}' is read as {name}: name it as in {example}")
    variant = getattr(formats.make(name, **options[name]), "variant", "")
    train, test, classes = PUBLISHED[name, variant]
    try:
        dataset = read(f"{name}:{path}", skip_bad=True, **options[name])
    except BadData as error:  # nothing of it can be used
        return [Count("train", train, 0), Count("test", test, 0), Count("classes", classes, 0)], tuple(error.problems)
    splits = [] if dataset.splits is None else dataset.splits.tolist()
    counts = [Count(split, number, splits.count(split)) for split, number in (("train", train), ("test", test))]
    return [*counts, Count("classes", classes, len(dataset.classes))], dataset.problems


def _of_recipe(name: str) -> dict[str, dict[str, Any]]:
    """The formats of the recipe's data sets that have published counts, each with its options."""
    recipe = load_recipe(name)
    rows: Iterable[str | None] = recipe.rows or (None,)
    data = [Experiment(**recipe.settings(row)).data for row in rows]
    formats_of = {part.name.partition(":")[0]: dict(part.options) for part in data}
    return {name: options for name, options in formats_of.items() if name in {known for known, _ in PUBLISHED}}
