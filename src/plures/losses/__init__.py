"""Losses: one file per paper, found by the paper's own short name. See `context.py` for what a loss is."""

from plures.losses.context import Context, LabelState, Loss, losses

__all__ = ["Context", "LabelState", "Loss", "losses"]
