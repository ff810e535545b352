"""What a loss may know besides outputs and labels (Context), and its memory of the training labels (LabelState)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from plures.errors import PluresError

Need = Literal["embeddings", "attention", "region_logits", "label_state", "views", "changed_logits"]
FROM_TRAINING: frozenset[Need] = frozenset({"label_state", "views", "changed_logits"})  # by the loop, not by a head
OF_REGIONS: frozenset[Need] = frozenset({"attention", "region_logits", "changed_logits"})  # require tokens and maps


class LabelState(Protocol):
    """An [N, K] (or [N, K, ...]) memory that a loss keeps about the training labels, one row per training image.

    `rows` gives the rows of a batch; for a learned memory the result is a leaf whose gradient `Loss.step` applies
    after the backward pass. `write` replaces rows at once, without gradient.
    """

    def rows(self, index: Tensor) -> Tensor: ...  # index [B] -> [B, K]

    def write(self, index: Tensor, values: Tensor) -> None: ...  # index [B], values [B, K]


@dataclass(frozen=True)
class Context:
    """What a loss may know besides outputs and labels.

    epoch: 0-based; epochs: how many there will be; progress: share of all training steps done, in [0, 1].
    index: [B], row of each image in the training set; label_state: the memory of a loss that asked for one.
    views: [B, 4], where in its image each input lies after augmentation: left, top, right, bottom in [0, 1], left
      and right exchanged if mirrored; None: the whole image as it is. Regions' boxes are shares of this view.
    changed_logits: [B, K] without gradient, of the inputs that the loss had changed (see Loss.changed_inputs).
    """

    epoch: int = 0
    epochs: int = 1
    progress: float = 0.0
    index: Tensor | None = None
    label_state: LabelState | None = None
    views: Tensor | None = None
    changed_logits: Tensor | None = None


def rows_of(context: Context, name: str) -> Tensor:
    """The memory's rows [B, K] of this batch. Raises PluresError if there is no memory or no index."""
    if context.label_state is None:
        raise PluresError(
            f"loss '{name}' keeps a memory of the training labels and has none yet: criterion ="
            " criterion.bind(train_targets), with targets [N, K] of the whole training set"
        )
    if context.index is None:
        raise PluresError(
            f"loss '{name}' keeps a memory of the training labels: give index=, int64 [B], the row of each image of"
            " the batch in the training set"
        )
    return context.label_state.rows(context.index)


def write_rows(context: Context, values: Tensor) -> None:
    """Replace the memory's rows of this batch by values [B, K]; call after `rows_of`."""
    assert context.label_state is not None
    assert context.index is not None
    context.label_state.write(context.index, values)
