"""One case of every loss worked out on paper: p = 1/2, 3/4, 1/4, the first class present, B = 1, K = 3."""

from dataclasses import dataclass, field
from math import log, sqrt
from typing import Any

L2, L4, L43 = log(2), log(4), log(4 / 3)  # -log of 1/2, 1/4, 3/4


@dataclass(frozen=True)
class Case:
    terms: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)
    others: tuple[int, int] = (-1, -1)  # labels of the second and third class
    state: list[float] | None = None
    epoch: tuple[int, int] = (0, 8)


BY_HAND: dict[str, Case] = {
    "bce": Case({"present": L2 / 3, "absent": (L4 + L43) / 3}, others=(0, 0)),
    "bce_ls": Case(
        {"present": L2 / 3, "absent": (0.8 * L4 + 0.2 * L43 + 0.8 * L43 + 0.2 * L4) / 3},
        {"smoothing": 0.2},
        others=(0, 0),
    ),
    "iu": Case({"present": L2 / 3, "absent": L4 / 3}, others=(0, -1)),
    "pr": Case({"ranking": (1 - 1 / 2 + 3 / 4 + 1 - 1 / 2 + 1 / 4) / 3}),
    "an": Case({"present": L2 / 3, "assumed_absent": 0.5 * (L4 + L43) / 3}, {"negative_weight": 0.5}),
    "an_ls": Case(
        {"present": L2 / 3, "assumed_absent": (0.9 * L4 + 0.1 * L43 + 0.9 * L43 + 0.1 * L4) / 3},
    ),
    "wan": Case({"present": L2 / 3, "assumed_absent": (L4 + L43) / 2 / 3}),
    "epr": Case(
        {"present": L2 / 3, "absent": 0.0, "expected_positives": (1.5 - 2.5) ** 2 / 9}, {"expected_positives": 2.5}
    ),
    # all estimates 1/2: each teaches the other -log 1/2, or the mean of -log p and -log(1 - p)
    "role": Case(
        {
            "present": L2 / 3,
            "absent": 0.0,
            "agreement": (L2 + (L4 + L43) / 2 * 2 + 3 * L2) / 3 / 2,
            "expected_positives": 0.25 / 9,
        },
        {"expected_positives": 1.0},
        state=[0.0, 0.0, 0.0],
    ),
    # embeddings (2, 0), (1, 1), (-1, 0): cosines to the first 1 / sqrt 2 and -1
    "wn": Case({"present": L2 / 3, "weak_negatives": L4 / sqrt(2) / 3, "absent": 0.0}),
}
