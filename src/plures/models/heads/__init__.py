"""Heads: Tokens -> Output. One file each, found by name."""

from plures.models.heads.base import FitsFeatures, Head, heads

__all__ = ["FitsFeatures", "Head", "heads"]
