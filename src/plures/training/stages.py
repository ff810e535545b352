"""What training is about: a stage and the net it trains, the best epoch so far, and who keeps what comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from plures.config import Experiment
from plures.labels import Labels
from plures.scoring.logits import Batches, Net
from plures.training.history import ScoreHistory


@dataclass
class Best:
    """The best epoch so far by the selection metric; epoch -1 before the first."""

    score: float = math.nan
    epoch: int = -1

    def better(self, score: float) -> bool:
        """Whether an epoch with this score becomes the best one. A tie keeps the earlier epoch; where there is
        nothing to select by (nan), the last epoch counts."""
        if math.isnan(score):
            return math.isnan(self.score)
        return math.isnan(self.score) or score > self.score


class Checkpointer(Protocol):
    """What happens at the end of an epoch, outside the loop: scoring, keeping the best weights, writing files."""

    def score(self, net: Net) -> dict[str, float]: ...  # metrics by name; "score" is the one that selects

    def keep_best(self, net: nn.Module) -> None: ...

    def keep_state(self, state: dict[str, Any], record: dict[str, Any]) -> None: ...


@dataclass
class Stage:
    """One stretch of training: what is trained, on which batches, with which settings."""

    name: str
    number: int
    net: nn.Module
    head: nn.Module
    batches: Batches
    train_labels: Labels
    settings: Experiment  # of this stage alone, `Experiment.of`
    in_order: Batches  # the training rows in order, for losses that look at all of them after an epoch
    memory_from: Path | None = None  # file with the label memory to begin with, which `memory_to` wrote
    memory_to: Path | None = None  # file for the label memory of the best epoch, for the next stage
    history: ScoreHistory | None = None
    best: Best = field(default_factory=Best)
