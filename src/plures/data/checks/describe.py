"""Describing data: how many images and tags, and how much of the three problems of multi-label training they have.

The problems: labels that are correlated, classes that are far from equally frequent, and supervision that is sparse.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from plures.data.dataset import Dataset
from plures.errors import Problem, grouped, printable
from plures.labels import Counts, co_occurrence, count

PAIRS = 10  # of the most correlated classes
FEW = 5  # images that show a pair before its lift is worth naming
OFTEN = 2.0  # lift from which a pair counts as correlated
ROWS_SHOWN = 30  # classes in the printed table, problems below it


@dataclass(frozen=True)
class Pair:
    """Two classes that occur together in `images` images; both ways round, the share of the one's images that show
    the other; lift: how many times more often together than if they were independent."""

    first: str
    second: str
    images: int
    second_given_first: float
    first_given_second: float
    lift: float


@dataclass(frozen=True, eq=False)
class Description:
    """What a dataset looks like. co_occurrence: [K, K] as `plures.labels.co_occurrence`; without_tag: images with no
    present label; pairs: those of the highest lift, best first; correlated: how many pairs have a lift of 2 or more;
    groups: a line on groups of images and the splits that divide them, "" without any."""

    name: str
    images: int
    classes: tuple[str, ...]
    splits: dict[str, int]
    counts: Counts
    without_tag: int
    boxes: int | None
    co_occurrence: NDArray[np.float64]
    pairs: tuple[Pair, ...]
    correlated: int
    problems: tuple[Problem, ...]
    groups: str = ""


def describe(dataset: Dataset) -> Description:
    """Count and correlate the labels of a dataset."""
    counts = count(dataset.labels)
    together = co_occurrence(dataset.labels)
    pairs, correlated = _pairs(dataset.classes, counts, together)
    return Description(
        name=dataset.name,
        images=len(dataset),
        classes=dataset.classes,
        splits={} if dataset.splits is None else dict(sorted(Counter(dataset.splits.tolist()).items())),
        counts=counts,
        without_tag=int(counts.per_image_histogram[0]) if len(dataset) else 0,
        boxes=None if dataset.boxes is None else len(dataset.boxes.row),
        co_occurrence=together,
        pairs=pairs,
        correlated=correlated,
        problems=dataset.problems,
        groups=_groups(dataset),
    )


def _groups(dataset: Dataset) -> str:
    groups = np.array([]) if dataset.groups is None else dataset.groups[dataset.groups != ""]
    if dataset.groups is None or not len(groups):
        return ""
    said = f"{len(np.unique(groups)):,} groups of {len(groups):,} images"
    if dataset.splits is None:
        return said
    of: dict[str, set[str]] = {}
    for group, split in zip(dataset.groups.tolist(), dataset.splits.tolist(), strict=True):
        if group and split:
            of.setdefault(group, set()).add(split)
    divided = [(group, splits) for group, splits in of.items() if len(splits) > 1]
    some = ", ".join(f"'{group}' ({', '.join(sorted(splits))})" for group, splits in divided[:3])
    return said + (
        f"; the splits divide {len(divided):,} of them, such as {some}" if divided else "; no split divides one"
    )


def _pairs(classes: tuple[str, ...], counts: Counts, together: NDArray[np.float64]) -> tuple[tuple[Pair, ...], int]:
    """The pairs of the highest lift P(j | i) / P(j), each judged on the images where j is known, and how many pairs
    are correlated."""
    judged = counts.present + counts.absent
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = together / (counts.present / np.maximum(judged, 1))[None, :]
        images = np.rint(np.nan_to_num(together) * counts.present[:, None])  # exact where labels are complete
    lift = np.where(np.isfinite(lift) & (images >= FEW), lift, 0)
    upper = np.triu(lift, 1)
    found = []
    for place in np.argsort(-upper, axis=None, kind="stable")[:PAIRS]:
        i, j = (int(index) for index in np.unravel_index(place, upper.shape))
        if upper[i, j] < OFTEN:
            break
        shares = float(together[i, j]), float(together[j, i])
        found.append(Pair(classes[i], classes[j], int(images[i, j]), *shares, float(upper[i, j])))
    return tuple(found), int((upper >= OFTEN).sum())


# ---------------------------------------------------------------------------------------------------------- in print


def render(description: Description) -> list[RenderableType]:
    """Parts to print with rich, in order: overview, classes, pairs, problems."""
    parts = [_overview(description), _class_table(description)]
    if description.pairs:
        parts.append(_pair_table(description.pairs))
    if description.problems:
        parts.append(problem_table(description.problems))
    return parts


def _overview(d: Description) -> RenderableType:
    counts = d.counts
    present = np.sort(counts.present)[::-1]
    splits = ", ".join(f"{name or '(none)'} {images:,}" for name, images in d.splits.items()) or "none"
    size = f"{d.name or 'data'}: {d.images:,} images, {len(d.classes):,} classes; splits: {splits}"
    if d.boxes is not None:
        size += f"; {d.boxes:,} boxes"
    lines = [_text(size, style="bold")]
    strongest = f"; strongest: {d.pairs[0].first} with {d.pairs[0].second}" if d.pairs else ""
    facts = {
        "label correlation": f"{d.correlated:,} pairs of classes come together at least twice as often as by chance"
        f"{strongest}",
        "class imbalance": f"{counts.imbalance:,.1f} images of the most frequent class for one of the rarest"
        f" ({present[0] if len(present) else 0:,} to {present[present > 0].min() if present.any() else 0:,})",
        "sparse supervision": f"{counts.per_image:.2f} tags per image, {100 * counts.known_share:.1f} % of the labels"
        f" known, {d.without_tag:,} images without a tag",
    }
    if d.groups:
        facts["groups"] = d.groups
    lines += [_text(f"  {name:<19} {fact}") for name, fact in facts.items()]
    return Group(*lines)


def _text(words: str, style: str = "") -> Text:
    """These words and nothing else, whatever a file calls its classes and images."""
    return Text(printable(words), style)


def _class_table(d: Description) -> RenderableType:
    table = Table(title="Classes, most frequent first", title_justify="left")
    for name in ("class", "present", "absent", "unknown"):
        table.add_column(name, justify="left" if name == "class" else "right")
    order = np.argsort(-d.counts.present, kind="stable")
    for column in order[:ROWS_SHOWN].tolist():
        cells = (d.counts.present[column], d.counts.absent[column], d.counts.unknown[column])
        table.add_row(_text(d.classes[column]), *(f"{cell:,}" for cell in cells))
    if len(order) > ROWS_SHOWN:
        table.caption = f"and {len(order) - ROWS_SHOWN:,} rarer classes"
    return table


def _pair_table(pairs: tuple[Pair, ...]) -> RenderableType:
    table = Table(title="Classes that come together", title_justify="left")
    for name in ("a", "b", "images", "b where a", "a where b", "lift"):
        table.add_column(name, justify="left" if len(name) == 1 else "right")
    for pair in pairs:
        shares = (f"{100 * share:.0f} %" for share in (pair.second_given_first, pair.first_given_second))
        table.add_row(_text(pair.first), _text(pair.second), f"{pair.images:,}", *shares, f"{pair.lift:.1f}")
    return table


def problem_table(problems: tuple[Problem, ...], most: int | None = None) -> RenderableType:
    """Every problem with its file and row (the first `most` of them), errors and notices apart."""
    table = Table(title=f"Problems ({len(problems):,})", title_justify="left")
    for name in ("", "file", "row", "what", "expected"):
        table.add_column(name, justify="right" if name == "row" else "left", overflow="fold")
    shown = grouped(problems)
    for problem in shown[:most]:
        row = "" if problem.row is None else f"{problem.row:,}"
        table.add_row(problem.severity, *map(_text, (problem.file, row, problem.what, problem.expected)))
    if most is not None and len(shown) > most:
        table.caption = f"and {len(shown) - most:,} more"
    return table


# ------------------------------------------------------------------------------------------------------- in pictures


def pictures(dataset: Dataset, description: Description, folder: str | Path) -> list[Path]:
    """Write examples.png (images with their tags; not of features) and co_occurrence.png into a folder."""
    from plures.data.checks.plots import co_occurrence_plot, example_sheet

    folder = Path(folder)
    counts = description.counts
    sheet = [] if dataset.features is not None else [example_sheet(dataset, folder / "examples.png")]
    return [*sheet, co_occurrence_plot(description.classes, description.co_occurrence, counts.present, folder)]
