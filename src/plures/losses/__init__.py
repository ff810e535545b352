"""Losses as ordinary criteria: one file per paper, each class an nn.Module under the field's own name.

    criterion = plures.losses.WAN()
    loss = criterion(logits, targets)       # targets [B, K] in {1, 0, -1}: present, absent, unknown

See `base.py` for what every loss does, and `losses` for the registry that `Experiment(loss="wan")` reads.
"""

from plures.losses.assume_negative import WAN, AssumeNegative, AssumeNegativeLabelSmoothing
from plures.losses.asymmetric import ASL, Q2LASL, FocalLoss
from plures.losses.base import Loss, losses
from plures.losses.bce import BCE, BCELabelSmoothing, IgnoreUnknown, WeightedBCE
from plures.losses.context import Context, LabelState
from plures.losses.csl import CSL
from plures.losses.em import EM, EMAPL
from plures.losses.epr import EPR
from plures.losses.expected_negative import ExpectedNegatives, ExpectedNegativesCL
from plures.losses.gce import GCE
from plures.losses.gpr import GPR
from plures.losses.gr import GR
from plures.losses.hill import SPLC, Hill
from plures.losses.ignore import IGNORE
from plures.losses.label_memory import LabelMemory
from plures.losses.large_loss import LargeLossCp, LargeLossCt, LargeLossR
from plures.losses.least_squares import LeastSquares
from plures.losses.positive_unlabelled import NNPU, PUMLC
from plures.losses.pr import PairwiseRanking
from plures.losses.role import ROLE
from plures.losses.spatial_consistency import ExpectedNegativesSCL
from plures.losses.vlpl import VLPL
from plures.losses.weak_negatives import WeakNegatives

__all__ = [
    "ASL",
    "BCE",
    "CSL",
    "EM",
    "EMAPL",
    "EPR",
    "GCE",
    "GPR",
    "GR",
    "IGNORE",
    "NNPU",
    "PUMLC",
    "Q2LASL",
    "ROLE",
    "SPLC",
    "VLPL",
    "WAN",
    "AssumeNegative",
    "AssumeNegativeLabelSmoothing",
    "BCELabelSmoothing",
    "Context",
    "ExpectedNegatives",
    "ExpectedNegativesCL",
    "ExpectedNegativesSCL",
    "FocalLoss",
    "Hill",
    "IgnoreUnknown",
    "LabelMemory",
    "LabelState",
    "LargeLossCp",
    "LargeLossCt",
    "LargeLossR",
    "LeastSquares",
    "Loss",
    "PairwiseRanking",
    "WeakNegatives",
    "WeightedBCE",
    "losses",
]
