"""Rows of the same image: merged where they agree, left out where they disagree."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from plures.errors import Problem
from plures.labels import ABSENT, PRESENT


def merge_duplicates(
    images: list[str],
    values: NDArray[np.int8],
    splits: NDArray[np.str_] | None,
    classes: tuple[str, ...],
    numbers: NDArray[np.int64],
    file: str,
) -> tuple[NDArray[np.bool_], list[Problem]]:
    """Merge rows of the same image into the first of them, in place. values: int8 [N, K]; numbers: rows in the file.

    Rows disagree if a class is present in one and absent in another, or if their splits differ; a class that is
    unknown in one takes what the other says; the group is that of the first. None of the rows that disagree is kept,
    as nobody knows which is right. Rows with a code above 1 are marked as bad by the reader and are not kept either.
    Returns keep [N] and problems.
    """
    keep = np.ones(len(images), np.bool_)
    if values.size and values.max() > PRESENT:
        keep = values.max(1) <= PRESENT
    problems: list[Problem] = []
    if len(set(images)) == len(images):
        return keep, problems
    repeated = {image for image, times in Counter(images).items() if times > 1}
    groups: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        if image in repeated and keep[row]:
            groups.setdefault(image, []).append(row)
    for image, rows in groups.items():
        first, last = rows[0], rows[-1]
        merged = values[rows].max(0)  # present over absent over unknown
        clash = np.flatnonzero((merged == PRESENT) & (values[rows] == ABSENT).any(0))
        split_clash = splits is not None and len(set(splits[rows].tolist())) > 1
        keep[rows] = False
        if len(clash) or split_clash:
            what = f"class '{classes[clash[0]]}'" if len(clash) else "the split"
            where = ", ".join(str(numbers[row]) for row in rows[:-1])
            problems.append(
                Problem(file, int(numbers[last]), f"'{image}' disagrees with row {where} on {what}", "rows that agree")
            )
            continue
        values[first] = merged
        keep[first] = True
    return keep, problems
