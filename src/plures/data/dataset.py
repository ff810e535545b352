"""The noun Dataset: images, their labels, the names of the classes and of the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plures.data.formats.split_names import split_name
from plures.errors import BadData, PluresError, Problem, did_you_mean
from plures.labels import UNKNOWN, Labels
from plures.registry import Registry
from plures.reprs import as_html, as_text, some_names

if TYPE_CHECKING:
    from plures.data.taxonomy import Taxonomy


@dataclass(frozen=True, eq=False)
class Boxes:
    """M boxes of objects. row: [M] image row; column: [M] class; corners: float32 [M, 4], x1 y1 x2 y2 in [0, 1]."""

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    corners: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not (len(self.row) == len(self.column) == len(self.corners)) or self.corners.shape[1:] != (4,):
            raise ValueError(f"boxes disagree: {self.row.shape}, {self.column.shape}, {self.corners.shape}")

    def take(self, rows: NDArray[np.int64], images: int) -> Boxes:
        """The boxes of these image rows, renumbered to their new places."""
        place = np.full(images, -1, np.int64)
        place[rows] = np.arange(len(rows))
        keep = place[self.row] >= 0
        return Boxes(place[self.row[keep]], self.column[keep], self.corners[keep])


@dataclass(frozen=True, eq=False)
class Dataset:
    """N images with labels for K classes.

    images: file paths (str), or uint8 [N, H, W, 3] already in memory (an object array [N] of uint8 [H, W, 3] where
      sizes differ); names where there are features.
    labels: Labels [N, K]; classes: K distinct names in column order.
    splits: the split's name of every row ("train", "val", "test", ...; "" for none), or None if none are known.
    boxes: where the objects are, if known (used to measure localisation and to simulate biased labels).
    name: what the data call themselves in reports; problems: rows left out on reading, with the reason.
    contents: bytes [N], the same for photographs of the same content (`runs/photos.py` fills it in), or None.
    features: float32 [N, D] that stand for the images, such as CLIP's embeddings; then no image is ever opened. None
      where the images are what training looks at.
    taxonomy: of just these classes, where their labels are closed over one (`data/taxonomy.py`), else None.
    groups: the name of the burst or album of every row ("" for none), or None if none are known.

    Example:
        >>> import numpy as np
        >>> labels = Labels(np.array([[1, -1], [-1, 1]], np.int8))
        >>> Dataset(["a.jpg", "b.jpg"], labels, ("cat", "dog")).take([1]).images
        ['b.jpg']
    """

    images: Sequence[str] | NDArray[np.uint8]
    labels: Labels
    classes: tuple[str, ...]
    splits: NDArray[np.str_] | None = None
    boxes: Boxes | None = None
    name: str = ""
    problems: tuple[Problem, ...] = ()
    contents: NDArray[np.bytes_] | None = None
    features: NDArray[np.float32] | None = None
    taxonomy: Taxonomy | None = None
    groups: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but labels for {len(self.labels)}")
        if len(self.classes) != self.labels.classes:
            raise ValueError(f"{len(self.classes)} class names but {self.labels.classes} label columns")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names are not distinct")
        if self.taxonomy is not None and self.taxonomy.classes != self.classes:
            raise ValueError("the taxonomy is of other classes")
        if self.splits is not None and len(self.splits) != len(self.images):
            raise ValueError(f"{len(self.splits)} split names for {len(self.images)} images")
        if self.groups is not None and len(self.groups) != len(self.images):
            raise ValueError(f"{len(self.groups)} group names for {len(self.images)} images")
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != len(self.images)):
            raise ValueError(f"features [N, D] of {len(self.images)} images, got {list(self.features.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        counts = [(self.labels.values == code).sum(0).tolist() for code in (1, 0, -1)]
        rows = zip(self.classes, *(map("{:,}".format, column) for column in counts), strict=True)
        return as_html(*self._shown(), ("class", "present", "absent", "unknown"), rows)

    def _shown(self) -> tuple[str, dict[str, str]]:
        kind = "files" if not self.in_memory else "in memory"
        if self.features is not None:
            kind = f"as features of {self.features.shape[1]:,} numbers"
        labels = ", ".join(f"{value} {name}" for name, value in self.labels._shown()[1].items())
        rows = {"images": f"{len(self):,}, {kind}", "classes": some_names(self.classes), "labels": labels}
        if self.splits is not None:
            rows["splits"] = ", ".join(f"{name} {int((self.splits == name).sum()):,}" for name in self.split_names())
        if self.problems:
            rows["problems"] = f"{len(self.problems):,}, the first: {self.problems[0].what}"
        return f"Dataset {self.name}".rstrip(), rows

    @property
    def in_memory(self) -> bool:
        """Whether the images are no files: arrays, or features that stand for them."""
        return isinstance(self.images, np.ndarray) or self.features is not None

    def split_names(self) -> list[str]:
        """The splits that occur, in alphabetical order."""
        return [] if self.splits is None else [str(s) for s in np.unique(self.splits) if s]

    def take(self, rows: Any) -> Dataset:
        """The dataset of these rows (indices or a bool mask), in this order."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        images = self.images[rows] if isinstance(self.images, np.ndarray) else [self.images[i] for i in rows]
        return replace(
            self,
            images=images,
            labels=self.labels.take(rows),
            splits=None if self.splits is None else self.splits[rows],
            boxes=None if self.boxes is None else self.boxes.take(rows, len(self)),
            contents=None if self.contents is None else self.contents[rows],
            features=None if self.features is None else self.features[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def split(self, name: str) -> Dataset:
        """The rows of one split, in any spelling (valid for val). Raises PluresError if there is no such split."""
        name = name if name in self.split_names() else split_name(name) or name
        if self.splits is None or name not in self.split_names():
            raise PluresError(f"{self.name or 'the data'}: no split '{name}'{did_you_mean(name, self.split_names())}")
        return self.take(self.splits == name)

    def with_labels(self, labels: Labels) -> Dataset:
        return replace(self, labels=labels)

    def with_classes(self, classes: Sequence[str]) -> Dataset:
        """The dataset with these classes beside its own, unknown for every image; without a taxonomy."""
        more = [name for name in classes if name not in self.classes]
        unknown = np.full((len(self), len(more)), UNKNOWN, np.int8)
        labels = Labels(np.concatenate([self.labels.values, unknown], 1)) if more else self.labels
        return replace(self, labels=labels, classes=(*self.classes, *more), taxonomy=None)

    def called(self, row: int) -> str:
        """What to call an image in a message."""
        return f"row {row}" if self.in_memory else str(self.images[row]).rsplit("/", 1)[-1]


def distinct(classes: Sequence[str], file: str | Path) -> tuple[str, ...]:
    """The class names of a file. Raises BadData if one stands there twice."""
    twice = [name for name, times in Counter(classes).items() if times > 1]
    if twice:
        what = f"class '{twice[0]}' stands there more than once"
        raise BadData([Problem(str(file), None, what, "distinct names")], skippable=False)
    return tuple(classes)


class Format(Protocol):
    """A format of data on disk. A registered class: its constructor's options are the reader's options."""

    def recognises(self, path: str) -> bool:
        """Whether this path looks like this format (cheap: names and a few bytes)."""
        ...

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        """Read it. Rows that cannot be used are left out of the Dataset and listed as problems."""
        ...


formats: Registry[Format] = Registry(
    "data format", "plures.data.formats", (), "plures.formats",
    ("a class with recognises(path) and read(path)", lambda made: {"recognises", "read"} <= set(dir(made))),
)  # fmt: skip
