"""The noun Labels: what is known of every class in every image: present, absent or unknown.

Also the ways of observing only a part of complete labels, as papers do to simulate single-positive data, and the
counts that describe label data (frequency, imbalance, co-occurrence).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.reprs import as_html, as_text

if TYPE_CHECKING:
    from torch import Tensor

PRESENT, ABSENT, UNKNOWN = 1, 0, -1

Bias = Literal["uniform", "frequency", "size", "center"]


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of N images for K classes. values: int8 [N, K]; read through `.present`, `.absent`, `.unknown`.

    Raises ValueError for another type, another number of dimensions or another code.

    Example:
        >>> import numpy as np
        >>> Labels(np.array([[1, 0, -1]], np.int8)).present
        array([[ True, False, False]])
    """

    values: NDArray[np.int8]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.int8:
            raise ValueError(f"labels are int8 [N, K], got {self.values.dtype} {self.values.shape}")
        if self.values.size and (self.values.min() < UNKNOWN or self.values.max() > PRESENT):
            raise ValueError("labels are 1 (present), 0 (absent) or -1 (unknown), found another code")

    @classmethod
    def from_masks(cls, present: NDArray[np.bool_], absent: NDArray[np.bool_] | None = None) -> Labels:
        """From bool [N, K]: `absent` None means that everything not present is absent (complete labels)."""
        if absent is None:
            return cls(np.where(present, np.int8(PRESENT), np.int8(ABSENT)))
        if (present & absent).any():
            raise ValueError("a label cannot be present and absent at once")
        values = np.full(present.shape, UNKNOWN, np.int8)
        values[absent] = ABSENT
        values[present] = PRESENT
        return cls(values)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> tuple[str, dict[str, str]]:
        kinds = {"present (1)": PRESENT, "absent (0)": ABSENT, "unknown (-1)": UNKNOWN}
        cells = {name: int((self.values == code).sum()) for name, code in kinds.items()}
        shares = {name: f"{n:,} ({n / max(1, self.values.size):.1%})" for name, n in cells.items()}
        return f"Labels of {len(self):,} images for {self.classes:,} classes", shares

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return int(self.values.shape[1])

    @property
    def present(self) -> NDArray[np.bool_]:
        return np.equal(self.values, PRESENT)

    @property
    def absent(self) -> NDArray[np.bool_]:
        return np.equal(self.values, ABSENT)

    @property
    def unknown(self) -> NDArray[np.bool_]:
        return np.equal(self.values, UNKNOWN)

    @property
    def complete(self) -> bool:
        """Whether every cell is known."""
        return not bool((self.values == UNKNOWN).any())

    def take(self, rows: Any) -> Labels:
        """The labels of these rows (indices or a mask)."""
        return Labels(self.values[rows])


@dataclass(frozen=True, eq=False)
class TensorLabels:
    """The labels of a batch, on the device. values: int8 tensor [B, K]; the same masks as Labels."""

    values: Tensor

    @property
    def present(self) -> Tensor:
        return self.values == PRESENT

    @property
    def absent(self) -> Tensor:
        return self.values == ABSENT

    @property
    def unknown(self) -> Tensor:
        return self.values == UNKNOWN


AnyTargets = TypeVar("AnyTargets", "Tensor", NDArray[Any])


def from_positives(targets: AnyTargets) -> AnyTargets:
    """Targets in {0, 1} where 0 means "not observed" -> targets in {1, -1}: present and unknown.

    Much code for single-positive data writes 0 for a label that nobody gave. In plures 0 is a label that is known to
    be absent, which is something else; this is the door between the two.

    Args:
        targets: a tensor or an array of any shape, bool or of any int or float dtype.

    Returns:
        The same kind of thing, int8.

    Raises:
        PluresError: for codes other than 0 and 1.

    Example:
        >>> import numpy as np
        >>> from_positives(np.array([[1, 0, 0]]))
        array([[ 1, -1, -1]], dtype=int8)
    """
    wrong = (targets != PRESENT) & (targets != ABSENT)
    if bool(wrong.any()):
        raise PluresError(f"from_positives takes 1 (present) and 0 (not observed), found {targets[wrong][0].item():g}")
    if isinstance(targets, np.ndarray):
        return np.where(targets == PRESENT, np.int8(PRESENT), np.int8(UNKNOWN))
    return 2 * (targets == PRESENT).char() - 1


# --------------------------------------------------------------------------- observing a part of complete labels


