"""Several datasets as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plures.data.dataset import Dataset
from plures.labels import ABSENT, UNKNOWN, Labels


def joined(parts: Sequence[tuple[Dataset, str]], name: str, *, complete: bool = False) -> Dataset:
    """One dataset of several of images on the disk, in order.

    Args:
        parts: datasets, each with the split of its rows; "" keeps its own.
        name: what the data call themselves.
        complete: a class that one dataset has and another does not is absent there; else it is unknown.

    Returns:
        The images of all, with the classes of the first, then those that only later ones have; without boxes.
    """
    classes = tuple(dict.fromkeys(one for part, _ in parts for one in part.classes))
    place = {one: column for column, one in enumerate(classes)}
    values = np.full((sum(len(part) for part, _ in parts), len(classes)), ABSENT if complete else UNKNOWN, np.int8)
    images, splits, groups, start = list[str](), list[str](), list[str](), 0
    for part, split in parts:
        values[start : start + len(part), [place[one] for one in part.classes]] = part.labels.values
        images += [str(image) for image in part.images]
        splits += [split] * len(part) if split or part.splits is None else part.splits.tolist()
        groups += [""] * len(part) if part.groups is None else part.groups.tolist()
        start += len(part)
    in_splits, in_groups = (np.array(names, np.str_) if any(names) else None for names in (splits, groups))
    return Dataset(images, Labels(values), classes, in_splits, name=name, groups=in_groups)
