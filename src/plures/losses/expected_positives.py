"""The expected number of present labels per image, which several losses require: given as a number, or "auto".

What "auto" can and cannot know. It sees the observed training labels alone. Where a class has cells known to be
absent, its frequency is present / (present + absent), which is right if cells were observed at random. Where a class
has no absent cell, as in single-positive data, the labels carry no information about it, and the observed frequency is
all there is. So in a single-positive run "auto" gives 1: the number of labels that are certain, a lower bound. Give a
number where one is known or can be guessed from a few photographs.

Not done: taking the number from the model's own predictions while it trains. A regulariser that holds the sum of the
predictions at the sum of the predictions says nothing, and whatever bias the rest of the loss has would confirm itself.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.labels import Labels

ExpectedPositives = float | Literal["auto"]


def class_frequencies(labels: Labels) -> NDArray[np.float64]:
    """[K], the estimated share of images in which each class is present; the observed share is a lower bound."""
    present = labels.present.sum(0)
    known = present + labels.absent.sum(0)
    of = np.where(known > present, known, max(len(labels), 1))
    return np.asarray(present / of, np.float64)


def estimate(labels: Labels) -> float:
    """The estimated number of present labels per image, at least 1."""
    return max(1.0, float(class_frequencies(labels).sum()))


def check_expected(value: ExpectedPositives) -> None:
    """Raise ValueError unless it is "auto" or a positive number."""
    if value != "auto" and not (isinstance(value, int | float) and value > 0):
        raise ValueError(f"expected_positives is a positive number or 'auto', got {value!r}")


def resolved(value: ExpectedPositives) -> float:
    """The number. Raises PluresError if it is still "auto"."""
    if value == "auto":
        raise PluresError(
            "expected_positives is 'auto': call criterion = criterion.bind(train_targets) first, or give a number"
        )
    return value
