"""Pseudo-labels from the scores of a zero-shot model, which lie in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.labels import Labels


def check_scores(loss: str, scores: str, labels: Labels) -> None:
    """Raise PluresError unless the file holds a score for every training label."""
    if not scores:
        raise PluresError(f"loss '{loss}' requires zero-shot scores: scores=FILE.npy, one row per training image")
    try:
        shape = np.load(Path(scores), mmap_mode="r").shape
    except (OSError, ValueError) as error:
        raise PluresError(f"{scores}: not a readable .npy array of scores ({error})") from error
    if shape != labels.values.shape:
        raise PluresError(f"{scores}: scores of shape {shape}, the training labels are {labels.values.shape}")


def pseudo_labels(scores: str, labels: Labels, present_above: float, absent_below: float) -> Tensor:
    """[N, K]: 1 pseudo-present, 0 pseudo-absent, nan no pseudo-label (everywhere if no scores are given)."""
    state = torch.full(labels.values.shape, torch.nan)
    if scores:
        values = torch.from_numpy(np.load(scores))
        state[values < absent_below] = 0.0
        state[values > present_above] = 1.0
    return state
