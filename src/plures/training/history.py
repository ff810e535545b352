"""How a run scored its training cells over its epochs: cells whose given label the model learns late, or never, are
likelier to be labelled wrongly, and unknown cells that it scores high from the start are likelier to be present.

Source: the area under the margin, Pleiss et al. 2020, arXiv 2001.10528, with one logit a cell for the margin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ScoreHistory:
    """The mean of the logits [N, K] over the epochs so far, in evaluation mode. Memory: N x K float32."""

    def __init__(self, rows: int, classes: int) -> None:
        self.total = torch.zeros(rows, classes)
        self.epochs = 0

    def add(self, logits: NDArray[np.floating[Any]]) -> None:
        """Take in the logits [N, K] after one more epoch."""
        self.total += torch.from_numpy(logits)
        self.epochs += 1

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"total": self.total, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.epochs = state["total"], int(state["epochs"])


def mean_logits(state: dict[str, Any] | None) -> NDArray[np.float64] | None:
    """The mean [N, K] that a checkpoint's `history` holds; None where it has none."""
    if not state or not state["epochs"]:
        return None
    return np.asarray(state["total"].double().numpy() / state["epochs"])
