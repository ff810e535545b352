"""Splitting: the cut of the official MLSPL code, and a seeded stratified one for several labels per image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.labels import PRESENT, Labels

_AT_ONCE = 65_536  # rows


def mlspl_split(n: int, fraction: float = 0.2, seed: int = 1200) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of train and of val, exactly as the official MLSPL code cuts n training images (Cole et al. 2021,
    arXiv 2106.09708): a permutation by numpy's legacy generator, its last round(fraction n) are val, both sorted."""
    if not 0 < fraction < 1:
        raise PluresError(f"a validation share is in (0, 1), got {fraction}")
    held_out = int(np.round(fraction * n))
    order = np.random.RandomState(seed).permutation(n).astype(np.int64)
    return np.sort(order[: n - held_out]), np.sort(order[n - held_out :])


def stratified_split(labels: Labels, fractions: dict[str, float], seed: int = 0) -> NDArray[np.str_]:
    """The split's name of each of N rows, [N], so that every class is shared out as the fractions say.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, On the Stratification of Multi-Label Data, ECML
    PKDD): the class with the fewest rows left goes first, its rows to the splits that still want most of it. Done in
    one deal per class rather than row by row, as a split's wish for a class only shrinks while its rows are dealt:
    the outcome of a deal is the same up to rounding, and a million rows of 500 classes take seconds. Rows without a
    present label are dealt last, by the sizes still wanted. fractions: positive, their sum is 1.
    """
    shares = np.array(list(fractions.values()), np.float64)
    if not len(shares) or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise PluresError(f"shares of splits are positive and sum to 1, got {fractions}")
    generator = np.random.default_rng(seed)
    present = np.ascontiguousarray(labels.values.T) == PRESENT  # [K, N]: a class's rows side by side
    left = present.sum(1)  # [K]
    wish = np.outer(shares, left)  # [splits, K]
    room = shares * len(labels)  # [splits]
    of_row = np.full(len(labels), -1, np.int64)
    while (left > 0).any():
        label = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        rows = generator.permutation(np.flatnonzero(present[label] & (of_row < 0)))
        ends = np.cumsum(_deal(len(rows), wish[:, label], room, generator))
        for split, part in enumerate(np.split(rows, ends[:-1])):
            of_row[part] = split
            taken = _present_per_class(labels, part)
            wish[split] -= taken
            left = left - taken
            room[split] -= len(part)
    rest = generator.permutation(np.flatnonzero(of_row < 0))
    ends = np.cumsum(_deal(len(rest), room, room, generator))
    for split, part in enumerate(np.split(rest, ends[:-1])):
        of_row[part] = split
    return np.array(list(fractions), np.str_)[of_row]


def _deal(
    rows: int, wish: NDArray[np.float64], room: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """How many of the rows each split gets: in proportion to its wish, what is left by the largest remainders; ties
    go to the split with most room, then by lot."""
    wanted = np.maximum(wish, 0)
    total = wanted.sum()
    exact = rows * (wanted / total if total > 0 else np.full(len(wish), 1 / len(wish)))
    counts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.lexsort((generator.random(len(wish)), -room, -np.round(exact - counts, 9)))
    counts[order[: rows - counts.sum()]] += 1
    return counts


def _present_per_class(labels: Labels, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    total = np.zeros(labels.classes, np.int64)
    for start in range(0, len(rows), _AT_ONCE):
        total += (labels.values[rows[start : start + _AT_ONCE]] == PRESENT).sum(0)
    return total