def mask_to_single_positive(
    labels: Labels,
    seed: int = 1200,
    weights: NDArray[np.floating] | None = None,
    num_pos: int = 1,
    num_neg: int = 0,
) -> Labels:
    """Keep one present label per image and hide everything else (rows without a present label keep no positive).

    num_pos, num_neg: how many present and absent labels per image are kept, as many as there are if fewer; -1: all.
    weights None: uniform, drawn exactly as the official MLSPL code does (Cole et al. 2021, arXiv 2106.09708): one
    legacy generator for all rows; in each row the present columns are shuffled and the first num_pos are kept, then
    the other columns are shuffled and the first num_neg that are known to be absent are kept.
    weights [N, K]: the kept label is drawn with probability proportional to its weight among the present ones
    (all weights zero: uniform). Raises PluresError for weights with another number of labels than one.
    """
    for name, number in (("num_pos", num_pos), ("num_neg", num_neg)):
        if not isinstance(number, int) or isinstance(number, bool) or number < -1:
            raise PluresError(f"{name} is a number of labels per image from 0 on, or -1 for all, got {number!r}")
    if weights is not None and (num_pos, num_neg) != (1, 0):
        raise PluresError(f"num_pos={num_pos}, num_neg={num_neg}: a biased draw keeps one positive; use bias=uniform")
    present = labels.present
    values = np.full(labels.values.shape, UNKNOWN, np.int8)
    generator = np.random.RandomState(seed)
    for row in range(len(labels)):
        columns = np.flatnonzero(present[row])
        if weights is None:
            generator.shuffle(columns)
            others = np.flatnonzero(~present[row])
            generator.shuffle(others)
            known = others[labels.absent[row, others]]
            values[row, columns[: None if num_pos == -1 else num_pos]] = PRESENT
            values[row, known[: None if num_neg == -1 else num_neg]] = ABSENT
        elif len(columns):
            weight = np.asarray(weights[row, columns], np.float64)
            total = weight.sum()
            chance = weight / total if total > 0 else None
            values[row, generator.choice(columns, p=chance)] = PRESENT
    return Labels(values)


def mask_to_fraction(labels: Labels, fraction: float, seed: int = 1200) -> Labels:
    """Keep each known cell, present or absent, with this probability in (0, 1]; hide the rest."""
    if not 0 < fraction <= 1:
        raise PluresError(f"a fraction of labels is in (0, 1], got {fraction}")
    keep = np.random.default_rng(seed).random(labels.values.shape, dtype=np.float32) < fraction
    return Labels(np.where(keep, labels.values, np.int8(UNKNOWN)))


def mask_all(labels: Labels) -> Labels:
    """Hide everything."""
    return Labels(np.full(labels.values.shape, UNKNOWN, np.int8))


def complete(labels: Labels) -> Labels:
    """The labels as they are, which must be complete. Raises PluresError if a cell is unknown."""
    if not labels.complete:
        raise PluresError(
            f"supervision=full requires complete labels, but {int(labels.unknown.sum()):,} of"
            f" {labels.values.size:,} are unknown; use supervision=as_given, or read the data as complete"
            " (data.complete=true) if an untagged class is really absent"
        )
    return labels


# ------------------------------------------------------------------------------------------------ describing them


@dataclass(frozen=True, eq=False)
class Counts:
    """What labels look like. Per class int [K]: present, absent, unknown; scalars as named.

    imbalance: images of the most frequent class per image of the least frequent one that occurs at all.
    per_image: mean number of present labels per image; per_image_histogram[i]: images with i present labels.
    """

    present: NDArray[np.int64]
    absent: NDArray[np.int64]
    unknown: NDArray[np.int64]
    per_image: float
    per_image_histogram: NDArray[np.int64]
    imbalance: float
    known_share: float


def count(labels: Labels) -> Counts:
    """Count the labels; an empty set gives nan where a mean is undefined."""
    present = labels.present
    per_class = present.sum(0)
    occurring = per_class[per_class > 0]
    per_row = present.sum(1)
    return Counts(
        present=per_class,
        absent=labels.absent.sum(0),
        unknown=labels.unknown.sum(0),
        per_image=float(per_row.mean()) if len(labels) else float("nan"),
        per_image_histogram=np.bincount(per_row, minlength=1),
        imbalance=float(occurring.max() / occurring.min()) if len(occurring) else float("nan"),
        known_share=float((~labels.unknown).mean()) if labels.values.size else float("nan"),
    )


def co_occurrence(labels: Labels) -> NDArray[np.float64]:
    """[K, K]: of the images where class i (row) is present, the share where class j (column) is present too.

    Images where j is unknown are left out of that share; nan where no image is left.
    """
    both = np.zeros((labels.classes, labels.classes))
    judged = np.zeros_like(both)
    for start in range(0, len(labels), 65_536):  # in parts: as floats, a million rows of 500 classes are 2 GB
        part = labels.take(slice(start, start + 65_536))
        present = part.present.astype(np.float32)
        both += present.T @ present
        judged += present.T @ (~part.unknown).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(judged > 0, both / judged, np.nan)
