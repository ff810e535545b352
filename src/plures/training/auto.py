"""`loss=auto`: the loss that plures chooses for these labels and this model, and why.

The choice rests on the tables of docs/choosing.md: one positive per image, three data sets, chosen on validation rows.
"""

from __future__ import annotations

from plures.config import EXACT, Experiment, Part
from plures.labels import Labels


def choose_loss(labels: Labels, experiment: Experiment) -> tuple[Part, str]:
    """The loss for these observed training labels [N, K] in this experiment, and the reason in words."""
    if experiment.optimizer.name == EXACT:
        return Part(name="least_squares"), "it is what optimizer=exact can solve"
    if labels.complete:
        return Part(name="bce"), "every training label is known"
    absent = bool(labels.absent.any())
    what = "some labels are unknown" if absent else "nothing is known to be absent"
    if experiment.head.name == "codebook" and experiment.mode == "end_to_end":
        return Part(name="gr"), f"{what}; end to end, GR lets codebooks leave the plateau where others stay"
    return Part(name="wan"), f"{what}; WAN was best or close to it on all data measured"
