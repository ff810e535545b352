"""One case of every loss worked out on paper: p = 1/2, 3/4, 1/4, the first class present, B = 1, K = 3."""

from dataclasses import dataclass, field
from math import exp, log, log1p, nan, sqrt
from typing import Any

L2, L4, L43 = log(2), log(4), log(4 / 3)  # -log of 1/2, 1/4, 3/4


@dataclass(frozen=True)
class Case:
    terms: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)
    others: tuple[int, int] = (-1, -1)  # labels of the second and third class
    state: list[Any] | None = None
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
    # powers: (1/2)^1, (3/4 - 1/4)^2, 0; logarithms of 1/2, 1 - 1/2, 1
    "asl": Case(
        {"present": L2 / 2 / 3, "assumed_absent": 0.25 * L2 / 3},
        {"gamma_pos": 1.0, "gamma_neg": 2.0, "clip": 0.25},
    ),
    "focal": Case({"present": L2 / 4 / 3, "assumed_absent": (9 / 16 * L4 + 1 / 16 * L43) / 3}),
    "q2l_asl": Case(
        {"present": 1000 * L2 / 3, "assumed_absent": 1000 * (9 / 16 * L4 + 1 / 16 * L43) / 3}, {"eps": 0.0}
    ),
    # the likelier of the two unknown cells is dropped
    "csl": Case({"present": L2 / 3, "absent": 0.0, "unknown": L43 / 256 / 3}, {"selected_per_image": 1}),
    "hill": Case({"present": L2 / 4 / 3, "assumed_absent": (0.75 * 9 / 16 + 1.25 / 16) / 3}, {"margin": 0.0}),
    # 3/4 is above the threshold and becomes present
    "splc": Case(
        {"present": L2 / 4 / 3, "corrected": L43 / 16 / 3, "assumed_absent": L43 / 16 / 3},
        {"margin": 0.0},
        epoch=(1, 8),
    ),
    # k = 1/2 and V = 1 - 0 with these curves; exponent 1 on both sides: k (1 - p) + (1 - k) p = 1/2
    "gr": Case(
        {"present": L2 / 3, "unknown": (0.5 * exp(-1 / 2) + 0.5 * exp(-9 / 2)) / 3, "absent": 0.0},
        {"slope": (0, 0), "offset": (0, 0), "centre": (1, 1), "width": (0.25, 0.25), "q_missing": 1.0},
    ),
    # the same V; the second class pseudo-present, the third pseudo-absent
    "gpr": Case(
        {
            "present": L2 / 3,
            "unknown": 0.0,
            "absent": 0.0,
            "pseudo_labels": ((1 - exp(-1 / 2)) * (0.9 * L43 + 0.1 * L4) + exp(-9 / 2) * L43) / 3,
            "expected_positives": 2 * (1.5 - 2.5) ** 2 / 9,
        },
        {"centre": (1, 1), "width": (0.25, 0.25), "expected_positives": 2.5, "regularisation": 2.0},
        state=[nan, 1.0, 0.0],
    ),
    "gce": Case(
        {"present": 2 * (1 - sqrt(1 / 2)) / 3, "assumed_absent": 2 * (2 - 1 / 2 - sqrt(3 / 4)) / 3}, {"q": 0.5}
    ),
    "em": Case({"present": L2 / 3, "absent": 0.0, "entropy": -0.1 * 2 * (0.75 * L43 + 0.25 * L4) / 3}),
    # the second class has the pseudo-label 1/2
    "em_apl": Case(
        {
            "present": L2 / 3,
            "absent": 0.0,
            "entropy": -0.1 * (0.75 * L43 + 0.25 * L4) / 3,
            "pseudo_labels": 0.2 * (L43 + L4) / 2 / 3,
        },
        state=[nan, 0.5, nan],
    ),
    # one cell of three changes in the third epoch: two thirds would be two
    "ll_r": Case({"present": L2 / 3, "assumed_absent": L43 / 3, "corrected": 0.0}, {"delta_rel": 10.0}, epoch=(2, 8)),
    "ll_ct": Case(
        {"present": L2 / 3, "assumed_absent": L43 / 3, "corrected": L43 / 3}, {"delta_rel": 10.0}, epoch=(2, 8)
    ),
    # the third class was corrected earlier, the second is now
    "ll_cp": Case(
        {"present": (L2 + L4) / 3, "assumed_absent": 0.0, "corrected": L43 / 3},
        {"delta_rel": 10.0},
        state=[0.0, 0.0, 1.0],
        epoch=(2, 8),
    ),
    # the second class pseudo-present, the third left out
    "vlpl": Case(
        {"present": L2 / 3, "absent": 0.0, "entropy": 0.0, "pseudo_labels": 0.7 * (0.9 * L43 + 0.1 * L4) / 3},
        state=[nan, 1.0, 0.0],
    ),
    # the past says that the third class is the likelier one, so the second is the one negative of three less two
    "en": Case(
        {"present": L2 / 3, "absent": 0.0, "expected_absent": L4 / 3},
        {"expected_positives": 2.0},
        state=[0.5, 0.1, 0.9],
    ),
    "en_cl": Case(
        {
            "present": L2 / 3,
            "absent": 0.0,
            "expected_absent": L4 / 3,
            "consistency": 2 * (0.65**2 + 0.65**2) / 3,
        },
        {"expected_positives": 2.0, "consistency": 2.0},
        state=[0.5, 0.1, 0.9],
    ),
    # as en, and the maps of one cell say 1/4, 3/4 and nothing where the regions say 1/2, 3/4 and 1/4
    "en_scl": Case(
        {"present": L2 / 3, "absent": 0.0, "expected_absent": L4 / 3, "consistency": 2 * (1 / 4 + 0 + 0) / 3},
        {"expected_positives": 2.0, "consistency": 2.0, "grid": 1},
        state=[[0.5, 0.25], [0.1, 0.75], [0.9, nan]],
    ),
    # the first class has prior 1/2 though always observed: 1/2 l(+), and 1/2 l(-) is left for the unlabelled
    "nnpu": Case({"present": L2 / 2 / 3, "unlabelled": (L2 / 2 + L4 + L43) / 3}, {"prior": (0.5, 0.5, 0.5)}),
    # a batch of one spreads by nothing, t = .01: q is 1/2, 3^100 / (1 + 3^100), 1 / (1 + 3^100)
    "pu_mlc": Case(
        {
            "present": L2 / 3,
            "unlabelled": (-L2 / 2 - log1p(3.0**-100) - log1p(3.0**100) / (1 + 3.0**100)) / 3,
            "absent": 0.0,
        },
    ),
    # removing the rest takes 1, 2 and 3 of the logits; the observed gap was and is 1 on average; the second class is
    # above its mean logit, half of -2 and ln 3, and is left out, the third is below its own, half of 2 and -ln 3
    "ignore": Case(
        {"present": L2 / 2 + L2 / 2, "assumed_absent": L43 / 2},
        {"momentum": 0.5, "warmup_epochs": 0},
        state=[[0.0, 1.0], [-2.0, 1.0], [2.0, 1.0]],
    ),
    # targets 1 and -1: the logits 0, ln 3 and -ln 3 are 1, 1 + ln 3 and 1 - ln 3 away; the third class is known
    "least_squares": Case(
        {"present": 1 / 3, "absent": (1 - log(3)) ** 2 / 3, "assumed_absent": 0.5 * (1 + log(3)) ** 2 / 3},
        {"target": 1.0, "negative_weight": 0.5},
        others=(-1, 0),
    ),
}
