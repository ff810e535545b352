"""How losses read and write their label state: the [N, K] memory that the training loop hands in the Context."""

from __future__ import annotations

from torch import Tensor

from plures.losses.context import Context


def rows_of(context: Context, name: str) -> Tensor:
    """The state's rows [B, K] of this batch. Raises ValueError if the loop gave no state or no index."""
    if context.label_state is None or context.index is None:
        raise ValueError(f"loss '{name}' remembers labels: give Context(index=..., label_state=LabelMemory(...))")
    return context.label_state.rows(context.index)


def write_rows(context: Context, values: Tensor) -> None:
    """Replace the state's rows of this batch by values [B, K]; call after `rows_of`."""
    assert context.label_state is not None
    assert context.index is not None
    context.label_state.write(context.index, values)
