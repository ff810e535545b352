"""Pages of photographs that are alike: groups of copies, and what is most like a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plures.analysis.neighbours import Group, tags_of
from plures.data.dataset import Dataset
from plures.data.photos import Unreadable, to_image
from plures.files import writing
from plures.report.page import render
from plures.report.photos import SIDE, data_uri

GROUPS, MEMBERS = 200, 12  # shown: 20 MB at most


@dataclass(frozen=True)
class Shown:
    """A photograph in the page, with lines of words below it."""

    name: str
    uri: str
    lines: tuple[str, ...]


def write_copies(groups: Sequence[Group], dataset: Dataset, path: Path, sentence: str) -> None:
    """Write the page of groups of copies."""
    shown = []
    for number, group in enumerate(groups[:GROUPS], 1):
        photos = []
        for member in group[:MEMBERS]:
            said = member.kind or ("the first" if member is group[0] else "near another of them")
            alike = f" {member.similarity:.2f}" if member.kind == "near" else ""
            photos.append(photo_of(dataset, member.row, said + alike))
        splits = {"" if dataset.splits is None else str(dataset.splits[m.row]) for m in group} - {""}
        across = f", in {' and '.join(sorted(splits))}" if len(splits) > 1 else ""
        title = f"Group {number}: {len(group):,} photographs{across}"
        shown.append({"title": title, "photos": photos, "more": max(0, len(group) - MEMBERS)})
    _write(path, f"Copies in {dataset.name}", sentence, shown, max(0, len(groups) - GROUPS))


def write_similar(
    asked: Sequence[tuple[str, Any]], found: Sequence[Sequence[tuple[int, float]]], dataset: Dataset, path: Path
) -> None:
    """Write the page of what is most like each of the photographs asked for, given as (name, path or pixels)."""
    shown = []
    for (name, image), rows in zip(asked, found, strict=True):
        photos = [Shown(name, _uri(image), ("asked for",))]
        photos += [photo_of(dataset, row, f"{alike:.2f}") for row, alike in rows]
        shown.append({"title": f"More like {Path(name).name}", "photos": photos, "more": 0})
    _write(path, "More like this", f"From {len(dataset):,} photographs of {dataset.name}, best first.", shown, 0)


def photo_of(dataset: Dataset, row: int, said: str) -> Shown:
    """A photograph of a dataset, its split and its tags."""
    image = dataset.images[row]
    split = "" if dataset.splits is None else str(dataset.splits[row])
    lines = (said, split, ", ".join(tags_of(dataset, row)))
    name = str(image) if isinstance(image, str) else f"row {row}"
    return Shown(name, _uri(image), tuple(filter(None, lines)))


def _uri(image: Any) -> str:
    try:
        return data_uri(to_image(image, SIDE))
    except Unreadable:
        return ""


def _write(path: Path, title: str, sentence: str, groups: list[dict[str, Any]], more: int) -> None:
    context = {"title": title, "sentence": sentence, "groups": groups, "more": more}
    with writing(path) as temporary:
        temporary.write_text(render("alike.html", context), encoding="utf-8")
